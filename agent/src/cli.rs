//! The commands of `postern-agent`: arguments are parsed by hand, since the binary must stay small.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use postern_proto::host::{CONFIG_FILE, EnrolReport, STATE_DIR, StatusReport, exit};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::engine::SupervisorCommand;
use crate::guard::Moment;
use crate::leave::{self, HostPaths};
use crate::link::dial::DialLimits;
use crate::link::enrol::{self, EnrolOptions};
use crate::link::identity::{IdentityError, IdentityStore};
use crate::link::names::Names;
use crate::link::route::ProxyEnv;
use crate::link::time::host_clock;
use crate::link::{AgentOptions, open_exit_code, run_agent};
use crate::sys::Sys;
use crate::{config, engine, facts, guard};

const USAGE: &str = "\
usage: postern-agent COMMAND [--config PATH] [--state-dir PATH]

  run         dial the controller and work until told to stop (what the unit runs)
  enrol       make a key, and get its certificate with the one-use token on stdin
  probe       can a controller be reached from here?
  status      who this host is, as JSON
  firewall    load or unload the host's firewall (what its units run)
  ssh-port    open: let SSH in again where it was closed for good (for the provider's console; as root)
  reload-ssh  have sshd read its files anew, and wait until it listens again (what runs do)
  uninstall   stop, and remove the agent with all of its state from this host
  version     the version

Logs go to stderr (POSTERN_LOG sets what is logged: debug, postern_agent=trace, …); stdout is data.
";

/// The longest call that a step may make, bytes: configs and secrets of a service in base64, one by one.
const MOST_REQUEST: u64 = 16 << 20;

#[derive(Debug, PartialEq, Eq)]
struct Args {
    command: String,
    config: PathBuf,
    state_dir: PathBuf,
}

fn parse(args: &[String]) -> Result<Args, String> {
    let mut args = args.iter();
    let command = args.next().ok_or("a command is missing")?.clone();
    let mut parsed = Args { command, config: CONFIG_FILE.into(), state_dir: STATE_DIR.into() };
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let target = match name {
            "--config" => &mut parsed.config,
            "--state-dir" => &mut parsed.state_dir,
            _ => return Err(format!("unknown argument {arg:?}")),
        };
        let value = value.or_else(|| args.next().cloned()).filter(|value| !value.is_empty());
        *target = value.ok_or(format!("{name} wants a path"))?.into();
    }
    Ok(parsed)
}

/// Runs the command these arguments name; gives the exit code.
#[must_use]
pub fn main(args: &[String]) -> i32 {
    match args.first().map(String::as_str) {
        Some("version" | "--version" | "-V") => {
            return say(&format!("postern-agent {}\n", env!("CARGO_PKG_VERSION")));
        }
        Some("help" | "--help" | "-h") => return say(USAGE),
        Some("firewall") => return crate::firewall::main(args.get(1..).unwrap_or_default()),
        Some(
            "http-unix" | "hold-ports" | "settle-service" | "seal-volume" | "volume-key" | "volume-piece"
            | "open-volume",
        ) => return step(args),
        _ => {}
    }
    let args = match args {
        [command, what] if command == "ssh-port" && what == "open" => &args[..1],
        [command, ..] if command == "ssh-port" => return usage("ssh-port wants `open`"),
        _ => args,
    };
    // For the units of a guard, not for people.
    let (guard, args) = match args {
        [command, name, rest @ ..] if command.starts_with("guard-revert") => {
            (Some(name), [std::slice::from_ref(command), rest].concat())
        }
        _ => (None, args.to_vec()),
    };
    let args = match parse(&args) {
        Ok(args) => args,
        Err(why) => return usage(&why),
    };
    log_to_stderr();
    // One thread: an agent that waits is to be small.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return exit::FAILED;
        }
    };
    let code = match args.command.as_str() {
        "run" => runtime.block_on(Box::pin(run(&args))),
        "enrol" => runtime.block_on(Box::pin(enrol(&args))),
        "probe" => runtime.block_on(Box::pin(probe(&args))),
        "status" => status(&args.state_dir),
        "reload-ssh" => runtime.block_on(reload_ssh()),
        "ssh-port" => runtime.block_on(let_ssh_in()),
        "guard-revert" => runtime.block_on(guard_revert(&args.state_dir, guard, Moment::Now)),
        "guard-revert-boot" => runtime.block_on(guard_revert(&args.state_dir, guard, Moment::Boot)),
        "uninstall" => runtime.block_on(uninstall(args.state_dir)),
        other => usage(&format!("unknown command {other:?}")),
    };
    // Whatever still blocks a thread (a disk that hangs) does not hold the process back.
    runtime.shutdown_background();
    code
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // The journal knows the time.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    // Set once, in the process's own main; a second call would be a mistake without harm.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

fn say(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit::OK,
        Err(_) => exit::FAILED,
    }
}

fn usage(why: &str) -> i32 {
    let _ = write!(std::io::stderr(), "postern-agent: {why}\n\n{USAGE}");
    exit::USAGE
}

/// One line of JSON on stdout.
fn answer<T: Serialize>(report: &T, code: i32) -> i32 {
    let line = serde_json::to_string(report).map(|json| json + "\n").unwrap_or_default();
    match std::io::stdout().write_all(line.as_bytes()) {
        Ok(()) => code,
        Err(error) => {
            tracing::error!(%error, "cannot write the report to stdout");
            exit::FAILED
        }
    }
}

fn proxy_env() -> ProxyEnv {
    ProxyEnv::from_lookup(|name| std::env::var(name).ok())
}

async fn run(args: &Args) -> i32 {
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot run");
            return error.exit_code();
        }
    };
    let setup = async {
        let boot = facts::boot_id()?;
        let supervisor = SupervisorCommand::of(std::env::current_exe()?);
        Ok::<_, std::io::Error>((
            boot,
            supervisor,
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ))
    };
    let (boot, supervisor, mut term, mut int) = match setup.await {
        Ok(setup) => setup,
        Err(error) => {
            tracing::error!(%error, "cannot find out about this process and its host");
            return exit::FAILED;
        }
    };
    let mut options = AgentOptions::new(config, args.state_dir.clone(), boot, supervisor);
    options.proxy_env = proxy_env();
    options.notify_socket = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty());
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        asked.cancel();
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), host = %options.config.host_id, "agent starts");
    match Box::pin(run_agent(options, shutdown)).await {
        Ok(reason) => {
            tracing::info!(?reason, "agent ends");
            reason.exit_code()
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "agent ends");
            error.exit_code()
        }
    }
}

fn enrol_options(args: &Args) -> Result<EnrolOptions, (i32, EnrolReport)> {
    let config = config::load(&args.config).map_err(|error| {
        let report = EnrolReport { host_id: None, reached: None, tried: Vec::new(), error: chain(&error) };
        (error.exit_code(), report)
    })?;
    Ok(EnrolOptions {
        config,
        state_dir: args.state_dir.clone(),
        proxy_env: proxy_env(),
        names: Names::default(),
        clock: host_clock(),
        limits: DialLimits::default(),
    })
}

async fn enrol(args: &Args) -> i32 {
    let options = match enrol_options(args) {
        Ok(options) => options,
        Err((code, report)) => return answer(&report, code),
    };
    let token = match enrol::read_token(std::io::stdin().lock()) {
        Ok(token) => token,
        Err(error) => {
            let report = EnrolReport { host_id: None, reached: None, tried: Vec::new(), error };
            return answer(&report, exit::USAGE);
        }
    };
    let (code, report) = enrol::enrol(&options, &token).await;
    answer(&report, code)
}

async fn probe(args: &Args) -> i32 {
    let (code, report) = match enrol_options(args) {
        Ok(options) => enrol::probe(&options).await,
        Err((code, report)) => (code, report),
    };
    answer(&report, code)
}

fn status(state_dir: &Path) -> i32 {
    let mut report = StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host_id: None,
        unfinished_runs: 0,
        certificate_not_after_s: None,
    };
    let code = match IdentityStore::new(state_dir).load() {
        Ok(identity) => {
            report.host_id = Some(identity.host());
            report.certificate_not_after_s = Some(identity.validity_s().1);
            match engine::unfinished(state_dir) {
                Ok(runs) => {
                    report.unfinished_runs = runs;
                    exit::OK
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot tell what runs here");
                    open_exit_code(&error)
                }
            }
        }
        Err(error) => {
            if !matches!(error, IdentityError::Missing(_)) {
                tracing::error!(error = chain(&error), "cannot tell who this host is");
            }
            error.exit_code()
        }
    };
    answer(&report, code)
}

/// Exit code 1 makes the unit try again.
async fn guard_revert(state_dir: &Path, name: Option<&String>, moment: Moment) -> i32 {
    let Some(name) = name else { return usage("guard-revert wants the name of a guard") };
    match guard::revert_by_name(state_dir, name, moment).await {
        Ok(ended) => {
            tracing::info!(guard = name, ?ended, "the guard is over");
            exit::OK
        }
        Err(error) => {
            tracing::error!(guard = name, error = chain(&error), "the change was not taken back");
            exit::FAILED
        }
    }
}

/// The commands that steps of runs are; what they read may be secret, and what they say is for people.
fn step(args: &[String]) -> i32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let sys = Sys::host();
    let done = async {
        let mut out = std::io::stdout();
        match words.as_slice() {
            ["http-unix"] => {
                let mut request = String::new();
                let mut stdin = std::io::stdin().lock().take(MOST_REQUEST);
                stdin
                    .read_to_string(&mut request)
                    .map_err(|error| format!("cannot read the call: {error}"))?;
                crate::resources::http_unix(&sys, &request, &mut out).await
            }
            ["hold-ports", ports, seconds] => {
                crate::resources::hold_ports(&sys, ports, seconds, &mut out).await
            }
            ["settle-service", name, seconds] => {
                crate::resources::settle_service(&sys, name, seconds, false, &mut out).await
            }
            ["settle-service", name, seconds, "updated"] => {
                crate::resources::settle_service(&sys, name, seconds, true, &mut out).await
            }
            ["seal-volume", volume, key] => crate::resources::seal_volume(&sys, volume, key, &mut out).await,
            ["volume-key"] => crate::resources::volume_key(&sys, &mut out),
            ["volume-piece", offset] => crate::resources::volume_piece(&sys, offset, &mut std::io::stdin()),
            ["open-volume", volume, service, how @ ..] if matches!(how, [] | ["replace"]) => {
                let (mut input, mut progress) = (std::io::stdin(), std::io::stderr());
                let what = (*volume, *service, !how.is_empty());
                crate::resources::open_volume(&sys, what, &mut input, &mut out, &mut progress).await
            }
            [command, ..] => Err(format!("{command}: these are not its arguments")),
            [] => Err("a command is missing".to_owned()),
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    match runtime.block_on(done) {
        Ok(()) => exit::OK,
        Err(why) => failed(&why),
    }
}

fn failed(why: &str) -> i32 {
    let _ = writeln!(std::io::stderr(), "{why}");
    exit::FAILED
}

async fn reload_ssh() -> i32 {
    match crate::resources::reload_ssh(&Sys::host()).await {
        Ok(()) => exit::OK,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "postern-agent reload-ssh: {why}");
            exit::FAILED
        }
    }
}

/// For somebody at the console of a host whose port of SSH was closed for good.
async fn let_ssh_in() -> i32 {
    let host = Sys::host();
    let listens = crate::resources::ssh_ports(&host).await;
    match crate::firewall::let_ssh_in(&host, &listens) {
        Ok(ports) => {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            let unserved =
                if listens.is_empty() { "; sshd listens on none: systemctl start ssh" } else { "" };
            say(&format!(
                "SSH is let in at port {}, also after a restart{unserved}\n\
                 To keep it open, tell the controller: postern ssh-port open HOST. The next run closes it otherwise.\n",
                ports.join(", ")
            ))
        }
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "postern-agent ssh-port open: {why}");
            exit::FAILED
        }
    }
}

async fn uninstall(state_dir: PathBuf) -> i32 {
    let left = leave::remove(&HostPaths { state_dir, ..HostPaths::default() }, true).await;
    for what in &left {
        tracing::error!("left behind: {what}");
    }
    if left.is_empty() { exit::OK } else { exit::FAILED }
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::link::http2::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<Args, String> {
        parse(&line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments() {
        let plain = args("run").unwrap();
        assert_eq!(
            (plain.config.as_path(), plain.state_dir.as_path()),
            (Path::new(CONFIG_FILE), Path::new(STATE_DIR))
        );
        let both = args("enrol --config /a --state-dir=/b").unwrap();
        assert_eq!((both.config.as_path(), both.state_dir.as_path()), (Path::new("/a"), Path::new("/b")));
        for bad in ["", "run --confg /a", "run --config", "run --config=", "run extra"] {
            assert!(args(bad).is_err(), "{bad}");
        }
    }
}
