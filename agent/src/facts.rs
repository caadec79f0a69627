//! What the agent says about its host in `Hello`; nothing here is an identity.

use std::path::Path;

use postern_proto::ids::BootId;

use crate::sys::{Memory, Sys};

/// The host as it describes itself. A fact that cannot be read is empty or zero, never a guess.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's host name.
    pub hostname: String,
    /// `ID` of os-release: `debian`.
    pub os_id: String,
    /// `VERSION_ID` of os-release: `12`.
    pub os_version: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// `MemTotal`, bytes.
    pub memory_bytes: u64,
    /// Swap in use, bytes; nothing where the kernel does not say.
    pub swap_bytes: Option<u64>,
    /// Free on the file system of `/`, bytes.
    pub disk_free_bytes: Option<u64>,
    /// Free on the file system of `/var`, bytes.
    pub var_free_bytes: Option<u64>,
    /// Where its SSH server listens; not read from a file.
    pub ssh_ports: Vec<u16>,
}

/// The longest fact that is sent, bytes.
const MAX_FACT: usize = 255;

/// Reads the facts under a root directory: `/` for the host itself.
#[must_use]
pub fn read(root: &Path) -> Facts {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let os = Some(text("etc/os-release")).filter(|it| !it.is_empty());
    let os = os.unwrap_or_else(|| text("usr/lib/os-release"));
    let meminfo = text("proc/meminfo");
    let memory = Memory::parse(&meminfo);
    let host = Sys::rooted(root.to_owned(), String::new());
    let free = |path| host.room(path).ok().map(|room| room.free);
    Facts {
        hostname: shorten(text("proc/sys/kernel/hostname").trim()),
        os_id: os_release(&os, "ID"),
        os_version: os_release(&os, "VERSION_ID"),
        arch: std::env::consts::ARCH.to_owned(),
        memory_bytes: memory.total_kib.saturating_mul(1024),
        // A host without swap says so with a zero.
        swap_bytes: meminfo.contains("SwapTotal:").then(|| memory.swap_kib.saturating_mul(1024)),
        disk_free_bytes: free("/"),
        var_free_bytes: free("/var"),
        ssh_ports: Vec::new(),
    }
}

/// This boot's id as the kernel names it.
pub fn boot_id() -> std::io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(std::io::Error::other)
}

fn shorten(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > MAX_FACT {
            break;
        }
        out.push(c);
    }
    out
}

fn os_release(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    let value = value.unwrap_or_default().trim();
    let quoted = |mark| value.strip_prefix(mark).and_then(|it| it.strip_suffix(mark));
    shorten(quoted('"').or_else(|| quoted('\'')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_debian_host() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n"),
            ("proc/sys/kernel/hostname", "web-1\n"),
            ("proc/meminfo", "MemTotal:        2014496 kB\nMemFree: 1 kB\nSwapTotal:  1024 kB\n"),
            ("var/x", ""),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let facts = read(root.path());
        assert_eq!(
            (facts.hostname.as_str(), facts.os_id.as_str(), facts.os_version.as_str(), facts.memory_bytes),
            ("web-1", "debian", "12", 2_014_496 * 1024)
        );
        assert_eq!(facts.swap_bytes, Some(1 << 20));
        assert!(facts.disk_free_bytes.is_some_and(|free| free > 0), "{facts:?}");
        assert!(facts.var_free_bytes.is_some_and(|free| free > 0), "{facts:?}");
    }

    #[test]
    fn facts_that_cannot_be_read_are_empty() {
        let root = tempfile::tempdir().unwrap();
        let facts = read(&root.path().join("none"));
        assert_eq!(facts, Facts { arch: std::env::consts::ARCH.to_owned(), ..Facts::default() });
    }

    #[test]
    fn a_boot_has_an_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
