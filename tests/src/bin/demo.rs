//! `cargo xtask demo`: a throw-away VPS, the real `postern up` against it, and what comes of it.
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use postern_tests::lab::{Flavour, Host, HostSpec, Image, Lab, LabError, Release};
use postern_tests::rig::{Rig, ssh_closed};
use tokio::signal::unix::{SignalKind, signal};

const HOST: &str = "demo";
/// For one command of the demo; the longest installs packages over the network.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10 * 60);

#[derive(Parser)]
#[command(
    name = "cargo xtask demo",
    about = "Makes a throw-away VPS and runs the real `postern up` against it"
)]
struct Cli {
    /// Debian release of the VPS: bookworm or trixie
    #[arg(long, default_value = "bookworm")]
    release: Release,
    /// A VPS as providers ship it: cloud-init at work, password login, apt busy at first boot
    #[arg(long)]
    shipped: bool,
    /// Keep VPS and controller when all is shown, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stop = match on_signal() {
        Ok(stop) => stop,
        Err(error) => {
            say(&format!("demo: {error:#}"));
            return ExitCode::from(2);
        }
    };
    match demo(&cli, &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.load(Ordering::Relaxed) => {
            say("\ninterrupted; the VPS and all that belongs to it are removed");
            ExitCode::from(130)
        }
        Err(error) => {
            say(&format!("\ndemo: {error:#}"));
            let missing = matches!(error.downcast_ref(), Some(LabError::Missing(_)));
            ExitCode::from(if missing { 2 } else { 1 })
        }
    }
}

fn say(text: &str) {
    // A closed pipe must not keep the VPS from being removed.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Set when the demo is to end. Everything is then undone by the usual drops.
fn on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    let guard = runtime.enter();
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [mut int, mut term, mut hup] = [signal(kinds[0])?, signal(kinds[1])?, signal(kinds[2])?];
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
            seen.store(true, Ordering::Relaxed);
            // Listen on, or the next signal would end the process in the middle of clearing up.
            std::future::pending::<()>().await;
        });
    });
    Ok(stop)
}

fn demo(cli: &Cli, stop: &AtomicBool) -> Result<()> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .with_context(|| format!("{name} is not set: use `cargo xtask demo`"))
    };
    let (postern, agent) = (variable("POSTERN_TEST_BIN")?, variable("POSTERN_TEST_AGENT")?);
    let mut times = Times(Vec::new());

    let flavour = if cli.shipped { Flavour::Shipped } else { Flavour::Plain };
    let image = Image { release: cli.release, flavour };
    let lab = Lab::open()?;
    if Lab::images()?.iter().any(|known| known.image == image && !known.built) {
        heading(&format!("building the image of the VPS ({image}); this takes a minute, once"));
        times.of("image", || Ok(Lab::prepare_image(image)?))?;
    }
    check(stop)?;
    heading(&format!("renting a VPS: {image}"));
    let mut rig = Rig::with(lab, postern, agent)?;
    let host = times.of("VPS made", || Ok(rig.lab.make(HostSpec::new(HOST, image))?))?;
    say(&format!("{} has {}, and sshd will listen there in a moment", host.name, host.v4));

    let result = tour(cli, &mut rig, &host, &mut times, stop);
    if result.is_err() && !stop.load(Ordering::Relaxed) {
        for log in ["serve.log", "daemon.log"] {
            if let Ok(text) = std::fs::read_to_string(rig.state_dir().join(log)) {
                say(&format!("\nthe controller's {log}:\n{text}"));
            }
        }
    }
    times.of("removed", || {
        drop(rig);
        Ok(host.destroy()?)
    })?;
    result?;
    heading("all removed; what took how long");
    times.print();
    Ok(())
}

fn tour(cli: &Cli, rig: &mut Rig, host: &Host, times: &mut Times, stop: &AtomicBool) -> Result<()> {
    times.of("controller", || rig.serve())?;
    let key = host.private_key.display().to_string();
    let fingerprint = host.fingerprint("ssh-ed25519").context("the VPS has no ed25519 host key")?.to_owned();
    let target = format!("root@{}", host.v4);
    let up =
        ["up", &target, "--profile", "hello", "--identity", &key, "--host-key", &fingerprint, "--name", HOST];

    heading("bootstrap over SSH, then the profile over the agent's own link");
    times.of("postern up", || show(rig, &up, stop))?;
    ssh_closed(host)?;
    say("no SSH connection is open on the VPS");

    heading("the VPS is run without SSH from here on");
    let before = host.packets_to_port(22)?;
    times.of("postern exec", || show(rig, &["exec", HOST, "--", "uname", "-a"], stop))?;
    times.of("postern hosts", || show(rig, &["hosts"], stop))?;

    heading("the same `postern up` again changes nothing");
    let again = times.of("postern up, again", || rig.run(&up))?;
    let told = format!("{}{}", again.stderr, again.stdout);
    say(told.trim_end());
    ensure!(again.code == Some(0), "the second `postern up` ended with {:?}", again.code);
    let nothing_changed = told.contains(" unchanged") && !told.contains(" changed");
    ensure!(nothing_changed, "the second `postern up` changed something");
    let packets = host.packets_to_port(22)? - before;
    say(&format!("packets to port 22 since the first `up`: {packets}"));
    ensure!(packets == 0, "something spoke to port 22");

    if cli.keep {
        heading("kept until Ctrl-C; try");
        let state = rig.state_dir().display();
        say(&format!(
            "POSTERN_STATE_DIR={state} target/debug/postern exec {HOST} -- journalctl -n 5 -u postern-agent"
        ));
        say(&format!("ssh -i {key} -o UserKnownHostsFile={} {target}", host.known_hosts.display()));
        while !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Runs `postern` with its output on ours, as a user would see it.
fn show(rig: &Rig, args: &[&str], stop: &AtomicBool) -> Result<()> {
    say(&format!("$ postern {}", args.join(" ")));
    let mut command = rig.command(args);
    for name in ["TERM", "NO_COLOR", "COLUMNS"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start postern")?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for postern")? {
            check(stop)?;
            ensure!(status.success(), "`postern {}` ended with {status}", args[0]);
            return Ok(());
        }
        if stop.load(Ordering::Relaxed) || start.elapsed() > COMMAND_DEADLINE {
            child.kill().context("cannot end postern")?;
            child.wait().context("cannot wait for postern")?;
            check(stop)?;
            bail!("`postern {}` did not end within {COMMAND_DEADLINE:?}", args[0]);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn check(stop: &AtomicBool) -> Result<()> {
    ensure!(!stop.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

fn heading(text: &str) {
    say(&format!("\n==> {text}"));
}

/// What took how long, in order.
struct Times(Vec<(&'static str, Duration)>);

impl Times {
    fn of<T>(&mut self, name: &'static str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = part();
        self.0.push((name, start.elapsed()));
        result
    }

    fn print(&self) {
        for (name, time) in &self.0 {
            say(&format!("{name:>20}  {:6.2} s", time.as_secs_f64()));
        }
    }
}
