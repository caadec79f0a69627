//! What can go wrong in a bootstrap: one stable code each, and what to do next.

use std::fmt;

use postern_proto::host::Tried;

use crate::api::{BoxError, Step};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// One code for each kind of failure. Name and number are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The port refuses connections; nothing listens there.
    Refused = 10, "refused";
    /// Nothing answered before the deadline.
    TimedOut = 11, "timed-out";
    /// The name has no address.
    NameNotFound = 12, "name-not-found";
    /// Something answered and it does not speak SSH.
    NotSsh = 13, "not-ssh";
    /// It speaks SSH, but no algorithm in common, or the handshake broke.
    HandshakeFailed = 14, "handshake-failed";
    /// A jump host does not let us through.
    JumpFailed = 15, "jump-failed";
    /// The network cannot be reached at all.
    NetworkUnreachable = 16, "network-unreachable";

    /// The host's key is another one than the one on record, or a revoked one.
    HostKeyChanged = 20, "host-key-changed";
    /// Nobody vouched for the host's key.
    HostKeyUnknown = 21, "host-key-unknown";
    /// The host's key has not the fingerprint that was given.
    FingerprintMismatch = 22, "fingerprint-mismatch";
    /// A `known_hosts` file cannot be read or written.
    KnownHosts = 23, "known-hosts";

    /// No way to log in was accepted.
    AuthenticationFailed = 30, "authentication-failed";
    /// A key file that was named cannot be used.
    KeyUnusable = 31, "key-unusable";
    /// Not root, and sudo is not there or not for this user.
    NoSudo = 32, "no-sudo";
    /// sudo needs a password and there is none, or it is wrong.
    SudoPassword = 33, "sudo-password";

    /// Not a Linux that is supported.
    UnsupportedOs = 40, "unsupported-os";
    /// No agent for this processor.
    UnsupportedArch = 41, "unsupported-arch";
    /// systemd does not run there.
    NoSystemd = 42, "no-systemd";
    /// A file system that must be written is read-only.
    ReadOnly = 43, "read-only";
    /// Not enough disk.
    DiskFull = 44, "disk-full";
    /// The clock is far away from ours.
    ClockOff = 45, "clock-off";
    /// cloud-init did not end in time.
    CloudInitBusy = 46, "cloud-init-busy";
    /// A program that is needed is missing.
    MissingTool = 47, "missing-tool";
    /// An agent's state is there and cannot be read.
    StateCorrupt = 48, "state-corrupt";
    /// An agent's state is there and a newer agent wrote it.
    StateTooNew = 49, "state-too-new";

    /// The host said something that makes no sense.
    Unexpected = 50, "unexpected";
    /// The upload broke.
    UploadFailed = 51, "upload-failed";
    /// What arrived is not what was sent.
    HashMismatch = 52, "hash-mismatch";
    /// Writing on the host failed.
    InstallFailed = 53, "install-failed";
    /// The program does not run there.
    AgentUnusable = 54, "agent-unusable";

    /// The controller gave no token.
    Ticket = 60, "ticket";
    /// The controller refused: token used, expired, or for another host.
    EnrolRefused = 61, "enrol-refused";
    /// The host reaches no address of the controller.
    ControllerUnreachable = 62, "controller-unreachable";
    /// What answers there is not this controller.
    NotTheController = 63, "not-the-controller";
    /// Enrolment failed for another reason.
    EnrolFailed = 64, "enrol-failed";
    /// The temporary route could not be made.
    RouteFailed = 65, "route-failed";

    /// The unit did not start.
    StartFailed = 70, "start-failed";
    /// The agent runs and its session was not seen.
    SessionDown = 71, "session-down";

    /// The SSH connection broke.
    ConnectionCut = 80, "connection-cut";
    /// The host did not answer in time within a step.
    StepTimedOut = 81, "step-timed-out";
    /// The options contradict themselves.
    Usage = 90, "usage";
}

impl Code {
    /// The stable number.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether trying again later, without changing anything, may help.
    #[must_use]
    pub fn worth_repeating(self) -> bool {
        matches!(
            self,
            Self::Refused
                | Self::TimedOut
                | Self::NetworkUnreachable
                | Self::CloudInitBusy
                | Self::UploadFailed
                | Self::HashMismatch
                | Self::SessionDown
                | Self::ConnectionCut
                | Self::StepTimedOut
        )
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Refused => {
                "nothing listens on that port: check the port, and that the host has booted and runs sshd"
            }
            Self::TimedOut => {
                "check the address, that the host is up, and that a firewall (the provider's too) lets you in"
            }
            Self::NameNotFound => "check the name, or give the address",
            Self::NotSsh => "check the port: something other than an SSH server listens there",
            Self::HandshakeFailed => {
                "the server speaks SSH but breaks off or shares no algorithm with us; is it very old, or full \
                 (MaxStartups), or did it ban this address (fail2ban)?"
            }
            Self::JumpFailed => {
                "check the jump host, and that it allows TCP forwarding to the host; or the command that connects to it, which may want a login of its own first"
            }
            Self::NetworkUnreachable => {
                "there is no route to that address from here; IPv6 without IPv6 here?"
            }
            Self::HostKeyChanged => {
                "if the host was reinstalled, check its new fingerprint with the provider's console and remove \
                 the old key (ssh-keygen -R HOST); otherwise somebody may be listening in. Nothing was sent"
            }
            Self::HostKeyUnknown => {
                "compare the fingerprint with the provider's console and confirm it, or give it on the command \
                 line. Nothing was sent"
            }
            Self::FingerprintMismatch => {
                "this is not the key you named: check the fingerprint with the provider's console. Nothing was \
                 sent"
            }
            Self::KnownHosts => "make the file readable and writable, or name another one",
            Self::AuthenticationFailed => {
                "check the user and which key the host knows; name the key, or load it into your SSH agent; with \
                 many keys in the agent, set IdentitiesOnly so that the server does not give up first"
            }
            Self::KeyUnusable => "check the path, the format and the passphrase of the key file",
            Self::NoSudo => "log in as root, or as a user whom sudo lets become root",
            Self::SudoPassword => "give the password of the user you log in as, or allow sudo without one",
            Self::UnsupportedOs => "use Debian 12 or newer, or Ubuntu 22.04 or newer",
            Self::UnsupportedArch => {
                "use a host with an x86_64 or aarch64 processor, or build the agent for it"
            }
            Self::NoSystemd => "the agent needs systemd; containers without an init cannot be managed",
            Self::ReadOnly => "remount it writable; after a disk error, check the disk first",
            Self::DiskFull => "make room there and repeat",
            Self::ClockOff => {
                "set the host's clock (timedatectl set-ntp true), or ours if that is the wrong one; or accept it \
                 explicitly"
            }
            Self::CloudInitBusy => {
                "first boot is still being set up: repeat later, or look at `cloud-init status --long` there"
            }
            Self::MissingTool => "install the missing program there and repeat",
            Self::StateCorrupt => {
                "look at the host's disk; to start over, remove agent and state (postern host forget), and repeat"
            }
            Self::StateTooNew => "use a controller that is at least as new as the agent there",
            Self::Unexpected => "is the login shell a normal one, and does it print nothing by itself?",
            Self::UploadFailed | Self::ConnectionCut | Self::StepTimedOut => {
                "repeat: a bootstrap goes on from wherever it was interrupted"
            }
            Self::HashMismatch => "repeat; if it happens again, suspect the host's disk or memory",
            Self::InstallFailed => "see what the host says; nothing that ran before was replaced",
            Self::AgentUnusable => "the program does not run there; nothing that ran before was replaced",
            Self::Ticket => "is the controller running, and does it know this host by another name?",
            Self::EnrolRefused => "repeat: a new token is made each time",
            Self::ControllerUnreachable => {
                "open the controller's port to the host, give an address the host can reach, or allow a \
                 temporary route through SSH"
            }
            Self::NotTheController => {
                "something else answers at that address; a proxy that opens TLS would also look like this"
            }
            Self::EnrolFailed => "see what the agent says",
            Self::RouteFailed => "the host's sshd may forbid forwarding (AllowTcpForwarding)",
            Self::StartFailed => "look at `systemctl status postern-agent` and the journal there",
            Self::SessionDown => {
                "the agent runs and keeps trying: check the way from the host to the controller, then repeat"
            }
            Self::Usage => "see the options",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A bootstrap (or removal) that failed: where, why, and what the host looks like now.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BootstrapError {
    code: Code,
    step: Option<Step>,
    message: String,
    hint: Option<String>,
    tried: Vec<Tried>,
    source: Option<BoxError>,
}

impl BootstrapError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, step: None, message: message.into(), hint: None, tried: Vec::new(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_tried(mut self, tried: Vec<Tried>) -> Self {
        self.tried = tried;
        self
    }

    pub(crate) fn after(mut self, attempts: u32, deadline: std::time::Duration) -> Self {
        self.message.push_str(&format!(" ({attempts} attempts in {} seconds)", deadline.as_secs()));
        self
    }

    /// The first step named stays: it is the one closest to what happened.
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.step.get_or_insert(step);
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The step it failed at, when it got that far.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        self.step
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        self.hint.clone().unwrap_or_else(|| self.code.hint().to_owned())
    }

    /// Addresses of the controller that the host tried, with what was wrong with each.
    #[must_use]
    pub fn tried(&self) -> &[Tried] {
        &self.tried
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_distinct_and_have_hints() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        let numbers: HashSet<_> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert_eq!(numbers.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(!code.hint().is_empty(), "{code}");
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{code}");
        }
    }
}
