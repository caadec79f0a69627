//! `serve`, `backup` and `restore`: what keeps the controller's state.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::duration;

pub(super) const BACKUP_HELP: &str = "\
Keys, hosts, runs, profiles and secrets are in it: whoever has the file has the hosts. It is written
with mode 0600, whole or not at all, and never over another file.";

pub(super) const RESTORE_HELP: &str = "\
Nothing may be in the state directory. The restored controller is the old one: hosts that it knew
dial it again, at the addresses they know. Hosts that were taken over since the backup was made are
strangers to it, and what was run, revoked or removed since is not in its records. The controller
that the backup is of must never run again: the hosts would follow the one that came last. --accept
says that you know this.";

/// `backup`.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// A file that does not exist yet
    pub(crate) file: PathBuf,
}

/// `restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// As `postern backup` wrote it
    pub(crate) file: PathBuf,
    /// Go on knowing what this means for the hosts
    #[arg(long)]
    pub(crate) accept: bool,
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
