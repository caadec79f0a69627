//! `command`: runs once where nothing says that it is not needed.

use std::time::Duration;

use postern_proto::spec::{CommandSpec, Run};
use serde::{Deserialize, Serialize};

use super::{Depth, Exec, ObserveError, Protect, Resource, Step, Undo};
use crate::sys::{As, Output, Sys, SysError};

/// The time that `unless` may take.
const UNLESS_LIMIT: Duration = Duration::from_secs(60);
/// The longest time that a spec can give a command that yields a late value: less than a look may take.
const LATE_LIMIT: Duration = Duration::from_secs(200);
/// The longest late value, bytes.
const LATE_BYTES: usize = 4096;

pub(super) struct Command;

/// Whether it is needed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Seen {
    Needed,
    NotNeeded,
    /// It changes nothing, and said this.
    Said(String),
}

impl Resource for Command {
    type Spec = CommandSpec;
    type Seen = Seen;

    async fn observe(spec: &CommandSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        if let Some(path) = &spec.creates {
            // The path itself or what it leads to: a link that leads nowhere was created, too.
            return Ok(if host.exists(path)? { Seen::NotNeeded } else { Seen::Needed });
        }
        if depth == Depth::Proof {
            // An action leaves nothing to look at; its exit status was the proof.
            return Ok(Seen::NotNeeded);
        }
        if let Some(unless) = &spec.unless {
            let said = run(spec, host, unless, UNLESS_LIMIT).await?;
            return Ok(if said.ok() { Seen::NotNeeded } else { Seen::Needed });
        }
        if spec.late.is_some() {
            let limit = spec.timeout_s.map_or(UNLESS_LIMIT, Duration::from_secs).min(LATE_LIMIT);
            let said = run(spec, host, &argv(spec), limit).await?;
            return value(&said).map(Seen::Said).map_err(ObserveError::Obstacle);
        }
        Ok(Seen::Needed)
    }

    fn foreseen(spec: &CommandSpec) -> Option<Seen> {
        (spec.creates.is_none() && spec.unless.is_none() && spec.late.is_none()).then_some(Seen::Needed)
    }

    fn plan(spec: &CommandSpec, seen: &Seen) -> Vec<Step> {
        if *seen != Seen::Needed || spec.run().is_none() {
            return Vec::new();
        }
        vec![Step::Exec(Exec {
            argv: argv(spec),
            env: spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            cwd: spec.cwd.clone().unwrap_or_else(|| "/".to_owned()),
            user: user(spec).map(str::to_owned),
            stdin: spec.stdin.clone(),
            timeout: Duration::from_secs(spec.timeout_s.unwrap_or(CommandSpec::DEFAULT_TIMEOUT_S)),
            waits_for: Vec::new(),
        })]
    }

    fn protect(spec: &CommandSpec, _: &Seen) -> Option<Protect> {
        // A plan that was validated has only words that are understood.
        let predicates = spec.watch.iter().filter_map(|text| text.parse().ok()).collect();
        let reload = spec.revert.iter().cloned().collect();
        spec.revert.is_some().then(|| Protect { predicates, reload, ..Protect::default() })
    }

    fn undo(_: &CommandSpec, _: &Seen, _: &serde_json::Value, _: &Seen) -> Undo {
        Undo::Cannot("what a command did is not known".to_owned())
    }

    fn may_hold_secrets(seen: &Seen) -> bool {
        matches!(seen, Seen::Said(_))
    }

    fn late(_: &CommandSpec, seen: &Seen) -> Option<String> {
        match seen {
            Seen::Said(text) => Some(text.clone()),
            Seen::Needed | Seen::NotNeeded => None,
        }
    }

    fn repeatable(spec: &CommandSpec) -> bool {
        spec.repeatable()
    }

    fn ahead(spec: &CommandSpec) -> bool {
        spec.unless.is_none() && spec.late.is_none()
    }
}

/// What it runs; nothing for a spec that is refused.
fn argv(spec: &CommandSpec) -> Vec<String> {
    match spec.run() {
        None => Vec::new(),
        Some(Run::Argv(argv)) => argv.to_vec(),
        Some(Run::Shell(script)) => vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
    }
}

/// A look of the operator's own, as the command itself would be run.
async fn run(spec: &CommandSpec, host: &Sys, argv: &[String], limit: Duration) -> Result<Output, SysError> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let env: Vec<(&str, &str)> = spec.env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let who = As { user: user(spec), cwd: spec.cwd.as_deref().unwrap_or("/") };
    host.run_as(who, &argv, &env, limit).await
}

/// The late value in what it said; the error is for people.
fn value(said: &Output) -> Result<String, String> {
    if !said.ok() {
        let how = said.code.map_or("a signal ended it".to_owned(), |code| format!("exit status {code}"));
        return Err(format!("the command that yields a late value failed ({how}): {}", said.last_line()));
    }
    let text = std::str::from_utf8(&said.stdout).map_err(|_| "the late value is not text".to_owned())?.trim();
    if text.len() > LATE_BYTES {
        return Err(format!("the late value has {} bytes, the limit is {LATE_BYTES}", text.len()));
    }
    if text.contains('\0') {
        return Err("the late value has a NUL byte in it".to_owned());
    }
    Ok(text.to_owned())
}

/// Whom it runs as, where that is not root.
fn user(spec: &CommandSpec) -> Option<&str> {
    spec.user.as_deref().filter(|user| *user != "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> CommandSpec {
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn needed_or_not_by_table() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("there"), "").unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), Sys::host().path_env().to_owned());
        let cases = [
            (serde_json::json!({"argv": ["x"]}), Seen::Needed, Seen::NotNeeded),
            (serde_json::json!({"argv": ["x"], "creates": "/there"}), Seen::NotNeeded, Seen::NotNeeded),
            // A command that did not make what it was to make is still needed: it failed.
            (serde_json::json!({"argv": ["x"], "creates": "/none"}), Seen::Needed, Seen::Needed),
            (serde_json::json!({"argv": ["x"], "unless": ["true"]}), Seen::NotNeeded, Seen::NotNeeded),
            (serde_json::json!({"argv": ["x"], "unless": ["false"]}), Seen::Needed, Seen::NotNeeded),
            (
                serde_json::json!({"argv": ["x"], "cwd": "/etc", "unless": ["test", "-e", "passwd"]}),
                Seen::NotNeeded,
                Seen::NotNeeded,
            ),
        ];
        for (json, before, after) in cases {
            let spec = spec(json.clone());
            assert_eq!(Command::observe(&spec, &sys, Depth::Cheap).await.unwrap(), before, "{json}");
            assert_eq!(Command::observe(&spec, &sys, Depth::Proof).await.unwrap(), after, "{json}");
            if let Some(seen) = Command::foreseen(&spec) {
                assert_eq!(seen, before, "{json}");
            }
        }
        let missing = spec(serde_json::json!({"argv": ["x"], "unless": ["/no/such"]}));
        assert!(Command::observe(&missing, &sys, Depth::Cheap).await.is_err());
    }

    #[tokio::test]
    async fn late_values_by_table() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), Sys::host().path_env().to_owned());
        let shell = |script: &str| serde_json::json!({"shell": script, "late": "x"});
        let cases = [
            (serde_json::json!({"argv": ["echo", " 10.0.0.1 "], "late": "x"}), Ok("10.0.0.1")),
            (shell("printf 'a\\nb\\n\\n'"), Ok("a\nb")),
            (shell("printf %s \"$A\""), Ok("")),
            (shell("head -c 4096 /dev/zero | tr '\\0' x"), Ok("xxx")),
            (shell("head -c 4097 /dev/zero | tr '\\0' x"), Err("has 4097 bytes")),
            (shell("echo no >&2; exit 3"), Err("failed (exit status 3): no")),
            (shell("printf 'a\\0b'"), Err("NUL")),
            (shell("printf '\\377'"), Err("not text")),
        ];
        for (json, want) in cases {
            let spec = spec(json.clone());
            assert!(Command::foreseen(&spec).is_none() && !Command::ahead(&spec));
            match (Command::observe(&spec, &sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => {
                    let said = Command::late(&spec, &seen).unwrap();
                    assert!(said.starts_with(want) && said.is_empty() == want.is_empty(), "{json}: {said}");
                    assert_eq!(Command::plan(&spec, &seen), []);
                }
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{json}: {error}"),
                (got, want) => panic!("{json}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn trap_47_no_shell_comes_near_an_argument_vector() {
        let spec = spec(serde_json::json!({"argv": ["echo", "$(reboot)"], "user": "root", "timeout_s": 5}));
        let steps = Command::plan(&spec, &Seen::Needed);
        let [Step::Exec(exec)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(exec.argv, ["echo", "$(reboot)"]);
        assert_eq!((exec.user.as_deref(), exec.timeout), (None, Duration::from_secs(5)));
    }
}
