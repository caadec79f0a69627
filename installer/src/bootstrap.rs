//! The bootstrap itself, step by step.

use std::net::IpAddr;
use std::time::Duration;

use postern_proto::host::{AgentConfig, exit};
use russh_sftp::client::SftpSession;
use tokio::task::JoinHandle;

use crate::api::{
    AgentBinary, Arch, Console, Controller, Fault, FaultMoment, Options, Progress, SessionUp, Step, Ticket,
};
use crate::auth::{self, Credentials};
use crate::connect::{self, Connection, Policy};
use crate::elsewhere;
use crate::error::{BootstrapError, Code};
use crate::exec::{self, Answer, Input};
use crate::plan::{self, InstallSaid, Wanted, Work};
use crate::preflight::{self, Preflight};
use crate::report::{Action, Clock, Report};
use crate::root::{self, Root};
use crate::route::{self, TemporaryRoute, disconnect};
use crate::script::{self, Install, UPLOAD_AS_ROOT, UPLOAD_AS_USER};
use crate::survey::{self, CloudInit, HostFacts};
use crate::unit;
use crate::upload;

/// How long unpacking, enrolling and starting may take together.
const INSTALL: Duration = Duration::from_secs(300);
/// Between two looks at cloud-init.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a healthy agent may take to show its session before it is set up again.
const HEALTHY: Duration = Duration::from_secs(15);
/// How long the agent's own words are waited for when something went wrong.
const DIAGNOSE: Duration = Duration::from_secs(15);

/// Bootstraps a host: see the crate's documentation. Safe to repeat from any point.
///
/// Nothing on the host is changed before the preflight has passed, and nothing that ran there is replaced
/// before the new program is verified and enrolled.
pub async fn bootstrap(
    options: Options,
    console: &dyn Console,
    controller: &dyn Controller,
) -> Result<Report, BootstrapError> {
    let mut clock = Clock::new(console);
    let connection = Box::pin(enter(&options, console, &mut clock)).await?;
    let mut job = Job { options: &options, console, controller, clock, connection, also_at: None };
    match Box::pin(job.run()).await {
        Ok(done) => Ok(job.report(done).await),
        Err(error) => {
            disconnect(job.connection).await;
            Err(error)
        }
    }
}

/// Connects, verifies and logs in.
pub(crate) async fn enter(
    options: &Options,
    console: &dyn Console,
    clock: &mut Clock<'_>,
) -> Result<Connection, BootstrapError> {
    let fingerprint = options.host_key.fingerprint.as_deref().map(str::trim);
    if let Some(text) = fingerprint
        && !text.starts_with("SHA256:")
    {
        return Err(BootstrapError::new(
            Code::Usage,
            format!("{text:?} is not a fingerprint; want SHA256:…"),
        ));
    }
    clock.begin(Step::Connect);
    let credentials = Credentials {
        identity_files: &options.identity_files,
        agent_socket: options.agent_socket.as_deref(),
        password_login: options.password_login,
        password: options.password.as_ref(),
    };
    let policy = Policy {
        // OpenSSH prints them without padding; people paste what they have.
        known_hosts_files: &options.host_key.known_hosts_files,
        fingerprint: fingerprint.map(|text| text.trim_end_matches('=')),
        fault: options.fault,
    };
    let deadline = options.connect_deadline;
    let mut connection =
        connect::connect(&options.target, &policy, &credentials, deadline, console, clock).await?;
    clock.end(Step::Connect, options.target.as_hop().address());
    clock.end(Step::HostKey, "");
    cut(options.fault, Step::HostKey, FaultMoment::After, &connection);
    cut(options.fault, Step::Login, FaultMoment::Before, &connection);
    clock.begin(Step::Login);
    let hop = options.target.as_hop();
    let by = auth::login(&mut connection.handle, &hop, &credentials, &connection.said, console).await?;
    cut(options.fault, Step::Login, FaultMoment::After, &connection);
    clock.end(Step::Login, by);
    clock.begin(Step::Survey);
    Ok(connection)
}

fn cut(fault: Option<Fault>, step: Step, moment: FaultMoment, connection: &Connection) {
    if fault == Some(Fault { step, moment }) {
        connection.cut.cut();
    }
}

struct Job<'a> {
    options: &'a Options,
    console: &'a dyn Console,
    controller: &'a dyn Controller,
    clock: Clock<'a>,
    connection: Connection,
    also_at: Option<JoinHandle<Vec<IpAddr>>>,
}

/// What is known at the end.
struct Done {
    facts: HostFacts,
    preflight: Preflight,
    config: AgentConfig,
    action: Action,
    session: SessionUp,
    root: Root,
    temporary: Option<String>,
}

/// What is written, and what for.
struct Target {
    binary: AgentBinary,
    config: AgentConfig,
    config_text: String,
    unit: String,
}

impl Job<'_> {
    async fn run(&mut self) -> Result<Done, BootstrapError> {
        self.fault(Step::Survey, FaultMoment::Before);
        // SFTP is opened beside the survey: that changes nothing on the host and saves two round trips.
        let (surveyed, sftp) = tokio::join!(
            root::survey(&self.connection.handle, self.options, self.console),
            upload::open(&self.connection.handle)
        );
        let (mut facts, root) = surveyed.map_err(|error| error.at(Step::Survey))?;
        self.clock.end(Step::Survey, format!("{}, {}", facts.os_name, facts.machine));
        self.fault(Step::Survey, FaultMoment::After);

        if self.cloud_init(&mut facts).await? {
            // The host is another one now: packages, users and sudoers may have come.
            facts = root::survey(&self.connection.handle, self.options, self.console)
                .await
                .map_err(|error| error.at(Step::CloudInit))?
                .0;
        }
        let (preflight, binary) = self.preflight(&facts)?;
        self.also_at = Some(self.look_elsewhere(&facts));

        let unit = unit::unit();
        let found = facts.agent.clone();
        let upload = plan::needs_upload(found.as_ref(), &binary);
        self.begin(Step::Ticket);
        let mut place = None;
        if upload {
            self.begin(Step::Upload);
        }
        // The token is minted while the program is on its way.
        let (ticket, uploaded) = tokio::join!(self.controller.ticket(), async {
            if upload { self.upload(&binary, &facts, &root, sftp.as_ref()).await.map(Some) } else { Ok(None) }
        });
        let ticket = ticket.map_err(|error| {
            BootstrapError::new(Code::Ticket, "the controller gave no token for this host")
                .caused_by(error)
                .at(Step::Ticket)
        })?;
        self.clock.end(Step::Ticket, "");
        self.fault(Step::Ticket, FaultMoment::After);
        if let Some(path) = uploaded.map_err(|error| error.at(Step::Upload))? {
            self.clock.end(Step::Upload, format!("{} KiB", binary.gzip.len() / 1024));
            place = Some(path);
            self.fault(Step::Upload, FaultMoment::After);
        }

        let config = plan::config(&ticket, self.extra_addresses(&facts), found.as_ref());
        let config_text = serde_json::to_string(&config).map_err(|error| {
            BootstrapError::new(Code::Unexpected, "writing the agent's configuration").caused_by(error)
        })?;
        let target = Target { binary, config, config_text, unit };
        let wanted = Wanted {
            binary: &target.binary,
            config_text: &target.config_text,
            config: &target.config,
            unit: &target.unit,
        };
        let mut work = plan::work(found.as_ref(), &wanted);
        if work.nothing() {
            // It looks healthy. Whether it is, only its session says.
            self.begin(Step::Session);
            if let Ok(session) = self.controller.session_up(self.options.session_deadline.min(HEALTHY)).await
            {
                self.clock.end(Step::Session, session.peer.clone().unwrap_or_default());
                return Ok(Done {
                    facts,
                    preflight,
                    config: target.config,
                    action: Action::LeftAlone,
                    session,
                    root,
                    temporary: None,
                });
            }
            work = Work { upload: false, ..Work::ALL };
        }
        let temporary = self.install(work, &target, &ticket, place, &facts, &root, sftp.as_ref()).await?;
        self.begin(Step::Session);
        let session = self.session(&root).await?;
        self.clock.end(Step::Session, session.peer.clone().unwrap_or_default());
        self.fault(Step::Session, FaultMoment::After);
        let action = if found.as_ref().is_none_or(|agent| agent.sha256.is_none()) || work.enrol {
            Action::Installed
        } else {
            Action::Upgraded
        };
        Ok(Done { facts, preflight, config: target.config, action, session, root, temporary })
    }

    /// Looks beside all else where the same server answers.
    fn look_elsewhere(&self, facts: &HostFacts) -> JoinHandle<Vec<IpAddr>> {
        let key = self.connection.said.lock().ok().and_then(|said| said.key.clone());
        let target = &self.options.target;
        // Behind a jump host its addresses are somebody else's here, or nobody's.
        let addresses = if target.jumps.is_empty() { facts.addresses.as_slice() } else { &[] };
        tokio::spawn(elsewhere::look(
            elsewhere::candidates(addresses, self.connection.peer),
            target.port,
            key,
        ))
    }

    fn fault(&self, step: Step, moment: FaultMoment) {
        cut(self.options.fault, step, moment, &self.connection);
    }

    fn begin(&mut self, step: Step) {
        self.fault(step, FaultMoment::Before);
        self.clock.begin(step);
    }

    /// Waits for cloud-init; whether it had to.
    async fn cloud_init(&mut self, facts: &mut HostFacts) -> Result<bool, BootstrapError> {
        self.begin(Step::CloudInit);
        let until = tokio::time::Instant::now() + self.options.cloud_init_deadline;
        let mut looks = 0;
        while let CloudInit::Busy(what) = &facts.cloud_init {
            looks += 1;
            self.clock.detail(Step::CloudInit, what.clone(), Some(looks));
            if tokio::time::Instant::now() + LOOK_AGAIN > until {
                let seconds = self.options.cloud_init_deadline.as_secs();
                return Err(BootstrapError::new(
                    Code::CloudInitBusy,
                    format!("cloud-init was still at work after {seconds} seconds: {what}"),
                )
                .at(Step::CloudInit));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            let look = Input::text(&script::cloud_init());
            let doing = "looking at cloud-init";
            let output = exec::run(&self.connection.handle, script::SHELL, look, doing, root::SURVEY)
                .await
                .map_err(|error| error.at(Step::CloudInit))?;
            facts.cloud_init = survey::parse_cloud_init(&output.stdout).map_err(|error| {
                BootstrapError::new(Code::Unexpected, doing).caused_by(error).at(Step::CloudInit)
            })?;
        }
        self.clock.end(Step::CloudInit, "");
        self.fault(Step::CloudInit, FaultMoment::After);
        Ok(looks > 0)
    }

    fn preflight(&mut self, facts: &HostFacts) -> Result<(Preflight, AgentBinary), BootstrapError> {
        self.begin(Step::Preflight);
        let agents = &self.options.agent;
        let preflight = preflight::check(facts, &|arch| agents(arch).is_some(), self.options.accept_clock);
        let refusals: Vec<_> = preflight.refusals().collect();
        if let [first, rest @ ..] = refusals.as_slice() {
            let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
            let also = if rest.is_empty() { String::new() } else { format!(" (also {})", rest.join("; ")) };
            let code = first.code.unwrap_or(Code::Unexpected);
            let text = format!("this host cannot be taken: {first}{also}");
            return Err(BootstrapError::new(code, text).at(Step::Preflight));
        }
        if let Some(error) = plan::state_refusal(facts.agent.as_ref()) {
            return Err(error.at(Step::Preflight));
        }
        let binary = Arch::from_uname(&facts.machine).and_then(|arch| agents(arch)).ok_or_else(|| {
            BootstrapError::new(Code::UnsupportedArch, format!("no agent for {:?}", facts.machine))
                .at(Step::Preflight)
        })?;
        let warnings: Vec<String> = preflight.warnings().map(ToString::to_string).collect();
        self.clock.end(Step::Preflight, warnings.join("; "));
        self.fault(Step::Preflight, FaultMoment::After);
        Ok((preflight, binary))
    }

    /// Brings the program to the host; where it lies then.
    async fn upload(
        &self,
        binary: &AgentBinary,
        facts: &HostFacts,
        root: &Root,
        sftp: Option<&SftpSession>,
    ) -> Result<String, BootstrapError> {
        let detail =
            format!("{} KiB, {}", binary.gzip.len() / 1024, if sftp.is_some() { "SFTP" } else { "channel" });
        let of = Step::ALL.len() as u8;
        let step = Step::Upload;
        self.console.progress(&Progress { step, of, what: step.what(), detail, count: None, done: false });
        if let Some(sftp) = sftp {
            // As root straight to a place only root can write; otherwise into the user's own home, from
            // where root takes it and checks what it took.
            let (path, there) = if facts.uid == 0 {
                (UPLOAD_AS_ROOT, UPLOAD_AS_ROOT.to_owned())
            } else {
                (UPLOAD_AS_USER, format!("{}/{UPLOAD_AS_USER}", facts.home))
            };
            match upload::by_sftp(sftp, path, &binary.gzip).await {
                Ok(()) => return Ok(there),
                Err(error) if self.connection.handle.is_closed() => {
                    return Err(BootstrapError::new(
                        Code::ConnectionCut,
                        "the SSH connection broke while uploading the agent",
                    )
                    .caused_by(error));
                }
                Err(error) => tracing::debug!(%error, "SFTP failed, trying a plain channel"),
            }
        }
        self.upload_by_channel(binary, root).await
    }

    async fn upload_by_channel(&self, binary: &AgentBinary, root: &Root) -> Result<String, BootstrapError> {
        upload::by_channel(&self.connection.handle, root.shell, root.input(), UPLOAD_AS_ROOT, &binary.gzip)
            .await?;
        Ok(UPLOAD_AS_ROOT.to_owned())
    }

    fn extra_addresses(&self, facts: &HostFacts) -> Vec<String> {
        // Through a jump host, neither end is ours.
        match (facts.ssh_client, self.connection.local) {
            (Some(seen), Some(local)) => self.controller.extra_addresses(seen, local.to_canonical()),
            _ => Vec::new(),
        }
    }

    /// Installs, enrols and starts; the temporary route, if it had to be made.
    #[allow(clippy::too_many_arguments)]
    async fn install(
        &mut self,
        work: Work,
        target: &Target,
        ticket: &Ticket,
        mut place: Option<String>,
        facts: &HostFacts,
        root: &Root,
        sftp: Option<&SftpSession>,
    ) -> Result<Option<String>, BootstrapError> {
        let sha256 = plan::hex(&target.binary.sha256);
        let listener = self.controller.listener().filter(|_| self.options.allow_temporary_route);
        if work.upload && place.is_none() {
            place =
                Some(self.upload(&target.binary, facts, root, sftp).await.map_err(|e| e.at(Step::Upload))?);
        }
        let mut install = Install {
            upload: place.as_deref().map(|path| (path, sha256.as_str())),
            config: work.config.then_some(target.config_text.as_str()),
            unit: work.unit.then_some(target.unit.as_str()),
            token: work.enrol.then_some(ticket.token.as_str()),
            displace: work.displace,
            // An enrolled agent that is to be restarted may have lived on a temporary route that is gone.
            probe: !work.enrol && listener.is_some(),
            start: work.start,
            keep_upload: listener.is_some(),
            pause: self.options.fault.is_some(),
            ..Install::default()
        };
        let (mut said, mut complaint) = self.run_install(&install, root).await?;
        let there;
        if said.error.as_deref() == Some("upload-missing") {
            // A chrooted SFTP shows another tree than a shell.
            there = self.upload_by_channel(&target.binary, root).await.map_err(|e| e.at(Step::Upload))?;
            install.upload = Some((&there, &sha256));
            (said, complaint) = self.run_install(&install, root).await?;
        }
        // A private address of ours may be somebody else's where the host is: the same as out of reach.
        let unreachable = matches!(said.enrol_code, Some(exit::UNREACHABLE | exit::NOT_THE_CONTROLLER));
        let Some(listener) = listener.filter(|_| !said.ended && unreachable) else {
            return self.judge(&said, &complaint).map(|()| None);
        };
        let address = route::open(&self.connection, listener).await.map_err(|error| error.at(Step::Enrol))?;
        let routed = AgentConfig { temporary_route: Some(address.clone()), ..target.config.clone() };
        let routed = serde_json::to_string(&routed).map_err(|error| {
            BootstrapError::new(Code::Unexpected, "writing the agent's configuration").caused_by(error)
        })?;
        let drop_in = unit::temporary_route_drop_in();
        install.run_config = Some(&routed);
        install.run_drop_in = Some(&drop_in);
        install.keep_upload = false;
        let (said, complaint) = self.run_install(&install, root).await?;
        self.judge(&said, &complaint).map(|()| Some(address))
    }

    fn judge(&self, said: &InstallSaid, complaint: &str) -> Result<(), BootstrapError> {
        if said.ended {
            return Ok(());
        }
        let step = match said.done.len() {
            0 => Step::Install,
            1 => Step::Enrol,
            _ => Step::Start,
        };
        if said.error.is_none() {
            let text = format!("the SSH connection broke at step {step}");
            return Err(BootstrapError::new(Code::ConnectionCut, text).at(step));
        }
        Err(plan::install_error(said, complaint).at(step))
    }

    async fn run_install(
        &mut self,
        install: &Install<'_>,
        root: &Root,
    ) -> Result<(InstallSaid, String), BootstrapError> {
        self.begin(Step::Install);
        let input = root.input().secret(script::install(install));
        let what = "installing the agent";
        let (fault, connection, clock) = (self.options.fault, &self.connection, &mut self.clock);
        let running = exec::start(&connection.handle, root.shell, what, root::SURVEY)
            .await
            .map_err(|error| error.at(Step::Install))?;
        let mut on_line = |line: &str| {
            let (step, next) = match line {
                "done=install" => (Step::Install, Step::Enrol),
                "done=enrol" => (Step::Enrol, Step::Start),
                "done=start" => (Step::Start, Step::Session),
                "displaced=yes" => {
                    let detail = "another controller's agent runs here, or another host's: it gives way";
                    clock.detail(Step::Enrol, detail.into(), None);
                    return Answer::Nothing;
                }
                _ => return Answer::Nothing,
            };
            clock.end(step, "");
            cut(fault, step, FaultMoment::After, connection);
            if next != Step::Session {
                cut(fault, next, FaultMoment::Before, connection);
                clock.begin(next);
            }
            if fault.is_some() { Answer::Line } else { Answer::Nothing }
        };
        let output = running
            .finish(input, install.pause, what, INSTALL, &mut on_line)
            .await
            .map_err(|error| error.at(Step::Install))?;
        Ok((plan::install_said(&output.stdout), output.complaint()))
    }

    async fn session(&mut self, root: &Root) -> Result<SessionUp, BootstrapError> {
        let error = match self.controller.session_up(self.options.session_deadline).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        let input = root.input().secret(zeroize::Zeroizing::new(script::diagnose()));
        let what = "asking the host why";
        let output = exec::run(&self.connection.handle, root.shell, input, what, DIAGNOSE).await;
        let words = output.map(|output| output.stdout).unwrap_or_default();
        let code = if words.lines().any(|line| line == "ActiveState=active") {
            Code::SessionDown
        } else {
            Code::StartFailed
        };
        let words: Vec<String> =
            words.lines().map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect()).collect();
        let seconds = self.options.session_deadline.as_secs();
        let text = format!(
            "the agent's session did not come up within {seconds} seconds; the host says: {}",
            words.join(" | ")
        );
        Err(BootstrapError::new(code, text).caused_by(error).at(Step::Session))
    }

    async fn report(self, done: Done) -> Report {
        let Self { mut clock, connection, also_at, .. } = self;
        let also_at = match also_at {
            Some(looking) => looking.await.unwrap_or_default(),
            None => Vec::new(),
        };
        cut(self.options.fault, Step::Close, FaultMoment::Before, &connection);
        let guard = match done.temporary {
            Some(address) => Some(TemporaryRoute::new(connection, done.root, address)),
            None => {
                clock.begin(Step::Close);
                disconnect(connection).await;
                clock.end(Step::Close, "");
                None
            }
        };
        let took = clock.started.elapsed();
        Report {
            host_id: done.config.host_id,
            facts: done.facts,
            preflight: done.preflight,
            steps: clock.finish(),
            took,
            action: done.action,
            session: done.session,
            also_at,
            temporary_route: guard.is_some(),
            guard,
        }
    }
}
