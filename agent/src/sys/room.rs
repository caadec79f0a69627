//! What the host has of memory, swap and disk.

use std::io;
use std::os::unix::fs::MetadataExt as _;

use super::{Sys, SysError};

const MEMINFO: &str = "/proc/meminfo";
const SWAPS: &str = "/proc/swaps";
/// The most that is read of either, bytes.
const LIMIT: u64 = 1 << 20;

/// What the kernel says of memory, KiB; zero where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that programs can have.
    pub total_kib: u64,
    /// What they could get now.
    pub available_kib: u64,
    /// All swap.
    pub swap_kib: u64,
    /// Of it not in use.
    pub swap_free_kib: u64,
}

impl Memory {
    /// From the text of `/proc/meminfo`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            total_kib: field("MemTotal"),
            available_kib: field("MemAvailable"),
            swap_kib: field("SwapTotal"),
            swap_free_kib: field("SwapFree"),
        }
    }
}

/// A line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The file or device.
    pub path: String,
    /// Its size, KiB.
    pub size_kib: u64,
    /// How much of it is in use, KiB.
    pub used_kib: u64,
}

/// The lines of `/proc/swaps`.
fn swaps(text: &str) -> Vec<Swap> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let path = words.next().filter(|path| path.starts_with('/'))?.to_owned();
        let (size, used) = (words.nth(1)?, words.next()?);
        Some(Swap { path, size_kib: size.parse().ok()?, used_kib: used.parse().ok()? })
    };
    text.lines().filter_map(row).collect()
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What programs can still write there, bytes.
    pub free: u64,
    /// Which one it is.
    pub dev: u64,
    /// statfs(2)'s number of its kind.
    pub kind: u64,
}

impl Sys {
    /// Memory and swap.
    pub fn memory(&self) -> Result<Memory, SysError> {
        let text = self.read_through(MEMINFO, LIMIT)?.unwrap_or_default();
        Ok(Memory::parse(&String::from_utf8_lossy(&text)))
    }

    /// All swap that is in use.
    pub fn swaps(&self) -> Result<Vec<Swap>, SysError> {
        let text = self.read_through(SWAPS, LIMIT)?.unwrap_or_default();
        Ok(swaps(&String::from_utf8_lossy(&text)))
    }

    /// The file system that a path is on, links followed.
    pub fn room(&self, path: &str) -> Result<Room, SysError> {
        let real = self.real(path);
        let look = || -> io::Result<Room> {
            let space = rustix::fs::statvfs(&real)?;
            let kind = rustix::fs::statfs(&real)?.f_type;
            Ok(Room {
                free: space.f_bavail.saturating_mul(space.f_frsize),
                dev: std::fs::metadata(&real)?.dev(),
                // A number of 32 bits, whatever the sign of the type it comes in.
                kind: kind as u64 & 0xffff_ffff,
            })
        };
        look().map_err(SysError::file("look at the file system of", path))
    }

    /// Whether every part of a file is on the disk: one with holes is shorter there than it says.
    pub fn is_whole(&self, path: &str) -> Result<bool, SysError> {
        let meta = std::fs::symlink_metadata(self.real(path)).map_err(SysError::file("look at", path))?;
        Ok(meta.blocks().saturating_mul(512) >= meta.len())
    }

    /// A part of a file; shorter where it ends before.
    pub fn peek(&self, path: &str, at: u64, length: usize) -> Result<Vec<u8>, SysError> {
        use std::os::unix::fs::FileExt as _;
        let read = self.open(path).and_then(|file| {
            let mut part = vec![0; length];
            let got = file.read_at(&mut part, at)?;
            part.truncate(got);
            Ok(part)
        });
        read.map_err(SysError::file("read", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let text = "MemTotal:         491520 kB\nMemFree:  1 kB\nMemAvailable:  300000 kB\nSwapTotal:  7 kB\nSwapFree: 5 kB\n";
        let want = Memory { total_kib: 491_520, available_kib: 300_000, swap_kib: 7, swap_free_kib: 5 };
        assert_eq!(Memory::parse(text), want);
        assert_eq!(Memory::parse("MemTotalX: 1 kB\nMemTotal: many\n"), Memory::default());
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/vda2                               partition\t1048572\t\t0\t\t-2\n\
                    /swapfile                               file\t\t65532\t\t12\t\t-3\n";
        let swap = |path: &str, size_kib, used_kib| Swap { path: path.to_owned(), size_kib, used_kib };
        assert_eq!(swaps(text), [swap("/dev/vda2", 1_048_572, 0), swap("/swapfile", 65_532, 12)]);
    }

    #[test]
    fn files_and_their_room() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let room = sys.room("/").unwrap();
        assert!(room.free > 0 && room.dev == std::fs::metadata(dir.path()).unwrap().dev() && room.kind > 0);
        assert!(sys.room("/none").is_err());
        std::fs::File::create(dir.path().join("holes")).unwrap().set_len(1 << 20).unwrap();
        std::fs::write(dir.path().join("whole"), [7; 8192]).unwrap();
        assert!(!sys.is_whole("/holes").unwrap() && sys.is_whole("/whole").unwrap());
        assert_eq!(sys.peek("/whole", 8190, 10).unwrap(), [7, 7]);
        assert_eq!(sys.memory().unwrap(), Memory::default());
        assert_eq!(sys.swaps().unwrap(), []);
    }
}
