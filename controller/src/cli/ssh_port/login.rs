//! Whether SSH leads through the tunnel to this very host: a login, with the program that makes the connection on this
//! machine, and with the host key that the agent says is the host's.

use std::path::PathBuf;
use std::time::Duration;

use postern_installer::log_in;
use postern_proto::event::{RunState, StepEnd};

use super::conditions::{Checked, Condition};
use crate::bundle::Bundle;
use crate::cli::asked::ask;
use crate::cli::error::CliError;
use crate::cli::terminal::Terminal;
use crate::cli::up::{by_keys, resolve_through};
use crate::cli::{Context, clean};
use crate::client::{Client, HostInfo};

/// What connects where `~/.ssh/config` has nothing for the name: developers.cloudflare.com, "Connect to SSH server with
/// cloudflared access".
const COMMAND: &str = "cloudflared access ssh --hostname %h";
/// The keys that sshd shows, as `ssh-keygen` tells them.
const KEYS: &str = "/usr/sbin/sshd -T | awk '$1 == \"hostkey\" { print $2 }' | while read -r file; do ssh-keygen -lf \"$file\"; done; true";
const LIMIT_S: u64 = 30;
/// How long the way there may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The most that is kept of what that prints, bytes.
const SAID: usize = 4000;

/// Who is to log in, and by which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) user: String,
    pub(super) name: String,
}

/// Logs in.
pub(super) async fn check(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    wanted: &Wanted,
    identities: &[PathBuf],
) -> Result<Checked, CliError> {
    let no = |why: &str| Checked::new(Condition::Login, false, clean::line(why));
    let argv = ["sh", "-c", KEYS].map(str::to_owned).to_vec();
    let Some(answer) = ask(context, client, host, argv, LIMIT_S, SAID).await? else {
        return Ok(no("interrupted"));
    };
    let fingerprint = match (answer.run.state, &answer.end) {
        (RunState::Ok, Some(StepEnd::Exit(0))) => fingerprint(&answer.said),
        _ => None,
    };
    let Some(fingerprint) = fingerprint else {
        return Ok(no(&format!("the host does not tell which host keys it has: {}", answer.why)));
    };
    let text = format!("{}@{}", wanted.user, wanted.name);
    let target = match resolve_through(context, &text, COMMAND) {
        Ok(target) => target,
        Err(error) => return Ok(no(&error.message)),
    };
    let mut options = by_keys(context, target, Bundle::empty(), identities);
    options.connect_deadline = LIMIT;
    options.host_key.fingerprint = Some(fingerprint.to_owned());
    // The agent vouches for the key: a look leaves nothing in the user's own file.
    options.host_key.known_hosts_files = vec!["/dev/null".into()];
    // A way in that wants a password is none that is left when keys alone are taken.
    options.password_login = false;
    Ok(match log_in(options, &Terminal::new(context.out.clone())).await {
        // What a tunnel carries comes from the host itself; whoever connects to the port from elsewhere cannot any more
        // when it is closed.
        Ok(from) if from.is_loopback() => {
            Checked::new(Condition::Login, true, format!("{text}, and the host key is this host's"))
        }
        Ok(from) => no(&format!(
            "{text}: that login comes from {from} and not from the host's own cloudflared, so it would end with the port"
        )),
        Err(error) => no(&format!("{text}: {error}")),
    })
}

/// That of the Ed25519 key, or of the first.
fn fingerprint(said: &str) -> Option<&str> {
    let all = || said.lines().filter_map(|line| Some((line.split(' ').nth(1)?, line)));
    let of = |(print, _): &(&str, &str)| print.starts_with("SHA256:");
    all().filter(of).find(|(_, line)| line.ends_with("(ED25519)")).or_else(|| all().find(of)).map(|it| it.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_is_asked_for() {
        let rsa = "3072 SHA256:rsa root@web (RSA)\n";
        let ed25519 = "256 SHA256:ed no comment (ED25519)\n";
        assert_eq!(fingerprint(&format!("{rsa}{ed25519}")), Some("SHA256:ed"));
        assert_eq!(fingerprint(rsa), Some("SHA256:rsa"));
        assert_eq!(fingerprint("/etc/ssh/x is not a key file.\n"), None);
        assert_eq!(fingerprint(""), None);
    }
}
