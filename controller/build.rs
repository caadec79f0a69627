//! Puts the agents named by `POSTERN_AGENT_X86_64` and `POSTERN_AGENT_AARCH64` (paths of stripped programs)
//! into the program, compressed. A build without them works too and asks for an agent at run time.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut rows = String::new();
    for (arch, variable) in [("x86_64", "POSTERN_AGENT_X86_64"), ("aarch64", "POSTERN_AGENT_AARCH64")] {
        println!("cargo::rerun-if-env-changed={variable}");
        let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else { continue };
        let path = PathBuf::from(path);
        println!("cargo::rerun-if-changed={}", path.display());
        let row = embed(arch, &path, &out)
            .map_err(|error| format!("{variable}: reading the agent {}: {error}", path.display()))?;
        rows += &row;
    }
    let text = format!(
        "/// Architecture, gzip, SHA-256 of the unpacked bytes.\nconst EMBEDDED: &[(Arch, &[u8], [u8; 32])] = &[{rows}];\n"
    );
    std::fs::write(out.join("agents.rs"), text)?;
    Ok(())
}

fn embed(arch: &str, path: &Path, out: &Path) -> Result<String, Error> {
    let program = std::fs::read(path)?;
    if !program.starts_with(b"\x7fELF") {
        return Err("it is not an ELF program".into());
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&program)?;
    let file = out.join(format!("agent-{arch}.gz"));
    std::fs::write(&file, gzip.finish()?)?;
    let hash: [u8; 32] = sha2::Sha256::digest(&program).into();
    let variant = if arch == "x86_64" { "X86_64" } else { "Aarch64" };
    let mut row = String::new();
    write!(row, "(Arch::{variant}, include_bytes!({:?}), {hash:?}),", file.display().to_string())?;
    Ok(row)
}
