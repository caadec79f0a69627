//! `hosts` and `host`.

use clap::{Args, Subcommand};

use super::Ssh;

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
    /// Give a host another name
    Rename {
        /// Name or id
        host: String,
        /// What to call it from now on
        #[arg(value_name = "NEW")]
        name: String,
    },
    /// Set and remove labels, for selectors
    Label(Changes),
    /// Set and remove values of profiles' variables on this host
    #[command(after_help = "The next `postern apply` uses them. --var and --var-file win over them.")]
    Set(Changes),
    /// Take a profile from those that a host is to have
    #[command(
        after_help = "Nothing is changed on the host: what the profile made there stays. It is no part of the host's \
                      plans any more."
    )]
    Unassign {
        /// Name or id
        host: String,
        /// As `postern host show` names it
        profile: String,
    },
    /// Remove the agent from a host and the host from the records
    Forget(Forget),
}

/// What becomes of labels or variables.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Name or id
    pub(crate) host: String,
    /// KEY=VALUE sets, KEY- removes
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = change)]
    pub(crate) changes: Vec<Change>,
}

/// What becomes of one label or variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(String, String),
    Remove(String),
}

fn change(text: &str) -> Result<Change, String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok(Change::Set(key.to_owned(), value.to_owned())),
        (None, Some(key)) if !key.is_empty() => Ok(Change::Remove(key.to_owned())),
        _ => Err("want KEY=VALUE to set it, or KEY- to remove it".into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_by_table() {
        let set = |key: &str, value: &str| Ok(Change::Set(key.into(), value.into()));
        for (text, want) in [
            ("role=web", set("role", "web")),
            ("role=", set("role", "")),
            ("a=b=c-", set("a", "b=c-")),
            ("role-", Ok(Change::Remove("role".into()))),
        ] {
            assert_eq!(change(text), want, "{text}");
        }
        for bad in ["", "-", "=x", "role"] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}
