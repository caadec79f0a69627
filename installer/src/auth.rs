//! Login: SSH agent, key files, keyboard-interactive, password, in OpenSSH's order.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use russh::client::{AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};
use russh::{MethodKind, MethodSet};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use crate::api::{Console, Step};
use crate::connect::Handle;
use crate::error::{BootstrapError, Code};
use crate::host_key::Said;
use crate::key_file::{KeyFile, KeyFileError, certificate_of, is_missing, public_half};
use crate::known_hosts::fingerprint;
use crate::target::Hop;

/// How often a password is asked for.
const ATTEMPTS: u32 = 3;
/// How many rounds of questions one keyboard-interactive login may have.
const ROUNDS: u32 = 16;
/// How long a server may take over one attempt (sshd delays failed ones), without the person's own time.
const REPLY: Duration = Duration::from_secs(60);
/// How long an SSH agent may take to list its keys.
const AGENT: Duration = Duration::from_secs(10);

/// What there is to log in with.
#[derive(Debug)]
pub(crate) struct Credentials<'a> {
    pub(crate) identity_files: &'a [PathBuf],
    pub(crate) agent_socket: Option<&'a Path>,
    pub(crate) password_login: bool,
    pub(crate) password: Option<&'a Zeroizing<String>>,
}

/// A whole login, with a person who looks for a passphrase or a token to touch. Keepalives do not end it.
const LOGIN: Duration = Duration::from_secs(600);

/// One key that may be offered.
enum Candidate {
    Agent(Box<AgentIdentity>),
    File { path: PathBuf, key: PublicKey, certificate: Option<Box<Certificate>> },
}

impl Candidate {
    fn describe(&self) -> String {
        match self {
            Self::Agent(identity) => match identity.as_ref() {
                AgentIdentity::PublicKey { key, .. } => {
                    format!("agent key {} {}", key.algorithm().as_str(), fingerprint(key))
                }
                AgentIdentity::Certificate { certificate, .. } => {
                    format!("agent certificate {:?}", certificate.key_id())
                }
            },
            Self::File { path, certificate: None, .. } => format!("key file {}", path.display()),
            Self::File { path, .. } => format!("certificate of key file {}", path.display()),
        }
    }
}

/// Logs in; returns by what.
pub(crate) async fn login(
    handle: &mut Handle,
    hop: &Hop,
    credentials: &Credentials<'_>,
    said: &Mutex<Said>,
    console: &dyn Console,
) -> Result<String, BootstrapError> {
    let mut attempt = Attempt {
        user: hop.user.clone(),
        address: hop.address(),
        offered: None,
        tried: Vec::new(),
        notes: Vec::new(),
        rsa_hash: None,
    };
    match tokio::time::timeout(LOGIN, attempt.run(handle, hop, credentials, console)).await {
        Ok(Ok(Some(by))) => Ok(by),
        Ok(Ok(None)) => Err(attempt.failure(handle, said).await),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(BootstrapError::new(
            Code::StepTimedOut,
            format!("logging in to {} took longer than {} minutes", hop.address(), LOGIN.as_secs() / 60),
        )),
    }
}

struct Attempt {
    user: String,
    address: String,
    /// What the server says it would accept, once it has said so.
    offered: Option<MethodSet>,
    tried: Vec<String>,
    notes: Vec<String>,
    rsa_hash: Option<Option<HashAlg>>,
}

impl Attempt {
    async fn run(
        &mut self,
        handle: &mut Handle,
        hop: &Hop,
        credentials: &Credentials<'_>,
        console: &dyn Console,
    ) -> Result<Option<String>, BootstrapError> {
        let mut agent = self.agent(handle, hop, credentials).await;
        let candidates =
            self.candidates(hop, credentials, agent.as_mut().map(|(_, keys)| std::mem::take(keys)))?;
        if candidates.is_empty() {
            // Only to learn what the server offers.
            let reply = wait(handle.authenticate_none(self.user.clone()))
                .await?
                .map_err(|error| self.broke(error))?;
            if self.settle(reply, "no authentication") {
                return Ok(Some("no authentication".into()));
            }
        }
        for candidate in candidates {
            if handle.is_closed() || !self.allows(MethodKind::PublicKey) {
                break;
            }
            let by = candidate.describe();
            let client = agent.as_mut().map(|(client, _)| client);
            if self.offer(handle, candidate, client, console).await? {
                return Ok(Some(by));
            }
        }
        if credentials.password_login {
            if self.allows(MethodKind::KeyboardInteractive)
                && !handle.is_closed()
                && self.keyboard(handle, credentials, console).await?
            {
                return Ok(Some("keyboard-interactive".into()));
            }
            if self.allows(MethodKind::Password)
                && !handle.is_closed()
                && self.password(handle, credentials, console).await?
            {
                return Ok(Some("password".into()));
            }
        }
        Ok(None)
    }

    fn allows(&self, kind: MethodKind) -> bool {
        self.offered.as_ref().is_none_or(|offered| offered.contains(&kind))
    }

    /// Whether that was it; otherwise notes what the server would accept now.
    fn settle(&mut self, result: AuthResult, what: &str) -> bool {
        match result {
            AuthResult::Success => true,
            AuthResult::Failure { remaining_methods, partial_success } => {
                let partly = if partial_success { " (accepted, more is wanted)" } else { "" };
                self.tried.push(format!("{what}{partly}"));
                // Empty is what a broken connection looks like: keep what was known.
                if !remaining_methods.is_empty() {
                    self.offered = Some(remaining_methods);
                }
                false
            }
        }
    }

    fn broke(&self, error: impl Into<crate::api::BoxError>) -> BootstrapError {
        BootstrapError::new(Code::ConnectionCut, format!("{} broke off while logging in", self.address))
            .caused_by(error)
            .at(Step::Login)
    }

    async fn failure(&self, handle: &mut Handle, said: &Mutex<Said>) -> BootstrapError {
        let closed = handle.is_closed();
        if closed {
            // What the server said last is known once the connection's task has ended.
            let _ = tokio::time::timeout(Duration::from_secs(1), &mut *handle).await;
        }
        let (banner, farewell) =
            said.lock().map(|said| (said.banner.clone(), said.farewell.clone())).unwrap_or_default();
        if closed && farewell.is_none() {
            return self.broke(russh::Error::Disconnect);
        }
        let mut text = format!("{} does not let {:?} in", self.address, self.user);
        if self.tried.is_empty() {
            text.push_str("; there was nothing to try");
        } else {
            text.push_str(&format!("; tried: {}", self.tried.join(", ")));
        }
        if let Some(offered) = &self.offered {
            let offered: Vec<&str> = offered.iter().map(<&str>::from).collect();
            text.push_str(&format!("; it offers: {}", offered.join(", ")));
        }
        if let Some(farewell) = farewell {
            text.push_str(&format!("; it closed the connection: {:?}", plain(&farewell)));
        }
        for note in &self.notes {
            text.push_str("; ");
            text.push_str(note);
        }
        let banner: String = banner.chars().filter(|c| !c.is_control() || *c == ' ').take(200).collect();
        if !banner.trim().is_empty() {
            text.push_str(&format!("; it says: {:?}", banner.trim()));
        }
        BootstrapError::new(Code::AuthenticationFailed, text).at(Step::Login)
    }

    /// The SSH agent and its keys. Without one, or with a broken one, login goes on with files.
    async fn agent(
        &mut self,
        handle: &Handle,
        hop: &Hop,
        credentials: &Credentials<'_>,
    ) -> Option<(AgentClient<UnixStream>, Vec<AgentIdentity>)> {
        let socket = match &hop.login.identity_agent {
            Some(configured) => configured.as_deref(),
            None => credentials.agent_socket,
        }?;
        let listing = async {
            let mut client = AgentClient::connect_uds(socket).await?;
            if let Some(binding) = handle.agent_session_binding() {
                // Agents that do not know destination constraints refuse, which is no matter.
                let _ = client.bind_session(binding, false).await;
            }
            let keys = client.request_identities().await?;
            Ok::<_, russh::keys::Error>((client, keys))
        };
        match tokio::time::timeout(AGENT, listing).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                self.notes.push(format!("the SSH agent at {} cannot be used: {error}", socket.display()));
                None
            }
            Err(_) => {
                self.notes.push(format!("the SSH agent at {} does not answer", socket.display()));
                None
            }
        }
    }

    /// The keys in the order they are offered: as OpenSSH, except that key files named for this very
    /// bootstrap come before the agent's other keys, since servers give up after a few (MaxAuthTries, 6).
    fn candidates(
        &mut self,
        hop: &Hop,
        credentials: &Credentials<'_>,
        agent: Option<Vec<AgentIdentity>>,
    ) -> Result<Vec<Candidate>, BootstrapError> {
        let mut agent = agent.unwrap_or_default();
        let mut first = Vec::new();
        let mut last = Vec::new();
        let named = credentials.identity_files.iter().map(|path| (path, true));
        let configured = hop.login.identity_files.iter().map(|path| (path, false));
        for (path, explicit) in named.chain(configured) {
            let key = match public_half(path) {
                Ok(key) => key,
                Err(error) if explicit => {
                    return Err(BootstrapError::new(
                        Code::KeyUnusable,
                        format!("the key file {} cannot be used", path.display()),
                    )
                    .caused_by(error)
                    .at(Step::Login));
                }
                Err(error) => {
                    if hop.login.identities_named || !is_missing(&error) {
                        self.notes.push(format!("key file {}: {error}", path.display()));
                    }
                    continue;
                }
            };
            let mut held = false;
            let mut index = 0;
            while let Some(identity) = agent.get(index) {
                if identity.public_key().key_data() == key.key_data() {
                    held = true;
                    first.push(Candidate::Agent(Box::new(agent.remove(index))));
                } else {
                    index += 1;
                }
            }
            let list = if explicit { &mut first } else { &mut last };
            if let Some(certificate) = certificate_of(path) {
                list.push(Candidate::File {
                    path: path.clone(),
                    key: key.clone(),
                    certificate: Some(Box::new(certificate)),
                });
            }
            if !held {
                list.push(Candidate::File { path: path.clone(), key, certificate: None });
            }
        }
        if !hop.login.identities_only {
            first.extend(agent.into_iter().map(|identity| Candidate::Agent(Box::new(identity))));
        }
        first.append(&mut last);
        Ok(first)
    }

    async fn offer(
        &mut self,
        handle: &mut Handle,
        candidate: Candidate,
        agent: Option<&mut AgentClient<UnixStream>>,
        console: &dyn Console,
    ) -> Result<bool, BootstrapError> {
        let what = candidate.describe();
        let is_rsa = match &candidate {
            Candidate::Agent(identity) => matches!(identity.public_key().algorithm(), Algorithm::Rsa { .. }),
            Candidate::File { key, .. } => matches!(key.algorithm(), Algorithm::Rsa { .. }),
        };
        let hash = if is_rsa { self.hash(handle).await? } else { None };
        let user = self.user.clone();
        let result = match candidate {
            Candidate::Agent(identity) => {
                let Some(agent) = agent else { return Ok(false) };
                // The agent may ask its user for a touch or a confirmation: no deadline but the server's.
                let result = match *identity {
                    AgentIdentity::PublicKey { key, .. } => {
                        handle.authenticate_publickey_with(user, key, hash, agent).await
                    }
                    AgentIdentity::Certificate { certificate, .. } => {
                        handle.authenticate_certificate_with(user, certificate, hash, agent).await
                    }
                };
                match result {
                    Ok(result) => result,
                    Err(error) => {
                        self.tried.push(format!("{what} (the agent did not sign: {error})"));
                        return Ok(false);
                    }
                }
            }
            Candidate::File { path, key, certificate } => {
                let mut signer = KeyFile { path, console, hash };
                let result = match certificate {
                    None => handle.authenticate_publickey_with(user, key, hash, &mut signer).await,
                    Some(certificate) => {
                        handle.authenticate_certificate_with(user, *certificate, hash, &mut signer).await
                    }
                };
                match result {
                    Ok(result) => result,
                    Err(KeyFileError::Closed) => return Err(self.broke(russh::Error::Disconnect)),
                    Err(error) => {
                        self.tried.push(format!("{what} (accepted, but {error})"));
                        return Ok(false);
                    }
                }
            }
        };
        Ok(self.settle(result, &what))
    }

    async fn hash(&mut self, handle: &Handle) -> Result<Option<HashAlg>, BootstrapError> {
        if let Some(hash) = self.rsa_hash {
            return Ok(hash);
        }
        let best = handle.best_supported_rsa_hash().await.map_err(|error| self.broke(error))?;
        // A server that does not say can nearly always do SHA-2; SHA-1 is what nearly none takes any more.
        let hash = best.unwrap_or(Some(HashAlg::Sha512));
        self.rsa_hash = Some(hash);
        Ok(hash)
    }

    async fn keyboard(
        &mut self,
        handle: &mut Handle,
        credentials: &Credentials<'_>,
        console: &dyn Console,
    ) -> Result<bool, BootstrapError> {
        let mut known = credentials.password;
        for _ in 0..ATTEMPTS {
            let start = handle.authenticate_keyboard_interactive_start(self.user.clone(), None::<String>);
            let mut response = wait(start).await?.map_err(|error| self.broke(error))?;
            let mut rounds = 0;
            loop {
                match response {
                    KeyboardInteractiveAuthResponse::Success => return Ok(true),
                    KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success } => {
                        let result = AuthResult::Failure { remaining_methods, partial_success };
                        self.settle(result, "keyboard-interactive");
                        break;
                    }
                    KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                        rounds += 1;
                        if rounds > ROUNDS {
                            self.tried.push("keyboard-interactive (it never stops asking)".into());
                            return Ok(false);
                        }
                        let mut answers = Vec::with_capacity(prompts.len());
                        for prompt in &prompts {
                            // The one hidden question of a simple login is the password.
                            let answer = match known.take().filter(|_| prompts.len() == 1 && !prompt.echo) {
                                Some(password) => password.to_string(),
                                None => {
                                    let text =
                                        format!("{}@{}: {}", self.user, self.address, plain(&prompt.prompt));
                                    match console.secret(&text).await {
                                        Some(answer) => answer.to_string(),
                                        None => {
                                            self.tried.push("keyboard-interactive (nobody answered)".into());
                                            return Ok(false);
                                        }
                                    }
                                }
                            };
                            answers.push(answer);
                        }
                        let reply = handle.authenticate_keyboard_interactive_respond(answers);
                        response = wait(reply).await?.map_err(|error| self.broke(error))?;
                    }
                }
            }
            if handle.is_closed() || !self.allows(MethodKind::KeyboardInteractive) {
                return Ok(false);
            }
        }
        Ok(false)
    }

    async fn password(
        &mut self,
        handle: &mut Handle,
        credentials: &Credentials<'_>,
        console: &dyn Console,
    ) -> Result<bool, BootstrapError> {
        let mut known = credentials.password;
        for _ in 0..ATTEMPTS {
            let password = match known.take() {
                Some(password) => password.clone(),
                None => {
                    match console.secret(&format!("password of {}@{}: ", self.user, self.address)).await {
                        Some(password) => password,
                        None => {
                            self.tried.push("password (nobody gave one)".into());
                            return Ok(false);
                        }
                    }
                }
            };
            let reply = handle.authenticate_password(self.user.clone(), password.as_str());
            let reply = wait(reply).await?.map_err(|error| self.broke(error))?;
            if self.settle(reply, "password") {
                return Ok(true);
            }
            // A password that was given beforehand and is wrong: asking again would surprise a script.
            if credentials.password.is_some() || handle.is_closed() || !self.allows(MethodKind::Password) {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

async fn wait<T>(reply: impl Future<Output = T>) -> Result<T, BootstrapError> {
    tokio::time::timeout(REPLY, reply).await.map_err(|_| {
        BootstrapError::new(
            Code::StepTimedOut,
            format!("the server did not answer a login within {} seconds", REPLY.as_secs()),
        )
        .at(Step::Login)
    })
}

/// A server's prompt, without what could drive a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
