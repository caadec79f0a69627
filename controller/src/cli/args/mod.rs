//! What can be written on the command line. One declaration feeds parser, help and completions.

mod apply;
mod host;
mod profile;
mod run;
mod secret;
mod site;
mod ssh_port;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use apply::{Apply, Drift, Exec, Ssh, Unban, Up};
pub(crate) use host::{Change, Changes, Forget, Host, Hosts};
pub(crate) use profile::Profile;
pub(crate) use run::{Run, Runs};
pub(crate) use secret::{Secret, SetSecret};
pub(crate) use site::{AddSite, Site};
pub(crate) use ssh_port::SshPort;
pub(crate) use state::{Backup, Restore, Serve};

const ABOUT: &str = "\
Takes a bare VPS to a hardened, provisioned, managed host.

SSH is used once, to put a small agent on the host. From then on the agent dials out to this
program over mutual TLS, does the work itself, and reports what it does as it happens.";

const AFTER_HELP: &str = "\
Examples:
  postern up root@203.0.113.10 --profile hello    take over a host and apply a profile
  postern apply hello -H 203.0.113.10 --check     look again what would change, without SSH
  postern exec web1 -- uptime                     run a command there, without SSH
  postern profile copy base mine.yaml             begin a profile of your own

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
    /// No progress bar, on a terminal either
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
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
    /// Apply profiles, or a reviewed plan, to hosts that were taken over
    Apply(Apply),
    /// Show how hosts differ from what is assigned to them
    #[command(after_help = apply::DRIFT_HELP)]
    Drift(Drift),
    /// Run a command on hosts, without SSH
    Exec(Exec),
    /// Let an address in again that fail2ban shut out of a host
    Unban(Unban),
    /// Close the port of SSH of a host for good, open it again, or show how it stands
    #[command(subcommand, after_help = ssh_port::HELP)]
    SshPort(SshPort),
    /// List hosts
    Hosts(Hosts),
    /// Show, rename, label, set up or forget one host
    #[command(subcommand)]
    Host(Host),
    /// List runs
    Runs(Runs),
    /// Show, follow, cancel, resume or undo one run
    #[command(subcommand)]
    Run(Run),
    /// List, show, copy or check profiles
    #[command(subcommand)]
    Profile(Profile),
    /// Keep values that profiles refer to and nobody is shown
    #[command(subcommand)]
    Secret(Secret),
    /// Serve web sites by the Traefik of a host
    #[command(subcommand)]
    Site(Site),
    /// Write the controller's whole state to a file
    #[command(after_help = state::BACKUP_HELP)]
    Backup(Backup),
    /// Make a controller's state from a backup
    #[command(after_help = state::RESTORE_HELP)]
    Restore(Restore),
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
    /// Take values of variables from a YAML file, `name: value` a line; repeatable, a later one wins, and
    /// --var wins over all
    #[arg(long = "var-file", value_name = "FILE")]
    pub(crate) var_files: Vec<PathBuf>,
}

impl Values {
    /// None was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.vars.is_empty() && self.var_files.is_empty()
    }
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
