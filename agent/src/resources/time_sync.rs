//! `time_sync`: chrony runs, follows a server, and the clock is as right as is asked.

use std::time::Duration;

use postern_proto::spec::TimeSyncSpec;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::unified;
use super::owned::{self, Owned, Reader};
use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::Sys;

const CONF: &str = "/etc/chrony/conf.d/postern.conf";
const CONF_DIR: &str = "/etc/chrony/conf.d";
const MAIN: &str = "/etc/chrony/chrony.conf";
/// Written when the daemon starts.
const PID_FILE: &str = "/run/chrony/chronyd.pid";
const AT_BOOT: &str = "/etc/systemd/system/multi-user.target.wants/chrony.service";
const UNIT: &str = "chrony.service";
const PACKAGE: &str = "chrony";
const ASK_LIMIT: Duration = Duration::from_secs(10);
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// How long a clock may take to follow a server after a change.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) struct TimeSync;

/// What chrony is and says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    conf: Option<Owned>,
    enabled: bool,
    running: bool,
    /// Its configuration is newer than its start.
    stale: bool,
    tracking: Option<Tracking>,
}

/// What it says of the clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tracking {
    /// It follows a server.
    synchronised: bool,
    /// How wrong the clock is, microseconds.
    offset_us: i64,
}

impl Seen {
    fn reader(&self) -> Reader<'_> {
        Reader { conf: self.conf.as_ref(), running: self.running, enabled: self.enabled }
    }
}

impl Resource for TimeSync {
    type Spec = TimeSyncSpec;
    type Seen = Seen;

    async fn observe(spec: &TimeSyncSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        if host.dpkg()?.is_none_or(|dpkg| dpkg.installed(PACKAGE).is_none()) {
            return Err(ObserveError::Obstacle(format!(
                "the package {PACKAGE} is not installed: declare it before this"
            )));
        }
        let main = host.read_through(MAIN, 1 << 20)?.unwrap_or_default();
        if !spec.servers.is_empty() && !reads_conf_dir(&String::from_utf8_lossy(&main)) {
            return Err(ObserveError::Obstacle(format!(
                "{MAIN} does not read {CONF_DIR}: add the line `confdir {CONF_DIR}`"
            )));
        }
        let mut seen = look(host).await?;
        if depth != Depth::Proof || !set_up(spec, &seen) {
            return Ok(seen);
        }
        let until = tokio::time::Instant::now() + SETTLE;
        while !is_right(spec, &seen) {
            if tokio::time::Instant::now() >= until {
                let why = why_not(spec, &seen, host).await;
                return Err(ObserveError::Obstacle(why));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = look(host).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &TimeSyncSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        let run = |argv: &[&str]| Step::Exec(Exec::new(argv, ACT_LIMIT));
        if !conf_is(spec, seen) {
            steps.push(match conf(spec) {
                Some(text) => owned::put(CONF, text.into_bytes()),
                None => Step::Remove { path: CONF.to_owned() },
            });
        }
        if !seen.enabled {
            steps.push(run(&["systemctl", "enable", "--", UNIT]));
        }
        if !seen.running || seen.stale || !conf_is(spec, seen) {
            // It starts what is not running.
            steps.push(run(&["systemctl", "restart", "--", UNIT]));
        } else if seen.tracking.as_ref().is_none_or(|tracking| !tracking.synchronised) {
            // Asks every server now instead of when it would be its turn.
            steps.push(run(&["chronyc", "-n", "burst", "4/4"]));
        } else if !is_right(spec, seen) {
            // To slew what is so far off would take it hours.
            steps.push(run(&["chronyc", "-n", "makestep"]));
        }
        steps
    }

    fn essence(_: &TimeSyncSpec, seen: &Seen) -> serde_json::Value {
        json!({"conf": owned::essence(seen.conf.as_ref()), "enabled": seen.enabled, "running": seen.running})
    }

    fn undo(_: &TimeSyncSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let systemctl = |verb: &str| Step::Exec(Exec::new(&["systemctl", verb, "--", UNIT], ACT_LIMIT));
        Undo::Steps(owned::back_with_reader(CONF, before.reader(), now.reader(), systemctl))
    }

    fn diff(spec: &TimeSyncSpec, seen: &Seen) -> String {
        let mut shown = String::new();
        if !conf_is(spec, seen) {
            let old = seen.conf.as_ref().map(|there| there.content.as_slice());
            shown += &unified(CONF, old, conf(spec).as_deref().map(str::as_bytes));
        }
        if !seen.enabled {
            shown += &format!("{UNIT}: not at boot\n");
        }
        match &seen.tracking {
            None => shown += &format!("{UNIT}: not running\n"),
            Some(tracking) if !tracking.synchronised => shown += "the clock follows no server\n",
            Some(tracking) if !is_right(spec, seen) => {
                shown += &format!("the clock is off by {} ms\n", tracking.offset_us / 1000);
            }
            Some(_) => {}
        }
        if seen.stale {
            shown += &format!("{UNIT}: {CONF_DIR} is newer than its start\n");
        }
        shown
    }
}

/// The content of our file; none where no servers are declared.
fn conf(spec: &TimeSyncSpec) -> Option<String> {
    let line = |server: &String| format!("server {server} iburst prefer\n");
    let lines: String = spec.servers.iter().map(line).collect();
    (!lines.is_empty()).then(|| format!("# Written by Postern: changes are overwritten.\n{lines}"))
}

fn conf_is(spec: &TimeSyncSpec, seen: &Seen) -> bool {
    owned::is(seen.conf.as_ref(), conf(spec).as_deref().map(str::as_bytes))
}

/// All but the clock itself.
fn set_up(spec: &TimeSyncSpec, seen: &Seen) -> bool {
    conf_is(spec, seen) && seen.enabled && seen.running && !seen.stale
}

fn is_right(spec: &TimeSyncSpec, seen: &Seen) -> bool {
    let near =
        |tracking: &Tracking| tracking.offset_us.unsigned_abs() <= spec.max_offset_ms.saturating_mul(1000);
    seen.tracking.as_ref().is_some_and(|tracking| tracking.synchronised && near(tracking))
}

/// Whether chrony's own file takes in the directory that ours lies in.
fn reads_conf_dir(main: &str) -> bool {
    let mut lines = main.lines().map(str::split_whitespace);
    lines.any(|mut words| {
        words.next().is_some_and(|word| word.eq_ignore_ascii_case("confdir"))
            && words.any(|dir| dir.trim_end_matches('/') == CONF_DIR)
    })
}

async fn look(host: &Sys) -> Result<Seen, ObserveError> {
    let conf = Owned::look(host, CONF)?;
    let enabled = host.exists(AT_BOOT)?;
    let said = host.run(&["chronyc", "-n", "-c", "tracking"], &[], ASK_LIMIT).await?;
    let tracking = if said.ok() { parse(&String::from_utf8_lossy(&said.stdout)) } else { None };
    let now = i128::from(crate::sys::now_ns());
    let mut stale = false;
    if let Some(started) = host.ctime_ns(PID_FILE)? {
        // The directory's time moves when a file in it is replaced or removed. One that is still to come is
        // of a clock that was wrong.
        for path in [CONF, CONF_DIR] {
            stale |= host.ctime_ns(path)?.is_some_and(|changed| changed > started && changed <= now);
        }
    }
    Ok(Seen { conf, enabled, running: tracking.is_some(), stale, tracking })
}

/// The line of `chronyc -c tracking`: the fifth field is how far the clock is from true time, in seconds, the
/// last one the leap status.
fn parse(line: &str) -> Option<Tracking> {
    let fields: Vec<&str> = line.trim().split(',').collect();
    let (id, offset, leap) = (fields.first()?, fields.get(4)?, fields.get(13)?);
    let seconds: f64 = offset.parse().ok().filter(|seconds: &f64| seconds.is_finite())?;
    let synchronised = *leap != "Not synchronised" && id.bytes().any(|byte| byte != b'0');
    // A cast from a float saturates.
    Some(Tracking { synchronised, offset_us: (seconds * 1e6).round() as i64 })
}

/// Why the clock is not right, for people.
async fn why_not(spec: &TimeSyncSpec, seen: &Seen, host: &Sys) -> String {
    let waited = SETTLE.as_secs();
    match &seen.tracking {
        Some(tracking) if tracking.synchronised => {
            let (off, most) = (tracking.offset_us / 1000, spec.max_offset_ms);
            return format!("the clock is off by {off} ms after {waited} s, more than {most} ms");
        }
        None => return "chrony stopped answering: see `journalctl -u chrony`".to_owned(),
        Some(_) => {}
    }
    let asked = match host.run(&["chronyc", "-n", "-c", "sources"], &[], ASK_LIMIT).await {
        Ok(said) => servers(&String::from_utf8_lossy(&said.stdout)),
        Err(error) => error.to_string(),
    };
    format!("chrony runs, and after {waited} s the clock follows no server: {asked}")
}

/// What `chronyc -c sources` says of each server.
fn servers(text: &str) -> String {
    let server = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let (name, reach) = (fields.get(2)?, fields.get(5)?);
        Some(format!(
            "{name} {}",
            if *reach == "0" { "does not answer" } else { "answers and is not chosen" }
        ))
    };
    let all: Vec<String> = text.lines().filter_map(server).take(4).collect();
    if all.is_empty() { "it has none, or their names cannot be resolved".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> TimeSyncSpec {
        serde_json::from_value(json).unwrap()
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    #[test]
    fn what_chrony_says_is_understood() {
        let line = |id: &str, offset: &str, leap: &str| {
            format!("{id},192.0.2.1,3,1700000000.1,{offset},0.1,0.1,-1.0,0.0,0.1,0.01,0.01,64.3,{leap}\n")
        };
        let right = |synchronised, offset_us| Some(Tracking { synchronised, offset_us });
        let cases = [
            (line("C0000201", "-0.000012345", "Normal"), right(true, -12)),
            (line("C0000201", "86400.5", "Insert second"), right(true, 86_400_500_000)),
            (line("00000000", "0.000000000", "Not synchronised"), right(false, 0)),
            (line("C0000201", "NaN", "Normal"), None),
            ("506 Cannot talk to daemon\n".to_owned(), None),
            (String::new(), None),
        ];
        for (text, want) in cases {
            assert_eq!(parse(&text), want, "{text}");
        }
        let sources = "^,?,192.0.2.1,0,6,0,4294967295,0.0,0.0,0.0\n^,-,192.0.2.2,3,6,17,5,0.0,0.0,0.0\n";
        assert_eq!(servers(sources), "192.0.2.1 does not answer, 192.0.2.2 answers and is not chosen");
        assert!(servers("").starts_with("it has none"));
        assert!(reads_conf_dir("# x\npool a iburst\nconfdir /etc/chrony/conf.d\n"));
        assert!(!reads_conf_dir("#confdir /etc/chrony/conf.d\nsourcedir /etc/chrony/conf.d\n"));
    }

    #[test]
    fn plans_and_ways_back_by_table() {
        let plain = spec(json!({}));
        let named = spec(json!({"servers": ["192.0.2.1"], "max_offset_ms": 100}));
        let text = "# Written by Postern: changes are overwritten.\nserver 192.0.2.1 iburst prefer\n";
        let file = || Some(Owned::new(text.as_bytes()));
        let clock = |synchronised, offset_us| Some(Tracking { synchronised, offset_us });
        let up = |conf, tracking| Seen { conf, enabled: true, running: true, stale: false, tracking };
        let (enable, restart) = ("systemctl enable -- chrony.service", "systemctl restart -- chrony.service");
        let (write, remove) = (format!("write {CONF}"), format!("remove {CONF}"));
        let cases = [
            (&plain, up(None, clock(true, 999_999)), vec![]),
            (&plain, up(None, clock(true, -1_000_001)), vec!["chronyc -n makestep"]),
            (&plain, up(None, clock(false, 0)), vec!["chronyc -n burst 4/4"]),
            (&plain, up(file(), clock(true, 0)), vec![&*remove, restart]),
            (&plain, Seen::default(), vec![enable, restart]),
            (&named, up(file(), clock(true, 100_000)), vec![]),
            (&named, up(file(), clock(true, 100_001)), vec!["chronyc -n makestep"]),
            (&named, up(None, clock(true, 0)), vec![&*write, restart]),
            (&named, Seen { stale: true, ..up(file(), clock(true, 0)) }, vec![restart]),
        ];
        for (spec, seen, want) in cases {
            let steps = TimeSync::plan(spec, &seen);
            assert_eq!(lines(&steps), want, "{spec:?} {seen:?}");
            assert_eq!(TimeSync::diff(spec, &seen).is_empty(), want.is_empty(), "{seen:?}");
        }
        let undo = |before: &Seen, now: &Seen| match TimeSync::undo(&named, before, &json!(null), now) {
            Undo::Steps(steps) => lines(&steps),
            Undo::Cannot(why) => panic!("{why}"),
        };
        let now = up(file(), clock(true, 0));
        assert_eq!(undo(&up(None, None), &now), [&*remove, restart]);
        let (stop, disable) = ("systemctl stop -- chrony.service", "systemctl disable -- chrony.service");
        assert_eq!(undo(&Seen::default(), &now), [&*remove, stop, disable]);
    }
}
