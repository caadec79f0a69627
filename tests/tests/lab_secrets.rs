//! Secrets from the operator's keyboard to one file of the host, and to nowhere else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use postern_tests::lab::Image;
use postern_tests::rig::{apply, finish, managed, wait_for};

/// Two lines, quotes, and what a shell would take for itself.
const VALUE: &str = "pa$$-w0rd-\"7c1e\"\nsecond-line-9f2b";
/// What must not be found anywhere: each line by itself, and the whole in base64.
const TRACES: [&str; 3] = ["w0rd-\"7c1e", "second-line-9f2b", "cGEkJC13MHJkLSI3YzFlIg"];
const LIMIT: Duration = Duration::from_secs(60);

#[track_caller]
fn silent(what: &str, text: &str) {
    for trace in TRACES {
        assert!(!text.contains(trace), "{what} shows {trace:?}:\n{text}");
    }
}

/// Files that hold a trace of the value.
fn traces_in(place: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut found = String::new();
    for trace in TRACES {
        found += &place(trace)?;
    }
    Ok(found)
}

/// T46 and I7, from end to end: also on error paths, in base64, over two lines.
#[test]
fn trap_46_a_secret_is_where_it_was_declared_and_nowhere_else() -> Result<()> {
    let Some((rig, host)) = managed("secrets", Image::TRIXIE)? else { return Ok(()) };

    let unknown = apply(&rig, &host, "  - file: {path: /etc/s, content: \"{{ secret('lab/db') }}\"}\n", &[])?;
    let said = format!("{}{}", unknown.stdout, unknown.stderr);
    assert!(unknown.code == Some(2) && said.contains("lab/db") && said.contains(":3:"), "{unknown:?}");

    let stored = rig.set_secret("lab/db", VALUE)?.expect(0);
    silent("secret set", &format!("{}{}", stored.stdout, stored.stderr));
    let listed = rig.run(&["secret", "list"])?.expect(0);
    assert!(listed.stdout.contains("lab/db"), "{listed:?}");
    silent("secret list", &listed.stdout);

    let argv = "  - command: {argv: [echo, \"{{ secret('lab/db') }}\"]}\n";
    let refused = apply(&rig, &host, argv, &[])?;
    assert!(refused.code == Some(2), "a secret in an argument vector: {refused:?}");

    let resources = "  - file:\n      path: /etc/lab.secret\n      mode: '0600'\n      content: \"{{ secret('lab/db') }}\"\n  \
        - command:\n      env: {DB: \"{{ secret('lab/db') }}\"}\n      shell: |\n        \
        printf '%s\\n' \"$DB\"; printf %s \"$DB\" | base64 -w0; echo; printf '%s' \"$DB\" >&2\n        \
        for i in $(seq 40); do printf %s \"$DB\" | head -c $i; sleep 0.005; printf %s \"$DB\" | tail -c +$((i + 1)); done\n    id: shows\n";
    let check = apply(&rig, &host, resources, &["--check"])?.expect(0);
    silent("a check", &format!("{}{}", check.stdout, check.stderr));
    let done = apply(&rig, &host, resources, &[])?.expect(0);
    let said = format!("{}{}", done.stdout, done.stderr);
    silent("a run", &said);
    assert!(said.contains("[redacted]"), "{said}");
    assert_eq!(host.sh("cat /etc/lab.secret; stat -c ' %a' /etc/lab.secret")?, format!("{VALUE} 600"));

    let fails = "  - command:\n      env: {DB: \"{{ secret('lab/db') }}\"}\n      shell: 'echo \"cannot log in with $DB\" >&2; exit 3'\n    id: fails\n";
    let failed = apply(&rig, &host, fails, &[])?.expect(1);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    silent("a failure", &said);
    assert!(said.contains("exit status 3"), "{said}");

    // Everything the agent and the system wrote down, and memory that looks like a disk.
    let on_host = traces_in(|trace| {
        let trace = trace.replace('\'', "'\\''");
        Ok(host.sh(&format!(
            "grep -rlaF --exclude-dir=proc --exclude-dir=sys --exclude=lab.secret -e '{trace}' /var /etc /run /tmp /root /usr/local || true"
        ))?)
    })?;
    assert_eq!(on_host, "", "files of the host with the value");
    let state = rig.state_dir().display().to_string();
    let here = traces_in(|trace| {
        let mut grep = std::process::Command::new("grep");
        grep.args(["-rlaF", "-e", trace, &state]);
        Ok(finish(grep, LIMIT)?.stdout)
    })?;
    assert_eq!(here, "", "files of the controller with the value");
    let again = apply(
        &rig,
        &host,
        "  - file: {path: /etc/lab.secret, mode: '0600', content: \"{{ secret('lab/db') }}\"}\n",
        &[],
    )?;
    assert!(again.expect(0).stdout.contains("1 unchanged"));

    // Another value is another version: the file follows it, and its undo brings the old one back.
    rig.set_secret("lab/db", "entirely-different-41")?.expect(0);
    let file = "  - file: {path: /etc/lab.secret, mode: '0600', content: \"{{ secret('lab/db') }}\"}\n";
    let follows = apply(&rig, &host, file, &[])?.expect(0);
    assert!(follows.stdout.contains("1 changed"), "{follows:?}");
    assert_eq!(host.sh("cat /etc/lab.secret")?, "entirely-different-41");
    Ok(())
}

/// After a restart of the agent its memory is empty: with the controller away the run waits, and says so, and
/// goes on when both are back.
#[test]
fn a_run_without_its_secret_is_parked_until_the_controller_is_back() -> Result<()> {
    let Some((mut rig, host)) = managed("parked", Image::BOOKWORM)? else { return Ok(()) };
    rig.set_secret("lab/key", "value-of-the-key")?.expect(0);
    let profile = rig.state_dir().join("parked.yaml");
    std::fs::write(
        &profile,
        "name: parked\nresources:\n  - command: {shell: 'touch /run/began; sleep 3', idempotent: true}\n    id: slow\n  \
         - file: {path: /etc/late.secret, mode: '0600', content: \"{{ secret('lab/key') }}\"}\n  \
         - file: {path: /etc/free, content: x}\n    needs: []\n",
    )?;
    let profile = profile.display().to_string();
    let mut command = rig.command(&["apply", &profile, "-H", &host.name]);
    let mut following = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("the run has begun", LIMIT, || Ok(host.exec(&["test", "-e", "/run/began"])?.success()))?;
    // The command first: one that misses its daemon starts another.
    following.kill()?;
    following.wait()?;
    rig.kill_daemon()?;
    host.sh("systemctl kill -s KILL postern-agent")?;
    // What needs no secret goes on with nobody there.
    wait_for("what needs nothing is done", LIMIT, || Ok(host.exec(&["test", "-e", "/etc/free"])?.success()))?;
    assert!(!host.exec(&["test", "-e", "/etc/late.secret"])?.success());
    rig.serve()?;
    wait_for("the secret arrives", LIMIT, || Ok(host.exec(&["test", "-s", "/etc/late.secret"])?.success()))?;
    assert_eq!(host.sh("cat /etc/late.secret")?, "value-of-the-key");
    wait_for("the run is told", LIMIT, || {
        let runs = rig.run(&["runs", "-H", &host.name])?.expect(0);
        Ok(runs.stdout.lines().nth(1).is_some_and(|line| line.contains(" ok ")))
    })?;
    Ok(())
}
