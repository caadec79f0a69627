//! `postern serve`: the daemon in the foreground, or the private one that a command started for itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_proto::DEFAULT_PORT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::args::Serve;
use super::error::{CliError, chain};
use super::{Context, Exit, addresses, logging};
use crate::client::{reach, start_lock};
use crate::daemon::{self, Daemon, DaemonConfig, StartError, socket_path};

/// A private daemon ends after being idle so long. Agents of its hosts dial again until one is back.
const PRIVATE_IDLE: Duration = Duration::from_secs(600);
/// How long a private daemon may take to end when it is asked to.
const TAKE_OVER: Duration = Duration::from_secs(20);
/// How long a daemon may take to end.
const SHUTDOWN: Duration = Duration::from_secs(30);

pub(crate) async fn serve(context: &Context, args: Serve, verbose: u8) -> Result<Exit, CliError> {
    if args.private {
        // A session of its own: the command's terminal and its Ctrl-C are not for it. Fails only where it
        // leads a group already, and then it has been detached by whoever started it.
        let _ = rustix::process::setsid();
        logging::to_bounded_stderr(verbose);
    } else {
        logging::to_stderr(verbose);
    }
    let state_dir = context.state_dir()?.clone();
    let explicit = args.listen.as_deref().map(addresses::to_listen).transpose();
    let explicit = explicit.map_err(|why| CliError::usage("usage", why))?;
    // Nobody has said which, and no host knows one: another will do.
    let any_port = explicit.is_none() && args.advertise.is_empty() && remembered_port(&state_dir)?.is_none();
    let listen = listen_address(&state_dir, explicit)?;
    let mut config = DaemonConfig::new(&state_dir, listen);
    config.advertise = args
        .advertise
        .iter()
        .map(|text| addresses::with_port(text, listen.port()))
        .collect::<Result<_, _>>()
        .map_err(|why| CliError::usage("usage", why))?;
    config.private = args.private.then(|| args.idle.unwrap_or(PRIVATE_IDLE));

    // Before the daemon starts, so that none is lost between.
    let fail = |error: io::Error| CliError::usage("internal", format!("listening for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;

    let mut daemon = match start(context, config.clone(), args.private).await {
        // It was free a moment ago: another daemon's first start took it.
        Err(error) if any_port && error.code == "port-taken" => {
            config.listen.set_port(0);
            start(context, config, args.private).await?
        }
        started => started?,
    };
    let local = daemon.local_addr();
    remember_port(&state_dir, local.port())?;
    if !args.private {
        if context.out.json {
            context.out.document(&json!({
                "schema": "postern/serve/v1", "listen": local.to_string(), "state_dir": state_dir,
                "socket": daemon.socket(),
            }));
        } else {
            context.out.note(&format!("serving: agents at {local}, state in {}", state_dir.display()));
        }
    }
    let finished = tokio::select! {
        () = daemon.finished() => true,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if !finished {
        context.out.note("ending; agents dial again until a daemon is back");
    }
    if tokio::time::timeout(SHUTDOWN, daemon.shutdown()).await.is_err() {
        return Err(CliError::usage(
            "shutdown",
            format!("the daemon did not end within {} s", SHUTDOWN.as_secs()),
        ));
    }
    Ok(Exit::Ok)
}

async fn start(context: &Context, config: DaemonConfig, private: bool) -> Result<Daemon, CliError> {
    // For a private one, the command that starts it holds this. Held until this daemon answers, so that no
    // command starts another one between the end of the old and the beginning of the new.
    let _lock = match private {
        true => None,
        false => Some(start_lock(&config.state_dir).await?),
    };
    match daemon::start(config.clone()).await {
        Ok(daemon) => return Ok(daemon),
        Err(StartError::InUse { .. }) => {}
        Err(error) => return Err(not_started(&error)),
    }
    if !private {
        ask_to_end(context, &config.state_dir).await?;
    }
    let end = Instant::now() + TAKE_OVER;
    loop {
        match daemon::start(config.clone()).await {
            Ok(daemon) => return Ok(daemon),
            // A private one that is ending gives the state back soon; one that answers does not.
            Err(error @ StartError::InUse { .. })
                if private && reach(&socket_path(&config.state_dir)).await?.is_some() =>
            {
                return Err(not_started(&error));
            }
            Err(StartError::InUse { .. }) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(not_started(&error)),
        }
    }
}

/// Asks a private daemon to end, unless it works for somebody.
async fn ask_to_end(context: &Context, state_dir: &Path) -> Result<(), CliError> {
    let Some(mut client) = reach(&socket_path(state_dir)).await? else {
        // It holds the state and does not listen yet, or no more: waiting is all there is to do.
        return Ok(());
    };
    let pid = client.daemon_pid();
    let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    if !client.info().await?.private {
        return Err(CliError::usage(
            "already-running",
            format!("a daemon serves {} already{who}", state_dir.display()),
        )
        .hint("use that one, or end it first"));
    }
    let runs = client.runs("", 100).await?;
    let unfinished = runs.iter().filter(|run| !run.state.is_final()).count();
    if unfinished > 0 {
        return Err(CliError::usage(
            "already-running",
            format!("a private daemon{who} follows {unfinished} unfinished runs in {}", state_dir.display()),
        )
        .hint("wait until they are over (`postern runs`), or cancel them"));
    }
    // The kernel says who listens at the socket, so this is no stale number from a file.
    match pid.and_then(Pid::from_raw) {
        Some(pid) => {
            context.out.note(&format!("asking the private daemon{who} to end"));
            kill_process(pid, Signal::TERM).map_err(|error| {
                CliError::usage("already-running", format!("ending the private daemon{who}: {error}"))
            })
        }
        None => {
            Err(CliError::usage("already-running", "a private daemon has the state, and which is not known")
                .hint("end it, or wait until it ends by itself"))
        }
    }
}

fn not_started(error: &StartError) -> CliError {
    let message = chain(error);
    let (code, hint) = match error {
        StartError::InUse { .. } => {
            ("already-running", "one daemon serves a state directory; use that one, or end it first")
        }
        StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => (
            "port-taken",
            "another program has the port. Hosts that were taken over know this one: end that program, or use \
             --listen with another and take the hosts over again",
        ),
        StartError::Listen { .. } => ("listen", "name an address of this machine with --listen"),
        StartError::SocketPath { .. } => ("state-directory", "name a shorter one with --state-dir"),
        StartError::Unsafe { .. } => ("state-unsafe", "make it yours alone: chmod 700"),
        StartError::State { .. } => ("state-directory", "name a directory of your own with --state-dir"),
        _ => ("state", "nothing was changed; restore a backup, or name another directory with --state-dir"),
    };
    CliError::usage(code, message).hint(hint)
}

/// Where to listen: as named, else at the port that hosts know already, else at the usual port or a free one.
fn listen_address(state_dir: &Path, explicit: Option<(Option<IpAddr>, u16)>) -> Result<SocketAddr, CliError> {
    if let Some((ip, port)) = explicit {
        return Ok(match ip {
            Some(ip) => SocketAddr::new(ip, port),
            None => everywhere(port).0,
        });
    }
    if let Some(port) = remembered_port(state_dir)? {
        return Ok(everywhere(port).0);
    }
    let (usual, is_free) = everywhere(DEFAULT_PORT);
    if is_free {
        return Ok(usual);
    }
    let any = SocketAddr::new(usual.ip(), 0);
    let free = TcpListener::bind(any).and_then(|listener| listener.local_addr());
    free.map_err(|error| CliError::usage("listen", format!("finding a free port: {error}")))
}

/// A port on all addresses, of both families where there are both; and whether it is free.
fn everywhere(port: u16) -> (SocketAddr, bool) {
    let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    match TcpListener::bind(v6) {
        Ok(_) => (v6, true),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => (v6, false),
        // No IPv6 on this machine.
        Err(_) => (v4, TcpListener::bind(v4).is_ok()),
    }
}

fn port_file(state_dir: &Path) -> PathBuf {
    state_dir.join("port")
}

/// `None` when none was chosen yet. One that cannot be read is an error: choosing another would lose hosts.
fn remembered_port(state_dir: &Path) -> Result<Option<u16>, CliError> {
    let path = port_file(state_dir);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(CliError::usage("state-directory", format!("reading {}: {error}", path.display())));
        }
    };
    match text.trim().parse() {
        Ok(port) if port != 0 => Ok(Some(port)),
        _ => Err(CliError::usage("state-corrupt", format!("{} holds no port", path.display()))
            .hint("write the port that the hosts know into it, or name it with --listen")),
    }
}

fn remember_port(state_dir: &Path, port: u16) -> Result<(), CliError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if remembered_port(state_dir).ok().flatten() == Some(port) {
        return Ok(());
    }
    let path = port_file(state_dir);
    let new = state_dir.join("port.new");
    let write = || -> io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{port}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(state_dir)?.sync_all()
    };
    write()
        .map_err(|error| CliError::usage("state-directory", format!("writing {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_chosen_once() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("[::]:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        // What hosts know is not given up because somebody else has it now.
        remember_port(dir.path(), port).unwrap();
        assert_eq!(listen_address(dir.path(), None).unwrap().port(), port);
        assert_eq!(listen_address(dir.path(), Some((None, 9))).unwrap().port(), 9);
        let one = listen_address(dir.path(), Some(("10.1.2.3".parse().ok(), 9))).unwrap();
        assert_eq!(one, "10.1.2.3:9".parse().unwrap());
    }

    #[test]
    fn a_port_file_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remembered_port(dir.path()).unwrap(), None);
        for bad in ["", "x", "0", "70000", "-1"] {
            std::fs::write(port_file(dir.path()), bad).unwrap();
            assert_eq!(remembered_port(dir.path()).unwrap_err().code, "state-corrupt", "{bad:?}");
        }
    }
}
