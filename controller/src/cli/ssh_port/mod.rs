//! `postern ssh-port`: closes the port of SSH for good once the host can do without it, opens it again, and tells how
//! it stands. What is said of the port is what was seen of it.

mod conditions;
mod kit;
mod login;
mod plan;
mod seen;
mod tunnel;

pub(crate) use plan::keep_ssh_out;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use postern_proto::plan::Plan;
use postern_proto::spec::SshPort as Port;
use serde_json::{Value, json};

use super::apply::Job;
use super::args::{SshPort, Values};
use super::attend::{Task, What, attend, waits};
use super::compose::Wanted;
use super::error::CliError;
use super::follow::Interrupt;
use super::out::Tone;
use super::{Context, Exit, clean, hosts, json as documents};
use crate::client::{Client, HostInfo, Link, Order, PortState};
use conditions::{Checked, Checks};
use kit::{CONSOLE, Kit};
use seen::{Line, USUAL, is_closed, judge, open_at, told};

pub(crate) async fn ssh_port(context: &Context, args: SshPort) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let (SshPort::Close { host, .. } | SshPort::Open { host } | SshPort::Status { host }) = &args;
    let host = hosts::find(&mut client, host).await?;
    let command = Command { context, client, host };
    match args {
        SshPort::Close { kit, identities, .. } => {
            Box::pin(command.close(&context.env.cwd.join(kit), &identities)).await
        }
        SshPort::Open { .. } => Box::pin(command.open()).await,
        SshPort::Status { .. } => command.status().await,
    }
}

/// Why a kit is not removed.
const DECLARED_CLOSED: &str = "the port is declared closed";

/// Where SSH may be, as far as is on record.
fn ssh_ports(host: &HostInfo) -> BTreeSet<u16> {
    if !host.ssh.ports.is_empty() {
        return host.ssh.ports.clone();
    }
    let address = host.ssh_address.split(' ').next().unwrap_or_default();
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    [port.unwrap_or(USUAL)].into()
}

/// False where the port was seen to be shut at every address: nobody can log in to the host then.
pub(crate) async fn can_be_reached(client: &mut Client, host: &HostInfo) -> Result<bool, CliError> {
    let ssh = ssh_ports(host);
    let looked = client.look_at_ports(host.id, ssh.iter().copied().collect()).await?;
    let shut = |state| matches!(state, PortState::Refused | PortState::Dropped);
    let mut at = looked.seen.iter().filter(|look| ssh.contains(&look.port)).peekable();
    Ok(at.peek().is_none() || !at.all(|look| shut(look.state)))
}

/// Said where somebody has to log in, and the port is shut.
pub(crate) fn is_shut(host: &HostInfo) -> CliError {
    let name = &host.name;
    CliError::failed(
        "ssh-port-closed",
        format!("the port of SSH of {name} is closed for good, and nobody can log in to take it over"),
    )
    .hint(format!(
        "`postern ssh-port open {name}` opens it over the agent's link; without that, as root on the provider's \
         console: {CONSOLE}"
    ))
}

/// One command on one host.
struct Command<'a> {
    context: &'a Context,
    client: Client,
    host: HostInfo,
}

impl Command<'_> {
    fn name(&self) -> String {
        clean::line(&self.host.name)
    }

    /// What is assigned to the host, as the next run would have it but for the port.
    async fn plan(&mut self) -> Result<(Plan, String), CliError> {
        let none = Values { vars: Vec::new(), var_files: Vec::new() };
        let wanted = Wanted::read(self.context, &[], &none)?;
        // As the profiles have it: what is declared of the port is decided here.
        let mut host = self.host.clone();
        host.ssh.declared = None;
        let Job { plan, origin, .. } = wanted.job(self.context, &mut self.client, &host, true).await?;
        let plan = Plan::from_bytes(&plan)
            .map_err(|error| CliError::usage("internal", format!("reading a plan of our own: {error}")))?;
        Ok((plan, origin))
    }

    async fn close(mut self, kit_dir: &Path, identities: &[PathBuf]) -> Result<Exit, CliError> {
        let (whole, origin) = self.plan().await?;
        let plan = plan::firewall_alone(&self.host, whole, Port::Closed)?;
        if let Some(run) = self.host.ssh.changing {
            return Err(CliError::failed("busy", format!("{}: run {run} is not over", self.host.name))
                .hint(format!("`postern run cancel {run}` ends it")));
        }
        if self.host.link != Link::Up {
            return Err(CliError::failed(
                "not-connected",
                format!("the agent of {} is not connected: the port of SSH stays as it is", self.host.name),
            )
            .hint("`postern hosts` shows since when"));
        }
        if self.host.ssh.is_closed() {
            let lines = self.look(&plan, &ssh_ports(&self.host)).await?;
            if is_closed(&lines) {
                self.report("close", true, &[], None, &lines);
                self.say(&format!("{}: closed already: {}", self.name(), told(&lines)));
                return Ok(Exit::Ok);
            }
        }
        self.note(&format!("{}: is what closing the port of SSH needs there?", self.name()));
        let mut interrupt = Interrupt::listen();
        let kit = tokio::select! {
            kit = kit::write(&mut self.client, &self.host, kit_dir) => kit,
            () = interrupt.wait() => return Err(self.interrupted()),
        };
        // One that is pressed in the middle of a condition ends that, and one that came just before the run is heard, too.
        let checks = tokio::select! {
            checks = self.check(&plan, &kit, identities) => checks,
            () = interrupt.wait() => Err(self.interrupted()),
        };
        let checks = if interrupt.is_pressed() { Err(self.interrupted()) } else { checks };
        let mut kit = kit.ok();
        let declared = self.host.ssh.is_closed().then(|| DECLARED_CLOSED.to_owned());
        let checks = checks.inspect_err(|_| self.done_with(&mut kit, declared.clone()))?;
        for checked in &checks.all {
            self.say(&checked.line());
        }
        if !checks.all_met() {
            self.done_with(&mut kit, declared);
            let lines = judge(&checks.ssh, &[], &checks.before);
            self.report("close", false, &checks.all, kit.as_ref(), &lines);
            let missing = checks.all.iter().filter(|checked| !checked.met).count();
            let what = if missing == 1 {
                "one condition is".to_owned()
            } else {
                format!("{missing} conditions are")
            };
            let stays = if self.host.ssh.is_closed() { "as it is" } else { "open" };
            return Err(CliError::failed(
                "port-stays-open",
                format!(
                    "{}: {what} missing, the port of SSH stays {stays}; nothing was changed",
                    self.host.name
                ),
            ));
        }
        let ran = self.run(&plan, origin, Port::Closed, &mut interrupt).await;
        if ran.is_err()
            && let Ok(host) = hosts::find(&mut self.client, &self.host.id.to_string()).await
        {
            // It may have been written down all the same.
            self.host = host;
        }
        let seen = self.look_again(&plan, &checks).await;
        let ended_well = ran.as_ref().is_ok_and(|exit| *exit == Exit::Ok);
        let closed = ended_well && seen.as_ref().is_ok_and(|lines| is_closed(lines));
        let lines = seen.as_deref().unwrap_or_default();
        if !closed {
            self.done_with(&mut kit, self.needed_still(ended_well, lines));
        }
        self.report("close", closed, &checks.all, kit.as_ref(), lines);
        let exit = ran?;
        if exit != Exit::Ok {
            // Its error was said with the run.
            self.note(&format!("{}: not closed: {}", self.name(), told(lines)));
            return Ok(exit);
        }
        let lines = seen?;
        if !closed {
            return Err(self.not_closed(&lines));
        }
        let word = self.context.out.paint(Tone::Good, "closed");
        self.say(&format!("{}: {word}: seen from here on {}", self.name(), told(&lines)));
        self.note("SSH connections that are open were not cut, and no new one gets in");
        self.note(&format!("the way back: postern ssh-port open {}", self.name()));
        self.note(&format!("without the controller, as root on the provider's console: {CONSOLE}"));
        Ok(Exit::Ok)
    }

    /// Tries every condition. What was written for it is the caller's to take away.
    async fn check(
        &mut self,
        plan: &Plan,
        kit: &Result<Kit, CliError>,
        identities: &[PathBuf],
    ) -> Result<Checks, CliError> {
        let controls = |ssh: &BTreeSet<u16>| plan::controls(plan, ssh);
        let mut checks = conditions::check(&mut self.client, &self.host, kit, controls).await;
        let assigned = super::compose::assigned(&mut self.client, &self.host).await?;
        if let Some(names) = tunnel::names(&assigned, &self.host) {
            checks.all.push(tunnel::check(self.context, &mut self.client, &self.host, &names).await?);
        }
        if let Some(wanted) = tunnel::login(&assigned, &self.host) {
            checks
                .all
                .push(login::check(self.context, &mut self.client, &self.host, &wanted, identities).await?);
        }
        Ok(checks)
    }

    fn interrupted(&self) -> CliError {
        let message = format!("{}: the port of SSH stays as it is; nothing was changed", self.host.name);
        CliError::failed("interrupted", message)
    }

    /// Why the kit of a closing that did not come about may be needed all the same.
    fn needed_still(&self, ended_well: bool, lines: &[Line]) -> Option<String> {
        match self.host.ssh.changing {
            Some(run) => Some(format!("run {run} is not over")),
            None if ended_well || self.host.ssh.is_closed() => Some(DECLARED_CLOSED.to_owned()),
            None if open_at(lines).is_empty() => Some("the port is not seen open".to_owned()),
            None => None,
        }
    }

    /// A kit that was written for nothing is removed: whoever has it has all hosts. Otherwise where it lies is told.
    fn done_with(&self, kit: &mut Option<Kit>, needed: Option<String>) {
        let Some(there) = kit.as_ref() else { return };
        match needed.map_or_else(|| there.remove().map_err(|error| error.message), Err) {
            Ok(()) => {
                self.note("the recovery kit was removed again: the port stays open");
                *kit = None;
            }
            // Also where the last document has no word of it: it lies there in clear.
            Err(why) => {
                self.context
                    .out
                    .note(&clean::line(&format!("the recovery kit stays at {}: {why}", there.dir.display())));
            }
        }
    }

    /// The run ended well under guard, and what is seen now says otherwise.
    fn not_closed(&self, lines: &[Line]) -> CliError {
        let what = match open_at(lines).as_slice() {
            [] => "cannot be seen to be closed any more".to_owned(),
            at => format!("still answers at {}", at.join(", ")),
        };
        let message = format!("{}: the port of SSH {what}: {}", self.host.name, told(lines));
        CliError::failed("port-not-closed", message)
            .hint("something else on the host or before it lets SSH in")
    }

    async fn open(mut self) -> Result<Exit, CliError> {
        let (whole, origin) = self.plan().await?;
        let plan = plan::firewall_alone(&self.host, whole, Port::Open)?;
        let exit = self.run(&plan, origin, Port::Open, &mut Interrupt::listen()).await?;
        if exit != Exit::Ok {
            return Ok(exit);
        }
        let lines = self.look(&plan, &ssh_ports(&self.host)).await?;
        let open = open_at(&lines);
        self.report("open", !open.is_empty(), &[], None, &lines);
        if open.is_empty() {
            return Err(CliError::failed(
                "port-not-seen",
                format!(
                    "{}: the port of SSH is open on the host, and not seen from here: {}",
                    self.host.name,
                    told(&lines)
                ),
            )
            .hint("does sshd run there, and does the provider's own firewall let it in?"));
        }
        let word = self.context.out.paint(Tone::Good, "open");
        self.say(&format!("{}: {word}: seen from here on {}", self.name(), told(&lines)));
        Ok(Exit::Ok)
    }

    async fn status(mut self) -> Result<Exit, CliError> {
        let ssh = ssh_ports(&self.host);
        // Without a plan there is nothing to compare with, and the port is looked at all the same.
        let plan = match self.host.os_id.is_empty() {
            true => None,
            false => self.plan().await.ok().map(|(plan, _)| plan),
        };
        let lines = match &plan {
            Some(plan) => self.look(plan, &ssh).await,
            None => self.look_at(&ssh, &BTreeSet::new()).await,
        };
        let lines = lines?;
        let away = self.host.link != Link::Up;
        let differs = self.host.ssh.is_closed() && !open_at(&lines).is_empty();
        self.report("status", !away && !differs, &[], None, &lines);
        let name = self.name();
        self.say(&format!("{name}: declared {}", self.declared()));
        self.say(&format!(
            "{name}: seen from here: {}",
            match lines.is_empty() {
                true => "nothing (it is known by no address that can be reached)".to_owned(),
                false => told(&lines),
            }
        ));
        if let Some(run) = self.host.ssh.changing {
            self.say(&format!("{name}: run {run} is to change it, and is not over"));
        }
        if away {
            let ago = hosts::ago(self.host.last_seen_ms);
            self.say(&format!("{name}: its agent is {}, last seen {ago}", self.host.link.as_str()));
        }
        if differs {
            return Err(CliError::failed(
                "port-not-closed",
                format!(
                    "{}: declared closed, and it answers at {}",
                    self.host.name,
                    open_at(&lines).join(", ")
                ),
            )
            .hint(format!(
                "`postern drift {name}` shows what differs; to keep it open: postern ssh-port open {name}"
            )));
        }
        Ok(if away { Exit::Failed } else { Exit::Ok })
    }

    fn declared(&self) -> String {
        match &self.host.ssh.declared {
            None => "open (nobody has closed it)".to_owned(),
            Some(said) => {
                let (word, ago) = (said.port.as_str(), hosts::ago(said.at_ms));
                format!("{word}, {ago}, by run {}", said.run)
            }
        }
    }

    /// The change itself: a run like any other, whose good end declares it.
    async fn run(
        &mut self,
        plan: &Plan,
        origin: String,
        wanted: Port,
        interrupt: &mut Interrupt,
    ) -> Result<Exit, CliError> {
        let (bytes, _) = plan.to_bytes().map_err(|error| CliError::usage("plan", error.to_string()))?;
        waits(self.context, &self.host);
        let order = Order { origin, ssh_port: Some(wanted), ..Order::default() };
        let updates = self.client.apply(self.host.id, bytes, order).await?;
        let task = Task { host: &self.host, what: What::SshPort, check: false, prefixed: false };
        let exit = attend(self.context, &mut self.client, updates, task, interrupt, |_| {}).await?;
        self.host = hosts::find(&mut self.client, &self.host.id.to_string()).await?;
        Ok(exit)
    }

    async fn look(&mut self, plan: &Plan, ssh: &BTreeSet<u16>) -> Result<Vec<Line>, CliError> {
        self.look_at(ssh, &plan::controls(plan, ssh)).await
    }

    async fn look_at(
        &mut self,
        ssh: &BTreeSet<u16>,
        controls: &BTreeSet<u16>,
    ) -> Result<Vec<Line>, CliError> {
        let looked = self.client.look_at_ports(self.host.id, ssh.union(controls).copied().collect()).await?;
        Ok(judge(ssh, &[], &looked.seen))
    }

    /// After the change, beside what was seen before it.
    async fn look_again(&mut self, plan: &Plan, checks: &Checks) -> Result<Vec<Line>, CliError> {
        let ports = checks.ssh.union(&plan::controls(plan, &checks.ssh)).copied().collect();
        let looked = self.client.look_at_ports(self.host.id, ports).await?;
        Ok(judge(&checks.ssh, &checks.before, &looked.seen))
    }

    /// The command's last document.
    fn report(&self, action: &str, done: bool, checks: &[Checked], kit: Option<&Kit>, lines: &[Line]) {
        if !self.context.out.json {
            return;
        }
        let said = self.host.ssh.declared.as_ref();
        self.context.out.document(&json!({
            "schema": "postern/ssh-port/v1",
            "action": action,
            "host": self.host.name,
            "host_id": self.host.id.to_string(),
            "done": done,
            "declared": said.map_or("open", |said| said.port.as_str()),
            "declared_by": said.map(|said| said.run.to_string()),
            "declared_at": documents::time_ms(said.map_or(0, |said| said.at_ms)),
            "changing": self.host.ssh.changing.map(|run| run.to_string()),
            "link": self.host.link.as_str(),
            "conditions": checks.iter().map(Checked::document).collect::<Vec<Value>>(),
            "kit": kit.map(|kit| kit.dir.display().to_string()),
            "seen": lines.iter().map(Line::document).collect::<Vec<Value>>(),
            "console": CONSOLE,
        }));
    }

    fn say(&self, line: &str) {
        if !self.context.out.json {
            self.context.out.line(line);
        }
    }

    fn note(&self, line: &str) {
        if !self.context.out.json {
            self.context.out.note(line);
        }
    }
}
