//! `cargo xtask bench`: measures, keeps the raw samples, asserts nothing.
mod dispatch;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postern_tests::bench;
use postern_tests::lab::{Flavour, Image, Release};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "Measures Postern on throw-away hosts; raw samples go to target/bench"
)]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// Debian release of the hosts: bookworm or trixie
    #[arg(long, default_value = "bookworm", global = true)]
    release: Release,
    /// Where raw samples go
    #[arg(long, env = "POSTERN_BENCH_DIR", default_value = "target/bench", global = true)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum What {
    /// First SSH packet to first task result, beside the same by hand
    Bootstrap {
        /// Fresh hosts for each way
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// `exec true` through the operator's API, beside ssh over a warm ControlMaster
    Dispatch {
        /// Commands each way
        #[arg(long, default_value_t = 1000)]
        count: usize,
    },
    /// A run that changes nothing: 40 resources, and base, beside ssh, a script, Ansible and pyinfra, here and 50 ms
    /// away
    NoChange {
        /// Rounds; programs that take many seconds are sampled in every third
        #[arg(long, default_value_t = 10)]
        n: usize,
        /// Leave out Ansible with its defaults
        #[arg(long)]
        quick: bool,
    },
    /// The shipped profile swarm on fresh hosts, as a run and with bootstrap, beside a script and an Ansible playbook to
    /// the same end state
    Provision {
        /// Fresh hosts for each way
        #[arg(long, default_value_t = 5)]
        n: usize,
        /// Only these ways, separated by commas; others are not compared
        #[arg(long, value_delimiter = ',')]
        only: Vec<bench::ProvisionWay>,
    },
    /// How late a line written on a host is on the screen
    LiveLog {
        /// Lines, one every 50 ms
        #[arg(long, default_value_t = 200)]
        lines: usize,
    },
    /// Memory and size of an idle agent
    Idle {
        /// How often to look
        #[arg(long, default_value_t = 5)]
        samples: usize,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let image = Image { release: cli.release, flavour: Flavour::Plain };
    let out = &mut std::io::stdout();
    let result = match cli.what {
        What::Bootstrap { rounds } => bench::bootstrap(image, rounds, &cli.dir, out),
        What::Dispatch { count } => dispatch::dispatch(image, count, &cli.dir, out),
        What::NoChange { n, quick } => bench::no_change(image, n, quick, &cli.dir, out),
        What::Provision { n, only } => bench::provision(cli.release, n, &only, &cli.dir, out),
        What::LiveLog { lines } => bench::live_log(image, lines, &cli.dir, out),
        What::Idle { samples } => bench::idle(image, samples, &cli.dir, out),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
