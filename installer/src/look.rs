//! Looks at an SSH server from outside without logging in: which of these keys would it take from this user, and
//! does it offer a password? No secret is needed or sent, so whoever answers is not verified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, Handler};
use russh::keys::agent::AgentIdentity;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{MethodKind, SendError};
use tokio::net::TcpStream;

use crate::connect::looking_config;

/// What a server was seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginSeen {
    /// It takes one of the keys from this user.
    pub takes_key: bool,
    /// It takes a password from this user, or asks questions.
    pub takes_password: bool,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No TCP connection.
    #[error("{}", connect_error(.0))]
    Connect(std::io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// No SSH.
    #[error("the SSH handshake failed: {0}")]
    Ssh(#[from] russh::Error),
    /// None of the keys can be read.
    #[error("none of the keys is a public key")]
    NoKey,
}

/// The words that do not depend on the system.
fn connect_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

/// Anyone: there is nothing here that an impostor could steal, and what he says is about himself.
struct AnyServer;

impl Handler for AnyServer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Asked to sign only once the server has said that it takes the key, and never signs.
#[derive(Default)]
struct Refuses {
    asked: bool,
}

/// The signature was refused, or the connection is gone.
struct NoSignature;

impl From<SendError> for NoSignature {
    fn from(_: SendError) -> Self {
        Self
    }
}

impl russh::Signer for Refuses {
    type Error = NoSignature;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        _: Vec<u8>,
    ) -> Result<Vec<u8>, NoSignature> {
        self.asked = true;
        Err(NoSignature)
    }
}

/// Connects and looks, within this time. With no keys, only passwords are asked about.
pub async fn look_at_login(
    address: SocketAddr,
    user: &str,
    keys: &[String],
    limit: Duration,
) -> Result<LoginSeen, LookError> {
    let keys: Vec<PublicKey> = match keys {
        [] => Vec::new(),
        keys => match keys.iter().filter_map(|key| PublicKey::from_openssh(key).ok()).collect::<Vec<_>>() {
            keys if keys.is_empty() => return Err(LookError::NoKey),
            keys => keys,
        },
    };
    tokio::time::timeout(limit, look(address, user, keys)).await.unwrap_or(Err(LookError::TimedOut))
}

async fn look(address: SocketAddr, user: &str, keys: Vec<PublicKey>) -> Result<LoginSeen, LookError> {
    let tcp = TcpStream::connect(address).await.map_err(LookError::Connect)?;
    let mut handle = client::connect_stream(Arc::new(looking_config()), tcp, AnyServer).await?;
    let mut seen = LoginSeen { takes_key: false, takes_password: false };
    match handle.authenticate_none(user).await? {
        // It lets anyone in.
        AuthResult::Success => return Ok(LoginSeen { takes_key: true, takes_password: true }),
        AuthResult::Failure { remaining_methods, .. } => {
            seen.takes_password = [MethodKind::Password, MethodKind::KeyboardInteractive]
                .iter()
                .any(|kind| remaining_methods.contains(kind));
        }
    }
    for key in keys {
        let hash = match key.algorithm() {
            Algorithm::Rsa { .. } => handle.best_supported_rsa_hash().await?.flatten(),
            _ => None,
        };
        let mut signer = Refuses::default();
        // The error is our own refusal to sign; a server that takes no key has not asked.
        let _ = handle.authenticate_publickey_with(user, key, hash, &mut signer).await;
        if signer.asked {
            seen.takes_key = true;
            break;
        }
        if handle.is_closed() {
            break;
        }
    }
    let _ = handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    Ok(seen)
}
