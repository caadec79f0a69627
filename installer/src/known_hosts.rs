//! `known_hosts` files: who is on record under which key, and what that says of a key that is offered.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use russh::keys::{Algorithm, HashAlg, PublicKey};

use crate::ssh_config::matches;

/// The largest file that is read, bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A line that speaks of the host.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) marker: Marker,
    pub(crate) key: PublicKey,
    pub(crate) file: PathBuf,
    /// From 1.
    pub(crate) line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    /// A key of the host.
    Plain,
    /// `@cert-authority`.
    Authority,
    /// `@revoked`.
    Revoked,
}

/// What the record says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is on record.
    Known,
    /// The host is not on record.
    Unknown,
    /// The host is on record under another key; where.
    Changed(String),
    /// It is on record as one never to be trusted; where.
    Revoked(String),
    /// Only certificate authorities are on record, which are not supported.
    OnlyAuthority(String),
}

/// `SHA256:…`, as OpenSSH writes it.
pub(crate) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// The name under which a host is on record.
pub(crate) fn record_name(host: &str, port: u16) -> String {
    let host = host.to_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// Every line of a file's text that speaks of `name`. Lines that cannot be parsed are passed over, as
/// OpenSSH does: they may hold key types of a later day.
pub(crate) fn lookup(text: &str, file: &Path, name: &str) -> Vec<Known> {
    text.lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let (marker, hosts, key) = split(line)?;
            let found = names_match(hosts, name);
            found.then(|| Known { marker, key, file: file.to_owned(), line: index + 1 })
        })
        .collect()
}

/// The same over files; one that does not exist is as good as an empty one.
pub(crate) fn lookup_files(files: &[PathBuf], name: &str) -> Result<Vec<Known>, (PathBuf, std::io::Error)> {
    let mut known = Vec::new();
    for file in files {
        let fail = |error| (file.clone(), error);
        match std::fs::metadata(file) {
            Ok(meta) if meta.len() > MAX_FILE => {
                return Err(fail(std::io::Error::other("larger than 16 MiB")));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error)),
        }
        let bytes = std::fs::read(file).map_err(fail)?;
        known.extend(lookup(&String::from_utf8_lossy(&bytes), file, name));
    }
    Ok(known)
}

fn split(line: &str) -> Option<(Marker, &str, PublicKey)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut words = line.split_ascii_whitespace();
    let mut first = words.next()?;
    let marker = match first {
        "@cert-authority" => Marker::Authority,
        "@revoked" => Marker::Revoked,
        _ if first.starts_with('@') => return None,
        _ => Marker::Plain,
    };
    if marker != Marker::Plain {
        first = words.next()?;
    }
    let (algorithm, base64) = (words.next()?, words.next()?);
    let key = PublicKey::from_openssh(&format!("{algorithm} {base64}")).ok()?;
    Some((marker, first, key))
}

fn names_match(hosts: &str, name: &str) -> bool {
    let mut found = false;
    for pattern in hosts.split(',') {
        if let Some(hashed) = pattern.strip_prefix("|1|") {
            found |= hash_matches(hashed, name);
        } else if let Some(negated) = pattern.strip_prefix('!') {
            if matches(negated, name) {
                return false;
            }
        } else {
            found |= matches(pattern, name);
        }
    }
    found
}

fn hash_matches(hashed: &str, name: &str) -> bool {
    let Some((salt, hash)) = hashed.split_once('|') else { return false };
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let Ok(mac) = Hmac::<sha1::Sha1>::new_from_slice(&salt) else { return false };
    mac.chain_update(name).verify_slice(&hash).is_ok()
}

/// What the lines say of a key.
pub(crate) fn judge(known: &[Known], offered: &PublicKey) -> Verdict {
    let place = |entry: &Known| format!("{}:{}", entry.file.display(), entry.line);
    let same = |entry: &&Known| entry.key.key_data() == offered.key_data();
    if let Some(entry) = known.iter().filter(|entry| entry.marker == Marker::Revoked).find(same) {
        return Verdict::Revoked(place(entry));
    }
    let plain = || known.iter().filter(|entry| entry.marker == Marker::Plain);
    if plain().any(|entry| same(&entry)) {
        return Verdict::Known;
    }
    // A host that is on record and proves none of its keys has changed. Algorithms on record are asked for
    // first, so one that still has its old key would have shown that.
    if let Some(entry) = plain()
        .find(|entry| entry.key.algorithm() == offered.algorithm())
        .or_else(|| plain().find(|entry| negotiable(&entry.key.algorithm())))
    {
        return Verdict::Changed(format!(
            "{} has {} {}",
            place(entry),
            entry.key.algorithm().as_str(),
            fingerprint(&entry.key)
        ));
    }
    match known.iter().find(|entry| entry.marker == Marker::Authority) {
        Some(entry) => Verdict::OnlyAuthority(place(entry)),
        None => Verdict::Unknown,
    }
}

fn negotiable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. })
}

/// Puts the algorithms that are on record first, so that a host with several keys shows the known one.
pub(crate) fn order(known: &[Known], usual: &[Algorithm]) -> Vec<Algorithm> {
    let recorded = |algorithm: &Algorithm| {
        known.iter().filter(|entry| entry.marker == Marker::Plain).any(|entry| {
            match (entry.key.algorithm(), algorithm) {
                (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
                (recorded, algorithm) => recorded == *algorithm,
            }
        })
    };
    let (first, rest): (Vec<_>, Vec<_>) = usual.iter().cloned().partition(recorded);
    first.into_iter().chain(rest).collect()
}

/// Appends a confirmed key. The file is made 0600, its directory 0700.
pub(crate) fn append(file: &Path, name: &str, key: &PublicKey) -> std::io::Result<()> {
    if let Some(parent) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let old = match std::fs::read(file) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let key = key.to_openssh().map_err(std::io::Error::other)?;
    let key: Vec<&str> = key.split_ascii_whitespace().take(2).collect();
    let newline = if old.last().is_some_and(|byte| *byte != b'\n') { "\n" } else { "" };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    // One write: another process may append at the same time.
    file.write_all(format!("{newline}{name} {}\n", key.join(" ")).as_bytes())?;
    match file.sync_data() {
        // `UserKnownHostsFile /dev/null`: what cannot be synced has nothing to lose.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use russh::keys::PrivateKey;
    use russh::keys::key::safe_rng;

    use super::*;

    fn key(algorithm: Algorithm) -> PublicKey {
        PrivateKey::random(&mut safe_rng(), algorithm).unwrap().public_key().clone()
    }

    fn ed() -> PublicKey {
        key(Algorithm::Ed25519)
    }

    fn ecdsa() -> PublicKey {
        key(Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 })
    }

    fn text(key: &PublicKey) -> String {
        key.to_openssh().unwrap()
    }

    fn find(file: &str, host: &str, port: u16) -> Vec<Known> {
        lookup(file, Path::new("kh"), &record_name(host, port))
    }

    #[test]
    fn names() {
        let key = text(&ed());
        for (hosts, host, port, want) in [
            ("web", "web", 22, true),
            ("web", "WEB", 22, true),
            ("WEB", "web", 22, true),
            ("web", "web", 2222, false),
            ("[web]:2222", "web", 2222, true),
            ("[web]:2222", "web", 22, false),
            ("a,web,b", "web", 22, true),
            ("*.example.com", "x.example.com", 22, true),
            ("*.example.com,!x.example.com", "x.example.com", 22, false),
            ("192.0.2.?", "192.0.2.7", 22, true),
            ("2001:db8::1", "2001:db8::1", 22, true),
            ("!web", "other", 22, false),
            ("webb", "web", 22, false),
        ] {
            let file = format!("# comment\n\n{hosts} {key} some comment\n");
            assert_eq!(find(&file, host, port).len() == 1, want, "{hosts} for {host}:{port}");
        }
    }

    #[test]
    fn hashed_names() {
        let key = text(&ed());
        let hash = |name: &str| {
            let salt = [7u8; 20];
            let mac = Hmac::<sha1::Sha1>::new_from_slice(&salt).unwrap().chain_update(name).finalize();
            format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(mac.into_bytes()))
        };
        let file =
            format!("{} {key}\n{} {key}\n|1|broken {key}\n|1|a|b {key}\n", hash("web"), hash("[web]:2222"));
        assert_eq!(find(&file, "web", 22)[0].line, 1);
        assert_eq!(find(&file, "web", 2222)[0].line, 2);
        assert!(find(&file, "other", 22).is_empty());
    }

    #[test]
    fn verdicts() {
        let (mine, other, ecdsa) = (ed(), ed(), ecdsa());
        let known = |file: String| find(&file, "web", 22);
        assert_eq!(judge(&[], &mine), Verdict::Unknown);
        assert_eq!(judge(&known(format!("web {}", text(&mine))), &mine), Verdict::Known);
        // Several keys of one type: any of them will do.
        let two = known(format!("web {}\nweb {}", text(&other), text(&mine)));
        assert_eq!(judge(&two, &mine), Verdict::Known);
        assert!(matches!(judge(&known(format!("web {}", text(&other))), &mine),
            Verdict::Changed(place) if place.starts_with("kh:1 has ssh-ed25519 SHA256:")));
        // On record under another type only, and that is what was asked for first.
        assert!(matches!(judge(&known(format!("web {}", text(&ecdsa))), &mine), Verdict::Changed(_)));
        // Revoked wins over everything.
        let revoked = known(format!("web {0}\n@revoked * {0}", text(&mine)));
        assert_eq!(judge(&revoked, &mine), Verdict::Revoked("kh:2".into()));
        assert_eq!(judge(&known(format!("@revoked * {}", text(&other))), &mine), Verdict::Unknown);
        let authority = known(format!("@cert-authority web {}", text(&other)));
        assert_eq!(judge(&authority, &mine), Verdict::OnlyAuthority("kh:1".into()));
        // Lines from a later day, and noise.
        let noise = known("web ssh-new AAAA\nweb\n@what web x y\nweb ssh-ed25519 !!!".into());
        assert_eq!(judge(&noise, &mine), Verdict::Unknown);
    }

    #[test]
    fn algorithms_on_record_come_first() {
        let usual = [
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 },
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        ];
        let known = find(&format!("web {}", text(&ecdsa())), "web", 22);
        let order = order(&known, &usual);
        assert_eq!(order[0], usual[1]);
        assert_eq!(order.len(), 3);
    }

    #[test]
    fn appending() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".ssh/known_hosts");
        let (one, two) = (ed(), ecdsa());
        append(&file, &record_name("web", 2222), &one).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        // A last line without an end is not run into.
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap().trim_end()).unwrap();
        append(&file, "web", &two).unwrap();
        let known = |port| lookup_files(std::slice::from_ref(&file), &record_name("web", port)).unwrap();
        assert_eq!(judge(&known(2222), &one), Verdict::Known);
        assert_eq!(judge(&known(22), &two), Verdict::Known);
        append(Path::new("/dev/null"), "web", &two).unwrap();
        assert!(lookup_files(&[dir.path().to_owned()], "web").is_err());
        assert!(lookup_files(&[dir.path().join("absent")], "web").unwrap().is_empty());
    }
}
