//! Who holds a lock on a file, from `/proc/locks`: to name the holder, never to end it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::Sys;

impl Sys {
    /// The process that holds a lock on this file, as "PID (command line)".
    #[must_use]
    pub fn lock_holder(&self, path: &str) -> Option<String> {
        let meta = fs::metadata(self.real(path)).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = holder(&locks, meta.dev(), meta.ino())?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let line: String =
            line.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
        Some(format!("{pid} ({})", if line.is_empty() { "name not known" } else { &line }))
    }
}

/// The process in `/proc/locks` that holds (not: waits for) a lock on the inode. The device is compared too,
/// except that an overlay shows the lower device there: then the inode alone must do.
fn holder(locks: &str, dev: u64, inode: u64) -> Option<u32> {
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
            by_inode.get_or_insert(pid);
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
        assert_eq!(holder(locks, dev, 2531452), Some(4242));
        assert_eq!(holder(locks, dev, 5), None);
        assert_eq!(holder(locks, dev, 77), Some(100));
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
    }
}
