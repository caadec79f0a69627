//! What is kept beside raw samples, so that they can be judged later: where, when and with which versions.
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::stats::Samples;
use crate::rig::Rig;

/// One run of a benchmark, as it is written to a file.
#[derive(Debug)]
pub(super) struct Record {
    bench: &'static str,
    started_s: u64,
    versions: Map<String, Value>,
    parts: Vec<Value>,
}

impl Record {
    /// Nothing measured yet; the programs under test and the machine's ssh are noted.
    pub(super) fn new(bench: &'static str, rig: &Rig) -> Result<Self> {
        let started_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut record = Record { bench, started_s, versions: Map::new(), parts: Vec::new() };
        record.version("postern", &first_line(rig.command(&["--version"]))?);
        let mut agent = Command::new(rig.agent());
        agent.arg("--version");
        record.version("postern-agent", &first_line(agent)?);
        let mut ssh = Command::new("ssh");
        ssh.arg("-V");
        record.version("ssh", &first_line(ssh)?);
        Ok(record)
    }

    /// Notes one more program.
    pub(super) fn version(&mut self, program: &str, version: &str) {
        self.versions.insert(program.to_owned(), version.into());
    }

    /// The versions as one line for people.
    pub(super) fn versions(&self) -> String {
        let each = self.versions.iter().map(|(name, version)| {
            let version = version.as_str().unwrap_or_default();
            if version.starts_with(name.as_str()) { version.to_owned() } else { format!("{name} {version}") }
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Adds the samples taken through one round-trip time; `load` is the machine's load before each round.
    pub(super) fn part(&mut self, round_trip_ms: u64, samples: &Samples, load: &[f64]) {
        self.parts.push(json!({"round_trip_ms": round_trip_ms, "series": samples.json(), "load": load}));
    }

    /// Writes it all.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let value = json!({
            "schema": "postern/bench/v1",
            "bench": self.bench,
            "started_unix_s": self.started_s,
            "commit": commit(),
            "machine": machine(),
            "versions": self.versions,
            "parts": self.parts,
        });
        let text = serde_json::to_string_pretty(&value).context("cannot write JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The machine's load over the last minute; other work on it shows in every figure.
pub(super) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The commit that was built, with `+` when files differ from it; null outside a checkout.
fn commit() -> Value {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
        command.output().ok().filter(|output| output.status.success()).map(|output| output.stdout)
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    let Some(head) = git(&["rev-parse", "HEAD"]).map(text) else { return Value::Null };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|out| !out.is_empty());
    format!("{head}{}", if changed { "+" } else { "" }).into()
}

fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": field(&read("/proc/cpuinfo"), "model name"),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
    })
}

/// The first line that a program prints, on either output.
pub(super) fn first_line(mut command: Command) -> Result<String> {
    let shown = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot start {shown}"))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned();
    Ok(text)
}
