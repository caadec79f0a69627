//! The file that `site backup` writes: a tar like the controller's own backup, whose first entry names the others with
//! their size and SHA-256. Nothing of it is used before all of it was read and found to be what that says.

use std::io::{self, Read};
use std::path::Path;

use postern_proto::ids::PlanHash;
use postern_proto::parcel::{File, MOST_BYTES, Parcel};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::archive::{self, Entry, HeadError, append};
use crate::cli::error::CliError;

const FORMAT: &str = "postern-site-backup";
const VERSION: u32 = 1;
/// The first entry.
const MANIFEST: &str = "postern-site-backup.json";
/// No file is larger, bytes: its certificates, and what a tar has around them.
const MOST_FILE: u64 = MOST_BYTES as u64 + (1 << 20);

/// What stands at its head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    format: String,
    version: u32,
    /// Which version of the program wrote it.
    postern: String,
    pub(super) created_ms: i64,
    /// Whose certificates they were.
    pub(super) host: String,
    host_id: String,
    files: Vec<Entry>,
}

/// The bytes of such a file.
pub(super) fn write(
    host: &str,
    host_id: &str,
    created_ms: i64,
    parcel: &Parcel,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let entry = |file: &File| Entry {
        path: file.name.clone(),
        bytes: file.content.len() as u64,
        sha256: PlanHash::of(&file.content).to_string(),
    };
    let about = About {
        format: FORMAT.to_owned(),
        version: VERSION,
        postern: env!("CARGO_PKG_VERSION").to_owned(),
        created_ms,
        host: host.to_owned(),
        host_id: host_id.to_owned(),
        files: parcel.files.iter().map(entry).collect(),
    };
    let head = serde_json::to_vec_pretty(&about)?;
    // Room for all of it, a header and what fills it up for each, and the end: what outgrows its place leaves a copy.
    let room = head.len() + parcel.bytes() + 1024 * (parcel.files.len() + 2);
    let mut archive = tar::Builder::new(Vec::with_capacity(room));
    append(&mut archive, MANIFEST, head.len() as u64, &*head)?;
    for file in &parcel.files {
        append(&mut archive, &file.name, file.content.len() as u64, &**file.content)?;
    }
    archive.into_inner().map(Zeroizing::new)
}

/// Reads one from disk.
pub(super) fn read(path: &Path) -> Result<(About, Parcel), CliError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            CliError::usage("not-found", format!("there is no backup {}", path.display()))
                .hint("`postern site backup HOST FILE` writes one")
        }
        _ => CliError::usage("file", format!("reading {}: {error}", path.display())),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MOST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).map_err(|wrong| match wrong {
        Wrong::Corrupt(why) => {
            CliError::usage("backup-corrupt", format!("the backup {} is corrupt: {why}", path.display()))
                .hint("nothing was restored: use another backup")
        }
        Wrong::TooNew(version) => CliError::usage(
            "backup-too-new",
            format!(
                "the backup {} has version {version}, this postern knows {VERSION}: use a newer postern",
                path.display()
            ),
        )
        .hint("nothing was restored"),
    })
}

/// What is wrong with one.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Corrupt(String),
    TooNew(u32),
}

fn parse(bytes: &[u8]) -> Result<(About, Parcel), Wrong> {
    let corrupt = |why: &str| Wrong::Corrupt(why.to_owned());
    let other = || corrupt("it is no backup of the certificates of sites");
    if bytes.len() as u64 > MOST_FILE {
        return Err(corrupt("it is larger than any backup of certificates"));
    }
    let mut archive = tar::Archive::new(bytes);
    let mut entries = archive.entries().map_err(|_| other())?;
    let mut next = || match entries.next() {
        None => Ok(None),
        Some(Err(error)) => Err(Wrong::Corrupt(error.to_string())),
        Some(Ok(mut entry)) => {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let is_file = entry.header().entry_type().is_file();
            let mut content = Zeroizing::new(Vec::new());
            entry.read_to_end(&mut content).map_err(|error| Wrong::Corrupt(error.to_string()))?;
            Ok(Some((name, is_file, content)))
        }
    };
    let head = match next() {
        Ok(Some((name, true, head))) if name == MANIFEST => head,
        _ => return Err(other()),
    };
    let about: About = archive::head(&head, FORMAT, VERSION).map_err(|wrong| match wrong {
        HeadError::Other => other(),
        HeadError::TooNew(version) => Wrong::TooNew(version),
        HeadError::Malformed(error) => Wrong::Corrupt(format!("{MANIFEST}: {error}")),
    })?;
    let mut parcel = Parcel::default();
    for wanted in &about.files {
        let what = &wanted.path;
        let (name, is_file, content) = next()?.ok_or_else(|| corrupt(&format!("{what} is missing")))?;
        if name != *what || !is_file {
            return Err(corrupt(&format!("{what} is not where it should be")));
        }
        let hash = PlanHash::of(&content).to_string();
        if (content.len() as u64, &hash) != (wanted.bytes, &wanted.sha256) {
            return Err(corrupt(&format!("{what} is not what was written")));
        }
        parcel.files.push(File { name, content });
    }
    if next()?.is_some() {
        return Err(corrupt("it has more in it than it says"));
    }
    if parcel.files.is_empty() {
        return Err(corrupt("there is nothing in it"));
    }
    parcel.check().map_err(|error| Wrong::Corrupt(error.to_string()))?;
    Ok((about, parcel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parcel(files: &[(&str, &[u8])]) -> Parcel {
        let file = |(name, content): &(&str, &[u8])| File {
            name: (*name).to_owned(),
            content: Zeroizing::new(content.to_vec()),
        };
        Parcel { files: files.iter().map(file).collect(), left_out: Vec::new() }
    }

    fn sample() -> Vec<u8> {
        write("web1", "id", 7, &parcel(&[("a.json", b"{\"a\": 1}"), ("b", &[9; 700])])).unwrap().to_vec()
    }

    fn wrong(bytes: &[u8]) -> String {
        format!("{:?}", parse(bytes).unwrap_err())
    }

    #[test]
    fn what_is_written_is_read() {
        let (about, back) = parse(&sample()).unwrap();
        assert_eq!((about.host.as_str(), about.created_ms), ("web1", 7));
        assert_eq!(back, parcel(&[("a.json", b"{\"a\": 1}"), ("b", &[9; 700])]));
    }

    #[test]
    fn missing_corrupt_and_too_new_are_three_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let code = |path: &Path| read(path).unwrap_err().code;
        assert_eq!(code(&path), "not-found");
        std::fs::write(&path, "no tar").unwrap();
        assert_eq!(code(&path), "backup-corrupt");
        let newer = String::from_utf8_lossy(&sample()).replace("\"version\": 1", "\"version\": 2");
        assert_ne!(newer.as_bytes(), sample(), "there was no such text");
        // The header's sum is of the header alone, and the length is the same.
        std::fs::write(&path, newer.as_bytes()).unwrap();
        assert_eq!(code(&path), "backup-too-new");
        assert_eq!(code(dir.path()), "file");
    }

    /// T48: nothing that leads out of a volume gets as far as a host.
    #[test]
    fn trap_48_names_and_kinds_are_looked_at() {
        for name in ["x/y", "x y", "very-long"] {
            let name = if name == "very-long" { "x".repeat(200) } else { name.to_owned() };
            let bytes = write("web1", "id", 7, &parcel(&[(&name, b"1")])).unwrap();
            assert!(wrong(&bytes).contains("is no name for a file"), "{name}");
        }
        let manifest = |path: &str| {
            let entry = Entry { path: path.to_owned(), bytes: 0, sha256: PlanHash::of(b"").to_string() };
            let (mut about, _) = parse(&sample()).unwrap();
            about.files = vec![entry];
            serde_json::to_vec(&about).unwrap()
        };
        let mut archive = tar::Builder::new(Vec::new());
        let head = manifest("a.json");
        append(&mut archive, MANIFEST, head.len() as u64, &*head).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "a.json", "/etc/shadow").unwrap();
        assert!(wrong(&archive.into_inner().unwrap()).contains("not where it should be"));
        let mut archive = tar::Builder::new(Vec::new());
        let head = manifest("a.json");
        append(&mut archive, MANIFEST, head.len() as u64, &*head).unwrap();
        assert!(wrong(&archive.into_inner().unwrap()).contains("is missing"));
        assert!(wrong(&write("web1", "id", 7, &parcel(&[])).unwrap()).contains("nothing in it"));
        assert!(wrong(&[&sample()[..sample().len() - 1024], &sample()].concat()).contains("more in it"));
        assert!(wrong(&vec![0; MOST_FILE as usize + 1]).contains("larger"));
        assert!(wrong(b"").contains("no backup"));
    }

    proptest! {
        #[test]
        fn what_was_damaged_is_not_taken_for_whole(at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let (whole, mut bytes) = (parse(&sample()).unwrap(), sample());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // A tar has bytes that say nothing of the files: names of owners, and what fills it up.
            if let Ok((about, parcel)) = parse(&bytes) {
                prop_assert_eq!(&parcel, &whole.1);
                prop_assert_eq!(about.files, whole.0.files);
            }
            if let Ok((_, parcel)) = parse(&sample()[..at]) {
                prop_assert_eq!(parcel, whole.1);
            }
        }
    }
}
