//! `up`, `apply` and `exec`: what does something on hosts.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Values, duration, pair};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// [USER@]HOST[:PORT], or an alias of your ssh configuration
    pub(crate) target: String,
    /// A shipped profile's name or a file; repeatable, they make one plan
    #[arg(short, long = "profile", value_name = "PROFILE")]
    pub(crate) profiles: Vec<String>,
    #[command(flatten)]
    pub(crate) values: Values,
    /// Show what would change; the agent is installed all the same
    #[arg(long)]
    pub(crate) check: bool,
    /// What to call the host [default: taken from the target]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Label the host; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// An address at which the host can reach this machine; repeatable, in order [default: this machine's
    /// end of the SSH connection]
    #[arg(long = "controller", value_name = "ADDR[:PORT]")]
    pub(crate) controllers: Vec<String>,
    /// Fail rather than keep SSH open when the host cannot reach this machine in any other way
    #[arg(long)]
    pub(crate) no_temporary_route: bool,
    /// Go through SSH although the host's agent is connected: repairs and upgrades it
    #[arg(long)]
    pub(crate) bootstrap: bool,
    /// Go on with a host whose clock is far off
    #[arg(long)]
    pub(crate) accept_clock: bool,
    /// The agent to install, for a build that has none inside [env: POSTERN_AGENT_BINARY]
    #[arg(long, value_name = "FILE")]
    pub(crate) agent_binary: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ssh: Ssh,
}

/// How SSH logs in.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "SSH options")]
pub(crate) struct Ssh {
    /// Private key to log in with; repeatable
    #[arg(short, long = "identity", value_name = "FILE")]
    pub(crate) identities: Vec<PathBuf>,
    /// Ask for the login password at once, before keys are tried
    #[arg(long)]
    pub(crate) password: bool,
    /// Take the login password from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    pub(crate) password_file: Option<PathBuf>,
    /// Take sudo's password from the first line of this file [default: ask when it is needed]
    #[arg(long, value_name = "FILE")]
    pub(crate) sudo_password_file: Option<PathBuf>,
    /// Fingerprint that the host's key must have
    #[arg(long, value_name = "SHA256:…")]
    pub(crate) host_key: Option<String>,
    /// How long to wait for SSH to answer: 90, 90s, 5m
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3m")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Shipped profiles' names or files, which make one plan with those that the host has already; or one
    /// file of --plan-out, and then exactly what was reviewed is done
    #[arg(required = true, value_name = "PROFILE|PLAN")]
    pub(crate) profiles: Vec<String>,
    /// Which hosts: NAME, ID, all, name=web-*, label role=web, os=debian; repeatable
    #[arg(short = 'H', long = "host", required = true, value_name = "SELECTOR")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) values: Values,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// Check one host, and write plan and preview to this new file, to be reviewed and then applied
    #[arg(long, value_name = "FILE")]
    pub(crate) plan_out: Option<PathBuf>,
}

pub(super) const DRIFT_HELP: &str = "\
All profiles that were applied to a host are compared with it; nothing is changed, on the host or in
the records. Commands that do not say when they are needed (creates, unless) are not compared. The
exit code is 0 when every host is as declared, and 1 when one differs or could not be looked at.";

/// `drift`.
#[derive(Debug, Args)]
pub(crate) struct Drift {
    /// Which hosts: NAME, ID, all, name=web-*, label role=web, os=debian; several narrow it down
    #[arg(required = true, value_name = "SELECTOR")]
    pub(crate) hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Which hosts: NAME, ID, all, name=web-*, label role=web, os=debian; several narrow it down
    #[arg(required = true, value_name = "SELECTOR")]
    pub(crate) hosts: Vec<String>,
    /// End the command after this time: 90, 90s, 5m, 2h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Run it as this user [default: root]
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Program and arguments, as they are: no shell comes near them
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Unban {
    /// Which host: NAME or ID
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
    /// The address, IPv4 or IPv6
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: std::net::IpAddr,
}
