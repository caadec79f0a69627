//! Who holds a lock on a file, from `/proc/locks`: to name the holder, never to end it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::Sys;

/// File systems whose devices in `/proc/locks` are not those of `stat` (overlayfs.h, btrfs_tree.h).
const OTHER_DEVICE: [u64; 2] = [0x794c_7630, 0x9123_683e];

impl Sys {
    /// The first of these files that somebody holds a lock on: the holder, and the file.
    #[must_use]
    pub fn first_lock<'a>(&self, paths: &'a [String]) -> Option<(String, &'a str)> {
        paths.iter().find_map(|path| Some((self.lock_holder(path)?, path.as_str())))
    }

    /// The process that holds a lock on this file, as "PID (command line)".
    #[must_use]
    pub fn lock_holder(&self, path: &str) -> Option<String> {
        let file = self.real(path);
        let meta = fs::metadata(&file).ok()?;
        // Its type has different widths on different architectures.
        let kind = rustix::fs::statfs(&file).map_or(0, |fs| fs.f_type as u64);
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = holder(&locks, meta.dev(), meta.ino(), OTHER_DEVICE.contains(&kind))?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let line: String =
            line.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
        Some(format!("{pid} ({})", if line.is_empty() { "name not known" } else { &line }))
    }
}

/// The process in `/proc/locks` that holds (not: waits for) a lock on the inode. The device is compared too,
/// unless the file system is one that shows another there: then the inode alone must do.
fn holder(locks: &str, dev: u64, inode: u64, any_device: bool) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let mut by_inode = None;
    for line in locks.lines() {
        // 1: POSIX  ADVISORY  WRITE 1234 fd:00:2531452 0 EOF; a waiter has -> after the number.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(pid), Some(place)) = (fields.get(4), fields.get(5)) else { continue };
        let mut place = place.split(':');
        let mut number = |radix| place.next().and_then(|part| u64::from_str_radix(part, radix).ok());
        let (Some(at_major), Some(at_minor), Some(at_inode)) = (number(16), number(16), number(10)) else {
            continue;
        };
        let Ok(pid) = pid.parse() else { continue };
        if at_inode == inode {
            if (at_major, at_minor) == (u64::from(major), u64::from(minor)) {
                return Some(pid);
            }
            by_inode = by_inode.or(any_device.then_some(pid));
        }
    }
    by_inode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_11_the_holder_of_a_lock_is_named() {
        let locks = "1: POSIX  ADVISORY  WRITE 100 08:01:77 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 4242 fe:00:2531452 0 EOF\n\
                     2: -> POSIX  ADVISORY  WRITE 99 fe:00:2531452 0 EOF\n\
                     3: garbage\n4: FLOCK ADVISORY WRITE x y:z 0 EOF\n";
        let dev = rustix::fs::makedev(0xfe, 0);
        let cases = [
            (2531452, false, Some(4242)),
            (2531452, true, Some(4242)),
            (5, true, None),
            // Another file system's inode 77 is another file, except where devices cannot be compared.
            (77, false, None),
            (77, true, Some(100)),
        ];
        for (inode, any_device, want) in cases {
            assert_eq!(holder(locks, dev, inode, any_device), want, "{inode} {any_device}");
        }
    }

    #[test]
    fn trap_11_the_holder_of_a_real_lock_is_this_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("lock")).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        assert_eq!(sys.lock_holder("/lock"), None);
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let holder = sys.lock_holder("/lock").unwrap();
        assert!(holder.starts_with(&format!("{} (", std::process::id())), "{holder}");
        let both = ["/none".to_owned(), "/lock".to_owned()];
        assert_eq!(sys.first_lock(&both), Some((holder, "/lock")));
        assert_eq!(sys.first_lock(&both[..1]), None);
    }
}
