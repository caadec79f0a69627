//! Benchmarks on lab hosts: samples are taken side by side in one run, kept raw, and never asserted on.
mod bootstrap;
mod idle;
mod stats;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use bootstrap::bootstrap;
pub use idle::idle;
pub use stats::{Samples, median, percentile};

use crate::lab::Lab;
use crate::rig::Rig;

/// The programs under test, where `cargo xtask bench` says they are.
fn rig() -> Result<Rig> {
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

/// A file name for raw samples in `dir`, made if it is not there.
fn result_file(dir: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.join(name))
}
