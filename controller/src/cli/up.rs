//! `postern up`: compile, take the host over by SSH if it is not yet, apply.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use postern_installer::{
    Action, BootstrapError, BoxError, Code, Controller, Options, Overrides, Report, SessionUp, SshConfig,
    Target, Ticket, bootstrap,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::args::{Ssh, Up};
use super::compose::Wanted;
use super::error::{CliError, chain};
use super::follow::Interrupt;
use super::out::Volume;
use super::terminal::{Terminal, secret};
use super::{Context, Exit, addresses, admin_key, apply, clean, ssh_port};
use crate::bundle::Bundle;
use crate::client::{Client, HostChange, HostInfo, Info, Link};

/// A password file that is longer holds no password, bytes.
const MAX_PASSWORD: u64 = 4096;

pub(crate) async fn up(context: &Context, args: Up) -> Result<Exit, CliError> {
    // Everything that can be wrong without touching anything comes first.
    let wanted = match args.profiles.is_empty() {
        true => None,
        false => Some(Wanted::read(context, &args.profiles, &args.values)?),
    };
    if wanted.is_none() && (args.check || !args.values.is_empty()) {
        return Err(CliError::usage("usage", "--check and --var are for profiles, and there is none")
            .hint("name one with --profile"));
    }
    let key = wanted.as_ref().and_then(|wanted| admin_key::wanted(context, wanted, &args.ssh));
    if let Some(wanted) = &wanted
        && !may_know_hosts(context)
    {
        admin_key::check(context, wanted, &admin_key::with(key.as_ref(), BTreeMap::new()))?;
    }
    let target = resolve(context, &args.target)?;
    let ssh_address = canonical(&target);

    let mut client = context.connect().await?;
    let info = client.info().await?;
    let port = addresses::listener(&info.listen).map_or(postern_proto::DEFAULT_PORT, |listen| listen.port());
    let named: Vec<_> = args
        .controllers
        .iter()
        .map(|text| addresses::with_port(text, port))
        .collect::<Result<_, _>>()
        .map_err(|why| CliError::usage("usage", why))?;

    let known = client.hosts().await?.into_iter().find(|host| host.ssh_address == ssh_address);
    if let Some(wanted) = &wanted {
        let vars = known.as_ref().map(|host| host.vars.clone()).unwrap_or_default();
        admin_key::check(context, wanted, &admin_key::with(key.as_ref(), vars))?;
    }
    // Somebody at the console may have opened it again: what counts is whether it answers.
    if let Some(host) = &known
        && host.ssh.is_closed()
        && (host.link != Link::Up || args.bootstrap)
        && !ssh_port::can_be_reached(&mut client, host).await?
    {
        return Err(ssh_port::is_shut(host));
    }
    let connected = known.filter(|host| host.link == Link::Up && !args.bootstrap);
    let (host, mut route) = match connected {
        Some(host) => {
            // Its name and labels may be new all the same; the token that comes with it is not used.
            let host = match args.name.is_some() || !args.labels.is_empty() {
                true => client.prepare_host(ssh_address, args.name, args.labels).await?.0,
                false => host,
            };
            context.out.note(&format!("{}: its agent is connected, no SSH needed", clean::line(&host.name)));
            (host, None)
        }
        None => {
            let listed = Listed { ssh_address, name: args.name, labels: args.labels, named };
            let options = Access { ssh: &args.ssh, agent_binary: args.agent_binary.as_deref() };
            let mut options = options.options(context, target)?;
            options.allow_temporary_route = !args.no_temporary_route;
            options.accept_clock = args.accept_clock;
            let (mut host, report) = take_over(context, &mut client, &info, options, listed).await?;
            told(context, &host, &report);
            let also_at: Vec<String> = report.also_at.iter().map(ToString::to_string).collect();
            // None at all may be one moment's doing.
            if !also_at.is_empty() && host.also_at != also_at {
                let change = HostChange { also_at: Some(report.also_at.clone()), ..HostChange::default() };
                host = client.update_host(host.id, change).await?;
            }
            (host, report.guard)
        }
    };
    context.out.end_activity();

    let mut interrupt = Interrupt::listen();
    let exit = match &wanted {
        Some(wanted) => {
            let host = admin_key::keep(context, &mut client, host, key, args.check).await?;
            let job = wanted.job(context, &mut client, &host, args.check).await?;
            apply::one(context, &mut client, &host, &job, false, &mut interrupt, |_| {}).await?
        }
        None => {
            if context.out.json {
                context.out.document(&json!({
                    "schema": "postern/up-result/v1", "host": host.name, "host_id": host.id.to_string(),
                }));
            } else {
                let name = clean::line(&host.name);
                context.out.line(&format!(
                    "{name} is taken over; next: postern up … --profile, or postern exec {name} -- CMD"
                ));
            }
            Exit::Ok
        }
    };
    if let Some(route) = route.take() {
        context.out.tell(
            "warning: the host reached this machine by a temporary route through SSH only, which ends now; until it \
             has another way (postern up … --controller ADDR), it cannot be managed",
        );
        if let Err(error) = route.close().await {
            context.out.tell(&format!("warning: {}", clean::line(&chain(&error))));
        }
    }
    Ok(exit)
}

/// False where no state was made yet: then nothing is kept with any host.
fn may_know_hosts(context: &Context) -> bool {
    let entries = context.state_dir().ok().and_then(|dir| std::fs::read_dir(dir).ok());
    entries.is_some_and(|mut entries| entries.next().is_some())
}

/// The target by the user's own ssh configuration.
fn resolve(context: &Context, text: &str) -> Result<Target, CliError> {
    resolve_by(context, text, Overrides::default())
}

/// A target that is reached by this command, unless the user's own ssh configuration has another for it.
pub(crate) fn resolve_through(context: &Context, text: &str, command: &str) -> Result<Target, CliError> {
    let overrides = Overrides { proxy_command: Some(command.to_owned()), ..Overrides::default() };
    resolve_by(context, text, overrides)
}

/// A host as the daemon knows it: by the very way that is on record.
pub(crate) fn resolve_known(context: &Context, ssh_address: &str) -> Result<Target, CliError> {
    let (text, jumps) = way(ssh_address);
    let jump = Some(jumps.unwrap_or("none").to_owned());
    let target = resolve_by(context, text, Overrides { jump, ..Overrides::default() })?;
    if canonical(&target) != ssh_address {
        // A record of another kind, or a configuration that sends a jump host elsewhere.
        return Err(CliError::usage(
            "target",
            format!("the host is on record at {ssh_address:?}, and SSH would go to {:?}", canonical(&target)),
        )
        .hint("look at ProxyJump and HostName in your ssh configuration"));
    }
    Ok(target)
}

fn resolve_by(context: &Context, text: &str, overrides: Overrides) -> Result<Target, CliError> {
    let home = context.env.home().unwrap_or_else(|| PathBuf::from("/"));
    let files = [home.join(".ssh/config"), PathBuf::from("/etc/ssh/ssh_config")];
    let config =
        SshConfig::load(&files, &home).map_err(|error| CliError::usage("ssh-config", chain(&error)))?;
    let local_user = context.env.get("USER").or_else(|| context.env.get("LOGNAME"));
    let overrides = Overrides { local_user: local_user.unwrap_or("root").to_owned(), home, ..overrides };
    Target::resolve(text, &config, &overrides).map_err(|error| {
        CliError::usage("target", chain(&error))
            .hint("write it as root@203.0.113.10, or as an alias of your ssh configuration")
    })
}

/// Between a host and the jump hosts on the way to it.
const VIA: &str = " via ";

/// How the host is known to the daemon: what SSH really connects to, so that an alias and its address are one;
/// and by which way, since a private address is another machine behind another jump host.
fn canonical(target: &Target) -> String {
    let one = |user: &str, host: &str, port: u16| match host.contains(':') {
        true => format!("{user}@[{host}]:{port}"),
        false => format!("{user}@{host}:{port}"),
    };
    let host = one(&target.user, &target.host, target.port);
    let jumps: Vec<_> = target.jumps.iter().map(|hop| one(&hop.user, &hop.host, hop.port)).collect();
    if jumps.is_empty() { host } else { format!("{host}{VIA}{}", jumps.join(",")) }
}

/// The host and the jump hosts of a known address.
fn way(ssh_address: &str) -> (&str, Option<&str>) {
    match ssh_address.split_once(VIA) {
        Some((host, jumps)) => (host, Some(jumps)),
        None => (ssh_address, None),
    }
}

/// How to log in, and with which agents.
pub(crate) struct Access<'a> {
    pub(crate) ssh: &'a Ssh,
    pub(crate) agent_binary: Option<&'a Path>,
}

impl Access<'_> {
    /// For a bootstrap: with agents.
    fn options(&self, context: &Context, target: Target) -> Result<Options, CliError> {
        let named = self.agent_binary.map(Path::to_owned);
        let named = named.or_else(|| context.env.get("POSTERN_AGENT_BINARY").map(PathBuf::from));
        let bundle = match named {
            Some(file) => Bundle::from_file(&context.env.cwd.join(&file)),
            None => Bundle::embedded(),
        };
        let bundle = bundle.map_err(|error| {
            CliError::usage("agent-binary", chain(&error))
                .hint("build with `cargo xtask dist`, or name an agent with --agent-binary FILE")
        })?;
        self.options_with(context, target, bundle)
    }

    /// With these agents, or with none where none is installed.
    pub(crate) fn options_with(
        &self,
        context: &Context,
        target: Target,
        bundle: Bundle,
    ) -> Result<Options, CliError> {
        let mut options = by_keys(context, target, bundle, &self.ssh.identities);
        options.host_key.fingerprint = self.ssh.host_key.clone();
        options.connect_deadline = self.ssh.timeout;
        if self.ssh.password {
            let prompt = format!("Password of {}", canonical(&options.target));
            let password = context.out.aside(|| secret(&prompt)).ok_or_else(|| {
                CliError::usage("no-terminal", "--password asks on a terminal, and there is none")
                    .hint("log in with a key (--identity), or run this in a terminal")
            })?;
            options.password = Some(password);
        }
        if let Some(file) = &self.ssh.password_file {
            options.password = Some(first_line(&context.env.cwd.join(file))?);
        }
        if let Some(file) = &self.ssh.sudo_password_file {
            options.become_password = Some(first_line(&context.env.cwd.join(file))?);
        }
        Ok(options)
    }
}

/// A login with these keys and those of the SSH agent.
pub(crate) fn by_keys(context: &Context, target: Target, bundle: Bundle, identities: &[PathBuf]) -> Options {
    let mut options = Options::new(target, Arc::new(move |arch| bundle.agent(arch)));
    options.identity_files = identities.iter().map(|file| context.env.cwd.join(file)).collect();
    options.agent_socket = context.env.get("SSH_AUTH_SOCK").map(PathBuf::from);
    options
}

/// A password for those who have no terminal: the first line of a file, which no other user may read.
fn first_line(file: &Path) -> Result<Zeroizing<String>, CliError> {
    let fail = |why: String| {
        CliError::usage("password-file", format!("{}: {why}", file.display()))
            .hint("put the password on the first line of a file with mode 0600")
    };
    let opened = File::open(file).map_err(|error| fail(error.to_string()))?;
    let meta = opened.metadata().map_err(|error| fail(error.to_string()))?;
    // A pipe (`<(pass show web1)`) is nobody else's to read.
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        return Err(fail("other users can read it".to_owned()));
    }
    let mut line = Zeroizing::new(String::new());
    let mut reader = BufReader::new(opened.take(MAX_PASSWORD));
    reader.read_line(&mut line).map_err(|error| fail(error.to_string()))?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(fail("its first line is empty".to_owned()));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

/// What the host is to be registered as.
struct Listed {
    ssh_address: String,
    name: Option<String>,
    labels: Vec<(String, String)>,
    /// Addresses that the operator named, in order.
    named: Vec<String>,
}

/// The daemon, as the installer needs it.
struct Registry {
    client: Client,
    wanted: Listed,
    info: Info,
    target_is_local: bool,
    host: Mutex<Option<HostInfo>>,
}

impl Registry {
    fn remembered(&self) -> Option<HostInfo> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, host: HostInfo) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = Some(host);
    }

    /// Those an operator named for this host, else for this daemon.
    fn operators(&self) -> &[String] {
        if self.wanted.named.is_empty() { &self.info.advertised } else { &self.wanted.named }
    }
}

#[async_trait]
impl Controller for Registry {
    async fn ticket(&self) -> Result<Ticket, BoxError> {
        let Listed { ssh_address, name, labels, .. } = &self.wanted;
        let (host, token) =
            self.client.clone().prepare_host(ssh_address.clone(), name.clone(), labels.clone()).await?;
        let host_id = host.id;
        self.remember(host);
        Ok(Ticket {
            host_id,
            token,
            controllers: self.operators().to_vec(),
            server_name: self.info.server_name.clone(),
            server_ca_pem: self.info.server_ca_pem.clone(),
            proxy: None,
        })
    }

    async fn session_up(&self, deadline: Duration) -> Result<SessionUp, BoxError> {
        let host = self.remembered().ok_or("no ticket was fetched")?;
        match self.client.clone().wait_for_session(host.id, deadline).await? {
            Ok(host) => {
                let session =
                    SessionUp { agent_version: host.agent_version.clone(), peer: Some(host.peer.clone()) };
                self.remember(host);
                Ok(session)
            }
            Err(last) => {
                let detail = last.map(|host| format!("it is {} {}", host.link.as_str(), host.detail));
                Err(detail.unwrap_or_else(|| "the daemon said nothing of it".into()).trim().into())
            }
        }
    }

    fn listener(&self) -> Option<SocketAddr> {
        let mut listen = addresses::listener(&self.info.listen)?;
        if listen.ip().is_unspecified() {
            let loopback = if listen.is_ipv4() { "127.0.0.1" } else { "::1" };
            listen.set_ip(loopback.parse::<IpAddr>().ok()?);
        }
        Some(listen)
    }

    fn extra_addresses(&self, seen_from_host: IpAddr, local: IpAddr) -> Vec<String> {
        // They would come before what the operator said, who knows better.
        if !self.operators().is_empty() {
            return Vec::new();
        }
        match addresses::listener(&self.info.listen) {
            Some(listen) => addresses::from_ssh(seen_from_host, local, listen, self.target_is_local),
            None => Vec::new(),
        }
    }
}

async fn take_over(
    context: &Context,
    client: &mut Client,
    info: &Info,
    options: Options,
    wanted: Listed,
) -> Result<(HostInfo, Report), CliError> {
    let target_is_local = addresses::is_local(&options.target.host, options.target.jumps.len());
    let registry = Registry {
        client: client.clone(),
        wanted,
        info: info.clone(),
        target_is_local,
        host: Mutex::default(),
    };
    let console = Terminal::new(context.out.clone());
    let result = bootstrap(options, &console, &registry).await;
    context.out.end_activity();
    let report = result.map_err(|error| bootstrap_failed(&error))?;
    let host = match registry.remembered() {
        Some(host) if host.id == report.host_id => host,
        _ => {
            let hosts = client.hosts().await?.into_iter();
            hosts.into_iter().find(|host| host.id == report.host_id).ok_or_else(|| {
                CliError::usage("daemon-answer", format!("the daemon does not know host {}", report.host_id))
            })?
        }
    };
    Ok((host, report))
}

pub(crate) fn bootstrap_failed(error: &BootstrapError) -> CliError {
    let code = error.code().as_str();
    let place = error.step().map(|step| format!("step {step}: ")).unwrap_or_default();
    let message = format!("{place}{}", chain(error));
    let mut cli = match error.code() {
        Code::Usage => CliError::usage(code, message),
        _ => CliError::failed(code, message),
    };
    cli.details = error.tried().iter().map(|tried| format!("{}: {}", tried.address, tried.error)).collect();
    // The installer does not know what things are called on this command line.
    let flag = match code {
        "host-key-unknown" => " (--host-key SHA256:…)",
        "authentication-failed" => " (--identity FILE; --password)",
        "controller-unreachable" => " (--controller ADDR)",
        "clock-off" => " (--accept-clock)",
        "timed-out" => " (--timeout)",
        _ => "",
    };
    cli.hint(format!("{}{flag}", error.hint()))
}

/// What the bootstrap did.
fn told(context: &Context, host: &HostInfo, report: &Report) {
    let name = clean::line(&host.name);
    let did = match report.action {
        Action::Installed => "agent installed",
        Action::Upgraded => "agent upgraded",
        Action::LeftAlone => "agent left as it is",
    };
    let seconds = report.took.as_secs_f64();
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/bootstrap-result/v1",
            "host": host.name,
            "host_id": host.id.to_string(),
            "action": match report.action {
                Action::Installed => "installed",
                Action::Upgraded => "upgraded",
                Action::LeftAlone => "left-alone",
            },
            "agent_version": report.session.agent_version,
            "temporary_route": report.temporary_route,
            "seconds": seconds,
            "warnings": report.preflight.warnings().map(ToString::to_string).collect::<Vec<_>>(),
        }));
        return;
    }
    for warning in report.preflight.warnings() {
        context.out.note(&format!("warning: {}", clean::line(&warning.to_string())));
    }
    if context.out.volume == Volume::Verbose {
        for step in &report.steps {
            context.out.note(&format!("  {:>8.3} s  {}", step.took.as_secs_f64(), step.step));
        }
    }
    let ssh = match report.temporary_route {
        true => "SSH stays open as a temporary route: the host has no other way to this machine",
        false => "SSH is closed",
    };
    context.out.note(&format!("{name}: {did} in {seconds:.2} s, its session is up; {ssh}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::Manner;
    use crate::cli::out::Out;
    use crate::cli::{Env, Io};

    fn context(home: &Path) -> Context {
        let io = Io {
            stdin: Box::new(std::io::empty()),
            stdin_is_terminal: false,
            stdout: Box::new(std::io::sink()),
            stderr: Box::new(std::io::sink()),
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        };
        Context {
            env: Env::of(&[("HOME", home.to_str().unwrap()), ("USER", "me")], home, home),
            out: Out::new(io, Manner { json: false, volume: Volume::Quiet, no_color: true, progress: false }),
            state_dir: None,
        }
    }

    /// The same private address behind two jump hosts is two hosts, and each is found again by its own way.
    #[test]
    fn a_host_is_known_with_its_way() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        let config = "Host a\n HostName 192.168.1.10\n User root\n ProxyJump ops@site-a\n\
                      Host b\n HostName 192.168.1.10\n User root\n ProxyJump ops@site-b:2222,fd00::7\n\
                      Host site-a\n HostName a.example\n\
                      Host 192.168.1.10\n ProxyJump ops@elsewhere\n";
        std::fs::write(home.path().join(".ssh/config"), config).unwrap();
        let context = context(home.path());
        for (text, want) in [
            ("a", "root@192.168.1.10:22 via ops@a.example:22"),
            ("b", "root@192.168.1.10:22 via ops@site-b:2222,me@[fd00::7]:22"),
            ("root@192.0.2.1", "root@192.0.2.1:22"),
        ] {
            let target = resolve(&context, text).unwrap();
            assert_eq!(canonical(&target), want);
            let again = resolve_known(&context, want).unwrap();
            assert_eq!(canonical(&again), want);
        }
        // What is on record without a jump host is reached without one.
        assert!(resolve_known(&context, "root@192.168.1.10:22").unwrap().jumps.is_empty());
        assert_eq!(resolve_known(&context, "a").unwrap_err().code, "target");
    }
}
