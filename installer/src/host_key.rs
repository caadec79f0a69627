//! The client side of an SSH connection: judges the host's key, refuses every channel the host opens, except
//! those of a temporary route.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Msg, Session};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::known_hosts::{Known, Verdict, fingerprint, judge};

/// Connections through a temporary route at one time.
const MAX_ROUTED: usize = 16;

/// Why a key was refused.
#[derive(Clone, Debug)]
pub(crate) enum KeyRefused {
    Changed { fingerprint: String, record: String },
    Revoked { fingerprint: String, record: String },
    Mismatch { fingerprint: String },
    Unknown { fingerprint: String, algorithm: String },
    OnlyAuthority { record: String },
}

/// What ends a handshake.
#[derive(Debug)]
pub(crate) enum HandlerError {
    Ssh(russh::Error),
    Key(KeyRefused),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

/// A key nobody has vouched for, on its way to the person at the terminal.
pub(crate) struct Question {
    pub(crate) key: PublicKey,
    pub(crate) answer: oneshot::Sender<bool>,
}

/// What judges keys.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) known: Vec<Known>,
    pub(crate) fingerprint: Option<String>,
    /// Nobody is asked.
    pub(crate) strict: bool,
    /// Asks; bounded by one, since a connection has one handshake.
    pub(crate) ask: mpsc::Sender<Question>,
}

/// The controller's end of a temporary route, once there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteTo(Arc<OnceLock<SocketAddr>>);

impl RouteTo {
    pub(crate) fn set(&self, listener: SocketAddr) {
        // A second route over one connection would go to the same listener.
        let _ = self.0.set(listener);
    }
}

/// What the server said besides the protocol.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Before login.
    pub(crate) banner: String,
    /// When it ended the connection in an orderly way.
    pub(crate) farewell: Option<String>,
    /// The key that it showed, once that was accepted.
    pub(crate) key: Option<PublicKey>,
}

/// russh's handler.
pub(crate) struct Guard {
    pub(crate) judge: Judge,
    /// The key that was accepted, and whether it is to be put on record.
    pub(crate) accepted: Arc<Mutex<Option<(PublicKey, bool)>>>,
    pub(crate) route: RouteTo,
    pub(crate) routed: Arc<Semaphore>,
    pub(crate) said: Arc<Mutex<Said>>,
}

impl Guard {
    pub(crate) fn new(judge: Judge, route: RouteTo) -> Self {
        Self {
            judge,
            accepted: Arc::default(),
            route,
            routed: Arc::new(Semaphore::new(MAX_ROUTED)),
            said: Arc::default(),
        }
    }

    fn accept(&self, key: &PublicKey, learn: bool) {
        if let Ok(mut accepted) = self.accepted.lock() {
            // A re-keying shows the same key again, by then on record.
            accepted.get_or_insert((key.clone(), learn));
        }
        if let Ok(mut said) = self.said.lock() {
            said.key.get_or_insert_with(|| key.clone());
        }
    }

    fn accepted_before(&self, key: &PublicKey) -> Option<bool> {
        let accepted = self.accepted.lock().ok()?;
        accepted.as_ref().map(|(first, _)| first.key_data() == key.key_data())
    }
}

impl client::Handler for Guard {
    type Error = HandlerError;

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), HandlerError> {
        if let Ok(mut said) = self.said.lock() {
            let room = 2000usize.saturating_sub(said.banner.len());
            said.banner.extend(banner.chars().take(room));
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                if let Ok(mut said) = self.said.lock() {
                    said.farewell = Some(info.message.chars().take(200).collect());
                }
                Ok(())
            }
            DisconnectReason::Error(error) => Err(error),
        }
    }

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, HandlerError> {
        let key = offered.public_key();
        let fingerprint = fingerprint(&key);
        // Re-keying: the same key is not asked about again, and another one is an attack.
        match self.accepted_before(&key) {
            Some(true) => return Ok(true),
            Some(false) => {
                let record = "it was another one at the beginning of this connection".into();
                return Err(HandlerError::Key(KeyRefused::Changed { fingerprint, record }));
            }
            None => {}
        }
        let verdict = judge(&self.judge.known, &key);
        match (&self.judge.fingerprint, &verdict) {
            // The operator's own word comes first: the record may know this key, and it is still not the one named.
            (Some(wanted), Verdict::Known | Verdict::Changed(_)) if *wanted != fingerprint => {
                return Err(HandlerError::Key(KeyRefused::Mismatch { fingerprint }));
            }
            _ => {}
        }
        match &verdict {
            Verdict::Changed(record) => {
                let record = record.clone();
                return Err(HandlerError::Key(KeyRefused::Changed { fingerprint, record }));
            }
            Verdict::Revoked(record) => {
                let record = record.clone();
                return Err(HandlerError::Key(KeyRefused::Revoked { fingerprint, record }));
            }
            _ => {}
        }
        if let Some(wanted) = &self.judge.fingerprint {
            if *wanted != fingerprint {
                return Err(HandlerError::Key(KeyRefused::Mismatch { fingerprint }));
            }
            self.accept(&key, verdict != Verdict::Known);
            return Ok(true);
        }
        match verdict {
            Verdict::Known => {
                self.accept(&key, false);
                return Ok(true);
            }
            Verdict::OnlyAuthority(record) => {
                return Err(HandlerError::Key(KeyRefused::OnlyAuthority { record }));
            }
            _ => {}
        }
        let algorithm = key.algorithm().as_str().to_owned();
        let unknown = HandlerError::Key(KeyRefused::Unknown { fingerprint, algorithm });
        if self.judge.strict {
            return Err(unknown);
        }
        let (answer, answered) = oneshot::channel();
        if self.judge.ask.send(Question { key: key.clone(), answer }).await.is_err() {
            return Err(unknown);
        }
        if answered.await.unwrap_or(false) {
            self.accept(&key, true);
            Ok(true)
        } else {
            Err(unknown)
        }
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        // Dropping `reply` refuses.
        let Some(listener) = self.route.0.get().copied() else { return Ok(()) };
        let Ok(permit) = Arc::clone(&self.routed).try_acquire_owned() else { return Ok(()) };
        reply.accept().await;
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::net::TcpStream::connect(listener).await {
                Ok(mut tcp) => {
                    let _ = tcp.set_nodelay(true);
                    let mut channel = channel.into_stream();
                    let _ = tokio::io::copy_bidirectional(&mut channel, &mut tcp).await;
                }
                Err(error) => {
                    tracing::warn!(%listener, %error, "the temporary route does not reach the controller");
                }
            }
        });
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, _: &str) -> bool {
        false
    }
}

/// The file a confirmed key is appended to.
pub(crate) fn record_file(files: &[PathBuf]) -> Option<&PathBuf> {
    // The system's file is never written to.
    files.iter().find(|file| !file.starts_with("/etc"))
}
