//! The host's firewall: chains of Postern's own, put beside everybody else's in one transaction.
//!
//! Our chains drop what is not allowed and hand back what is (`RETURN`): so the rules of others, fail2ban's
//! above all, go on having their say about it. No chain of others is ever flushed, no policy is set.

mod by_hand;
mod load;
mod rules;
mod table;

pub(crate) use by_hand::let_ssh_in;
pub(crate) use load::{Loader, Place, has_docker, hooks};
pub(crate) use rules::{shut_in, text};
pub(crate) use table::{Jump, Table};

use std::io::Write as _;

use postern_proto::host::exit;

/// Our chain for what comes in to the host.
pub(crate) const INPUT_CHAIN: &str = "POSTERN-INPUT";
/// Our chain for what goes on to Docker's containers.
pub(crate) const DOCKER_CHAIN: &str = "POSTERN-DOCKER";
/// All of them.
pub(crate) const CHAINS: [&str; 2] = [INPUT_CHAIN, DOCKER_CHAIN];

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// For messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Where its rules lie: what `load` puts in force.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::V4 => "/etc/postern-agent/firewall-v4.rules",
            Self::V6 => "/etc/postern-agent/firewall-v6.rules",
        }
    }

    /// The program that prints the rules in force.
    pub(crate) fn save(self) -> &'static str {
        match self {
            Self::V4 => "iptables-save",
            Self::V6 => "ip6tables-save",
        }
    }

    /// The program that changes them, all or none.
    pub(crate) fn restore(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }
}

const USAGE: &str = "\
usage: postern-agent firewall load|unload

  load    put the rules in /etc/postern-agent in force; where there are none, the same as unload
  unload  remove our chains and the jumps to them, and nothing else
";

/// The command `postern-agent firewall`; gives the exit code.
pub(crate) fn main(args: &[String]) -> i32 {
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load"] => Loader.load(),
        ["unload"] => Loader.unload(),
        _ => {
            let _ = std::io::stderr().write_all(USAGE.as_bytes());
            return exit::USAGE;
        }
    };
    match done {
        Ok(()) => exit::OK,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "postern-agent firewall: {why}");
            exit::FAILED
        }
    }
}
