//! Key files: their public halves for the offer, their private halves for one signature.

use std::path::{Path, PathBuf};

use russh::Signer;
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::api::Console;

/// How often a passphrase is asked for.
const PASSPHRASES: u32 = 3;
/// The largest key file that is read, bytes.
const MAX_KEY: u64 = 256 * 1024;

/// Signs with a key file. The private half is read, and its passphrase asked for, only once the server has
/// said that it would accept the key; it is forgotten with the signature made.
pub(crate) struct KeyFile<'a> {
    pub(crate) path: PathBuf,
    pub(crate) console: &'a dyn Console,
    pub(crate) hash: Option<HashAlg>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error("the connection is closed")]
    Closed,
    #[error("reading {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("the passphrase of {0} was not given")]
    NoPassphrase(PathBuf),
    #[error("the passphrase of {0} is wrong")]
    WrongPassphrase(PathBuf),
    #[error("{0} is no private key we can use: {1}")]
    Unusable(PathBuf, String),
}

impl From<russh::SendError> for KeyFileError {
    fn from(_: russh::SendError) -> Self {
        Self::Closed
    }
}

impl Signer for KeyFile<'_> {
    type Error = KeyFileError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, KeyFileError> {
        let unusable = |why: String| KeyFileError::Unusable(self.path.clone(), why);
        let key = self.load().await?;
        let signature: Signature = match key.key_data() {
            KeypairData::Rsa(pair) => (pair, self.hash).try_sign(&to_sign),
            pair => pair.try_sign(&to_sign),
        }
        .map_err(|error| unusable(error.to_string()))?;
        let mut encoded = Vec::new();
        signature.encode(&mut encoded).map_err(|error| unusable(error.to_string()))?;
        encoded.encode(&mut to_sign).map_err(|error| unusable(error.to_string()))?;
        Ok(to_sign)
    }
}

impl KeyFile<'_> {
    async fn load(&self) -> Result<PrivateKey, KeyFileError> {
        let text = read_key(&self.path).map_err(|error| KeyFileError::Read(self.path.clone(), error))?;
        match decode(&text, None).await {
            Ok(key) => return Ok(key),
            Err(russh::keys::Error::KeyIsEncrypted) => {}
            Err(error) => return Err(KeyFileError::Unusable(self.path.clone(), error.to_string())),
        }
        for _ in 0..PASSPHRASES {
            let prompt = format!("passphrase of {}: ", self.path.display());
            let Some(passphrase) = self.console.secret(&prompt).await else {
                return Err(KeyFileError::NoPassphrase(self.path.clone()));
            };
            if let Ok(key) = decode(&text, Some(passphrase)).await {
                return Ok(key);
            }
        }
        Err(KeyFileError::WrongPassphrase(self.path.clone()))
    }
}

/// Off the runtime's threads: a passphrase is stretched for a good part of a second.
async fn decode(
    text: &Zeroizing<String>,
    passphrase: Option<Zeroizing<String>>,
) -> Result<PrivateKey, russh::keys::Error> {
    let text = text.clone();
    tokio::task::spawn_blocking(move || {
        let passphrase = passphrase.as_ref().map(|text| text.as_str());
        match russh::keys::decode_secret_key(&text, passphrase) {
            // Encrypted PKCS#8 without a passphrase is reported as something else.
            Err(_) if passphrase.is_none() && text.contains("ENCRYPTED") => {
                Err(russh::keys::Error::KeyIsEncrypted)
            }
            result => result,
        }
    })
    .await
    .unwrap_or(Err(russh::keys::Error::CouldNotReadKey))
}

fn read_key(path: &Path) -> std::io::Result<Zeroizing<String>> {
    if std::fs::metadata(path)?.len() > MAX_KEY {
        return Err(std::io::Error::other("too large for a key"));
    }
    std::fs::read_to_string(path).map(Zeroizing::new)
}

/// The public half: from `PATH.pub`, from the open part of an OpenSSH key, or from a key without passphrase.
/// A path that itself is a public key means the agent's private half.
pub(crate) fn public_half(path: &Path) -> Result<PublicKey, std::io::Error> {
    let text = match read_key(path) {
        Ok(text) => text,
        Err(error) if is_missing(&error) => {
            // The private half may be in the agent only.
            return russh::keys::load_public_key(with_suffix(path, ".pub")).map_err(|_| error);
        }
        Err(error) => return Err(error),
    };
    if text.contains("PRIVATE KEY") {
        if let Ok(key) = PrivateKey::from_openssh(text.as_bytes()) {
            return Ok(key.public_key().clone());
        }
        if let Ok(key) = russh::keys::load_public_key(with_suffix(path, ".pub")) {
            return Ok(key);
        }
        return russh::keys::decode_secret_key(&text, None)
            .map(|key| key.public_key().clone())
            .map_err(|error| match error {
                russh::keys::Error::KeyIsEncrypted => std::io::Error::other(
                    "it is encrypted in an old format and its .pub file is missing (make one with ssh-keygen -y)",
                ),
                error => std::io::Error::other(error.to_string()),
            });
    }
    russh::keys::load_public_key(path).map_err(|_| std::io::Error::other("it is not a key"))
}

pub(crate) fn certificate_of(path: &Path) -> Option<Certificate> {
    russh::keys::load_openssh_certificate(with_suffix(path, "-cert.pub")).ok()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}
