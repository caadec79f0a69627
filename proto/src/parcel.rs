//! Files of a Docker volume on their way between a host and its operator: how they are packed, sealed and written as
//! text, and what a host says once it has put them back.
//!
//! A parcel is one line of JSON that names the files, then their content, one after the other. It travels sealed
//! (see [`crate::sealed`]) and is never written down in any other way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::sealed::{PrivateKey, PublicKey, SealedError, open, seal};

/// The most that the files of one parcel have together, bytes: some three hundred certificates.
pub const MOST_BYTES: usize = 4 << 20;
/// The most files of one parcel.
pub const MOST_FILES: usize = 64;
/// The most bytes of a sealed parcel that a plan is to carry at a time; as text it has a third more.
pub const PIECE_BYTES: usize = 512 * 1024;
/// The most bytes of a sealed parcel: its files, and what names them.
pub const MOST_SEALED: usize = MOST_BYTES + 256 * 1024;

const FORMAT: &str = "postern-files";
const VERSION: u32 = 1;
const LONGEST_NAME: usize = 128;
const BEGIN: &str = "-----BEGIN POSTERN SEALED FILES-----";
const END: &str = "-----END POSTERN SEALED FILES-----";
/// Of a line of text, as in PEM (RFC 7468, 2).
const LINE: usize = 64;

/// What a parcel is sealed for: what was sealed for one of these cannot be opened as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a host to its operator.
    Backup,
    /// From an operator to a host.
    Restore,
}

impl Way {
    fn info(self, volume: &str) -> Vec<u8> {
        let way = match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
        };
        format!("postern files v1 {way} {volume}").into_bytes()
    }
}

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in the volume; no path.
    pub name: String,
    /// What is in it.
    pub content: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({:?}, {} bytes)", self.name, self.content.len())
    }
}

/// Files of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parcel {
    /// Each name once.
    pub files: Vec<File>,
    /// What was in the volume and is not in here, for people.
    pub left_out: Vec<String>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    files: Vec<Entry>,
    #[serde(default)]
    left_out: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: usize,
}

/// Why there is no parcel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// It is none, or not all of one.
    #[error("{0}")]
    Corrupt(String),
    /// A newer version made it.
    #[error("it has version {0}, this program knows {VERSION}: use a newer one")]
    TooNew(u32),
    /// It has more in it than is carried.
    #[error("{0}")]
    TooLarge(String),
    /// It is not for this key.
    #[error(transparent)]
    Sealed(#[from] SealedError),
}

/// Whether a file may have this name in a parcel: it stays in its directory, is not hidden, and shows as it is.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// A file that is JSON by its name, and not whole.
#[must_use]
pub fn is_broken(name: &str, content: &[u8]) -> bool {
    let json = name.ends_with(".json") && !content.is_empty();
    json && serde_json::from_slice::<serde::de::IgnoredAny>(content).is_err()
}

impl Parcel {
    /// Of all files, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.content.len()).sum()
    }

    /// Refuses names that lead elsewhere or are there twice, files that are not whole, and more than is carried.
    pub fn check(&self) -> Result<(), ParcelError> {
        if self.files.len() > MOST_FILES || self.bytes() > MOST_BYTES {
            return Err(ParcelError::TooLarge(format!(
                "{} files with {} bytes: the limit is {MOST_FILES} with {MOST_BYTES}",
                self.files.len(),
                self.bytes()
            )));
        }
        for (at, File { name, content }) in self.files.iter().enumerate() {
            let why = if !is_name(name) {
                "is no name for a file in a volume"
            } else if self.files.iter().take(at).any(|other| other.name == *name) {
                "is there twice"
            } else if is_broken(name, content) {
                "is no whole JSON"
            } else {
                continue;
            };
            return Err(ParcelError::Corrupt(format!("{name:?} {why}")));
        }
        Ok(())
    }

    fn encode(&self) -> Result<Zeroizing<Vec<u8>>, ParcelError> {
        self.check()?;
        let entry = |file: &File| Entry { name: file.name.clone(), bytes: file.content.len() };
        let head = Head {
            format: FORMAT.to_owned(),
            version: VERSION,
            files: self.files.iter().map(entry).collect(),
            left_out: self.left_out.clone(),
        };
        let head = serde_json::to_vec(&head).map_err(|error| ParcelError::Corrupt(error.to_string()))?;
        // Once and for all: what outgrows its place leaves a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + 1 + self.bytes()));
        bytes.extend_from_slice(&head);
        bytes.push(b'\n');
        self.files.iter().for_each(|file| bytes.extend_from_slice(&file.content));
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ParcelError> {
        let corrupt = |why: &str| ParcelError::Corrupt(format!("it is no parcel of files: {why}"));
        let end =
            bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| corrupt("it has no first line"))?;
        let (head, rest) = bytes.split_at(end);
        let mut rest = rest.get(1..).unwrap_or_default();
        let head: Head = serde_json::from_slice(head).map_err(|error| corrupt(&error.to_string()))?;
        if head.format != FORMAT {
            return Err(corrupt("it says that it is something else"));
        }
        if head.version > VERSION {
            return Err(ParcelError::TooNew(head.version));
        }
        let mut parcel = Self { files: Vec::new(), left_out: head.left_out };
        for Entry { name, bytes } in head.files {
            let (content, after) = rest.split_at_checked(bytes).ok_or_else(|| corrupt("it ends too soon"))?;
            rest = after;
            parcel.files.push(File { name, content: Zeroizing::new(content.to_vec()) });
        }
        if !rest.is_empty() {
            return Err(corrupt("it has more in it than it says"));
        }
        parcel.check()?;
        Ok(parcel)
    }

    /// Seals it. `once` is new randomness for this parcel alone.
    pub fn seal(
        &self,
        way: Way,
        volume: &str,
        to: &PublicKey,
        once: &PrivateKey,
    ) -> Result<Vec<u8>, ParcelError> {
        Ok(seal(to, once, &way.info(volume), &self.encode()?)?)
    }

    /// Opens what [`Parcel::seal`] made.
    pub fn open(way: Way, volume: &str, key: &PrivateKey, sealed: &[u8]) -> Result<Self, ParcelError> {
        Self::decode(&open(key, &way.info(volume), sealed)?)
    }
}

/// Something sealed as lines of text, from which it can be told whether all of it is there.
#[must_use]
pub fn to_text(sealed: &[u8]) -> String {
    let encoded = STANDARD.encode(sealed);
    let mut text = format!("{BEGIN}\n");
    for line in encoded.as_bytes().chunks(LINE) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + END + "\n"
}

/// What [`to_text`] wrote, whatever stands around it.
pub fn from_text(text: &str) -> Result<Vec<u8>, ParcelError> {
    let corrupt = |why: &str| ParcelError::Corrupt(why.to_owned());
    let (_, rest) = text.split_once(BEGIN).ok_or_else(|| corrupt("there is nothing sealed in it"))?;
    let (lines, _) = rest.split_once(END).ok_or_else(|| corrupt("it is cut off: its end is missing"))?;
    let encoded: String = lines.split_ascii_whitespace().collect();
    STANDARD.decode(encoded).map_err(|error| corrupt(&format!("it is not as it was written: {error}")))
}

/// What a host says on one line of JSON once files were put into a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// In the order of the parcel.
    pub files: Vec<RestoredFile>,
    /// What became of the service that reads them at its start.
    pub service: Service,
    /// Why it was not restarted, where it should have been; for people.
    #[serde(default)]
    pub trouble: String,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredFile {
    /// Its name.
    pub name: String,
    /// False where it was there already, just so.
    pub written: bool,
    /// What was there before is called so now.
    #[serde(default)]
    pub kept_as: Option<String>,
}

/// What became of the service that reads the files of a volume at its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Nothing was new to it.
    #[default]
    Unchanged,
    /// It is not there, or nothing of it is to run: it reads them when it starts.
    Absent,
    /// It runs anew, with them.
    Restarted,
    /// It runs as before, without them.
    NotRestarted,
    /// It was to run anew, and whether it does is not known.
    Unknown,
    /// What ran before wrote over a file when it ended: the new one has not read what was put there.
    Overwritten,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::new(Zeroizing::new([byte; 32]))
    }

    fn parcel(files: &[(&str, &[u8])]) -> Parcel {
        let file = |(name, content): &(&str, &[u8])| File {
            name: (*name).to_owned(),
            content: Zeroizing::new(content.to_vec()),
        };
        Parcel { files: files.iter().map(file).collect(), left_out: Vec::new() }
    }

    fn packed(head: &str, rest: &str) -> Result<Parcel, ParcelError> {
        Parcel::decode(format!("{head}\n{rest}").as_bytes())
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5),
            left_out in proptest::collection::vec(".{0,20}", 0..3),
        ) {
            let file = |(at, content): (usize, &Vec<u8>)| File {
                name: format!("f{at}"),
                content: Zeroizing::new(content.clone()),
            };
            let parcel = Parcel { files: contents.iter().enumerate().map(file).collect(), left_out };
            let sealed = parcel.seal(Way::Backup, "v", &key(1).public(), &key(2)).unwrap();
            let text = format!("before\n{}after", to_text(&sealed));
            let back = from_text(&text).unwrap();
            prop_assert_eq!(&back, &sealed);
            prop_assert_eq!(Parcel::open(Way::Backup, "v", &key(1), &back).unwrap(), parcel);
            for (way, volume) in [(Way::Restore, "v"), (Way::Backup, "w")] {
                let refused = Parcel::open(way, volume, &key(1), &sealed);
                prop_assert_eq!(refused, Err(ParcelError::Sealed(SealedError::NotOpened)));
            }
        }

        #[test]
        fn no_text_that_was_cut_is_taken_for_a_whole_one(at in any::<prop::sample::Index>()) {
            let text = to_text(&[7; 200]);
            let at = at.index(text.trim_end().len());
            prop_assert!(from_text(&text[..at]).is_err());
        }
    }

    /// T48: no name leads out of its directory, hides, or shows as another one.
    #[test]
    fn trap_48_names_stay_in_their_directory() {
        for good in ["cloudflare.json", "a", "acme-2_b.json", &"x".repeat(128)] {
            assert!(is_name(good), "{good}");
            assert!(parcel(&[(good, b"{}")]).encode().is_ok());
        }
        let long = "x".repeat(129);
        for bad in
            ["", ".", "..", "../a", "a/b", "/etc/passwd", ".hidden", "a b", "a\nb", "a\0", "é", "a\\b", &long]
        {
            assert!(!is_name(bad), "{bad:?}");
            assert!(parcel(&[(bad, b"")]).encode().is_err(), "{bad:?}");
            let name = serde_json::to_string(bad).unwrap();
            let head = format!(
                "{{\"format\":\"{FORMAT}\",\"version\":1,\"files\":[{{\"name\":{name},\"bytes\":1}}]}}"
            );
            let refused = packed(&head, "x").unwrap_err();
            assert!(refused.to_string().contains("is no name for a file"), "{bad:?}: {refused}");
        }
    }

    #[test]
    fn what_is_no_parcel_is_told() {
        let head = |version: u32, bytes: &str| {
            format!(
                "{{\"format\":\"{FORMAT}\",\"version\":{version},\"files\":[{{\"name\":\"a.json\",\"bytes\":{bytes}}}]}}"
            )
        };
        assert_eq!(packed(&head(1, "2"), "{}").unwrap(), parcel(&[("a.json", b"{}")]));
        assert_eq!(packed(&head(9, "2"), "{}"), Err(ParcelError::TooNew(9)));
        for (head, rest, why) in [
            (head(1, "2"), "{", "ends too soon"),
            (head(1, "2"), "{}x", "more in it"),
            (head(1, "18446744073709551615"), "{}", "ends too soon"),
            (head(1, "-1"), "{}", "no parcel"),
            (head(1, "1"), "{", "no whole JSON"),
            ("{}".to_owned(), "", "no parcel"),
            ("{\"format\":\"x\",\"version\":1,\"files\":[]}".to_owned(), "", "something else"),
        ] {
            let refused = packed(&head, rest).unwrap_err().to_string();
            assert!(refused.contains(why), "{head}: {refused}");
        }
        assert!(Parcel::decode(b"").is_err());
        let twice = parcel(&[("a", b"1"), ("a", b"2")]).check().unwrap_err();
        assert!(twice.to_string().contains("twice"), "{twice}");
        let large = parcel(&[("a", &vec![0; MOST_BYTES + 1])]).check();
        assert!(matches!(large, Err(ParcelError::TooLarge(_))), "{large:?}");
        let all = parcel(&[("a", &vec![0; MOST_BYTES])]);
        assert!(all.seal(Way::Backup, "v", &key(1).public(), &key(2)).unwrap().len() < MOST_SEALED);
    }
}
