//! What can be written on the command line. One declaration feeds parser, help and completions.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const ABOUT: &str = "\
Takes a bare VPS to a hardened, provisioned, managed host.

SSH is used once, to put a small agent on the host. From then on the agent dials out to this
program over mutual TLS, does the work itself, and reports what it does as it happens.";

const AFTER_HELP: &str = "\
Examples:
  postern up root@203.0.113.10 --profile hello    take over a host and apply a profile
  postern apply hello -H 203.0.113.10 --check     look again what would change, without SSH
  postern exec web1 -- uptime                     run a command there, without SSH
  postern profile show hello > mine.yaml          begin a profile of your own

Exit codes: 0 as asked, 1 a host or a task failed, 2 wrong usage or a failure of Postern's own.";

const SERVE_HELP: &str = "\
Commands start a daemon of their own where none runs, which ends after ten idle minutes. Hosts
cannot be reached while none runs: their agents finish what they have and dial again until one is
back. `postern serve` takes over from such a daemon.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "postern", version, about = ABOUT, after_help = AFTER_HELP,
    disable_help_flag = true, disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where hosts, runs and keys are kept [env: POSTERN_STATE_DIR] [default: /var/lib/postern for root,
    /// ~/.local/state/postern otherwise]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Text for people, or one JSON document a line, each with a versioned `schema`
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
    /// Say results and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say every step; twice: log what happens inside
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print this help
    #[arg(short, long, global = true, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take over a host by SSH, if it is not yet, and apply profiles to it
    Up(Box<Up>),
    /// Apply profiles to hosts that were taken over
    Apply(Apply),
    /// Run a command on hosts, without SSH
    Exec(Exec),
    /// List hosts
    Hosts(Hosts),
    /// Show or forget one host
    #[command(subcommand)]
    Host(Host),
    /// List runs
    Runs(Runs),
    /// Show, follow or cancel one run
    #[command(subcommand)]
    Run(Run),
    /// List, show or check profiles
    #[command(subcommand)]
    Profile(Profile),
    /// Run the daemon in the foreground, on a machine that stays on
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

/// What profiles are given.
#[derive(Clone, Debug, Args)]
pub(crate) struct Values {
    /// Give a profile's variable a value; repeatable. Not for secrets: others on this machine can see the
    /// command line
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) vars: Vec<(String, String)>,
}

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
    /// Shipped profiles' names or files; they make one plan
    #[arg(required = true, value_name = "PROFILE")]
    pub(crate) profiles: Vec<String>,
    /// Which hosts: NAME, ID, all, name=web-*, label role=web, os=debian; repeatable
    #[arg(short = 'H', long = "host", required = true, value_name = "SELECTOR")]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) values: Values,
    /// Show what would change
    #[arg(long)]
    pub(crate) check: bool,
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
pub(crate) struct Hosts {
    /// Which: NAME, ID, name=web-*, label role=web, os=debian [default: all]
    #[arg(value_name = "SELECTOR")]
    pub(crate) hosts: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// Show one host
    Show {
        /// Name or id
        host: String,
    },
    /// Remove the agent from a host and the host from the records
    Forget(Forget),
}

#[derive(Debug, Args)]
pub(crate) struct Forget {
    /// Name or id
    pub(crate) host: String,
    /// Drop the record only: for a host that is gone
    #[arg(long, alias = "record-only", conflicts_with = "over_ssh")]
    pub(crate) force: bool,
    /// Remove the agent over SSH: for a host whose agent does not answer
    #[arg(long = "ssh")]
    pub(crate) over_ssh: bool,
    #[command(flatten)]
    pub(crate) ssh: Ssh,
}

#[derive(Debug, Args)]
pub(crate) struct Runs {
    /// Only of this host
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// Show what a run did
    Show {
        /// Its id, or the end of it
        run: String,
    },
    /// Print a run's output as it is, and follow it while it goes on
    Logs {
        /// Its id, or the end of it
        run: String,
        /// Print what there is and end
        #[arg(long)]
        no_follow: bool,
    },
    /// End a run
    Cancel {
        /// Its id, or the end of it
        run: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Profile {
    /// List the shipped profiles
    List,
    /// Print a profile as it is
    Show {
        /// A shipped profile's name or a file
        profile: String,
    },
    /// Compile profiles and say what is wrong with them, or what they make
    Check {
        /// Shipped profiles' names or files; they make one plan
        #[arg(required = true, value_name = "PROFILE")]
        profiles: Vec<String>,
        #[command(flatten)]
        values: Values,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where agents connect to: ADDRESS:PORT, or a PORT [default: 7300 on all addresses]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// An address that agents are told to dial; repeatable, in order
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(crate) advertise: Vec<String>,
    /// Started by a command for itself: ends when idle
    #[arg(long, hide = true)]
    pub(crate) private: bool,
    /// End after being idle so long
    #[arg(long, hide = true, value_parser = duration, requires = "private")]
    pub(crate) idle: Option<Duration>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("want NAME=VALUE".into()),
    }
}

/// Seconds, or a number with s, m or h.
fn duration(text: &str) -> Result<Duration, String> {
    const WANT: &str = "want a time such as 90, 90s, 5m or 2h";
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.get(number.len()..).unwrap_or("s")),
        None => (text, "s"),
    };
    let number: u64 = number.parse().map_err(|_| WANT)?;
    let factor = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    match number.checked_mul(factor) {
        Some(seconds) if (1..=7 * 24 * 3600).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{WANT}, up to a week")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_declaration_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|time| time.as_secs()).ok();
        assert_eq!(["90", "90s", "5m", "2h"].map(seconds), [Some(90), Some(90), Some(300), Some(7200)]);
        for bad in ["", "s", "0", "-1", "1d", "5 m", "99999999999999999999", "18446744073709551615h"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
