//! What a run that is over has done, and the terms on which it is resumed or taken back.

use std::collections::{BTreeMap, BTreeSet};

use postern_proto::event::{EventKind, Outcome, RunState};
use postern_proto::ids::{Address, RunId};
use postern_proto::plan::{Plan, Terms};
use postern_proto::spec::{CommandSpec, ResourceSpec as _, SshPort};
use rusqlite::params;

use super::sql::{all, malformed, one};
use super::{OpError, RunRecord, Store, record, runs};

/// A run of before, as far as another one is made from it.
#[derive(Clone, Debug)]
pub struct Past {
    /// As it is on record.
    pub run: RunRecord,
    /// The exact bytes of its plan.
    pub plan: Vec<u8>,
    /// The agent took it.
    pub accepted: bool,
    /// How the last attempt at each resource ended.
    pub outcomes: BTreeMap<Address, Outcome>,
    /// Resources of which a step was begun: nothing else can have been changed.
    pub touched: BTreeSet<Address>,
}

impl Store {
    /// What there is of a run for another one that is made from it.
    pub async fn past(&self, id: RunId) -> Result<Past, OpError> {
        self.read("looking up a run", move |db| {
            let run = runs::by_id(db, id)?;
            let sql = "SELECT no, plan, last_event FROM runs WHERE id = $1";
            let (no, plan, last): (i64, Vec<u8>, u64) =
                one(db, sql, params![id.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let sql = "SELECT body FROM updates WHERE run = $1 AND kind = 'event' ORDER BY last_cursor";
            let events = all(db, sql, params![no], |row| {
                record::event(row.get_ref("body")?.as_blob().map_err(malformed)?)
            })?;
            let (outcomes, touched) = ends(events.into_iter().map(|event| event.kind));
            Ok(Past { run, plan, accepted: last > 0, outcomes, touched })
        })
        .await
    }
}

/// How each resource ended, and of which a step was begun.
fn ends(events: impl Iterator<Item = EventKind>) -> (BTreeMap<Address, Outcome>, BTreeSet<Address>) {
    let (mut outcomes, mut touched) = (BTreeMap::new(), BTreeSet::new());
    for event in events {
        match event {
            // Until it has ended, how it ended is not known.
            EventKind::ResourceStarted { address, .. } => drop(outcomes.remove(&address)),
            EventKind::ResourceFinished { address, outcome, .. } => {
                outcomes.insert(address, outcome);
            }
            EventKind::StepStarted { step, .. } => drop(touched.insert(step.address)),
            _ => {}
        }
    }
    (outcomes, touched)
}

impl Past {
    fn refuse<T>(&self, why: &'static str) -> Result<T, OpError> {
        Err(OpError::NotAgain { run: self.run.id, why })
    }

    /// Terms of a run that goes on where this one stopped.
    pub fn resume(&self, plan: &Plan) -> Result<Terms, OpError> {
        self.refuse_ssh_port()?;
        match self.run.state {
            RunState::Ok => return self.refuse("ended well: there is nothing to resume"),
            state if !state.is_final() => return self.refuse("is not over yet"),
            _ => {}
        }
        let old = &self.run.terms;
        let mut done: BTreeSet<Address> = old.done.iter().cloned().collect();
        // A check has done nothing, and what an undo has done is seen in the state.
        if !old.check && old.undo_of.is_none() {
            let commands = plan.resources.iter().filter(|resource| resource.kind == CommandSpec::KIND);
            let ended_well = |address: &Address| {
                matches!(self.outcomes.get(address), Some(Outcome::Changed | Outcome::Unchanged))
            };
            done.extend(commands.map(|resource| &resource.address).filter(|it| ended_well(it)).cloned());
        }
        // What was approved was approved of the state before: part of it is done, so it cannot hold any more.
        Ok(Terms {
            check: old.check,
            undo_of: old.undo_of,
            done: done.into_iter().collect(),
            approved: Vec::new(),
        })
    }

    /// What was asked of the port of SSH before it was closed must hold again, and what is declared must follow: there
    /// is one command for each way.
    fn refuse_ssh_port(&self) -> Result<(), OpError> {
        match self.run.ssh_port {
            None => Ok(()),
            Some(SshPort::Closed) => self.refuse(
                "is the closing of the port of SSH, which is opened with `postern ssh-port open HOST` and closed anew \
                 with `postern ssh-port close HOST`",
            ),
            Some(SshPort::Open) => self.refuse(
                "is the opening of the port of SSH, which is closed with `postern ssh-port close HOST` and opened anew \
                 with `postern ssh-port open HOST`",
            ),
        }
    }

    /// Terms of a run that takes this one back.
    pub fn undo(&self, check: bool) -> Result<Terms, OpError> {
        self.refuse_ssh_port()?;
        if !self.run.state.is_final() {
            return self.refuse("is not over yet: cancel it first");
        }
        if self.run.terms.check {
            return self.refuse("was a check: it changed nothing");
        }
        if !self.accepted {
            return self.refuse("was never begun by its host: it changed nothing");
        }
        Ok(Terms { check, undo_of: Some(self.run.id), ..Terms::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_proto::event::StepId;
    use postern_proto::ids::{HostId, PlanHash};
    use postern_proto::plan::{Approval, PLAN_SCHEMA, PlannedResource};
    use serde_json::json;

    fn address(name: &str) -> Address {
        name.parse().unwrap()
    }

    fn plan() -> Plan {
        let resource = |address: &str, kind: &str, spec| PlannedResource {
            address: address.parse().unwrap(),
            kind: kind.into(),
            schema: 1,
            spec,
            needs: None,
        };
        let command = |name: &str| resource(name, "command", json!({"argv": ["true"]}));
        Plan {
            schema: PLAN_SCHEMA,
            resources: vec![
                command("a:command:one"),
                resource("a:package:curl", "package", json!({"name": "curl"})),
                command("a:command:two"),
                command("a:command:three"),
                command("a:command:four"),
            ],
        }
    }

    fn past(state: RunState, terms: Terms) -> Past {
        let outcomes = [
            ("a:command:one", Outcome::Changed),
            ("a:package:curl", Outcome::Changed),
            ("a:command:two", Outcome::Interrupted),
            ("a:command:three", Outcome::Unchanged),
        ];
        Past {
            run: RunRecord {
                id: RunId::generate(),
                host: HostId::generate(),
                host_name: "web".into(),
                state,
                origin: "base".into(),
                terms,
                resumes: None,
                undoes: None,
                created_ms: 0,
                finished_ms: 0,
                plan: PlanHash::of(b"x"),
                message: String::new(),
                ssh_port: None,
            },
            plan: Vec::new(),
            accepted: true,
            outcomes: outcomes.into_iter().map(|(name, outcome)| (address(name), outcome)).collect(),
            touched: BTreeSet::new(),
        }
    }

    #[test]
    fn what_was_touched_is_what_a_step_was_begun_of() {
        let step = |name: &str| StepId { address: address(name), attempt: 1, step: 0 };
        let started = |name: &str, attempt| EventKind::ResourceStarted { address: address(name), attempt };
        let finished = |name: &str, attempt, outcome| EventKind::ResourceFinished {
            address: address(name),
            attempt,
            outcome,
            message: String::new(),
            diff: String::new(),
            duration_ns: 0,
            seen: String::new(),
        };
        let (outcomes, touched) = ends(
            [
                started("a:file:same", 1),
                finished("a:file:same", 1, Outcome::Unchanged),
                started("a:file:cut-off", 1),
                EventKind::StepStarted { step: step("a:file:cut-off"), summary: String::new() },
                started("a:file:cut-off", 2),
                finished("a:file:cut-off", 2, Outcome::Unchanged),
                started("a:file:on-the-way", 1),
            ]
            .into_iter(),
        );
        assert_eq!(touched, [address("a:file:cut-off")].into());
        assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    }

    #[test]
    fn commands_that_ended_well_are_not_repeated_and_others_are() {
        let terms = past(RunState::Failed, Terms::default()).resume(&plan()).unwrap();
        assert_eq!(terms.done, [address("a:command:one"), address("a:command:three")]);
        // What a run before that one had done is carried on.
        let old = Terms { done: vec![address("a:command:four")], ..Terms::default() };
        let terms = past(RunState::Interrupted, old).resume(&plan()).unwrap();
        let done = ["a:command:four", "a:command:one", "a:command:three"].map(address);
        assert_eq!(terms.done, done);
    }

    #[test]
    fn what_a_resume_keeps_of_the_terms() {
        let approved = vec![Approval { address: address("a:command:one"), seen: String::new() }];
        let old = Terms { check: true, approved, ..Terms::default() };
        assert_eq!(past(RunState::Failed, old).resume(&plan()).unwrap(), Terms::check());
        let undo_of = Some(RunId::generate());
        let old = Terms { undo_of, ..Terms::default() };
        let terms = past(RunState::Cancelled, old.clone()).resume(&plan()).unwrap();
        assert_eq!(terms, old, "an undo is resumed as one, and has no actions that are done");
    }

    #[test]
    fn what_is_refused() {
        for state in RunState::ALL {
            let over = state.is_final();
            let past = past(state, Terms::default());
            assert_eq!(past.resume(&plan()).is_ok(), over && state != RunState::Ok, "resume {state:?}");
            assert_eq!(past.undo(false).is_ok(), over, "undo {state:?}");
        }
        let never = Past { accepted: false, ..past(RunState::Expired, Terms::default()) };
        assert!(never.undo(false).is_err());
        assert!(past(RunState::Ok, Terms::check()).undo(false).is_err());
        // What opens or closes the port of SSH has a command for each way.
        for port in [SshPort::Open, SshPort::Closed] {
            let mut past = past(RunState::Failed, Terms::default());
            past.run.ssh_port = Some(port);
            for refused in [past.resume(&plan()), past.undo(false), past.undo(true)] {
                assert!(refused.unwrap_err().to_string().contains("postern ssh-port open HOST"), "{port:?}");
            }
        }
        // An undo is a run like any other: it can be taken back in its turn.
        let undo = past(RunState::Ok, Terms { undo_of: Some(RunId::generate()), ..Terms::default() });
        assert_eq!(undo.undo(false).unwrap().undo_of, Some(undo.run.id));
        let fine = past(RunState::Failed, Terms::default());
        assert_eq!(
            fine.undo(true).unwrap(),
            Terms { check: true, undo_of: Some(fine.run.id), ..Terms::default() }
        );
    }
}
