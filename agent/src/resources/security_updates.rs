//! `security_updates`: unattended-upgrades with origins that really match a security repository (T08).
//!
//! A file that says so is not enough: another one may come after it, and origins that match nothing are no
//! error to anybody. So what counts is the configuration in force against the releases that apt has.

mod origins;

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::spec::SecurityUpdatesSpec;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::apt::{LISTS, lists_outdated, update};
use super::diff::unified;
use super::owned::{self, Owned};
use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::Sys;
use origins::{Config, Distribution, Release};

/// After the distribution's own files, since the last value of a setting wins. Lists are added to.
const FILE: &str = "/etc/apt/apt.conf.d/99postern-auto-upgrades";
/// Who does it, and when.
const TIMERS: [&str; 2] = ["apt-daily.timer", "apt-daily-upgrade.timer"];
const PACKAGE: &str = "unattended-upgrades";
/// The most that is read of a release file, bytes; Debian's has 150 KB.
const RELEASE_LIMIT: u64 = 4 << 20;
const ASK_LIMIT: Duration = Duration::from_secs(30);
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// What the dry run may take. It says what is wanted of it early, and `timeout` keeps that.
const DRY_RUN: &str = "100";
const DRY_RUN_LIMIT: Duration = Duration::from_secs(130);

pub(super) struct SecurityUpdates;

/// What is there and in force.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    file: Option<Owned>,
    distribution: Distribution,
    timers: Vec<Timer>,
    /// apt has no lists yet, so what the origins match is not known.
    fetch_lists: bool,
    /// What the settings in force lack, for people.
    lacks: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    unit: String,
    enabled: bool,
    active: bool,
    masked: bool,
}

impl Resource for SecurityUpdates {
    type Spec = SecurityUpdatesSpec;
    type Seen = Seen;

    async fn observe(spec: &SecurityUpdatesSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        if host.dpkg()?.is_none_or(|dpkg| dpkg.installed(PACKAGE).is_none()) {
            return Err(ObserveError::Obstacle(format!(
                "the package {PACKAGE} is not installed: declare it before this"
            )));
        }
        let file = Owned::look(host, FILE)?;
        let os = host.read_through("/etc/os-release", 1 << 16)?.unwrap_or_default();
        let distribution = Distribution::parse(&String::from_utf8_lossy(&os));
        let (config, timers) = tokio::join!(config(host), timers(host));
        let (config, timers) = (config?, timers?);
        let releases: Vec<Release> = releases(host)?.into_iter().filter(Release::is_security).collect();
        let mut seen = Seen { file, distribution, timers, ..Seen::default() };
        if depth == Depth::Whole {
            return Ok(seen);
        }
        if releases.is_empty() {
            if depth == Depth::Cheap && lists_outdated(host)? {
                seen.fetch_lists = true;
                return Ok(seen);
            }
            return Err(ObserveError::Obstacle(
                "apt has no security repository among its sources: add the distribution's".to_owned(),
            ));
        }
        seen.lacks = config.lacks(&releases, &seen.distribution, spec.reboot_time());
        if !file_is(spec, &seen) {
            return Ok(seen);
        }
        if !seen.lacks.is_empty() {
            // The file is as it should be, so no step would help.
            return Err(ObserveError::Obstacle(format!(
                "{} in spite of {FILE}: what else in /etc/apt/apt.conf.d sets it?",
                seen.lacks.join("; ")
            )));
        }
        if depth == Depth::Proof {
            prove(host, &releases, &seen.distribution).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &SecurityUpdatesSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        if seen.fetch_lists {
            steps.push(update());
        }
        if !file_is(spec, seen) {
            steps.push(owned::put(FILE, text(spec, &seen.distribution).into_bytes()));
        }
        let those = |wanted: fn(&Timer) -> bool| seen.timers.iter().filter(move |timer| wanted(timer));
        steps.extend(systemctl(&["unmask"], those(|timer| timer.masked)));
        steps.extend(systemctl(&["enable"], those(|timer| !timer.enabled)));
        steps.extend(systemctl(&["start"], those(|timer| !timer.active)));
        steps
    }

    fn essence(_: &SecurityUpdatesSpec, seen: &Seen) -> serde_json::Value {
        json!({"file": owned::essence(seen.file.as_ref()), "timers": seen.timers})
    }

    fn undo(_: &SecurityUpdatesSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let mut steps: Vec<Step> =
            owned::back(FILE, before.file.as_ref(), now.file.as_ref()).into_iter().collect();
        let was = |timer: &Timer| before.timers.iter().find(|was| was.unit == timer.unit).cloned();
        let those = |wanted: fn(&Timer, &Timer) -> bool| {
            now.timers.iter().filter(move |now| was(now).is_some_and(|was| wanted(&was, now)))
        };
        steps.extend(systemctl(&["stop"], those(|was, now| !was.active && now.active)));
        // A mask hides whether it was enabled below it: to mask it again is the whole way back.
        steps.extend(systemctl(&["disable"], those(|was, now| !was.enabled && !was.masked && now.enabled)));
        steps.extend(systemctl(&["mask"], those(|was, now| was.masked && !now.masked)));
        Undo::Steps(steps)
    }

    fn diff(spec: &SecurityUpdatesSpec, seen: &Seen) -> String {
        let mut shown = String::new();
        if !file_is(spec, seen) {
            let old = seen.file.as_ref().map(|there| there.content.as_slice());
            shown += &unified(FILE, old, Some(text(spec, &seen.distribution).as_bytes()));
        }
        for timer in &seen.timers {
            for (off, what) in
                [(timer.masked, "masked"), (!timer.enabled, "not at boot"), (!timer.active, "not active")]
            {
                if off {
                    shown += &format!("{}: {what}\n", timer.unit);
                }
            }
        }
        seen.lacks.iter().for_each(|lack| shown += &format!("in force: {lack}\n"));
        shown
    }
}

fn file_is(spec: &SecurityUpdatesSpec, seen: &Seen) -> bool {
    owned::is(seen.file.as_ref(), Some(text(spec, &seen.distribution).as_bytes()))
}

/// The content of our file.
fn text(spec: &SecurityUpdatesSpec, distribution: &Distribution) -> String {
    let mut text =
        "// Written by Postern: changes are overwritten. Origins are added to those of other files.\n\
                    APT::Periodic::Enable \"1\";\n\
                    APT::Periodic::Update-Package-Lists \"1\";\n\
                    APT::Periodic::Unattended-Upgrade \"1\";\n"
            .to_owned();
    let own = distribution.security_pattern().to_owned();
    for origin in std::iter::once(&own).chain(&spec.origins) {
        text += &format!("Unattended-Upgrade::Origins-Pattern:: \"{origin}\";\n");
    }
    match spec.reboot_time() {
        Some(time) => {
            text += "Unattended-Upgrade::Automatic-Reboot \"true\";\n";
            text += &format!("Unattended-Upgrade::Automatic-Reboot-Time \"{time}\";\n");
        }
        None => text += "Unattended-Upgrade::Automatic-Reboot \"false\";\n",
    }
    text
}

fn systemctl<'a>(verb: &[&str], timers: impl Iterator<Item = &'a Timer>) -> Option<Step> {
    let units: Vec<&str> = timers.map(|timer| timer.unit.as_str()).collect();
    let argv: Vec<&str> = ["systemctl"].iter().chain(verb).chain(&["--"]).chain(&units).copied().collect();
    (!units.is_empty()).then(|| Step::Exec(Exec::new(&argv, ACT_LIMIT)))
}

/// apt's settings in force.
async fn config(host: &Sys) -> Result<Config, ObserveError> {
    let said = host.run(&["apt-config", "dump"], &[], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("apt cannot read its own settings: {why}")));
    }
    Ok(Config::parse(&String::from_utf8_lossy(&said.stdout)))
}

async fn timers(host: &Sys) -> Result<Vec<Timer>, ObserveError> {
    const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,UnitFileState";
    let mut argv = vec!["systemctl", "show", "--no-pager", PROPERTIES, "--"];
    argv.extend(TIMERS);
    let said = host.run(&argv, &[], ASK_LIMIT).await?;
    let timers = parse_timers(&String::from_utf8_lossy(&said.stdout));
    if said.ok() && timers.len() == TIMERS.len() {
        return Ok(timers);
    }
    let why = said.last_line();
    Err(ObserveError::Obstacle(format!("systemd does not know {}: {why}", TIMERS.join(" and "))))
}

fn parse_timers(text: &str) -> Vec<Timer> {
    let units = text
        .split("\n\n")
        .map(|unit| unit.lines().filter_map(|line| line.split_once('=')).collect::<HashMap<&str, &str>>());
    let known = units.filter(|unit| {
        unit.contains_key("Id") && unit.get("LoadState").is_some_and(|state| *state != "not-found")
    });
    known
        .map(|unit| {
            let get = |name: &str| unit.get(name).copied().unwrap_or_default();
            Timer {
                unit: get("Id").to_owned(),
                enabled: get("UnitFileState") == "enabled",
                active: get("ActiveState") == "active",
                masked: get("LoadState") == "masked" || get("UnitFileState").starts_with("masked"),
            }
        })
        .collect()
}

/// The releases that apt has fetched, by the heads of their files.
fn releases(host: &Sys) -> Result<Vec<Release>, ObserveError> {
    let mut all = Vec::new();
    for name in host.list(LISTS)? {
        if name.ends_with("_InRelease") || name.ends_with("_Release") {
            let text = host.read(&format!("{LISTS}/{name}"), RELEASE_LIMIT)?.unwrap_or_default();
            all.push(Release::parse(&name, &String::from_utf8_lossy(&text)));
        }
    }
    Ok(all)
}

/// What unattended-upgrades itself takes its origins for.
async fn prove(host: &Sys, releases: &[Release], distribution: &Distribution) -> Result<(), ObserveError> {
    let argv = ["timeout", "--kill-after=10", DRY_RUN, "unattended-upgrade", "--dry-run", "--debug"];
    let said = host.run(&argv, &[], DRY_RUN_LIMIT).await?;
    let text = [&said.stdout[..], &said.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let Some(line) = text.lines().find_map(|line| line.split_once("llowed origins are: ")) else {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!(
            "unattended-upgrade --dry-run did not come to say which origins it allows: {why}"
        )));
    };
    let allowed = origins::split(line.1);
    if allowed.iter().any(|pattern| releases.iter().any(|release| release.matches(pattern, distribution))) {
        return Ok(());
    }
    Err(ObserveError::Obstacle(format!(
        "unattended-upgrade allows no security repository that apt has: {}",
        line.1.chars().take(300).collect::<String>()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> SecurityUpdatesSpec {
        serde_json::from_value(json).unwrap()
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    const SHOWN: &str = "Id=apt-daily.timer\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\n\n\
                         Id=apt-daily-upgrade.timer\nLoadState=masked\nActiveState=inactive\nUnitFileState=masked\n";

    #[test]
    fn plans_and_ways_back_by_table() {
        let never = spec(json!({}));
        let at_night = spec(json!({"reboot": "04:30", "origins": ["origin=Docker"]}));
        let debian = Distribution::parse("ID=debian\nVERSION_CODENAME=bookworm\n");
        let file = |spec: &SecurityUpdatesSpec| Some(Owned::new(text(spec, &debian).as_bytes()));
        let off = parse_timers(SHOWN);
        let on: Vec<Timer> = off
            .iter()
            .map(|timer| Timer { masked: false, enabled: true, active: true, ..timer.clone() })
            .collect();
        let seen = |file, timers: &[Timer]| Seen {
            file,
            distribution: debian.clone(),
            timers: timers.to_vec(),
            ..Seen::default()
        };
        let write = format!("write {FILE}");
        let whole = seen(file(&never), &on);
        assert!(SecurityUpdates::plan(&never, &whole).is_empty());
        assert_eq!(lines(&SecurityUpdates::plan(&at_night, &whole)), std::slice::from_ref(&write));
        let bare = seen(None, &off);
        assert_eq!(
            lines(&SecurityUpdates::plan(&never, &bare)),
            [
                write.clone(),
                "systemctl unmask -- apt-daily-upgrade.timer".into(),
                "systemctl enable -- apt-daily-upgrade.timer".into(),
                "systemctl start -- apt-daily-upgrade.timer".into(),
            ]
        );
        let shown = SecurityUpdates::diff(&never, &bare);
        assert!(shown.contains("apt-daily-upgrade.timer: masked\n"), "{shown}");
        let Undo::Steps(steps) = SecurityUpdates::undo(&never, &bare, &json!(null), &whole) else { panic!() };
        assert_eq!(
            lines(&steps),
            [
                format!("remove {FILE}"),
                "systemctl stop -- apt-daily-upgrade.timer".into(),
                "systemctl mask -- apt-daily-upgrade.timer".into(),
            ]
        );
        let changed = seen(file(&at_night), &on);
        let Undo::Steps(steps) = SecurityUpdates::undo(&never, &whole, &json!(null), &changed) else {
            panic!()
        };
        assert_eq!(lines(&steps), [write]);
        let text = text(&at_night, &debian);
        for line in [
            "Unattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=${distro_codename}-security,label=Debian-Security\";",
            "Unattended-Upgrade::Origins-Pattern:: \"origin=Docker\";",
            "Unattended-Upgrade::Automatic-Reboot-Time \"04:30\";",
        ] {
            assert!(text.lines().any(|one| one == line), "{text}");
        }
    }

    #[test]
    fn timers_are_understood() {
        let timers = parse_timers(SHOWN);
        assert_eq!(timers.len(), 2);
        assert!(timers[0].enabled && timers[0].active && !timers[0].masked);
        assert!(!timers[1].enabled && !timers[1].active && timers[1].masked);
        assert!(parse_timers("Id=x.timer\nLoadState=not-found\n").is_empty());
    }
}
