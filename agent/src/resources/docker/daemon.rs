//! `docker_daemon`: some keys of daemon.json are as declared, and the engine, where it runs, has read them. One that was
//! stopped is not started: it may not be installed yet, or not wholly, and finds them when it starts. One that failed is.

use std::time::Duration;

use postern_proto::spec::DockerDaemonSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::diff::unified;
use super::super::owned::Owned;
use super::super::{Depth, Exec, ObserveError, Resource, Step, Undo, WriteFile};
use super::{Info, info};
use crate::sys::Sys;

const FILE: &str = "/etc/docker/daemon.json";
const DIR: &str = "/etc/docker";
const UNIT: &str = "docker.service";
const PROPERTIES: &str = "--property=LoadState,ActiveState,ExecMainStartTimestampMonotonic";
const ASK_LIMIT: Duration = Duration::from_secs(30);
const RESTART_LIMIT: Duration = Duration::from_secs(180);
/// How long the engine may take to answer after its start.
const SETTLE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(in crate::resources) struct DockerDaemon;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Seen {
    file: Option<Owned>,
    /// The directory is there.
    dir: bool,
    /// The file is all that is in it.
    #[serde(default)]
    alone: bool,
    /// The engine runs.
    running: bool,
    /// It was to run, and failed.
    #[serde(default)]
    failed: bool,
    /// It starts or stops just now.
    #[serde(skip)]
    on_its_way: bool,
    /// The file is newer than its start.
    stale: bool,
    /// What the engine says of itself; `None` where it was not asked or does not run.
    info: Option<Info>,
}

impl Resource for DockerDaemon {
    type Spec = DockerDaemonSpec;
    type Seen = Seen;

    async fn observe(spec: &DockerDaemonSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let mut seen = look(host).await?;
        let until = tokio::time::Instant::now() + SETTLE;
        // As after a boot: what it reads at its start is on the disk by now, or not.
        while seen.on_its_way && depth != Depth::Whole {
            if tokio::time::Instant::now() >= until {
                let why = format!("{UNIT} neither runs nor stands after {} s", SETTLE.as_secs());
                return Err(ObserveError::Obstacle(format!("{why}: see `systemctl status docker`")));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = look(host).await?;
        }
        while seen.running {
            match info(host).await {
                Ok(info) => {
                    seen.info = Some(info);
                    break;
                }
                Err(error) if depth == Depth::Proof && tokio::time::Instant::now() >= until => {
                    return Err(error);
                }
                Err(_) if depth == Depth::Proof => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    seen = look(host).await?;
                }
                Err(_) => break,
            }
        }
        if depth == Depth::Whole {
            return Ok(seen);
        }
        let current = current(seen.file.as_ref()).map_err(ObserveError::Obstacle)?;
        let merged = merged(&current, &spec.declared());
        let in_swarm = seen.info.as_ref().is_some_and(|info| info.swarm.local_node_state != "inactive");
        if in_swarm && merged.get("live-restore") == Some(&Value::Bool(true)) {
            return Err(ObserveError::Obstacle(
                "live-restore cannot be together with Swarm: Docker refuses to start with both. Take live-restore out, \
                 or leave the Swarm"
                    .to_owned(),
            ));
        }
        // At each look, as the engine may have started after the last proof.
        if let Some(why) = not_in_force(spec, &seen) {
            return Err(ObserveError::Obstacle(why));
        }
        Ok(seen)
    }

    fn plan(spec: &DockerDaemonSpec, seen: &Seen) -> Vec<Step> {
        let current = current(seen.file.as_ref()).unwrap_or_default();
        let wanted = merged(&current, &spec.declared());
        let same = wanted == current;
        let mut steps = Vec::new();
        if !same {
            steps.extend(make_dir(seen));
            steps.push(put(seen.file.as_ref(), text(&wanted)));
        }
        // The need is derived from what is there, so that a run that was cut off in between does not lose it (T07).
        // Some keys could be put in force by a reload; which, differs between versions, and none says so.
        if seen.failed || seen.running && (!same || seen.stale) {
            steps.push(restart());
        }
        steps
    }

    fn diff(spec: &DockerDaemonSpec, seen: &Seen) -> String {
        let current = current(seen.file.as_ref()).unwrap_or_default();
        let wanted = merged(&current, &spec.declared());
        let mut shown = if wanted == current {
            String::new()
        } else {
            // Both as we would write them: what differs is what is meant, not how somebody indents.
            let old = seen.file.as_ref().map(|_| text(&current));
            unified(FILE, old.as_deref(), Some(&text(&wanted)))
        };
        if seen.running && seen.stale {
            shown += &format!("{UNIT}: its configuration is newer than its start\n");
        }
        if seen.failed {
            shown += &format!("{UNIT}: failed\n");
        }
        shown
    }

    fn essence(spec: &DockerDaemonSpec, seen: &Seen) -> Value {
        let current = current(seen.file.as_ref()).unwrap_or_default();
        // Keys of others may change in the meantime.
        let ours: Map<String, Value> = touched(&spec.declared())
            .filter_map(|key| Some((key.to_owned(), current.get(key)?.clone())))
            .collect();
        // That the engine runs is others'. Agents that saw to it wrote it down here, of one that always did.
        json!({"keys": ours, "running": true})
    }

    fn undo(spec: &DockerDaemonSpec, before: &Seen, _: &Value, now: &Seen) -> Undo {
        let (was, is) = match (current(before.file.as_ref()), current(now.file.as_ref())) {
            (Ok(was), Ok(is)) => (was, is),
            (Err(why), _) | (_, Err(why)) => return Undo::Cannot(why),
        };
        let mut back = is.clone();
        for key in touched(&spec.declared()) {
            match was.get(key) {
                Some(value) => back.insert(key.to_owned(), value.clone()),
                None => back.remove(key),
            };
        }
        let file = match (&before.file, &now.file) {
            _ if back == is && before.file.is_some() == now.file.is_some() => None,
            // Byte for byte, where nobody else changed anything.
            (Some(file), _) if back == was => Some(put(Some(file), file.content.clone())),
            (None, _) if back.is_empty() => Some(Step::Remove { path: FILE.to_owned() }),
            (_, file) => Some(put(file.as_ref(), text(&back))),
        };
        let mut steps = match file {
            Some(Step::Remove { path }) => {
                let dir = (!before.dir && now.alone).then(|| Step::RemoveDirectory { path: DIR.to_owned() });
                [Step::Remove { path }].into_iter().chain(dir).collect()
            }
            Some(put) => [make_dir(now), vec![put]].concat(),
            None => Vec::new(),
        };
        if (now.running || before.running && now.failed) && !steps.is_empty() {
            steps.push(restart());
        }
        Undo::Steps(steps)
    }
}

/// The keys that the file has; none where there is no file. The error is for people.
fn current(file: Option<&Owned>) -> Result<Map<String, Value>, String> {
    let Some(file) = file else { return Ok(Map::new()) };
    if file.content.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&file.content) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(format!("{FILE} is no JSON object: mend or remove it")),
        Err(error) => Err(format!("{FILE} is not JSON ({error}): mend or remove it")),
    }
}

/// What is there with what is declared in it: keys of others stay, and so do the options of a log driver that others
/// chose, where it is the same driver.
fn merged(current: &Map<String, Value>, declared: &Map<String, Value>) -> Map<String, Value> {
    let mut all = current.clone();
    let driver = |map: &Map<String, Value>| map.get("log-driver").cloned();
    if declared.contains_key("log-driver") && driver(current) != driver(declared) {
        // Options are of one driver: another one refuses those that it does not know.
        all.remove("log-opts");
    }
    for (key, value) in declared {
        match (all.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(options)) if key == "log-opts" => {
                there.extend(options.clone());
            }
            _ => drop(all.insert(key.clone(), value.clone())),
        }
    }
    all
}

/// The keys that an undo is about: options of a log driver go with it.
fn touched(declared: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let options = declared.contains_key("log-driver") && !declared.contains_key("log-opts");
    declared.keys().map(String::as_str).chain(options.then_some("log-opts"))
}

fn make_dir(seen: &Seen) -> Vec<Step> {
    let make = Step::MakeDirectory { path: DIR.to_owned(), mode: 0o755, uid: 0, gid: 0 };
    if seen.dir { Vec::new() } else { vec![make] }
}

fn text(keys: &Map<String, Value>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(keys).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn put(there: Option<&Owned>, content: Vec<u8>) -> Step {
    let (mode, uid, gid) = there.map_or((0o644, 0, 0), |file| (file.mode, file.uid, file.gid));
    // Engines before 23.0 cannot be asked (moby, pull request 42393): there the restart is what tells.
    let check =
        "! dockerd --help 2>&1 | grep -q -e --validate || exec dockerd --validate --config-file \"$1\"";
    let validate = ["/bin/sh", "-c", check, "sh", "{path}"].map(str::to_owned).to_vec();
    Step::WriteFile(WriteFile { path: FILE.to_owned(), content, mode, uid, gid, validate: Some(validate) })
}

fn restart() -> Step {
    // Its unit allows three starts a minute; those of somebody who tries things out must not make ours one too many.
    let line = "systemctl reset-failed docker.service; exec systemctl restart docker.service";
    Step::Exec(Exec::new(&["/bin/sh", "-c", line], RESTART_LIMIT))
}

async fn look(host: &Sys) -> Result<Seen, ObserveError> {
    let said = host.show_unit(UNIT, PROPERTIES, ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("systemctl show {UNIT} failed: {why}")));
    }
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let property = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().to_owned()
    };
    let state = property("ActiveState");
    let running = matches!(state.as_str(), "active" | "reloading");
    let started = property("ExecMainStartTimestampMonotonic").parse::<i128>();
    let started = started.map_or(0, |micros| micros * 1000 + crate::sys::boot_ns());
    let changed = host.ctime_ns(FILE)?.filter(|changed| *changed <= i128::from(crate::sys::now_ns()));
    Ok(Seen {
        file: Owned::look(host, FILE)?,
        dir: host.is_directory(DIR)?,
        alone: host.entries(DIR, 2)? == ["daemon.json"],
        running,
        // A unit whose package went may be remembered as failed.
        failed: state == "failed" && property("LoadState") == "loaded",
        on_its_way: matches!(state.as_str(), "activating" | "deactivating"),
        stale: running && changed.is_some_and(|changed| changed > started),
        info: None,
    })
}

/// Why what is declared is not in force though it is in the file.
fn not_in_force(spec: &DockerDaemonSpec, seen: &Seen) -> Option<String> {
    let info = seen.info.as_ref()?;
    let wanted = spec.log_driver.as_ref()?;
    (DockerDaemon::plan(spec, seen).is_empty() && info.logging_driver != *wanted).then(|| {
        format!(
            "the engine logs by {} in spite of {FILE}, which says {wanted}: does its unit give it --log-driver?",
            info.logging_driver
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    fn spec(json: Value) -> DockerDaemonSpec {
        serde_json::from_value(json).unwrap()
    }

    fn seen(content: Option<&str>) -> Seen {
        let file = content.map(|content| Owned::new(content.as_bytes()));
        Seen { file, dir: true, running: true, ..Seen::default() }
    }

    fn written(step: &Step) -> Value {
        let Step::WriteFile(file) = step else { panic!("{step:?}") };
        serde_json::from_slice(&file.content).unwrap()
    }

    #[test]
    fn trap_16_keys_of_others_stay_and_only_ours_are_taken_back() {
        let rotate = spec(json!({"log_driver": "json-file", "log_opts": {"max-size": "10m"}}));
        let theirs =
            "{\"dns\":[\"192.0.2.1\"],\"log-driver\":\"syslog\",\"log-opts\":{\"syslog-address\":\"x\"}}";
        let steps = DockerDaemon::plan(&rotate, &seen(Some(theirs)));
        let want = json!({"dns": ["192.0.2.1"], "log-driver": "json-file", "log-opts": {"max-size": "10m"}});
        assert_eq!(written(&steps[0]), want);
        assert_eq!(steps[1], restart());
        let after = seen(Some(&want.to_string()));
        assert_eq!(DockerDaemon::plan(&rotate, &after), []);
        assert_eq!(DockerDaemon::plan(&rotate, &Seen { stale: true, ..after.clone() }), [restart()]);

        let undo = |before: &Seen, now: &Seen| match DockerDaemon::undo(&rotate, before, &Value::Null, now) {
            Undo::Steps(steps) => steps,
            Undo::Cannot(why) => panic!("{why}"),
        };
        // Options that somebody gave the same driver stay.
        let same = "{\"log-driver\":\"json-file\",\"log-opts\":{\"labels\":\"a\",\"max-size\":\"1g\"}}";
        let merged = written(&DockerDaemon::plan(&rotate, &seen(Some(same)))[0]);
        assert_eq!(merged["log-opts"], json!({"labels": "a", "max-size": "10m"}));
        let alone = spec(json!({"log_driver": "local"}));
        let Undo::Steps(back) = DockerDaemon::undo(
            &alone,
            &seen(Some(theirs)),
            &Value::Null,
            &seen(Some("{\"dns\":[\"192.0.2.1\"],\"log-driver\":\"local\"}")),
        ) else {
            panic!("no way back")
        };
        assert!(matches!(&back[0], Step::WriteFile(file) if file.content == theirs.as_bytes()), "{back:?}");
        // Byte for byte what it was; and what somebody added since stays.
        let back = undo(&seen(Some(theirs)), &after);
        assert!(matches!(&back[0], Step::WriteFile(file) if file.content == theirs.as_bytes()), "{back:?}");
        let mut later = want.clone();
        later["mtu"] = 1400.into();
        let back = undo(&seen(Some(theirs)), &seen(Some(&later.to_string())));
        let mut all: Value = serde_json::from_str(theirs).unwrap();
        all["mtu"] = 1400.into();
        assert_eq!(written(&back[0]), all);
        // There was none.
        let ours = json!({"log-driver": "json-file", "log-opts": {"max-size": "10m"}});
        let back = undo(&seen(None), &seen(Some(&ours.to_string())));
        assert_eq!(back[0], Step::Remove { path: FILE.to_owned() });
        let mut added = ours.clone();
        added["mtu"] = 1400.into();
        assert_eq!(written(&undo(&seen(None), &seen(Some(&added.to_string())))[0]), json!({"mtu": 1400}));
    }

    /// Before Docker's packages, or with an engine that is stopped: what is there for its start is written, nothing is
    /// started, and the way back is of the file and of the directory, where nobody else has files in it.
    #[test]
    fn an_engine_that_does_not_run_is_not_started() {
        let rotate = spec(json!({"log_driver": "local"}));
        let bare = Seen::default();
        let lines = |steps: &[Step]| steps.iter().map(Step::summary).collect::<Vec<_>>();
        let write = "write /etc/docker/daemon.json";
        let make = ["make the directory /etc/docker (0755)", write];
        assert_eq!(lines(&DockerDaemon::plan(&rotate, &bare)), make);
        let there = Seen { running: false, alone: true, ..seen(Some("{\"log-driver\":\"local\"}")) };
        assert_eq!(DockerDaemon::plan(&rotate, &there), []);
        assert_eq!(DockerDaemon::diff(&rotate, &there), "");
        // One that was to run and does not is no stopped one.
        let failed = Seen { failed: true, ..there.clone() };
        assert_eq!(DockerDaemon::plan(&rotate, &failed), [restart()]);
        assert_eq!(DockerDaemon::diff(&rotate, &failed), "docker.service: failed\n");
        // Docker came with its packages, or was stopped since: no change of this.
        let runs = Seen { running: true, alone: false, ..there.clone() };
        assert_eq!(DockerDaemon::essence(&rotate, &there), DockerDaemon::essence(&rotate, &runs));
        assert_eq!(DockerDaemon::plan(&rotate, &runs), []);

        let undo = |before: &Seen, now: &Seen| match DockerDaemon::undo(&rotate, before, &Value::Null, now) {
            Undo::Steps(steps) => lines(&steps),
            Undo::Cannot(why) => panic!("{why}"),
        };
        let (remove, remove_dir) = ("remove /etc/docker/daemon.json", "remove the directory /etc/docker");
        let restart = restart().summary();
        assert_eq!(undo(&bare, &there), [remove, remove_dir]);
        assert_eq!(undo(&bare, &Seen { alone: false, ..there.clone() }), [remove]);
        assert_eq!(undo(&Seen { dir: true, ..bare.clone() }, &there), [remove], "it was there before");
        assert_eq!(undo(&bare, &runs), [remove, restart.as_str()], "Docker stays");
        let ran = Seen { running: true, dir: true, ..bare.clone() };
        assert_eq!(undo(&ran, &there), [remove], "Docker was removed since");
        assert_eq!(undo(&ran, &failed), [remove, restart.as_str()], "the keys were too much for it");
        // And the way back from that.
        assert_eq!(undo(&there, &bare), make);
        let also = Seen { file: Some(Owned::new(b"{\"log-driver\":\"local\",\"mtu\":1400}")), ..there };
        assert_eq!(undo(&bare, &also), [write], "somebody's own key stays");
    }

    #[tokio::test]
    async fn how_the_engine_is_is_told_by_its_unit() {
        let cases = [
            ("LoadState=loaded; echo ActiveState=inactive", Ok((false, false))),
            ("LoadState=loaded; echo ActiveState=failed", Ok((false, true))),
            ("LoadState=not-found; echo ActiveState=failed", Ok((false, false))),
            ("LoadState=masked; echo ActiveState=inactive", Ok((false, false))),
            ("x; exit 1", Err("systemctl show docker.service failed")),
        ];
        for (says, want) in cases {
            let fake = Fake::new();
            fake.program("systemctl", &format!("echo {says}"));
            let declared = spec(json!({"log_driver": "local"}));
            match (DockerDaemon::observe(&declared, &fake.sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => assert_eq!((seen.running, seen.failed), want, "{says}"),
                (Err(error), Err(why)) => assert!(error.to_string().starts_with(why), "{error}"),
                (got, _) => panic!("{says}: {got:?}"),
            }
        }
        // One that starts is waited for.
        let fake = Fake::new();
        let asked = fake.dir.path().join("asked");
        let line = format!(
            "echo x >>{0}; s=failed; test $(wc -l <{0}) -ge 3 || s=activating; echo LoadState=loaded; echo ActiveState=$s",
            asked.display()
        );
        fake.program("systemctl", &line);
        let seen =
            DockerDaemon::observe(&spec(json!({"log_driver": "local"})), &fake.sys, Depth::Cheap).await;
        assert!(seen.unwrap().failed);
    }

    /// Also where it started after its keys were written, by a drift's look.
    #[tokio::test]
    async fn an_engine_that_logs_otherwise_is_told_at_each_look() {
        for (driver, depth, fine) in [
            ("local", Depth::Cheap, true),
            ("journald", Depth::Cheap, false),
            ("journald", Depth::Proof, false),
            ("journald", Depth::Whole, true),
        ] {
            let fake = Fake::new();
            fake.program(
                "systemctl",
                "echo ActiveState=active; echo ExecMainStartTimestampMonotonic=999999999999999",
            );
            let info = json!({"LoggingDriver": driver, "Swarm": {"LocalNodeState": "inactive"}});
            fake.answers("GET /info", 200, info);
            std::fs::create_dir_all(fake.dir.path().join("etc/docker")).unwrap();
            std::fs::write(fake.dir.path().join("etc/docker/daemon.json"), "{\"log-driver\":\"local\"}")
                .unwrap();
            // A file that is older than the engine's start.
            let declared = spec(json!({"log_driver": "local"}));
            let looked = DockerDaemon::observe(&declared, &fake.sys, depth).await.map(|seen| seen.running);
            let why = looked.as_ref().err().map(ToString::to_string).unwrap_or_default();
            assert_eq!(looked.is_ok(), fine, "{driver} {depth:?}: {why}");
            assert_eq!(why.contains("logs by journald in spite of"), !fine, "{why}");
        }
    }

    #[tokio::test]
    async fn trap_16_what_cannot_be_is_refused_by_table() {
        let cases = [
            (
                "{}",
                json!({"settings": {"live-restore": "true"}}),
                "active",
                "live-restore cannot be together",
            ),
            (
                "{\"live-restore\":true}",
                json!({"log_driver": "local"}),
                "active",
                "live-restore cannot be together",
            ),
            ("{\"live-restore\":true}", json!({"log_driver": "local"}), "inactive", ""),
            ("{", json!({"log_driver": "local"}), "inactive", "/etc/docker/daemon.json is not JSON"),
            ("[]", json!({"log_driver": "local"}), "inactive", "/etc/docker/daemon.json is no JSON object"),
        ];
        for (file, declared, state, want) in cases {
            let fake = Fake::new();
            fake.program("systemctl", "echo LoadState=loaded; echo ActiveState=active");
            fake.answers(
                "GET /info",
                200,
                json!({"LoggingDriver": "syslog", "Swarm": {"LocalNodeState": state}}),
            );
            std::fs::create_dir_all(fake.dir.path().join("etc/docker")).unwrap();
            std::fs::write(fake.dir.path().join("etc/docker/daemon.json"), file).unwrap();
            let got = DockerDaemon::observe(&spec(declared.clone()), &fake.sys, Depth::Cheap).await;
            let why = got.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(why.starts_with(want) && why.is_empty() == want.is_empty(), "{file} {declared}: {why}");
        }
    }

    /// What the engine says decides, not the file.
    #[test]
    fn the_engine_that_runs_is_the_proof() {
        let declared = spec(json!({"log_driver": "local"}));
        let info = |driver: &str| Some(Info { logging_driver: driver.to_owned(), ..Info::default() });
        let there = Seen { info: info("local"), ..seen(Some("{\"log-driver\":\"local\"}")) };
        assert_eq!(not_in_force(&declared, &there), None);
        let why = not_in_force(&declared, &Seen { info: info("json-file"), ..there }).unwrap();
        assert!(why.starts_with("the engine logs by json-file in spite of"), "{why}");
    }
}
