//! Building the static agent, and checking that it is one.
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cargo::{self, on_path};
use crate::elf::Elf;

/// Uploaded over slow links and kept on small disks.
const SIZE_LIMIT: u64 = 8_000_000;

/// A processor the agent is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// This machine's.
    pub(crate) fn of_this_machine() -> Result<Arch, String> {
        std::env::consts::ARCH.parse()
    }

    fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// `e_machine` in the ELF header.
    fn machine(self) -> u16 {
        match self {
            Arch::X86_64 => 62,
            Arch::Aarch64 => 183,
        }
    }

    /// The variable that tells the controller's build script which agent to embed.
    pub(crate) fn embed_variable(self) -> String {
        format!("POSTERN_AGENT_{}", self.name().to_uppercase())
    }

    fn native(self) -> bool {
        self.name() == std::env::consts::ARCH
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Arch::X86_64, Arch::Aarch64]
            .into_iter()
            .find(|arch| arch.name() == text)
            .ok_or_else(|| format!("no agent is built for `{text}`: x86_64 or aarch64"))
    }
}

/// Which C library is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Libc {
    Musl,
    Glibc,
}

impl fmt::Display for Libc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Libc::Musl => "musl",
            Libc::Glibc => "glibc, crt-static",
        })
    }
}

/// A checked agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) arch: Arch,
    libc: Libc,
    pub(crate) path: PathBuf,
    size: u64,
    sha256: String,
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "agent    {} ({}, static, stripped)\n         {}\n         {}\n         SHA-256 {}",
            self.arch.name(),
            self.libc,
            self.path.display(),
            megabytes(self.size),
            self.sha256
        )
    }
}

/// Builds the agent for `arch` with the profile `agent`; an error when it is not static, stripped and small.
pub(crate) fn build(arch: Arch) -> Result<Agent> {
    let libc = if target_installed(&triple(arch, Libc::Musl))? {
        Libc::Musl
    } else if target_installed(&triple(arch, Libc::Glibc))? {
        Libc::Glibc
    } else {
        bail!(
            "no Rust target for a static agent on {}: `rustup target add {}`",
            arch.name(),
            triple(arch, Libc::Musl)
        );
    };
    let target = triple(arch, libc);
    let mut command = cargo::cargo("build");
    command.args(["--package", "postern-agent", "--bin", "postern-agent", "--profile", "agent"]);
    // Also for this machine's own triple: flags then reach the agent only, not build scripts and macros.
    command.args(["--target", &target]);
    prepare(&mut command, arch, libc, &target)?;
    eprintln!("xtask: building the static agent ({target})");
    let built = cargo::build(command)?;
    let program = built.into_iter().find(|e| e.target == "postern-agent" && e.kind == "bin" && !e.harness);
    check(arch, libc, &program.context("cargo reports no postern-agent")?.path)
}

fn triple(arch: Arch, libc: Libc) -> String {
    let environment = match libc {
        Libc::Musl => "musl",
        Libc::Glibc => "gnu",
    };
    format!("{}-unknown-linux-{environment}", arch.name())
}

/// Whether the toolchain has the standard library for a target.
fn target_installed(target: &str) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    // In the project's folder, where a rust-toolchain.toml would be in force.
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", target]).current_dir(cargo::root());
    let output = command.output().context("cannot start rustc")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // The folder can be there with nothing inside, after a target was removed.
    let library = |name: std::fs::DirEntry| name.file_name().to_string_lossy().starts_with("libstd-");
    Ok(output.status.success() && folder.read_dir().is_ok_and(|mut all| all.any(|e| e.is_ok_and(library))))
}

/// Sets the C compiler, the linker and the flags of the target, unless the user has.
fn prepare(command: &mut Command, arch: Arch, libc: Libc, target: &str) -> Result<()> {
    let under = target.replace('-', "_");
    let user_chose = |name: &str| std::env::var_os(name).is_some();
    let cc_variable = format!("CC_{under}");
    let linker_variable = format!("CARGO_TARGET_{}_LINKER", under.to_uppercase());
    if !arch.native() {
        let gcc = format!("{}-linux-gnu-gcc", arch.name());
        if !user_chose(&cc_variable) && !on_path(&format!("{}-linux-musl-gcc", arch.name())) {
            ensure!(on_path(&gcc), "no C compiler for {target}: install gcc-{}-linux-gnu", arch.name());
            command.env(&cc_variable, &gcc);
        }
        if !user_chose(&linker_variable) && on_path(&gcc) {
            command.env(&linker_variable, &gcc);
        }
    } else if libc == Libc::Musl && !on_path("musl-gcc") && !user_chose(&cc_variable) && !user_chose("CC") {
        // The C and assembler in ring call no C library, so the machine's own compiler does; musl itself comes with
        // the Rust target.
        command.env(&cc_variable, "cc");
    }
    if libc == Libc::Glibc {
        // Only the encoded form wins over RUSTFLAGS, so what the user has set there is carried over.
        let given = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_else(|_| {
            let plain = std::env::var("RUSTFLAGS").unwrap_or_default();
            plain.split_whitespace().collect::<Vec<_>>().join("\u{1f}")
        });
        let ours = "-C\u{1f}target-feature=+crt-static";
        let all = if given.is_empty() { ours.to_owned() } else { format!("{given}\u{1f}{ours}") };
        command.env("CARGO_ENCODED_RUSTFLAGS", all);
    }
    Ok(())
}

fn check(arch: Arch, libc: Libc, path: &Path) -> Result<Agent> {
    let of = || format!("the agent {}", path.display());
    let file = std::fs::read(path).with_context(|| format!("cannot read {}", of()))?;
    Elf::parse(&file).and_then(|elf| elf.require_static(arch.machine())).with_context(of)?;
    let size = file.len() as u64;
    ensure!(
        size <= SIZE_LIMIT,
        "{} has {}, more than the {} allowed",
        of(),
        megabytes(size),
        megabytes(SIZE_LIMIT)
    );
    if arch.native() {
        // With an empty environment: what it needs must be inside.
        let output = Command::new(path).arg("--version").env_clear().output().with_context(of)?;
        ensure!(output.status.success(), "{} does not run here: {}", of(), output.status);
    }
    Ok(Agent { arch, libc, path: path.to_path_buf(), size, sha256: sha256(&file) })
}

/// In hexadecimal.
pub(crate) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_sums_are_as_others_print_them() {
        assert_eq!(megabytes(7_049_999), "7.04 MB");
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn targets_of_the_toolchain_are_told_from_those_it_lacks() {
        assert!(!target_installed("x86_64-unknown-nowhere").unwrap());
        if cfg!(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")) {
            assert!(target_installed("x86_64-unknown-linux-gnu").unwrap());
        }
    }

    #[test]
    fn glibc_keeps_the_users_flags_and_adds_its_own() {
        let mut command = Command::new("cargo");
        let Ok(arch) = Arch::of_this_machine() else { return };
        prepare(&mut command, arch, Libc::Glibc, &triple(arch, Libc::Glibc)).unwrap();
        let flags =
            command.get_envs().find(|(name, _)| *name == "CARGO_ENCODED_RUSTFLAGS").unwrap().1.unwrap();
        assert!(flags.to_string_lossy().ends_with("-C\u{1f}target-feature=+crt-static"), "{flags:?}");
    }
}
