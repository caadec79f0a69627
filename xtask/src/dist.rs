//! `cargo xtask dist`: one self-contained `postern` with the agents inside.
use anyhow::{Context, Result};

use crate::agent::{self, Arch};
use crate::cargo;

pub(crate) fn run(archs: &[Arch]) -> Result<()> {
    let agents = archs.iter().map(|arch| agent::build(*arch)).collect::<Result<Vec<_>>>()?;
    let mut command = cargo::cargo("build");
    command.args(["--package", "postern", "--bin", "postern", "--release", "--locked"]);
    for agent in &agents {
        command.env(agent.arch.embed_variable(), &agent.path);
    }
    eprintln!("xtask: building postern (release)");
    let built = cargo::build(command)?;
    let program = built.into_iter().find(|e| e.target == "postern" && e.kind == "bin" && !e.harness);
    let program = program.context("cargo reports no postern")?.path;

    let folder = cargo::target_dir()?.join("dist");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let result = folder.join("postern");
    // Not over the old file: a running one cannot be written.
    let fresh = folder.join("postern.new");
    std::fs::copy(&program, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, &result).with_context(|| format!("cannot write {}", result.display()))?;

    let file = std::fs::read(&result).with_context(|| format!("cannot read {}", result.display()))?;
    for agent in &agents {
        println!("{agent}");
    }
    println!("postern  {}\n         {}", result.display(), agent::megabytes(file.len() as u64));
    println!("         SHA-256 {}", agent::sha256(&file));
    Ok(())
}
