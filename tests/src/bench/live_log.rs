//! How late a line that is written on a host is on the screen.
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::record::{Record, load};
use super::site::Site;
use super::stats::{Samples, percentile};
use super::timed::timed_with;
use crate::lab::Image;

/// As the issue has it.
const GOAL: Duration = Duration::from_millis(200);
/// Between two lines.
const EVERY_MS: u32 = 50;
/// Beside the time that the lines take.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["postern exec", "postern apply"];

/// Lets a command on a host print its clock `lines` times, once every 50 ms, and takes the time at which each line
/// comes out of `postern exec` and of `postern apply`, beside the host and 50 ms away from it.
///
/// Host and machine have the same clock. The time that `date` takes to print what it has read counts as well.
pub fn live_log(image: Image, lines: usize, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rig = super::rig()?;
    let mut record = Record::new("live-log", &rig)?;
    let pause = f64::from(EVERY_MS) / 1000.0;
    let script = format!("i=0; while [ $i -lt {lines} ]; do date +%s%N; sleep {pause}; i=$((i+1)); done");
    for (name, milliseconds) in [("bench-near", 0), ("bench-far", 50)] {
        let site = Site::make(&rig, name, image, Duration::from_millis(milliseconds))?;
        let profile = site.work.join("clock.yaml");
        std::fs::write(
            &profile,
            format!("name: clock\nresources:\n  - command:\n      shell: {script:?}\n    id: clock\n"),
        )
        .context("cannot write the profile")?;
        let profile = profile.display().to_string();
        let mut samples = Samples::new(&NAMES);
        let before = load();
        let ways: [&[&str]; 2] =
            [&["exec", name, "--", "sh", "-c", &script], &["apply", &profile, "-H", name]];
        for (index, args) in ways.into_iter().enumerate() {
            let mut command = rig.command(args);
            command.env_remove("POSTERN_AGENT_BINARY");
            for late in watch(command, lines).with_context(|| format!("{} is no sample", NAMES[index]))? {
                samples.add(index, late);
            }
        }
        record.part(milliseconds, &samples, &[before, load()]);
        writeln!(out, "\nfrom the host's clock to standard output, {milliseconds} ms round trip")?;
        write!(out, "{}", samples.table())?;
        for (index, name) in NAMES.iter().enumerate() {
            let reached =
                if percentile(samples.series(index), 100) <= GOAL { "reached" } else { "not reached" };
            writeln!(out, "{name}: goal {} ms at most: {reached}", GOAL.as_millis())?;
        }
        site.host.destroy()?;
    }
    let file = super::result_file(dir, "live-log.json")?;
    record.save(&file)?;
    writeln!(out, "\nimage {image}; {}; raw samples in {}", record.versions(), file.display())?;
    Ok(())
}

/// How late each line of a command was; an error unless all of them came and it went well.
fn watch(command: Command, lines: usize) -> Result<Vec<Duration>> {
    let deadline = Duration::from_millis(u64::from(EVERY_MS)) * 2 * u32::try_from(lines)? + PATIENCE;
    let (ended, late) = timed_with(command, deadline, lateness)?;
    ensure!(ended.code == Some(0), "exit code {:?}: {}", ended.code, ended.stderr);
    let late = late?;
    ensure!(late.len() == lines, "{} lines came of {lines}: {}", late.len(), ended.stderr);
    Ok(late)
}

fn lateness(stdout: ChildStdout) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the output")?;
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?;
        if let Some(written) = stamp(&line) {
            all.push(now.checked_sub(written).context("a line came before it was written: two clocks")?);
        }
    }
    Ok(all)
}

/// A line that is nothing but nanoseconds since 1970, however far it is indented.
fn stamp(line: &str) -> Option<Duration> {
    let digits = line.trim();
    let is_stamp = digits.len() == 19 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_stamp.then(|| digits.parse().ok().map(Duration::from_nanos)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_is_a_stamp() {
        assert_eq!(stamp("    1700000000000000001"), Some(Duration::from_nanos(1_700_000_000_000_000_001)));
        for other in ["", "170000000000000000", "changed 1700000000000000001", "1700000000000000001 x"] {
            assert_eq!(stamp(other), None, "{other}");
        }
    }

    #[test]
    fn lines_that_do_not_all_come_are_no_sample() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(watch(sh("date +%s%N; date +%s%N"), 2).unwrap().len(), 2);
        assert!(watch(sh("date +%s%N"), 2).is_err());
        assert!(watch(sh("date +%s%N; exit 1"), 1).is_err());
        assert!(watch(sh("echo 9700000000000000000"), 1).is_err());
    }
}
