//! Benchmarks on lab hosts: samples are taken side by side in one run, kept raw, and never asserted on. The program
//! is `examples/bench`, which unlike this library may link the controller.
mod baselines;
mod bootstrap;
mod idle;
mod live_log;
mod no_change;
mod provision;
mod record;
mod site;
mod stats;
mod timed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use bootstrap::bootstrap;
pub use idle::idle;
pub use live_log::live_log;
pub use no_change::no_change;
pub use provision::{Way as ProvisionWay, provision};
pub use stats::{Samples, median, percentile};

use crate::lab::{Host, Lab};
use crate::rig::{Rig, finish};

const UP_DEADLINE: Duration = Duration::from_secs(240);

/// The programs under test, where `cargo xtask bench` says they are.
pub fn rig() -> Result<Rig> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .with_context(|| format!("{name} is not set: use `cargo xtask bench`"))
    };
    let (postern, agent) = (variable("POSTERN_TEST_BIN")?, variable("POSTERN_TEST_AGENT")?);
    let mut rig = Rig::with(Lab::open()?, postern, agent)?;
    rig.serve()?;
    Ok(rig)
}

/// `postern up`, with the agent that is embedded, as users have it.
pub fn up(rig: &Rig, host: &Host, more: &[&str]) -> Result<()> {
    let target = format!("root@{}", host.v4);
    let key = host.private_key.display().to_string();
    let fingerprint = host.fingerprint("ssh-ed25519").context("the host has no ed25519 key")?;
    let mut command =
        rig.command(&["up", &target, "--identity", &key, "--host-key", fingerprint, "--name", &host.name]);
    // The rig names a file; packing that at each call would be measured too.
    command.args(more).env_remove("POSTERN_AGENT_BINARY");
    let ended = finish(command, UP_DEADLINE)?;
    ensure!(ended.code == Some(0), "`postern up` failed: {}", ended.stderr);
    Ok(())
}

/// A file name for raw samples in `dir`, made if it is not there.
pub fn result_file(dir: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.join(name))
}
