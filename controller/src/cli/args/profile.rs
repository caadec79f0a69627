//! `profile`.

use std::path::PathBuf;

use clap::Subcommand;

use super::Values;

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
    /// Write a shipped profile to a file, to change it there
    Copy {
        /// A shipped profile's name
        profile: String,
        /// Where to [default: PROFILE.yaml here]
        file: Option<PathBuf>,
        /// Write over a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Print the JSON Schema of profiles, for editors
    Schema,
}
