//! What the files of sysctl.d(5) set at boot: their order, and the lines in them.

use std::collections::BTreeMap;

use postern_proto::spec::sysctl_key;

use crate::sys::{FileKind, Sys, SysError};

/// Where systemd looks, the first that has a file of a name wins.
const DIRECTORIES: [&str; 4] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"];
/// The most that is read of one file, bytes.
const READ_LIMIT: u64 = 1 << 20;
/// The most links from a name to a file.
const LINKS: usize = 8;

/// A line that says something of a setting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The file it is in, as it is named in its directory.
    pub(super) file: String,
    /// From 1.
    pub(super) line: usize,
    /// `None` for a line that keeps it from being set.
    pub(super) value: Option<String>,
}

/// The last line about this setting in files that are read after the one of this name. A line with a pattern
/// never overrules one that names the setting.
pub(super) fn overruled(host: &Sys, ours: &str, key: &str) -> Result<Option<Setting>, SysError> {
    let mut found = None;
    for (name, directory) in files(host)?.range(ours.to_owned()..) {
        if name == ours {
            continue;
        }
        let file = format!("{directory}/{name}");
        if let Some(text) = through(host, &file)?
            && let Some((line, value)) = last(&text, key)
        {
            found = Some(Setting { file, line, value });
        }
    }
    Ok(found)
}

/// File names in the order they are read, each with the directory that wins.
fn files(host: &Sys) -> Result<BTreeMap<String, &'static str>, SysError> {
    let mut files = BTreeMap::new();
    for directory in DIRECTORIES {
        for name in host.list(directory)? {
            if name.ends_with(".conf") && !name.starts_with('.') {
                files.entry(name).or_insert(directory);
            }
        }
    }
    Ok(files)
}

/// The text a name leads to; `None` for a link to nowhere or to `/dev/null`, which masks the name.
fn through(host: &Sys, path: &str) -> Result<Option<String>, SysError> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match host.meta(&path)?.map(|meta| meta.kind) {
            Some(FileKind::File) => {
                let bytes = host.read(&path, READ_LIMIT)?.unwrap_or_default();
                return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
            }
            Some(FileKind::Symlink) => {
                let target = host.link_target(&path)?;
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                path = if target.starts_with('/') { target } else { format!("{directory}/{target}") };
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The last line of a text that names this setting, and what it sets it to.
fn last(text: &str, key: &str) -> Option<(usize, Option<String>)> {
    let named = text.lines().enumerate().filter_map(|(at, line)| {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.strip_prefix('-').unwrap_or(name), Some(value.trim().to_owned())),
            // Only to keep patterns from a setting; without the dash the line is no setting at all.
            None => (line.strip_prefix('-')?, None),
        };
        (sysctl_key(name.trim()) == key).then_some((at + 1, value))
    });
    named.last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_by_table() {
        let key = "net/ipv4/conf/eth0.1/rp_filter";
        let set = |line, value: &str| Some((line, Some(value.to_owned())));
        for (text, want) in [
            ("", None),
            ("net.ipv4.conf.eth0/1.rp_filter=1", set(1, "1")),
            ("  net/ipv4/conf/eth0.1/rp_filter =  1\t2 \n", set(1, "1\t2")),
            ("/net/ipv4/conf/eth0.1/rp_filter = 1", set(1, "1")),
            ("-net.ipv4.conf.eth0/1.rp_filter = 1", set(1, "1")),
            ("- net.ipv4.conf.eth0/1.rp_filter = 1", set(1, "1")),
            ("#net.ipv4.conf.eth0/1.rp_filter = 1", None),
            (" ; net.ipv4.conf.eth0/1.rp_filter = 1", None),
            ("net.ipv4.conf.eth0.1.rp_filter = 1", None),
            ("net.ipv4.conf.*.rp_filter = 1", None),
            ("net.ipv4.conf.eth0/1.rp_filter", None),
            ("net.ipv4.conf.eth0/1.rp_filter =", set(1, "")),
            ("net.ipv4.conf.eth0/1.rp_filter = a=b", set(1, "a=b")),
            ("net.ipv4.conf.eth0/1.rp_filter = 1\nx.y = 2\nnet.ipv4.conf.eth0/1.rp_filter = 3", set(3, "3")),
            ("net.ipv4.conf.eth0/1.rp_filter = 1\n\n-net.ipv4.conf.eth0/1.rp_filter", Some((3, None))),
        ] {
            assert_eq!(last(text, key), want, "{text:?}");
        }
    }

    #[test]
    fn files_by_table() {
        let set = |value: &str| format!("net.core.somaxconn = {value}\n");
        let ours = "90-postern-net.core.somaxconn.conf";
        // Files with their values, links, and which file with which value has the last word.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], Option<(&'a str, &'a str)>);
        let cases: &[Case<'_>] = &[
            (&[], &[], None),
            (&[("etc/sysctl.d/10-a.conf", "1"), ("usr/lib/sysctl.d/50-b.conf", "2")], &[], None),
            (&[("etc/sysctl.d/90-postern-net.core.somaxconn.conf", "1")], &[], None),
            (&[("usr/lib/sysctl.d/99-z.conf", "3")], &[], Some(("/usr/lib/sysctl.d/99-z.conf", "3"))),
            (
                &[("usr/lib/sysctl.d/99-z.conf", "3"), ("run/sysctl.d/95-y.conf", "2")],
                &[],
                Some(("/usr/lib/sysctl.d/99-z.conf", "3")),
            ),
            (
                &[
                    ("usr/lib/sysctl.d/99-z.conf", "1"),
                    ("usr/local/lib/sysctl.d/99-z.conf", "2"),
                    ("run/sysctl.d/99-z.conf", "3"),
                ],
                &[],
                Some(("/run/sysctl.d/99-z.conf", "3")),
            ),
            (
                &[("etc/sysctl.d/99-z.txt", "3"), ("etc/sysctl.d/.99-z.conf", "3"), ("etc/sysctl.conf", "3")],
                &[],
                None,
            ),
            // As Debian 12 has it.
            (
                &[("etc/sysctl.conf", "4")],
                &[("etc/sysctl.d/99-sysctl.conf", "../sysctl.conf")],
                Some(("/etc/sysctl.d/99-sysctl.conf", "4")),
            ),
            // Masked.
            (&[("usr/lib/sysctl.d/99-z.conf", "3")], &[("etc/sysctl.d/99-z.conf", "/dev/null")], None),
            (&[("usr/lib/sysctl.d/99-z.conf", "3")], &[("etc/sysctl.d/99-z.conf", "nowhere")], None),
            (&[], &[("etc/sysctl.d/99-z.conf", "99-z.conf")], None),
        ];
        for (files, links, want) in cases {
            let dir = tempfile::tempdir().unwrap();
            let sys = Sys::rooted(dir.path().to_owned(), String::new());
            let at = |path: &str| {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            for (path, value) in *files {
                std::fs::write(at(path), set(value)).unwrap();
            }
            for (path, target) in *links {
                std::os::unix::fs::symlink(target, at(path)).unwrap();
            }
            let got = overruled(&sys, ours, "net/core/somaxconn").unwrap();
            let want = want.map(|(file, value)| Setting {
                file: file.to_owned(),
                line: 1,
                value: Some(value.to_owned()),
            });
            assert_eq!(got, want, "{files:?} {links:?}");
        }
    }
}
