//! Guards in a directory that stands for a host, with a named double of systemctl.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::resources::WriteFile;

/// A host whose `systemctl` writes down how it was called, and fails where `broken` says.
fn host(root: &Path, broken: &str) -> Guards {
    for dir in ["etc/systemd/system", "bin", "state"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let log = root.join("calls");
    let text = format!(
        "#!/bin/sh\necho \"$@\" >>{}\ncase \"$1\" in {broken}) echo broken >&2; exit 1;; esac\n",
        log.display()
    );
    fs::write(root.join("bin/systemctl"), text).unwrap();
    fs::set_permissions(root.join("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("etc/conf"), "old").unwrap();
    let path = format!("{}:/usr/bin:/bin", root.join("bin").display());
    Guards { state_dir: root.join("state"), sys: Sys::rooted(root.to_owned(), path) }
}

fn change() -> Vec<Step> {
    let file = |path: &str| {
        let (path, content) = (path.to_owned(), b"new".to_vec());
        Step::WriteFile(WriteFile { path, content, mode: 0o644, uid: 0, gid: 0, validate: None })
    };
    vec![file("/etc/conf"), file("/etc/fresh")]
}

fn act(root: &Path) {
    fs::write(root.join("etc/conf"), "new").unwrap();
    fs::write(root.join("etc/fresh"), "new").unwrap();
}

async fn armed(guards: &Guards, reload: &[&str]) -> Result<Stored, GuardError> {
    armed_as(guards, "g-1", reload).await
}

async fn armed_as(guards: &Guards, name: &str, reload: &[&str]) -> Result<Stored, GuardError> {
    let reload = vec![reload.iter().map(ToString::to_string).collect()];
    let protect = Protect { reload, ..Protect::default() };
    let change = Change { what: "a test", steps: &change(), earlier: &[], protect: &protect };
    guards.arm(name, &change, Duration::from_secs(60)).await
}

fn units(root: &Path) -> usize {
    let count =
        |dir: &str| fs::read_dir(root.join("etc/systemd/system").join(dir)).map_or(0, Iterator::count);
    count("") + count("multi-user.target.wants") + count("timers.target.wants")
}

#[tokio::test]
async fn what_is_not_confirmed_is_taken_back_and_put_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let told = dir.path().join("told");
    let stored = armed(&guards, &["touch", &told.to_string_lossy()]).await.unwrap();
    assert_eq!(stored.state(), Some(State::Armed));
    let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
    assert!(calls.contains("daemon-reload\nstart -- postern-guard-g-1.timer\nis-active"), "{calls}");
    act(dir.path());
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Reverted);
    assert_eq!(fs::read(dir.path().join("etc/conf")).unwrap(), b"old");
    assert!(!dir.path().join("etc/fresh").exists());
    assert!(told.exists(), "what was put back was not put in force");
    // It is too late, and says so.
    assert!(!guards.confirm(&stored).await.unwrap());
    // The other one that comes to take it back finds it done.
    fs::write(dir.path().join("etc/conf"), "an administrator's").unwrap();
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Reverted);
    assert_eq!(fs::read(dir.path().join("etc/conf")).unwrap(), b"an administrator's");
}

#[tokio::test]
async fn what_is_confirmed_stays_and_nothing_of_the_guard_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let stored = armed(&guards, &["true"]).await.unwrap();
    act(dir.path());
    assert!(units(dir.path()) > 2);
    assert!(guards.confirm(&stored).await.unwrap());
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Nothing);
    assert_eq!(fs::read(dir.path().join("etc/conf")).unwrap(), b"new");
    // The two directories of links.
    assert_eq!((units(dir.path()), Stored::all(&guards.state_dir).unwrap().len()), (2, 0));
}

/// An agent that was killed: the next one takes back what was armed, clears what was not begun, and leaves alone
/// what was confirmed.
#[tokio::test]
async fn the_next_agent_settles_what_the_last_one_left() {
    for (state, want, content) in [
        (State::Preparing, Ended::Nothing, "new"),
        (State::Armed, Ended::Reverted, "old"),
        (State::Reverting, Ended::Reverted, "old"),
        (State::Reverted, Ended::Reverted, "new"),
        (State::GivenUp, Ended::GivenUp, "new"),
        (State::Confirmed, Ended::Confirmed, "new"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let guards = host(dir.path(), "none");
        let stored = armed(&guards, &["true"]).await.unwrap();
        act(dir.path());
        stored.shift(State::Armed, state).unwrap();
        assert_eq!(guards.settle("other-", false).await.unwrap(), []);
        assert_eq!(guards.settle("g-", false).await.unwrap(), [("g-1".to_owned(), want)], "{state:?}");
        assert_eq!(fs::read_to_string(dir.path().join("etc/conf")).unwrap(), content, "{state:?}");
        assert_eq!((units(dir.path()), Stored::all(&guards.state_dir).unwrap().len()), (2, 0), "{state:?}");
        assert_eq!(guards.settle("g-", false).await.unwrap(), []);
    }
}

#[tokio::test]
async fn where_no_timer_can_be_set_nothing_is_armed() {
    for broken in ["daemon-reload", "start", "is-active"] {
        let dir = tempfile::tempdir().unwrap();
        let guards = host(dir.path(), broken);
        let error = armed(&guards, &["true"]).await.unwrap_err();
        assert!(error.to_string().contains(broken), "{error}");
        assert_eq!(Stored::of(&guards.state_dir, "g-1").unwrap().state(), None, "{broken}");
    }
}

#[tokio::test]
async fn two_guards_at_once_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let first = armed(&guards, &["true"]).await.unwrap();
    let second = armed_as(&guards, "g-2", &["true"]).await;
    assert!(matches!(&second, Err(GuardError::Busy(name)) if name == "g-1"), "{second:?}");
    assert_eq!(first.state(), Some(State::Armed));
    assert!(guards.confirm(&first).await.unwrap());
    armed_as(&guards, "g-2", &["true"]).await.unwrap();
}

/// In a boot, what is put in force is ordered after the service that does so: to wait for it would be for ever.
#[tokio::test]
async fn in_a_boot_nothing_is_waited_for() {
    for (moment, want) in [(Moment::Boot, "--no-block restart ssh"), (Moment::Now, "restart ssh")] {
        let dir = tempfile::tempdir().unwrap();
        let guards = host(dir.path(), "none");
        let stored = armed(&guards, &["systemctl", "restart", "ssh"]).await.unwrap();
        assert_eq!(revert(&guards.sys, &stored, moment).await.unwrap(), Ended::Reverted);
        let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
        assert!(calls.lines().any(|line| line == want), "{moment:?}: {calls}");
    }
}

/// What can never be put in force does not keep every later guard from being armed.
#[tokio::test]
async fn a_way_back_that_never_works_is_given_up_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let mended = dir.path().join("mended");
    let stored = armed(&guards, &["test", "-e", &mended.to_string_lossy()]).await.unwrap();
    act(dir.path());
    for _ in 1..LAST_TRY {
        assert!(revert(&guards.sys, &stored, Moment::Now).await.is_err());
        guards.clear(&stored).await;
        assert_eq!(stored.state(), Some(State::Reverting), "one that is not over was cleared");
    }
    assert_eq!(revert(&guards.sys, &stored, Moment::Now).await.unwrap(), Ended::GivenUp);
    // Whoever asks later is not told that it was taken back; where something was at work then, it is tried once more.
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::GivenUp);
    assert_eq!(guards.revert_again(&stored).await.unwrap(), Ended::GivenUp);
    fs::write(&mended, "").unwrap();
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::GivenUp);
    assert_eq!(guards.revert_again(&stored).await.unwrap(), Ended::Reverted);
    assert_eq!(fs::read(dir.path().join("etc/conf")).unwrap(), b"old");
    armed_as(&guards, "g-2", &["true"]).await.unwrap();
}

/// What has to be stopped may have to read the very file that is going to be gone.
#[tokio::test]
async fn what_is_stopped_first_finds_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let (fresh, seen) = (dir.path().join("etc/fresh"), dir.path().join("seen"));
    let first = ["cp", &fresh.to_string_lossy(), &seen.to_string_lossy()].map(str::to_owned).to_vec();
    let protect = Protect { first: vec![first], ..Protect::default() };
    let change = Change { what: "a test", steps: &change(), earlier: &[], protect: &protect };
    let stored = guards.arm("g-1", &change, Duration::from_secs(60)).await.unwrap();
    act(dir.path());
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Reverted);
    assert_eq!((fs::read(&seen).unwrap(), fresh.exists()), (b"new".to_vec(), false));
}

/// One that nobody goes on with is not in the way of the next one.
#[tokio::test]
async fn a_way_back_without_units_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let mended = dir.path().join("mended");
    let stored = armed(&guards, &["test", "-e", &mended.to_string_lossy()]).await.unwrap();
    assert!(revert(&guards.sys, &stored, Moment::Now).await.is_err());
    // Its units go on with it.
    assert!(
        matches!(armed_as(&guards, "g-2", &["true"]).await, Err(GuardError::Busy(name)) if name == "g-1")
    );
    guards.units(&stored).remove().await.unwrap();
    assert!(matches!(armed_as(&guards, "g-2", &["true"]).await, Err(GuardError::Incomplete(_))));
    fs::write(&mended, "").unwrap();
    armed_as(&guards, "g-2", &["true"]).await.unwrap();
    assert_eq!(stored.state(), None);
}

/// A path that is as it was is left alone, also where it could not be replaced.
#[tokio::test]
async fn what_is_as_it_was_is_not_touched() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let stored = armed(&guards, &["true"]).await.unwrap();
    let before = fs::metadata(dir.path().join("etc/conf")).unwrap().ino();
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Reverted);
    assert_eq!(fs::metadata(dir.path().join("etc/conf")).unwrap().ino(), before);
}

/// One file that cannot be put back keeps none of the others from it, and the guard stays to be tried again.
#[tokio::test]
async fn what_could_not_be_put_back_is_said_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let guards = host(dir.path(), "none");
    let there = dir.path().join("there");
    let stored = armed(&guards, &["ls", &there.to_string_lossy()]).await.unwrap();
    act(dir.path());
    let error = guards.revert(&stored).await.unwrap_err();
    assert!(matches!(&error, GuardError::Incomplete(failures) if failures.len() == 1), "{error}");
    assert_eq!(fs::read(dir.path().join("etc/conf")).unwrap(), b"old");
    assert_eq!(stored.state(), Some(State::Reverting));
    assert!(units(dir.path()) > 2, "its service is to go on");
    fs::write(&there, "").unwrap();
    assert_eq!(guards.revert(&stored).await.unwrap(), Ended::Reverted);
}
