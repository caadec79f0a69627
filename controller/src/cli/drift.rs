//! `postern drift`: how hosts differ from what they are to have. A check of all that is assigned to each of them;
//! nothing is changed, on the host or in the records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postern_proto::event::{EventKind, Outcome, RunState};
use postern_proto::ids::Address;
use postern_proto::plan::{Plan, PlannedResource};
use postern_proto::spec::{CommandSpec, ResourceSpec as _};
use serde_json::{Value, json};

use super::apply::{Job, on_each};
use super::args::{Drift, Values};
use super::attend::{Task, What, moved, say};
use super::compose::Wanted;
use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use super::out::{Tone, Volume};
use super::selector::Selector;
use super::view::{View, outcome_word, seconds};
use super::{Context, Exit, clean, json as documents};
use crate::client::{Client, HostInfo, Link, Order, RunInfo, UpdateKind};

/// What is found about one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Everything is as declared.
    Clean,
    /// Something is not.
    Drifted,
    /// Nothing is declared.
    Unassigned,
    /// It is not known: the check failed or could not be made.
    Unknown,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Drifted => "drifted",
            Self::Unassigned => "unassigned",
            Self::Unknown => "unknown",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Clean | Self::Unassigned => Exit::Ok,
            Self::Drifted | Self::Unknown => Exit::Failed,
        }
    }
}

/// How the last look at a resource ended.
#[derive(Clone, Debug)]
struct Seen {
    outcome: Outcome,
    message: String,
    diff: String,
}

/// What a check has found so far.
#[derive(Debug, Default)]
struct Findings {
    /// Actions: they declare nothing that a host could differ from.
    actions: BTreeSet<Address>,
    /// In the order of the plan.
    order: Vec<Address>,
    seen: BTreeMap<Address, Seen>,
}

impl Findings {
    fn of(plan: &Plan) -> Self {
        let address = |resource: &PlannedResource| resource.address.clone();
        Self {
            actions: plan.resources.iter().filter(|resource| is_action(resource)).map(address).collect(),
            order: plan.resources.iter().map(address).collect(),
            seen: BTreeMap::new(),
        }
    }

    /// Notes what is said of a resource; whether it differs or could not be seen.
    fn note(&mut self, kind: &EventKind) -> bool {
        let EventKind::ResourceFinished { address, outcome, message, diff, .. } = kind else { return false };
        if self.actions.contains(address) {
            return false;
        }
        let seen = Seen { outcome: *outcome, message: message.clone(), diff: diff.clone() };
        self.seen.insert(address.clone(), seen);
        *outcome != Outcome::Unchanged
    }

    fn verdict(&self, state: RunState) -> Verdict {
        let any = |wanted: &[Outcome]| self.seen.values().any(|seen| wanted.contains(&seen.outcome));
        if state != RunState::Ok || any(&[Outcome::Failed, Outcome::Interrupted, Outcome::Skipped]) {
            Verdict::Unknown
        } else if any(&[Outcome::WouldChange, Outcome::Changed]) {
            Verdict::Drifted
        } else {
            Verdict::Clean
        }
    }

    /// What differs or could not be seen, as documents.
    fn documents(&self) -> Vec<Value> {
        let seen = self.order.iter().filter_map(|address| Some((address, self.seen.get(address)?)));
        seen.filter(|(_, seen)| seen.outcome != Outcome::Unchanged)
            .map(|(address, Seen { outcome, message, diff })| {
                json!({
                    "address": address, "outcome": outcome_word(*outcome).0.replace(' ', "-"),
                    "message": documents::or_null(message), "diff": documents::or_null(diff),
                })
            })
            .collect()
    }
}

/// A command that says nothing of when it is needed would be run by every plan.
fn is_action(resource: &PlannedResource) -> bool {
    let says = |field: &str| resource.spec.get(field).is_some_and(|value| !value.is_null());
    resource.kind == CommandSpec::KIND && !["creates", "unless", "late"].into_iter().any(says)
}

pub(crate) async fn drift(context: &Context, args: Drift) -> Result<Exit, CliError> {
    let selector = Selector::parse(&args.hosts)?;
    let none = Values { vars: Vec::new(), var_files: Vec::new() };
    let wanted = Arc::new(Wanted::read(context, &[], &none)?);
    let client = context.connect().await?;
    let hosts = selector.choose(client.clone().hosts().await?)?;
    let interrupt = Interrupt::listen();
    let alone = hosts.len() == 1;
    let pressed = interrupt.clone_handle();
    on_each(context, hosts, pressed, move |context, host| {
        let (client, wanted, interrupt) = (client.clone(), Arc::clone(&wanted), interrupt.clone_handle());
        async move { Look { context, client, host, prefixed: !alone }.one(&wanted, interrupt).await }
    })
    .await
}

/// One host and what it is looked at with.
struct Look {
    context: Context,
    client: Client,
    host: HostInfo,
    /// Lines begin with the host's name.
    prefixed: bool,
}

impl Look {
    async fn one(mut self, wanted: &Wanted, mut interrupt: Interrupt) -> Result<Exit, CliError> {
        if self.host.profiles.is_empty() {
            return Ok(self.unassigned());
        }
        let job = match self.job(wanted).await {
            Ok(job) => job,
            Err(error) => {
                // The command line is right; what is known of this host is not.
                let error = CliError { exit: Exit::Failed, ..error };
                self.document(Verdict::Unknown, None, &Findings::default(), &error.message);
                return Err(error);
            }
        };
        let plan = Plan::from_bytes(&job.plan)
            .map_err(|error| CliError::usage("internal", format!("reading a plan of our own: {error}")))?;
        let (out, name) = (self.context.out.clone(), clean::line(&self.host.name));
        if !out.json {
            out.note(&format!("{name}: comparing with {} ({})", clean::line(&job.origin), job.what_it_has()));
        }
        let order = Order { check: true, origin: job.origin, ..Order::default() };
        let updates = self.client.apply(self.host.id, job.plan, order).await?;
        let mut findings = Findings::of(&plan);
        let mut view = View::new(self.prefixed.then_some(self.host.name.as_str()), out.volume, true);
        let task = Task { host: &self.host, what: What::Apply, check: true, prefixed: self.prefixed };
        let on_update = |update: &crate::client::Update| {
            let lines = view.update(update);
            let UpdateKind::Event(event) = &update.kind else { return };
            let is_resource = matches!(event.kind, EventKind::ResourceFinished { .. });
            let tells = findings.note(&event.kind);
            if !out.json && (tells || !is_resource || out.volume == Volume::Verbose) {
                say(&out, &lines);
            }
            moved(&out, task, event);
        };
        match follow(&self.context, &mut self.client, updates, &mut interrupt, on_update).await? {
            Followed::Over(run) => {
                let why = [view.finished.map(|(_, message)| message), Some(run.message.clone())];
                let why = why.into_iter().flatten().find(|text| !text.is_empty()).unwrap_or_default();
                let failure = view.failure.map(|(address, message)| format!("{address}: {message}"));
                Ok(self.verdict(&run, &findings, &failure.unwrap_or(why)))
            }
            Followed::Left(run) => {
                let id = run.map(|run| format!(" ({})", run.id)).unwrap_or_default();
                Err(CliError::failed("interrupted", format!("the check{id} goes on without you")))
            }
        }
    }

    /// The check that is to be made. One that would have to wait is none: what is asked for is how things are now.
    async fn job(&mut self, wanted: &Wanted) -> Result<Job, CliError> {
        if self.host.link != Link::Up {
            return Err(CliError::failed(
                "not-connected",
                "its agent is not connected, so nothing was seen of it",
            )
            .hint("`postern hosts` shows since when; ask again when it is back"));
        }
        wanted.job(&self.context, &mut self.client, &self.host, true).await
    }

    fn unassigned(&self) -> Exit {
        self.document(Verdict::Unassigned, None, &Findings::default(), "");
        if !self.context.out.json {
            let name = clean::line(&self.host.name);
            self.context
                .out
                .line(&format!("{name}: nothing is assigned to it, so there is nothing to differ from"));
        }
        Verdict::Unassigned.exit()
    }

    /// The last line or the document of a host.
    fn verdict(&self, run: &RunInfo, findings: &Findings, why: &str) -> Exit {
        let (out, verdict) = (&self.context.out, findings.verdict(run.state));
        // Of a check that went well it says how many there are, which is said already.
        let why = if verdict == Verdict::Unknown { why } else { "" };
        self.document(verdict, Some(run), findings, why);
        if out.json {
            return verdict.exit();
        }
        let name = clean::line(&self.host.name);
        let count = |outcome| findings.seen.values().filter(|seen| seen.outcome == outcome).count();
        let mut parts = vec![format!("{} as declared", count(Outcome::Unchanged))];
        for (outcome, text) in [
            (Outcome::WouldChange, "not as declared"),
            (Outcome::Failed, "failed to be seen"),
            (Outcome::Interrupted, "interrupted"),
            (Outcome::Skipped, "not looked at"),
        ] {
            if count(outcome) > 0 {
                parts.push(format!("{} {text}", count(outcome)));
            }
        }
        if !findings.actions.is_empty() {
            parts.push(format!("{} not compared (commands without a condition)", findings.actions.len()));
        }
        let took = u64::try_from(run.finished_ms - run.created_ms).unwrap_or(0);
        let took = if took > 0 { format!(" in {}", seconds(took * 1_000_000)) } else { String::new() };
        let tone = if verdict == Verdict::Clean { Tone::Good } else { Tone::Bad };
        let word = out.paint(tone, verdict.as_str());
        out.line(&format!("{name}: {word}: {}{took}", parts.join(", ")));
        match verdict {
            Verdict::Unknown => {
                let why = if why.is_empty() { "no reason was given" } else { why };
                let error = CliError::failed(
                    &format!("run-{}", run.state.as_str()),
                    format!("{}: {why}", self.host.name),
                );
                let hint = format!("`postern run show {}` shows it again; nothing was changed", run.id);
                self.context.fail(&error.hint(hint));
            }
            Verdict::Drifted => {
                let profiles: Vec<_> =
                    self.host.profiles.iter().map(|profile| clean::line(profile)).collect();
                out.note(&format!(
                    "{name}: to apply any of its profiles ({}) brings back all of it",
                    profiles.join(", ")
                ));
            }
            Verdict::Clean | Verdict::Unassigned => {}
        }
        verdict.exit()
    }

    fn document(&self, verdict: Verdict, run: Option<&RunInfo>, findings: &Findings, message: &str) {
        if !self.context.out.json {
            return;
        }
        let as_declared = findings.seen.values().filter(|seen| seen.outcome == Outcome::Unchanged).count();
        self.context.out.document(&json!({
            "schema": "postern/drift/v1",
            "host": self.host.name,
            "host_id": self.host.id.to_string(),
            "profiles": self.host.profiles,
            "run": run.map(|run| run.id.to_string()),
            "state": verdict.as_str(),
            "message": documents::or_null(message),
            "as_declared": as_declared,
            "differs": findings.documents(),
            "not_compared": findings.actions,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let resource = |address: &str, kind: &str, spec| PlannedResource {
            address: address.parse().unwrap(),
            kind: kind.into(),
            schema: 1,
            spec,
            needs: None,
        };
        Plan {
            schema: 1,
            resources: vec![
                resource("a:file:x", "file", json!({"path": "/x", "content": ""})),
                resource("a:command:always", "command", json!({"argv": ["true"]})),
                resource("a:command:once", "command", json!({"argv": ["true"], "creates": "/y"})),
                resource("a:command:asks", "command", json!({"argv": ["true"], "unless": ["false"]})),
                resource("a:command:says", "command", json!({"argv": ["true"], "late": "ip"})),
            ],
        }
    }

    fn finished(address: &str, outcome: Outcome) -> EventKind {
        EventKind::ResourceFinished {
            address: address.parse().unwrap(),
            attempt: 1,
            outcome,
            message: String::new(),
            diff: "-a".into(),
            duration_ns: 0,
            seen: String::new(),
        }
    }

    /// An action would be run by every plan: to call that a difference would make every host differ for ever.
    #[test]
    fn commands_differ_only_where_they_say_when_they_are_needed() {
        let mut findings = Findings::of(&plan());
        assert_eq!(findings.actions, BTreeSet::from(["a:command:always".parse().unwrap()]));
        assert!(!findings.note(&finished("a:command:always", Outcome::WouldChange)));
        assert!(!findings.note(&finished("a:file:x", Outcome::Unchanged)));
        assert_eq!(findings.verdict(RunState::Ok), Verdict::Clean);
        assert!(findings.note(&finished("a:command:once", Outcome::WouldChange)));
        assert_eq!(findings.verdict(RunState::Ok), Verdict::Drifted);
        let addresses: Vec<_> = findings.documents().iter().map(|it| it["address"].clone()).collect();
        assert_eq!(addresses, ["a:command:once"]);
    }

    #[test]
    fn what_could_not_be_seen_is_not_called_clean() {
        for outcome in [Outcome::Failed, Outcome::Skipped, Outcome::Interrupted] {
            let mut findings = Findings::of(&plan());
            assert!(findings.note(&finished("a:file:x", outcome)));
            assert_eq!(findings.verdict(RunState::Ok), Verdict::Unknown, "{outcome:?}");
        }
        for state in [RunState::Failed, RunState::Cancelled, RunState::Expired, RunState::Refused] {
            assert_eq!(Findings::of(&plan()).verdict(state), Verdict::Unknown, "{state:?}");
        }
        // A second look at it counts, and the first does not.
        let mut findings = Findings::of(&plan());
        findings.note(&finished("a:file:x", Outcome::Failed));
        findings.note(&finished("a:file:x", Outcome::Unchanged));
        assert_eq!(findings.verdict(RunState::Ok), Verdict::Clean);
        for (verdict, code) in
            [(Verdict::Clean, 0), (Verdict::Unassigned, 0), (Verdict::Drifted, 1), (Verdict::Unknown, 1)]
        {
            assert_eq!(verdict.exit().code(), code);
        }
    }
}
