//! `ssh-port`.

use std::path::PathBuf;

use clap::Subcommand;

pub(super) const HELP: &str = "\
A host whose port of SSH is closed is run over its agent's link alone. Whatever is applied to it, the
port stays closed until `open`. Where the link is lost too, this opens it on the provider's console,
as root: postern-agent ssh-port open";

#[derive(Debug, Subcommand)]
pub(crate) enum SshPort {
    /// Close the port of SSH for good, once it is seen that the host can be run without it
    #[command(
        after_help = "What is asked for, each with what was seen: a recovery kit is written; the agent comes back by \
                      itself after a restart; its way to this controller does not lead over SSH; the port is seen open \
                      from here, so that its closing can be seen. If anything is missing, the port stays open, and the \
                      kit is removed again. It is closed under guard, and stays so only if new connections to all \
                      addresses of the host are refused or dropped. Connections that are open are not cut."
    )]
    Close {
        /// Name or id
        host: String,
        /// Write the recovery kit below this directory: a backup of the controller, its certificate, what is known of
        /// the host, and what to type on its console. It is not encrypted: keep it where only you can read it
        #[arg(long, value_name = "DIR")]
        kit: PathBuf,
        /// Private key to log in with through the tunnel, where `ssh_hostname` is given; repeatable
        #[arg(short, long = "identity", value_name = "FILE")]
        identities: Vec<PathBuf>,
    },
    /// Let SSH in again, over the agent's link
    Open {
        /// Name or id
        host: String,
    },
    /// Show what is declared of the port, and what is seen of it from here
    Status {
        /// Name or id
        host: String,
    },
}
