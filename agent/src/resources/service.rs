//! `service`: a systemd unit, running or not, at boot or not, restarted when its files are newer than it is.

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::spec::{Running, ServiceSpec};

use super::{Depth, Exec, ObserveError, Resource, Step};
use crate::sys::{Sys, SysError};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    active: String,
    sub: String,
    /// Empty for a unit without an `[Install]` section of its own.
    file_state: String,
    result: String,
    /// Its files on disk are newer than what systemd has read.
    needs_reload: bool,
    /// The first of the declared files that is newer than its start.
    stale: Option<String>,
}

impl Seen {
    fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }

    fn on_its_way(&self) -> bool {
        matches!(self.active.as_str(), "activating" | "deactivating")
    }
}

const PROPERTIES: &str = "--property=LoadState,ActiveState,SubState,UnitFileState,Result,NeedDaemonReload,\
                          ActiveEnterTimestamp,ExecMainStartTimestamp,ActiveEnterTimestampMonotonic,\
                          ExecMainStartTimestampMonotonic,LoadError";

impl Resource for Service {
    type Spec = ServiceSpec;
    type Seen = Seen;

    async fn observe(spec: &ServiceSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let mut seen = ask(spec, host).await?;
        if depth == Depth::Cheap || spec.state.is_none() {
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
        Ok(seen)
    }

    fn plan(spec: &ServiceSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        let unit = spec.unit();
        let mut systemctl = |args: &[&str]| {
            let argv: Vec<&str> = std::iter::once("systemctl").chain(args.iter().copied()).collect();
            steps.push(Step::Exec(Exec::new(&argv, ACT_LIMIT)));
        };
        let enabled = matches!(seen.file_state.as_str(), "enabled" | "enabled-runtime" | "alias");
        // Units that others pull in, and links, have no state of their own to change.
        let fixed = matches!(seen.file_state.as_str(), "static" | "generated" | "transient" | "indirect");
        let restart = spec.state == Some(Running::Running)
            && seen.is_active()
            && (seen.stale.is_some() || seen.needs_reload && !spec.restart_on.is_empty());
        let start = spec.state == Some(Running::Running) && !seen.is_active();
        if seen.needs_reload && (restart || start) {
            systemctl(&["daemon-reload"]);
        }
        match spec.enabled {
            Some(true) if !enabled && !fixed => systemctl(&["enable", "--", &unit]),
            Some(false) if enabled && !fixed => systemctl(&["disable", "--", &unit]),
            _ => {}
        }
        if restart {
            systemctl(&["restart", "--", &unit]);
        } else if start {
            systemctl(&["start", "--", &unit]);
        } else if spec.state == Some(Running::Stopped) && (seen.is_active() || seen.on_its_way()) {
            systemctl(&["stop", "--", &unit]);
        }
        steps
    }

    fn diff(spec: &ServiceSpec, seen: &Seen) -> String {
        let unit = spec.unit();
        match &seen.stale {
            Some(path) if seen.is_active() => format!("{unit}: {path} is newer than its start\n"),
            _ => {
                let (state, boot) = (or(&seen.active, "unknown"), or(&seen.file_state, "not at boot"));
                let why = if seen.active == "failed" { seen.result.as_str() } else { seen.sub.as_str() };
                format!("{unit}: {state} ({why}), {boot}\n")
            }
        }
    }
}

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

async fn ask(spec: &ServiceSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let unit = spec.unit();
    let argv = ["systemctl", "show", "--no-pager", "--timestamp=us+utc", PROPERTIES, "--", &unit];
    // Not every systemd heeds the format of times; then they come in the zone of the environment.
    let said = host.run(&argv, &[("TZ", "UTC")], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("systemctl show {unit} failed: {why}")));
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let (mut seen, started) = parse(&unit, &text, crate::sys::boot_ns())?;
    if let Some(started) = started {
        seen.stale = newest(spec, host, started)?;
    }
    Ok(seen)
}

/// What `systemctl show` says, and when the unit was started, nanoseconds since the Unix epoch; `boot_ns` is
/// when the monotonic clock was zero.
fn parse(unit: &str, text: &str, boot_ns: i128) -> Result<(Seen, Option<i128>), ObserveError> {
    let rows: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| rows.get(name).copied().unwrap_or_default();
    match get("LoadState") {
        "loaded" => {}
        "not-found" => return Err(ObserveError::Obstacle(format!("there is no unit {unit} on this host"))),
        "masked" => {
            return Err(ObserveError::Obstacle(format!("the unit {unit} is masked; unmask it first")));
        }
        other => {
            let why = get("LoadError");
            return Err(ObserveError::Obstacle(format!("systemd cannot load {unit} ({other}): {why}")));
        }
    }
    let seen = Seen {
        active: get("ActiveState").to_owned(),
        sub: get("SubState").to_owned(),
        file_state: get("UnitFileState").to_owned(),
        result: get("Result").to_owned(),
        needs_reload: get("NeedDaemonReload") == "yes",
        stale: None,
    };
    // The later of the two: a reload moves neither, a restart of the main process moves the second. The
    // monotonic ones are exact; the others may be cut to a second, and a file can be written in that second.
    let exact = |name: &str| match get(name).parse::<i128>() {
        Ok(micros) if micros > 0 => Some(micros * 1000 + boot_ns),
        _ => None,
    };
    let started = exact("ActiveEnterTimestampMonotonic").max(exact("ExecMainStartTimestampMonotonic"));
    let started =
        started.or_else(|| time_ns(get("ActiveEnterTimestamp")).max(time_ns(get("ExecMainStartTimestamp"))));
    Ok((seen, started))
}

fn newest(spec: &ServiceSpec, host: &Sys, started: i128) -> Result<Option<String>, SysError> {
    for path in &spec.restart_on {
        if host.mtime_ns(path)?.is_some_and(|changed| changed > started) {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

/// `Sun 2026-11-22 08:57:59.123456 UTC`, in nanoseconds since the Unix epoch.
fn time_ns(text: &str) -> Option<i128> {
    let mut words = text.split_whitespace().skip(1);
    let (date, time) = (words.next()?, words.next()?);
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    // Days since the epoch of a date of the Gregorian calendar, with the year beginning in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(digits.parse::<i64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> ServiceSpec {
        serde_json::from_value(json).unwrap()
    }

    fn seen(active: &str, file_state: &str) -> Seen {
        Seen { active: active.into(), file_state: file_state.into(), ..Seen::default() }
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
            (&on, seen("failed", "disabled"), vec!["enable", "start"]),
            (&on, seen("activating", "static"), vec!["start"]),
            (&on, stale, vec!["restart"]),
            (&on, reload, vec!["daemon-reload", "enable", "start"]),
            (&off, seen("active", "enabled"), vec!["disable", "stop"]),
            (&off, seen("inactive", "disabled"), vec![]),
            (&off, seen("failed", "disabled"), vec![]),
        ];
        for (json, seen, want) in cases {
            let steps = Service::plan(&spec(json.clone()), &seen);
            let verbs: Vec<_> = steps
                .iter()
                .map(|step| match step {
                    Step::Exec(exec) => exec.argv[1].as_str(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(verbs, want, "{json} {seen:?}");
        }
    }

    #[test]
    fn what_systemd_says_is_understood() {
        let text = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\nResult=success\n\
                    NeedDaemonReload=no\nActiveEnterTimestamp=Sun 2026-11-22 08:57:59.123456 UTC\n\
                    ExecMainStartTimestamp=Sun 2026-11-22 08:57:58 UTC\nLoadError=\n";
        let (seen, started) = parse("x.service", text, 0).unwrap();
        assert!(seen.is_active());
        assert_eq!(started, Some(1_795_337_879_123_456_000));
        let text = "LoadState=loaded\nActiveEnterTimestamp=Sun 2026-11-22 08:57:59 UTC\n\
                    ActiveEnterTimestampMonotonic=7\nExecMainStartTimestampMonotonic=0\n";
        assert_eq!(parse("x", text, 1_000_000).unwrap().1, Some(1_007_000));
        assert_eq!(time_ns("Thu 1970-01-01 00:00:00 UTC"), Some(0));
        assert_eq!(time_ns("Thu 2024-02-29 12:00:00 UTC"), Some(1_709_208_000_000_000_000));
        assert_eq!(time_ns("n/a"), None);
        assert_eq!(time_ns(""), None);
        let gone = parse("x.service", "LoadState=not-found\n", 0).unwrap_err();
        assert_eq!(gone.to_string(), "there is no unit x.service on this host");
        assert!(parse("x", "LoadState=masked\n", 0).unwrap_err().to_string().contains("masked"));
        assert!(parse("x", "", 0).is_err());
    }

    /// T07: the restart is needed for as long as the file is newer, whatever run wrote it.
    #[tokio::test]
    async fn trap_07_the_need_for_a_restart_is_derived_from_the_host() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let show = dir.path().join("bin/systemctl");
        let script = |started: &str| {
            format!(
                "#!/bin/sh\necho LoadState=loaded; echo ActiveState=active; echo UnitFileState=enabled\n\
                 echo ActiveEnterTimestamp={started}\n"
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
        write("Sun 2001-01-01 00:00:00 UTC");
        for _ in 0..2 {
            let seen = Service::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            assert_eq!(seen.stale.as_deref(), Some("/conf"));
            assert_eq!(Service::plan(&spec, &seen).len(), 1);
        }
        write("Sun 2101-01-01 00:00:00 UTC");
        let seen = Service::observe(&spec, &sys, Depth::Cheap).await.unwrap();
        assert_eq!(Service::plan(&spec, &seen), []);
    }
}
