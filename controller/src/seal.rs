//! What is encrypted at rest, and the key file that it is encrypted with.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha): its nonces are long enough to be random. What a ciphertext
//! is of goes in as associated data, so that one cannot be put in the place of another.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use sha2::Digest as _;
use zeroize::Zeroizing;

/// Names a key file that lies elsewhere than in the state directory. It is never made, only read.
pub const KEY_FILE_VARIABLE: &str = "POSTERN_SECRETS_KEY_FILE";
/// The key file in the state directory.
pub const KEY_FILE: &str = "secrets.key";
/// No key file is larger, bytes.
const MAX_KEY_FILE: u64 = 4096;
/// What a sealed text begins with.
const SEALED: &str = "postern-sealed-1";
const NONCE: usize = 24;

/// Why there is no key. Missing, corrupt and wrong are different answers.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is not there, and something is encrypted with it.
    #[error(
        "the key of the secrets is missing: {path} is not there; restore it from a backup, or name the file \
         with {KEY_FILE_VARIABLE}"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It is there and is no key.
    #[error("the key of the secrets in {path} is corrupt: {why}; restore it from a backup")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is another key than the one that was used.
    #[error(
        "the key of the secrets in {path} is the wrong one: it has the id {found}, the state was encrypted \
         with {want}"
    )]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The id of this key.
        found: KeyId,
        /// The id of the key that is wanted.
        want: String,
    },
    /// Others could read it.
    #[error("others can read the key of the secrets in {path} (mode {mode:o}); run chmod 600 on it")]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The disk would not.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Tells keys apart and says nothing about them: the first eight bytes of a hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::ca::hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {self}")
    }
}

/// Something encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// 24 bytes.
    pub nonce: Vec<u8>,
    /// As long as the plaintext, and 16 bytes.
    pub ciphertext: Vec<u8>,
}

/// What was sealed could not be opened: it was changed, moved, or sealed with another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what is encrypted here was changed, or is not what belongs here")]
pub struct Broken;

/// The key. It is wiped from memory when it is dropped.
pub struct SealKey {
    cipher: XChaCha20Poly1305,
    id: KeyId,
    path: PathBuf,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({}, {})", self.id, self.path.display())
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> KeyError + use<> {
    let path = path.to_owned();
    move |source| KeyError::Io { action, path, source }
}

/// Where the key of a state lies: in it, unless another place was named.
#[must_use]
pub fn key_path(state_dir: &Path, elsewhere: Option<&Path>) -> PathBuf {
    elsewhere.map_or_else(|| state_dir.join(KEY_FILE), Path::to_owned)
}

impl SealKey {
    fn from_bytes(key: &[u8; 32], path: &Path) -> Self {
        let mut hash = sha2::Sha256::new();
        hash.update(b"postern secrets key\0");
        hash.update(key);
        let mut id = [0; 8];
        id.copy_from_slice(&hash.finalize()[..8]);
        Self { cipher: XChaCha20Poly1305::new(key.into()), id: KeyId(id), path: path.to_owned() }
    }

    /// Reads a key file; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, KeyError> {
        let corrupt = |why| Err(KeyError::Corrupt { path: path.to_owned(), why });
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io("opening", path))?,
        };
        let meta = file.metadata().map_err(io("reading", path))?;
        if !meta.is_file() {
            return corrupt("it is not a file");
        }
        if meta.mode() & 0o077 != 0 {
            return Err(KeyError::Unsafe { path: path.to_owned(), mode: meta.mode() & 0o777 });
        }
        let mut text = Zeroizing::new(String::new());
        match file.take(MAX_KEY_FILE).read_to_string(&mut text) {
            Err(error) if error.kind() == ErrorKind::InvalidData => return corrupt("it is not text"),
            other => drop(other.map_err(io("reading", path))?),
        }
        match parse(text.trim()) {
            Some(key) => Ok(Some(Self::from_bytes(&key, path))),
            None => corrupt("want 64 hex digits"),
        }
    }

    /// Makes a new key file, for this user only. The caller has made sure that nothing needs an older one.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        let text = Zeroizing::new(format!("{}\n", &*Zeroizing::new(crate::ca::hex(&*key))));
        let scratch = path.with_extension("new");
        match fs::remove_file(&scratch) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("removing", &scratch)(error)),
            _ => {}
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&scratch)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(io("writing", &scratch))?;
        fs::rename(&scratch, path).map_err(io("renaming into place", path))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("syncing", dir))?;
        Ok(Self::from_bytes(&key, path))
    }

    /// Tells it from other keys.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Where it was read.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error when the state was encrypted with a key of another id.
    pub fn check(&self, want: &str) -> Result<(), KeyError> {
        if self.id.to_string() == want {
            return Ok(());
        }
        Err(KeyError::Wrong { path: self.path.clone(), found: self.id, want: want.to_owned() })
    }

    /// Encrypts. `what` names the place where it will lie; it opens only there.
    #[must_use]
    pub fn seal(&self, what: &[u8], plain: &[u8]) -> Sealed {
        let nonce = rand::random::<[u8; NONCE]>();
        let payload = Payload { msg: plain, aad: what };
        // It fails for messages of 256 GiB only; nothing that large comes here.
        let ciphertext = self.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        Sealed { nonce: nonce.to_vec(), ciphertext }
    }

    /// Decrypts.
    pub fn open(&self, what: &[u8], nonce: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Broken> {
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| Broken)?;
        let payload = Payload { msg: ciphertext, aad: what };
        self.cipher.decrypt(&XNonce::from(nonce), payload).map(Zeroizing::new).map_err(|_| Broken)
    }

    /// Encrypts to a text for a file, which says what it is and with which key.
    #[must_use]
    pub fn seal_text(&self, what: &str, plain: &str) -> String {
        let Sealed { mut nonce, ciphertext } = self.seal(what.as_bytes(), plain.as_bytes());
        nonce.extend(ciphertext);
        format!("{SEALED} {} {}\n", self.id, STANDARD.encode(nonce))
    }

    /// Decrypts what [`SealKey::seal_text`] made.
    pub fn open_text(&self, what: &str, text: &str) -> Result<Zeroizing<String>, OpenTextError> {
        let mut words = text.split_whitespace();
        let (Some(SEALED), Some(id), Some(body), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(OpenTextError::Broken(Broken));
        };
        self.check(id)?;
        let body = STANDARD.decode(body).map_err(|_| Broken)?;
        let (nonce, ciphertext) = body.split_at_checked(NONCE).ok_or(Broken)?;
        let mut plain = self.open(what.as_bytes(), nonce, ciphertext)?;
        let text = String::from_utf8(std::mem::take(&mut *plain)).map_err(|_| Broken)?;
        Ok(Zeroizing::new(text))
    }
}

/// Why a sealed text does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenTextError {
    /// It was sealed with another key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is damaged.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// True for what [`SealKey::seal_text`] made.
#[must_use]
pub fn is_sealed_text(text: &str) -> bool {
    text.starts_with(SEALED)
}

fn parse(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() != 64 {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fresh() -> (tempfile::TempDir, PathBuf, SealKey) {
        let dir = tempfile::tempdir().unwrap();
        let path = key_path(dir.path(), None);
        let key = SealKey::create(&path).unwrap();
        (dir, path, key)
    }

    #[test]
    fn opens_only_what_it_sealed_and_only_in_its_place() {
        let (_dir, path, key) = fresh();
        let sealed = key.seal(b"secrets\0db\x001", b"hunter2");
        let again = SealKey::read(&path).unwrap().unwrap();
        assert_eq!(again.id(), key.id());
        let open = |key: &SealKey, what: &[u8], sealed: &Sealed| {
            key.open(what, &sealed.nonce, &sealed.ciphertext).map(|plain| plain.to_vec())
        };
        assert_eq!(open(&again, b"secrets\0db\x001", &sealed), Ok(b"hunter2".to_vec()));
        assert_eq!(open(&again, b"secrets\0db\x002", &sealed), Err(Broken));
        let mut changed = sealed.clone();
        changed.ciphertext[0] ^= 1;
        assert_eq!(open(&again, b"secrets\0db\x001", &changed), Err(Broken));
        let (_other_dir, _, other) = fresh();
        assert_eq!(open(&other, b"secrets\0db\x001", &sealed), Err(Broken));
        assert_ne!(key.seal(b"x", b"same").ciphertext, key.seal(b"x", b"same").ciphertext);
    }

    #[test]
    fn texts_say_whose_they_are() {
        let (_dir, _, key) = fresh();
        let text = key.seal_text("ca/root.key", "PRIVATE");
        assert!(is_sealed_text(&text) && !text.contains("PRIVATE"));
        assert_eq!(&**key.open_text("ca/root.key", &text).unwrap(), "PRIVATE");
        assert!(matches!(key.open_text("ca/agents.key", &text), Err(OpenTextError::Broken(_))));
        let (_other_dir, _, other) = fresh();
        let error = other.open_text("ca/root.key", &text).unwrap_err();
        assert!(matches!(error, OpenTextError::Key(KeyError::Wrong { .. })), "{error}");
        assert!(key.open_text("ca/root.key", "postern-sealed-1 x").is_err());
    }

    #[test]
    fn missing_corrupt_and_unsafe_differ() {
        let (_dir, path, _) = fresh();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(SealKey::read(&path.with_extension("none")).unwrap().is_none());
        let good = fs::read_to_string(&path).unwrap();
        for rubbish in ["", "0", &good[1..], &format!("{good}00"), &good.replace(|_| true, "g")] {
            fs::write(&path, rubbish).unwrap();
            assert!(matches!(SealKey::read(&path), Err(KeyError::Corrupt { .. })), "{rubbish:?}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(SealKey::read(&path), Err(KeyError::Corrupt { .. })));
        fs::write(&path, good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SealKey::read(&path), Err(KeyError::Unsafe { .. })));
    }
}
