//! What an idle agent takes on its host.
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Image;

/// Memory settles after enrolment; looks at it this often.
const EVERY: Duration = Duration::from_secs(5);

/// Prints the resident memory of an idle agent, looked at `samples` times, and the size of its file.
pub fn idle(image: Image, samples: usize, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rig = super::rig()?;
    let host = rig.host("bench-idle", image)?;
    super::up(&rig, &host, &[])?;
    let mut kib = Vec::new();
    for _ in 0..samples {
        pause(EVERY);
        let main = host.sh("systemctl show -p MainPID --value postern-agent.service")?;
        let line = host.sh(&format!("grep VmRSS /proc/{main}/status"))?;
        let value = line.split_whitespace().nth(1).and_then(|v| v.parse::<u64>().ok());
        kib.push(value.with_context(|| format!("cannot read {line:?}"))?);
    }
    let size = std::fs::metadata(rig.agent()).context("cannot look at the agent")?.len();
    let file = super::result_file(dir, "idle.csv")?;
    let lines: String = kib.iter().enumerate().map(|(i, kib)| format!("rss,{i},{kib}\n")).collect();
    std::fs::write(&file, format!("series,index,kib\n{lines}file,0,{}\n", size / 1024))
        .with_context(|| format!("cannot write {}", file.display()))?;
    kib.sort_unstable();
    let median = kib.get(kib.len() / 2).copied().unwrap_or_default();
    writeln!(
        out,
        "idle agent: VmRSS {:.2} MB (goal 8 or less), n={}",
        median as f64 * 1024.0 / 1e6,
        kib.len()
    )?;
    writeln!(out, "its file:   {:.2} MB (goal 8 or less)", size as f64 / 1e6)?;
    writeln!(out, "image {image}; raw samples in {}", file.display())?;
    host.destroy()?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the time without work is what is measured")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
