//! The agents that this program carries, or one that it was pointed at.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use postern_installer::{AgentBinary, Arch};
use sha2::Digest as _;

include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// The largest agent, bytes. One that is built for a release has less than 8 MiB.
const MAX_AGENT: u64 = 256 * 1024 * 1024;

/// Why there is no agent to install.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// This build carries none.
    #[error("this build of postern has no agent inside")]
    Empty,
    /// A file that cannot be read.
    #[error("reading the agent {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is no agent for any host.
    #[error("{} is no agent: {why}", path.display())]
    NotAnAgent {
        /// Which.
        path: PathBuf,
        /// What it is or lacks.
        why: &'static str,
    },
}

/// Agents by architecture.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    agents: Vec<(Arch, AgentBinary)>,
}

impl Bundle {
    /// The agents inside of this program.
    pub fn embedded() -> Result<Self, BundleError> {
        let agent = |(arch, gzip, sha256): &(Arch, &'static [u8], [u8; 32])| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            (*arch, AgentBinary { gzip: Bytes::from_static(gzip), sha256: *sha256, version })
        };
        let agents: Vec<_> = EMBEDDED.iter().map(agent).collect();
        if agents.is_empty() { Err(BundleError::Empty) } else { Ok(Self { agents }) }
    }

    /// No agents, for what installs none.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// One agent from a file, taken for one of this program's version.
    pub fn from_file(path: &Path) -> Result<Self, BundleError> {
        let read = |source| BundleError::Read { path: path.to_owned(), source };
        let mut program = Vec::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(MAX_AGENT + 1).read_to_end(&mut program).map_err(read)?;
        let not = |why| BundleError::NotAnAgent { path: path.to_owned(), why };
        if program.len() as u64 > MAX_AGENT {
            return Err(not("it is larger than 256 MiB"));
        }
        let arch = architecture(&program).map_err(not)?;
        // The fastest level: it is compressed for this one upload.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&program).map_err(read)?;
        let agent = AgentBinary {
            gzip: gzip.finish().map_err(read)?.into(),
            sha256: sha2::Sha256::digest(&program).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Self { agents: vec![(arch, agent)] })
    }

    /// The agent for an architecture, if there is one.
    #[must_use]
    pub fn agent(&self, arch: Arch) -> Option<AgentBinary> {
        self.agents.iter().find(|(its, _)| *its == arch).map(|(_, agent)| agent.clone())
    }
}

/// From the ELF header: class at 4, byte order at 5, machine at 18 (System V ABI, chapter 4).
fn architecture(program: &[u8]) -> Result<Arch, &'static str> {
    if !program.starts_with(b"\x7fELF") {
        return Err("it is not an ELF program");
    }
    match (program.get(4..6), program.get(18..20)) {
        (Some([2, 1]), Some([62, 0])) => Ok(Arch::X86_64),
        (Some([2, 1]), Some([183, 0])) => Ok(Arch::Aarch64),
        _ => Err("it is for another processor than x86_64 and aarch64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_an_agent_of_its_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let mut program = b"\x7fELF\x02\x01\x01".to_vec();
        program.resize(64, 0);
        program[18] = 183;
        std::fs::write(&path, &program).unwrap();
        let bundle = Bundle::from_file(&path).unwrap();
        assert!(bundle.agent(Arch::X86_64).is_none());
        let agent = bundle.agent(Arch::Aarch64).unwrap();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(agent.gzip.as_ref()).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, program);
        assert_eq!(agent.sha256, <[u8; 32]>::from(sha2::Sha256::digest(&program)));
    }

    #[test]
    fn what_is_no_agent_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        assert!(matches!(Bundle::from_file(&path), Err(BundleError::Read { .. })));
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01aaaaaaaaaaaaaaaaaaaa"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(Bundle::from_file(&path), Err(BundleError::NotAnAgent { .. })), "{bytes:?}");
        }
    }
}
