//! `secret`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

const SET_HELP: &str = "\
The value is asked for twice on a terminal, without showing it; otherwise it is read from stdin to its
end, and one newline at that end is not part of it:

  pass show db | postern secret set db

A file is taken byte for byte. A value is text (UTF-8) of at most 64 KiB. A profile refers to it as
{{ secret('db') }}. Hosts whose plans refer to it get the new value with their next apply; old
values are kept only for runs that are not over.";

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Set a secret, or give it a new value
    #[command(after_help = SET_HELP)]
    Set(SetSecret),
    /// List names, versions and who uses them; never values
    List,
    /// Remove a secret with all its versions
    Remove {
        /// Its name
        name: String,
    },
}

/// `secret set`.
#[derive(Debug, Args)]
pub(crate) struct SetSecret {
    /// What profiles call it
    pub(crate) name: String,
    /// Take the value from this file, byte for byte
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}
