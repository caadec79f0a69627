//! `lab`: throw-away VPSs from the command line.
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use postern_tests::lab::{self, Flavour, Host, HostSpec, Image, Lab, Release, VmSpec};

#[derive(Parser)]
#[command(name = "lab", about = "Makes throw-away VPSs on this machine, to try Postern on")]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Make a host; it stays until it is destroyed
    Make {
        /// Its name
        name: String,
        /// Debian release: bookworm or trixie
        #[arg(long, default_value = "bookworm")]
        image: Release,
        /// As providers ship it: cloud-init, password login, apt busy at first boot
        #[arg(long)]
        shipped: bool,
        /// A virtual machine with a kernel of its own; boots in half a minute, and needs qemu-system-x86
        #[arg(long, conflicts_with = "shipped")]
        vm: bool,
        /// A public key that lets root in, beside the lab's own
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Show all hosts
    List,
    /// Run a command in a host, or a shell
    Enter {
        /// The host
        name: String,
        /// The command
        #[arg(last = true)]
        argv: Vec<String>,
    },
    /// Reboot a host
    Reboot {
        /// The host
        name: String,
    },
    /// Remove a host
    Destroy {
        /// The host
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// All hosts made by this command, and what dead labs left behind
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Show the base images
    Images {
        /// Build those that are missing
        #[arg(long)]
        build: bool,
        /// Those of virtual machines as well
        #[arg(long, requires = "build")]
        vm: bool,
    },
    /// Show what this machine lacks
    Requirements {
        /// For virtual machines
        #[arg(long)]
        vm: bool,
        /// For the test of an SSH server's algorithms
        #[arg(long, conflicts_with = "vm")]
        audit: bool,
    },
    /// Boots a host again and again (the lab starts this itself)
    #[command(hide = true)]
    Supervise {
        /// The run
        run: u8,
        /// The host
        name: String,
    },
    /// Runs the servers of a run's small internet (the lab starts this itself)
    #[command(hide = true)]
    Serve {
        /// The run
        run: u8,
    },
    /// Clears up when its standard input closes (the lab starts this itself)
    #[command(hide = true)]
    Guardian {
        /// The run
        run: u8,
        /// Its mark
        nonce: u64,
    },
}

/// How long a host may take to answer; a virtual machine is the slower kind.
const BOOT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "lab: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn run(command: Cmd) -> anyhow::Result<ExitCode> {
    match command {
        Cmd::Make { name, image, shipped, vm, key } => {
            let flavour = match (shipped, vm) {
                (true, _) => Flavour::Shipped,
                (_, true) => Flavour::Kernel,
                _ => Flavour::Plain,
            };
            make(name, Image { release: image, flavour }, key)?;
        }
        Cmd::List => list()?,
        Cmd::Enter { name, argv } => return enter(&name, &argv),
        Cmd::Reboot { name } => {
            let host = Lab::find(&name)?;
            host.reboot()?;
            host.wait_ssh(BOOT)?;
        }
        Cmd::Destroy { name: Some(name), .. } => Lab::destroy(&name)?,
        Cmd::Destroy { name: None, .. } => {
            for host in Lab::list()?.into_iter().filter(|h| h.kept) {
                Lab::destroy(&host.name)?;
            }
            Lab::sweep()?;
        }
        Cmd::Images { build, vm } => images(build, vm)?,
        Cmd::Requirements { vm, audit } => {
            let mut missing = if audit { lab::audit_requirements() } else { lab::requirements() };
            if vm {
                missing.extend(lab::machine_requirements());
            }
            for one in &missing {
                say(&one.to_string())?;
            }
            let mut packages: Vec<&str> = missing.iter().filter_map(|m| m.package).collect();
            packages.sort_unstable();
            packages.dedup();
            if !packages.is_empty() {
                say(&format!("to install: apt-get install {}", packages.join(" ")))?;
            }
            if !missing.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
            say("nothing is missing")?;
        }
        Cmd::Supervise { run, name } => lab::supervise(run, &name)?,
        Cmd::Serve { run } => return Err(lab::serve(run)?.into()),
        Cmd::Guardian { run, nonce } => lab::guard(run, nonce)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn make(name: String, image: Image, key: Option<PathBuf>) -> anyhow::Result<()> {
    if Lab::list()?.iter().any(|h| h.kept && h.name == name) {
        bail!("there is a host {name} already; `lab destroy {name}` removes it");
    }
    let vm = image.flavour == Flavour::Kernel;
    if vm && let missing @ [_, ..] = lab::machine_requirements().as_slice() {
        let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
        bail!("no virtual machine can run here: {}", list.join("; "));
    }
    if Lab::images()?.iter().any(|i| i.image == image && !i.built) {
        writeln!(std::io::stderr(), "building the image {image}; this takes a minute, once").ok();
    }
    let mut spec = HostSpec::new(name, image);
    if let Some(path) = key {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if text.contains("PRIVATE KEY") {
            bail!("{} is a private key: give the public one (.pub)", path.display());
        }
        spec.authorized_keys = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    }
    let lab = Lab::open_kept()?;
    let made = if vm {
        let machine = VmSpec { host: spec, ..VmSpec::new("", image.release) };
        lab.make_vm(machine)
    } else {
        lab.make(spec)
    };
    let made = made.and_then(|host| host.wait_ssh(BOOT).map(|()| host));
    match made {
        Ok(host) => describe(&host),
        Err(e) => {
            lab.destroy_all()?;
            Err(e.into())
        }
    }
}

fn describe(host: &Host) -> anyhow::Result<()> {
    say(&format!("{}  {}  {}", host.name, host.v4, host.v6))?;
    for key in &host.host_keys {
        say(&format!("host key  {} {}", key.algorithm, key.fingerprint))?;
    }
    say(&format!("key       {}", host.private_key.display()))?;
    say(&format!(
        "log in    ssh -i {} -o UserKnownHostsFile={} root@{}",
        host.private_key.display(),
        host.known_hosts.display(),
        host.v4
    ))
}

fn list() -> anyhow::Result<()> {
    for h in Lab::list()? {
        let state = if h.running { "running" } else { "off" };
        let owner = if h.kept { "kept".to_owned() } else { format!("of process {}", h.owner) };
        say(&format!(
            "{:20} {:8} {:16} {:15} {:24} {owner}",
            h.name,
            state,
            h.image.to_string(),
            h.v4,
            h.v6
        ))?;
    }
    Ok(())
}

fn enter(name: &str, argv: &[String]) -> anyhow::Result<ExitCode> {
    let host = Lab::find(name)?;
    let argv: Vec<&str> = match argv {
        [] => vec!["bash", "--login"],
        given => given.iter().map(String::as_str).collect(),
    };
    let mut command = host.enter(&argv)?;
    if let Some(term) = std::env::var_os("TERM") {
        command.env("TERM", term);
    }
    // Only returns when the program could not be started.
    Err(command.exec()).context("cannot start nsenter")
}

fn images(build: bool, vm: bool) -> anyhow::Result<()> {
    for info in Lab::images()? {
        let build = build && !info.built && (vm || info.image.flavour != Flavour::Kernel);
        if build {
            writeln!(std::io::stderr(), "building {}", info.image).ok();
            Lab::prepare_image(info.image)?;
        }
        let state = if build || info.built { "built" } else { "not built" };
        say(&format!("{:18} {state:10} {}", info.image.to_string(), info.dir.display()))?;
    }
    let (dir, mut made) = Lab::internet_info()?;
    if build && !made {
        writeln!(std::io::stderr(), "making what the small internet serves").ok();
        Lab::prepare_internet()?;
        made = true;
    }
    say(&format!("{:18} {:10} {}", "internet", if made { "built" } else { "not built" }, dir.display()))
}
