//! Compiles the `.proto` files with a pure-Rust compiler, so that nothing but cargo is needed to build.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new("proto");
    let files = ["enrolment", "link", "operator", "run"];
    let paths: Vec<_> = files.iter().map(|f| root.join(format!("postern/v1/{f}.proto"))).collect();
    for path in &paths {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let descriptors = protox::compile(&paths, [root])?;
    // Kept beside the code: the authorisation test walks it, so that a new RPC cannot be forgotten.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
