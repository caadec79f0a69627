//! The contract that every kind of resource keeps, as steps that a test takes one resource through: a check changes
//! nothing, applying reaches the declared state, applying again changes nothing, and an undo brings back what was
//! there.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use postern_tests::fingerprint::{changes, fingerprint};
use postern_tests::lab::Host;
use postern_tests::rig::{Ended, Rig, said};

/// One resource of a kind, with what has to be on the host before.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    /// A line of shell on the host, before anything is looked at.
    pub(crate) before: &'static str,
    /// One item of `resources:`, without the dash.
    pub(crate) resource: &'static str,
    /// A line of shell that succeeds only where the resource is in force.
    pub(crate) effect: &'static str,
    pub(crate) undo: Undo,
}

/// What an undo is to do.
#[allow(dead_code, reason = "each test that shares this module uses some of them")]
pub(crate) enum Undo {
    /// Everything is as it was.
    Whole,
    /// It says that it cannot, with this in its words.
    Says(&'static str),
    /// There is nothing to undo: the resource only looks, and finds what it wants.
    Nothing,
    /// There is nothing to undo: this host cannot have it, and is told so with this in the words.
    Refused(&'static str),
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ lab@example.net";

/// Goes through the contract with one case. What breaks it is the error.
pub(crate) fn keeps(rig: &Rig, host: &Host, number: usize, case: &Case) -> Result<(), String> {
    let fail = |what: &str, ended: &Ended| Err(format!("{what}: {:?}\n{}", ended.code, said(ended)));
    let text = |error: anyhow::Error| format!("{error:#}");
    let profile = rig.state_dir().join(format!("case-{number}.yaml"));
    let resource = case.resource.replace("KEY", KEY);
    // One name for all: each replaces the one before it in what the host is assigned.
    let yaml = format!("name: contract\nresources:\n  - {resource}\n");
    std::fs::write(&profile, yaml).map_err(|error| error.to_string())?;
    let profile = profile.display().to_string();
    let apply = |more: &[&str]| {
        let mut args = vec!["apply", &profile, "-H", &host.name];
        args.extend(more);
        rig.run(&args).map_err(text)
    };

    let sh = |line: &str| host.sh(line).map_err(|error| error.to_string());
    sh(case.before)?;
    let before = fingerprint(host).map_err(text)?;
    if let Undo::Nothing | Undo::Refused(_) = case.undo {
        return looks_only(rig, host, case, &before, &apply);
    }
    let check = apply(&["--check"])?;
    if check.code != Some(0) || !check.stdout.contains("1 would change") {
        return fail("a check before", &check);
    }
    let after_check = fingerprint(host).map_err(text)?;
    if after_check != before {
        return Err(format!("the check changed the host: {:?}", changes(&before, &after_check)));
    }
    let applied = apply(&[])?;
    if applied.code != Some(0) || !applied.stdout.contains("1 changed") {
        return fail("apply", &applied);
    }
    let run = rig.last_run(host).map_err(text)?;
    sh(case.effect).map_err(|error| format!("it is not in force: {error}"))?;
    let after = fingerprint(host).map_err(text)?;
    for more in [&["--check"][..], &[]] {
        let again = apply(more)?;
        if again.code != Some(0) || !again.stdout.contains("1 unchanged") {
            return fail("apply again", &again);
        }
    }

    let undone = rig.run(&["run", "undo", &run]).map_err(text)?;
    if let Undo::Says(words) = case.undo {
        if undone.code != Some(0) || !said(&undone).contains(words) {
            return fail("undo", &undone);
        }
        return Ok(());
    }
    if undone.code != Some(0) {
        return fail("undo", &undone);
    }
    let back = fingerprint(host).map_err(text)?;
    if back != before {
        return Err(format!("the undo left a difference: {:#?}\n{}", changes(&before, &back), said(&undone)));
    }
    let check = apply(&["--check"])?;
    if !check.stdout.contains("1 would change") {
        return fail("a check after the undo", &check);
    }
    // An undo is a run like any other: it can be taken back in its turn.
    let undo_run = last_two(rig, host).map_err(text)?;
    let redone = rig.run(&["run", "undo", &undo_run]).map_err(text)?;
    if redone.code != Some(0) {
        return fail("undo of the undo", &redone);
    }
    sh(case.effect).map_err(|error| format!("after the undo of the undo: {error}\n{}", said(&redone)))?;
    if case.kind != "package" {
        let again = fingerprint(host).map_err(text)?;
        if again != after {
            return Err(format!("the undo of the undo left: {:#?}", changes(&after, &again)));
        }
    }
    Ok(())
}

/// The same for one that changes nothing on this host.
fn looks_only(
    rig: &Rig,
    host: &Host,
    case: &Case,
    before: &BTreeSet<String>,
    apply: &dyn Fn(&[&str]) -> Result<Ended, String>,
) -> Result<(), String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    let (code, words) = match case.undo {
        Undo::Refused(words) => (1, words),
        _ => (0, "1 unchanged"),
    };
    for more in [&["--check"][..], &[], &[]] {
        let ended = apply(more)?;
        if ended.code != Some(code) || !said(&ended).contains(words) {
            return Err(format!("want {code} and {words:?}: {:?}\n{}", ended.code, said(&ended)));
        }
    }
    if let Undo::Nothing = case.undo {
        host.sh(case.effect).map_err(|error| format!("it is not so: {error}"))?;
        let run = rig.last_run(host).map_err(text)?;
        let undone = rig.run(&["run", "undo", &run]).map_err(text)?;
        if !said(&undone).contains("it changed nothing here") {
            return Err(format!("undo: {:?}\n{}", undone.code, said(&undone)));
        }
    }
    match changes(before, &fingerprint(host).map_err(text)?) {
        changed if changed.is_empty() => Ok(()),
        changed => Err(format!("it changed the host: {changed:?}")),
    }
}

/// The newest run that was not a check: of the two newest, the older one.
fn last_two(rig: &Rig, host: &Host) -> Result<String> {
    let runs = rig.run(&["runs", "-H", &host.name, "--output", "json"])?.expect(0);
    let mut ids = Vec::new();
    for line in runs.stdout.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        match value.get("runs").and_then(|runs| runs.as_array()) {
            Some(runs) => ids.extend(runs.iter().filter_map(|run| run["id"].as_str().map(str::to_owned))),
            None => ids.extend(value["id"].as_str().map(str::to_owned)),
        }
    }
    ids.get(1).cloned().context("fewer than two runs")
}
