//! `runs` and `run`.

use clap::{Args, Subcommand};

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
        /// Go on until the run is over, as is usual
        #[arg(long, overrides_with = "no_follow")]
        follow: bool,
        /// Print what there is and end
        #[arg(long)]
        no_follow: bool,
    },
    /// End a run
    Cancel {
        /// Its id, or the end of it
        run: String,
    },
    /// Go on with a run that failed or was cut off
    #[command(
        after_help = "A new run of the same plan: what is in its declared state is left alone, and commands that the \
                      old run has done are not done again."
    )]
    Resume {
        /// Its id, or the end of it
        run: String,
    },
    /// Take back what a run changed
    #[command(
        after_help = "A new run that puts back what the old one replaced. It refuses where something was changed \
                      since, and says what cannot be taken back (a command, for one)."
    )]
    Undo {
        /// Its id, or the end of it
        run: String,
        /// Show what would be taken back, and change nothing
        #[arg(long)]
        check: bool,
    },
}
