//! `service`: a systemd unit, running or not, at boot or not, restarted when its files are newer than it is.

mod carries;
mod ready;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use postern_proto::host::UNIT;
use postern_proto::spec::{Running, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::{Depth, Exec, ObserveError, Protect, Resource, Step, Undo, listen};
use crate::sys::{Sys, SysError};
use carries::carries;
use ready::{becomes_ready, unready};

/// The time a question to systemd may take.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// The time a start or stop may take; systemd's own limit is 90 s for each.
const ACT_LIMIT: Duration = Duration::from_secs(300);
/// A unit that is up must be so at two looks this far apart: some die right after they said they were ready.
const STAYS: Duration = Duration::from_millis(500);
/// How long a unit may be on its way up or down.
const SETTLE: Duration = Duration::from_secs(60);
/// Between looks at a unit that is on its way.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Service;

/// What systemd says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    load: String,
    load_error: String,
    active: String,
    sub: String,
    /// Empty for a unit without an `[Install]` section of its own.
    file_state: String,
    result: String,
    /// Its files on disk are newer than what systemd has read.
    needs_reload: bool,
    /// The first of the declared files that is newer than its start.
    stale: Option<String>,
    /// For a unit that systemd made out of a SysV script: whether that is started at boot.
    sysv: Option<bool>,
    /// Where SSH is served, asked only for a unit that the way to this host may lie over.
    #[serde(default)]
    ssh: BTreeSet<u16>,
    /// When it was started, nanoseconds since the Unix epoch: only for such a unit.
    #[serde(default)]
    started_ns: Option<i128>,
    /// What it says instead of being ready, for people.
    #[serde(default)]
    unready: Option<String>,
}

impl Seen {
    /// Started at boot for good: what is enabled until the next boot is not.
    fn is_enabled(&self) -> bool {
        self.sysv.unwrap_or(matches!(self.file_state.as_str(), "enabled" | "alias"))
    }

    fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }

    fn has_failed(&self) -> bool {
        self.active == "failed"
    }

    fn on_its_way(&self) -> bool {
        matches!(self.active.as_str(), "activating" | "deactivating")
    }

    /// Active or about to be: what a person would call running.
    fn is_up(&self) -> bool {
        self.is_active() || self.active == "activating"
    }

    /// It runs, and what it read at its start is not what is on the disk.
    fn is_outdated(&self, spec: &ServiceSpec) -> bool {
        spec.state == Some(Running::Running)
            && self.is_active()
            && (self.stale.is_some() || self.needs_reload && !spec.restart_on.is_empty())
    }
}

const PROPERTIES: &str = "--property=LoadState,ActiveState,SubState,UnitFileState,Result,NeedDaemonReload,\
                          ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic,LoadError,SourcePath";

impl Resource for Service {
    type Spec = ServiceSpec;
    type Seen = Seen;

    async fn observe(spec: &ServiceSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let mut seen = ask(spec, host).await?;
        if let Some(why) = obstacle(spec, &seen, depth) {
            return Err(ObserveError::Obstacle(why));
        }
        if carries(&spec.unit()) && (depth == Depth::Whole || !Self::plan(spec, &seen).is_empty()) {
            let (_, served) = listen::served(host, listen::SSH_PROPERTIES, &listen::SSH_UNITS).await?;
            seen.ssh = served.ports;
        }
        if depth == Depth::Cheap || spec.state.is_none() {
            if depth == Depth::Cheap && seen.is_active() {
                seen.unready = unready(spec, host).await;
            }
            return Ok(seen);
        }
        let until = tokio::time::Instant::now() + SETTLE;
        while seen.on_its_way() && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = ask(spec, host).await?;
        }
        if spec.state == Some(Running::Running) && seen.is_active() {
            tokio::time::sleep(STAYS).await;
            seen = ask(spec, host).await?;
        }
        if depth == Depth::Proof && seen.is_active() {
            becomes_ready(spec, host).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &ServiceSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        let unit = spec.unit();
        let mut systemctl = |args: &[&str]| steps.push(systemctl(args));
        let enabled = seen.is_enabled();
        let restart = seen.is_outdated(spec) || seen.unready.is_some();
        let start = spec.state == Some(Running::Running) && !seen.is_active();
        let enable = spec.enabled == Some(true) && !enabled;
        if seen.needs_reload && (restart || start || enable) {
            systemctl(&["daemon-reload"]);
        }
        match spec.enabled {
            Some(true) if enable => systemctl(&["enable", "--", &unit]),
            Some(false) if enabled => systemctl(&["disable", "--", &unit]),
            _ => {}
        }
        if restart {
            systemctl(&["restart", "--", &unit]);
        } else if start {
            if seen.has_failed() {
                // systemd counts the starts that failed, and after a few refuses the next one for a while.
                systemctl(&["reset-failed", "--", &unit]);
            }
            systemctl(&["start", "--", &unit]);
        } else if spec.state == Some(Running::Stopped) && (seen.is_active() || seen.on_its_way()) {
            systemctl(&["stop", "--", &unit]);
        }
        steps
    }

    fn essence(spec: &ServiceSpec, seen: &Seen) -> serde_json::Value {
        // Only what is declared: the other half is somebody else's to change. That a file is newer than its
        // start is no state of the unit but a restart to come, which a preview has among its steps.
        serde_json::json!({
            "active": spec.state.map(|_| seen.is_up()),
            "enabled": spec.enabled.map(|_| seen.is_enabled()),
        })
    }

    fn undo(spec: &ServiceSpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        let unit = spec.unit();
        let differs = |declared: bool, of: fn(&Seen) -> bool| declared && of(before) != of(now);
        let boot = differs(spec.enabled.is_some(), Seen::is_enabled);
        let run = differs(spec.state.is_some(), Seen::is_up);
        let (enable, start) = (boot && before.is_enabled(), run && before.is_up());
        // Asked last of all (see `undo_last`), it finds the files it reads as they were before.
        let restart = !run && now.is_outdated(spec);
        if (enable || start || restart) && now.load != "loaded" {
            let load = or(&now.load, "unknown to systemd");
            return Undo::Cannot(format!("{unit} was running or started at boot, and is {load} now"));
        }
        let mut verbs = Vec::new();
        match boot {
            true if enable => verbs.push("enable"),
            true => verbs.push("disable"),
            false => {}
        }
        match run {
            true if start && now.has_failed() => verbs.extend(["reset-failed", "start"]),
            true if start => verbs.push("start"),
            true => verbs.push("stop"),
            false if restart => verbs.push("restart"),
            false => {}
        }
        let reload = now.needs_reload && (enable || start || restart);
        let reload = reload.then(|| systemctl(&["daemon-reload"]));
        let acts = verbs.into_iter().map(|verb| systemctl(&[verb, "--", &unit]));
        Undo::Steps(reload.into_iter().chain(acts).collect())
    }

    fn protect(spec: &ServiceSpec, seen: &Seen) -> Option<Protect> {
        carries::protect(spec, seen)
    }

    fn undo_last(spec: &ServiceSpec, before: &Seen) -> bool {
        // One that did not run before is stopped in its turn, while what it belongs to is still there.
        !spec.restart_on.is_empty() && before.is_up()
    }

    fn diff(spec: &ServiceSpec, seen: &Seen) -> String {
        let unit = spec.unit();
        match &seen.stale {
            Some(path) if seen.is_active() => format!("{unit}: {path} is newer than its start\n"),
            _ if seen.unready.is_some() => {
                format!("{unit}: it runs and is not ready: {}\n", seen.unready.as_deref().unwrap_or_default())
            }
            _ => {
                let (state, boot) = (or(&seen.active, "unknown"), or(&seen.file_state, "not at boot"));
                let why = if seen.active == "failed" { seen.result.as_str() } else { seen.sub.as_str() };
                format!("{unit}: {state} ({why}), {boot}\n")
            }
        }
    }
}

fn systemctl(args: &[&str]) -> Step {
    let argv: Vec<&str> = std::iter::once("systemctl").chain(args.iter().copied()).collect();
    Step::Exec(Exec::new(&argv, ACT_LIMIT))
}

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

async fn ask(spec: &ServiceSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let unit = spec.unit();
    let said = host.show_unit(&unit, PROPERTIES, ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("systemctl show {unit} failed: {why}")));
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let (mut seen, started, source) = parse(&text, crate::sys::boot_ns());
    if let Some(started) = started {
        seen.stale = newest(&spec.restart_on, host, started)?;
    }
    if carries(&unit) {
        seen.started_ns = started;
    }
    if let (true, Some(script)) = (seen.file_state == "generated", source.strip_prefix("/etc/init.d/")) {
        seen.sysv = Some(starts_at_boot(script, host)?);
    }
    Ok(seen)
}

/// Whether a SysV script is linked for a start in one of the multi-user runlevels.
fn starts_at_boot(script: &str, host: &Sys) -> Result<bool, SysError> {
    for level in 2..=5 {
        // S01name: two digits of order.
        let links = host.list(&format!("/etc/rc{level}.d"))?;
        if links.iter().any(|link| link.starts_with('S') && link.get(3..) == Some(script)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Why what is declared cannot be brought about by any step; `None` where it can, or is so already.
fn obstacle(spec: &ServiceSpec, seen: &Seen, depth: Depth) -> Option<String> {
    let unit = spec.unit();
    if unit == UNIT && (spec.state == Some(Running::Stopped) || spec.enabled == Some(false)) {
        return Some(
            "without its agent nobody could manage this host; `postern host forget` removes it".into(),
        );
    }
    let wants = spec.state == Some(Running::Running) || spec.enabled == Some(true);
    match seen.load.as_str() {
        "loaded" => {}
        // What cannot be started is neither running nor started at boot.
        "not-found" | "masked" if !wants => return None,
        "not-found" => return Some(format!("there is no unit {unit} on this host")),
        "masked" => return Some(format!("the unit {unit} is masked; unmask it first")),
        other => return Some(format!("systemd cannot load {unit} ({other}): {}", seen.load_error)),
    }
    if spec.enabled != Some(true) || seen.is_enabled() || seen.sysv.is_some() {
        return None;
    }
    let state = seen.file_state.as_str();
    let never = match state {
        // What it was when systemd read it; its file is newer.
        "static" if seen.needs_reload => false,
        "static" | "generated" | "transient" => true,
        // The one that pulls it in may be enabled in its place; if that was to no avail, say so.
        "indirect" => depth == Depth::Proof,
        _ => false,
    };
    never.then(|| {
        format!("{unit} cannot be enabled: systemd says it is {state}, so only what needs it starts it; leave `enabled` out")
    })
}

/// What `systemctl show` says, when the unit was started in nanoseconds since the Unix epoch, and what it was
/// made of; `boot_ns` is when the monotonic clock was zero.
fn parse(text: &str, boot_ns: i128) -> (Seen, Option<i128>, String) {
    let rows: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| rows.get(name).copied().unwrap_or_default();
    let seen = Seen {
        load: get("LoadState").to_owned(),
        load_error: get("LoadError").to_owned(),
        active: get("ActiveState").to_owned(),
        sub: get("SubState").to_owned(),
        file_state: get("UnitFileState").to_owned(),
        result: get("Result").to_owned(),
        needs_reload: get("NeedDaemonReload") == "yes",
        stale: None,
        sysv: None,
        ssh: BTreeSet::new(),
        started_ns: None,
        unready: None,
    };
    // The later of the two: a reload moves neither, a restart of the main process moves the second. Of all
    // stamps these are the exact ones, which every systemd writes alike: the others may be cut to a second,
    // and a file can be written in that second.
    let exact = |name: &str| match get(name).parse::<i128>() {
        Ok(micros) if micros > 0 => Some(micros * 1000 + boot_ns),
        _ => None,
    };
    let started = exact("ActiveEnterTimestampMonotonic").max(exact("ExecMainStartTimestampMonotonic"));
    (seen, started, get("SourcePath").to_owned())
}

/// The first of these files that was changed after something was started.
pub(super) fn newest(paths: &[String], host: &Sys, started: i128) -> Result<Option<String>, SysError> {
    let now = i128::from(crate::sys::now_ns());
    for path in paths {
        let changed = match host.mtime_ns(path)? {
            // Written under a wrong clock, or by a program that sets such times. A restart would not make the
            // unit younger than it, now or ever; when the file came to be so is what the kernel knows.
            Some(changed) if changed > now => host.ctime_ns(path)?.filter(|changed| *changed <= now),
            changed => changed,
        };
        if changed.is_some_and(|changed| changed > started) {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec(json: serde_json::Value) -> ServiceSpec {
        serde_json::from_value(json).unwrap()
    }

    pub(super) fn seen(active: &str, file_state: &str) -> Seen {
        Seen { active: active.into(), file_state: file_state.into(), ..Seen::default() }
    }

    pub(super) fn verbs(spec: &ServiceSpec, seen: &Seen) -> Vec<String> {
        verbs_of(&Service::plan(spec, seen))
    }

    #[test]
    fn plans_by_table() {
        let on = serde_json::json!({"name": "x", "state": "running", "enabled": true, "restart_on": ["/c"]});
        let off = serde_json::json!({"name": "x", "state": "stopped", "enabled": false});
        let stale = Seen { stale: Some("/c".into()), ..seen("active", "enabled") };
        let reload = Seen { needs_reload: true, ..seen("inactive", "disabled") };
        let cases = [
            (&on, seen("active", "enabled"), vec![]),
            (&on, seen("inactive", "enabled"), vec!["start"]),
            (&on, seen("failed", "disabled"), vec!["enable", "reset-failed", "start"]),
            (&on, seen("activating", "alias"), vec!["start"]),
            (&on, stale, vec!["restart"]),
            (&on, reload, vec!["daemon-reload", "enable", "start"]),
            (&off, seen("active", "enabled"), vec!["disable", "stop"]),
            (&off, seen("inactive", "disabled"), vec![]),
            (&off, seen("failed", "disabled"), vec![]),
        ];
        for (json, seen, want) in cases {
            assert_eq!(verbs(&spec(json.clone()), &seen), want, "{json} {seen:?}");
        }
    }

    #[test]
    fn the_agent_itself_is_not_switched_off() {
        for (json, refused) in [
            (serde_json::json!({"name": "postern-agent", "state": "stopped"}), true),
            (serde_json::json!({"name": "postern-agent", "enabled": false}), true),
            (serde_json::json!({"name": "postern-agent", "state": "running", "enabled": true}), false),
            (serde_json::json!({"name": "nginx", "state": "stopped"}), false),
        ] {
            let seen = Seen { load: "loaded".into(), ..seen("active", "enabled") };
            assert_eq!(obstacle(&spec(json.clone()), &seen, Depth::Cheap).is_some(), refused, "{json}");
        }
    }

    fn verbs_of(steps: &[Step]) -> Vec<String> {
        let verb = |step: &Step| match step {
            Step::Exec(exec) => exec.argv[1].clone(),
            other => panic!("{other:?}"),
        };
        steps.iter().map(verb).collect()
    }

    #[test]
    fn undone_by_table() {
        let both = serde_json::json!({"name": "x", "state": "running", "enabled": true});
        let run = serde_json::json!({"name": "x", "state": "running", "restart_on": ["/c"]});
        let off = serde_json::json!({"name": "x", "state": "stopped", "enabled": false});
        let boot = serde_json::json!({"name": "x", "enabled": true});
        let unit =
            |active: &str, file_state: &str| Seen { load: "loaded".into(), ..seen(active, file_state) };
        let gone = || Seen { load: "not-found".into(), ..seen("inactive", "") };
        let reload = |seen: Seen| Seen { needs_reload: true, ..seen };
        let stale = |seen: Seen| Seen { stale: Some("/c".into()), ..seen };
        let sysv = |on| Seen { sysv: Some(on), ..unit("active", "generated") };
        // Spec, before, now, the verbs of the way back or the start of why there is none.
        let cases = [
            (&both, unit("inactive", "disabled"), unit("active", "enabled"), Ok(vec!["disable", "stop"])),
            (&both, unit("failed", "enabled"), unit("active", "enabled"), Ok(vec!["stop"])),
            (&both, unit("active", "disabled"), unit("active", "enabled"), Ok(vec!["disable"])),
            (&both, unit("activating", "disabled"), unit("active", "enabled"), Ok(vec!["disable"])),
            (&both, unit("active", "enabled-runtime"), unit("active", "enabled"), Ok(vec!["disable"])),
            (&both, gone(), unit("active", "enabled"), Ok(vec!["disable", "stop"])),
            (&both, gone(), reload(unit("active", "enabled")), Ok(vec!["disable", "stop"])),
            (&both, gone(), gone(), Ok(vec![])),
            (&both, sysv(false), sysv(true), Ok(vec!["disable"])),
            (&boot, unit("inactive", "disabled"), unit("active", "enabled"), Ok(vec!["disable"])),
            (&off, unit("active", "enabled"), unit("inactive", "disabled"), Ok(vec!["enable", "start"])),
            (&off, unit("active", "disabled"), unit("inactive", "disabled"), Ok(vec!["start"])),
            (
                &off,
                unit("active", "enabled"),
                reload(unit("inactive", "disabled")),
                Ok(vec!["daemon-reload", "enable", "start"]),
            ),
            (
                &off,
                unit("active", "enabled"),
                gone(),
                Err("x.service was running or started at boot, and is not"),
            ),
            // Its files are back, and it has read the others.
            (&run, unit("active", ""), stale(unit("active", "")), Ok(vec!["restart"])),
            (&run, unit("active", ""), reload(unit("active", "")), Ok(vec!["daemon-reload", "restart"])),
            (&run, unit("active", ""), unit("active", ""), Ok(vec![])),
            (&run, unit("inactive", ""), stale(unit("active", "")), Ok(vec!["stop"])),
            (&run, unit("active", ""), stale(unit("inactive", "")), Ok(vec!["start"])),
        ];
        for (json, before, now, want) in cases {
            let spec = spec(json.clone());
            let kept: Seen = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
            match (Service::undo(&spec, &kept, &serde_json::Value::Null, &now), want) {
                (Undo::Steps(steps), Ok(want)) => {
                    assert_eq!(verbs_of(&steps), want, "{json} {before:?} {now:?}");
                }
                (Undo::Cannot(why), Err(want)) => assert!(why.starts_with(want), "{why}"),
                (got, want) => panic!("{json} {before:?} {now:?}: {got:?}, wanted {want:?}"),
            }
        }
    }

    /// T07: what was read at a start and is taken back is out of force only after another start.
    #[test]
    fn trap_07_a_restart_is_undone_after_the_files_it_was_for() {
        let run = spec(serde_json::json!({"name": "x", "state": "running", "restart_on": ["/c"]}));
        let plain = spec(serde_json::json!({"name": "x", "state": "running"}));
        assert!(Service::undo_last(&run, &seen("active", "enabled")));
        assert!(!Service::undo_last(&run, &seen("inactive", "enabled")), "stopped while it is there");
        assert!(!Service::undo_last(&plain, &seen("active", "enabled")));
        let stale = Seen { stale: Some("/c".into()), ..seen("active", "enabled") };
        let fresh = seen("active", "enabled");
        assert_eq!(Service::essence(&run, &stale), Service::essence(&run, &fresh));
    }

    #[test]
    fn what_systemd_says_is_understood() {
        let text = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=generated\n\
                    Result=success\nNeedDaemonReload=no\nActiveEnterTimestampMonotonic=7\n\
                    ExecMainStartTimestampMonotonic=9\nLoadError=\nSourcePath=/etc/init.d/x\n";
        let (seen, started, source) = parse(text, 1_000_000);
        assert!(seen.is_active() && !seen.needs_reload);
        assert_eq!((started, &*source), (Some(1_009_000), "/etc/init.d/x"));
        assert_eq!(parse("ActiveEnterTimestampMonotonic=0\n", 5).1, None);
        assert_eq!(parse("", 5).1, None);
    }

    #[test]
    fn what_cannot_be_is_said_and_what_is_not_there_is_off() {
        let on = serde_json::json!({"name": "x", "enabled": true});
        let run = serde_json::json!({"name": "x", "state": "running"});
        let off = serde_json::json!({"name": "x", "state": "stopped", "enabled": false});
        let unit = |load: &str, file_state: &str| Seen { load: load.into(), ..seen("inactive", file_state) };
        let reload = Seen { needs_reload: true, ..unit("loaded", "static") };
        let sysv = |at_boot| Seen { sysv: Some(at_boot), ..unit("loaded", "generated") };
        let (cheap, proof) = (Depth::Cheap, Depth::Proof);
        // The start of the obstacle, or the verbs of the plan.
        let cases = [
            (&on, unit("not-found", ""), cheap, Err("there is no unit x.service")),
            (&run, unit("not-found", ""), cheap, Err("there is no unit x.service")),
            (&off, unit("not-found", ""), cheap, Ok(vec![])),
            (&run, unit("masked", "masked"), cheap, Err("the unit x.service is masked")),
            (&off, unit("masked", "masked"), cheap, Ok(vec![])),
            (&off, Seen { active: "active".into(), ..unit("masked", "masked") }, cheap, Ok(vec!["stop"])),
            (&off, unit("bad-setting", ""), cheap, Err("systemd cannot load x.service (bad-setting)")),
            (&on, unit("", ""), cheap, Err("systemd cannot load")),
            (&on, unit("loaded", "disabled"), cheap, Ok(vec!["enable"])),
            (&on, unit("loaded", "enabled-runtime"), cheap, Ok(vec!["enable"])),
            (&off, unit("loaded", "enabled-runtime"), cheap, Ok(vec![])),
            (
                &on,
                unit("loaded", "static"),
                cheap,
                Err("x.service cannot be enabled: systemd says it is static"),
            ),
            (&on, reload, cheap, Ok(vec!["daemon-reload", "enable"])),
            (&off, unit("loaded", "static"), cheap, Ok(vec![])),
            (&on, unit("loaded", "generated"), cheap, Err("x.service cannot be enabled")),
            (&on, sysv(false), cheap, Ok(vec!["enable"])),
            (&on, sysv(true), cheap, Ok(vec![])),
            (&off, sysv(true), cheap, Ok(vec!["disable"])),
            (&on, unit("loaded", "indirect"), cheap, Ok(vec!["enable"])),
            (&on, unit("loaded", "indirect"), proof, Err("x.service cannot be enabled")),
            (&on, unit("loaded", "alias"), cheap, Ok(vec![])),
        ];
        for (json, seen, depth, want) in cases {
            let spec = spec(json.clone());
            match (obstacle(&spec, &seen, depth), want) {
                (Some(why), Err(want)) => assert!(why.starts_with(want), "{why}"),
                (None, Ok(want)) => assert_eq!(verbs(&spec, &seen), want, "{json} {seen:?}"),
                (got, want) => panic!("{json} {seen:?}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn sysv_scripts_by_their_links() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        assert!(!starts_at_boot("x", &sys).unwrap());
        std::fs::create_dir_all(dir.path().join("etc/rc3.d")).unwrap();
        for (link, want) in [("K01x", false), ("S01xy", false), ("S1x", false), ("S01x", true)] {
            std::fs::write(dir.path().join("etc/rc3.d").join(link), "").unwrap();
            assert_eq!(starts_at_boot("x", &sys).unwrap(), want, "{link}");
        }
    }

    /// T07: a time that is still to come is no reason for a restart at every run.
    #[test]
    fn trap_07_a_file_from_the_future_restarts_once() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let file = std::fs::File::create(dir.path().join("conf")).unwrap();
        file.set_modified(std::time::SystemTime::now() + Duration::from_secs(9999)).unwrap();
        let spec = spec(serde_json::json!({"name": "x", "state": "running", "restart_on": ["/conf"]}));
        let now = i128::from(crate::sys::now_ns());
        let second = 1_000_000_000;
        assert_eq!(newest(&spec.restart_on, &sys, now - 60 * second).unwrap().as_deref(), Some("/conf"));
        assert_eq!(newest(&spec.restart_on, &sys, now + second).unwrap(), None);
    }

    /// T07: the restart is needed for as long as the file is newer, whatever run wrote it.
    #[tokio::test]
    async fn trap_07_the_need_for_a_restart_is_derived_from_the_host() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let show = dir.path().join("bin/systemctl");
        let script = |started: i128| {
            format!(
                "#!/bin/sh\necho LoadState=loaded; echo ActiveState=active; echo UnitFileState=enabled\n\
                 echo ActiveEnterTimestampMonotonic={started}\n"
            )
        };
        let write = |started| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(dir.path().join("new"), script(started)).unwrap();
            std::fs::set_permissions(dir.path().join("new"), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(dir.path().join("new"), &show).unwrap();
        };
        std::fs::write(dir.path().join("conf"), "x").unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
        let sys = Sys::rooted(dir.path().to_owned(), path);
        let spec =
            spec(serde_json::json!({"name": "x", "state": "running", "restart_on": ["/conf", "/none"]}));
        // Microseconds since boot: just after it, and in a hundred years.
        write(1);
        for _ in 0..2 {
            let seen = Service::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            assert_eq!(seen.stale.as_deref(), Some("/conf"));
            assert_eq!(Service::plan(&spec, &seen).len(), 1);
        }
        write(3_155_760_000_000_000);
        let seen = Service::observe(&spec, &sys, Depth::Cheap).await.unwrap();
        assert_eq!(Service::plan(&spec, &seen), []);
    }
}
