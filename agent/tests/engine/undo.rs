//! Undo: what a run replaced comes back, what somebody else changed since is left alone, and an undo that is
//! cut off goes on.

use std::path::Path;

use crate::support::*;
use postern_proto::event::{Outcome, RunState};
use postern_proto::plan::Terms;
use serde_json::json;

use Outcome::{Changed, Failed, Skipped, Unchanged, WouldChange};

fn outcomes(told: &Told) -> Vec<Outcome> {
    told.outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

fn diffs(told: &Told) -> Vec<String> {
    let of = |event: &postern_proto::event::RunEvent| match &event.kind {
        postern_proto::event::EventKind::ResourceFinished { diff, .. } => Some(diff.clone()),
        _ => None,
    };
    told.events.iter().filter_map(of).collect()
}

/// A systemd that knows one unit, which runs: it notes what `/etc/c` says at each start of it.
const SYSTEMCTL: &str = "#!/bin/sh
d=$(dirname \"$0\")
case $1 in
show) printf 'LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n'
    echo \"ActiveEnterTimestampMonotonic=$(cat $d/started)\";;
restart) cat $d/../root/etc/c >>$d/read
    # The clock it is told by counts in hundredths.
    sleep 0.1; tr -d . </proc/uptime | cut -d' ' -f1 | sed 's/$/0000/' >$d/started;;
esac
";

fn with_systemctl(config: &mut postern_agent::engine::EngineConfig) {
    use postern_agent::sys::Sys;
    let root = config.sys.real("/");
    let path = format!("{}../bin:{}", root.display(), Sys::host().path_env());
    config.sys = Sys::rooted(root, path);
}

/// T07: hardening that was taken back on the disk is out of force too.
#[tokio::test]
async fn trap_07_a_service_is_restarted_after_its_files_were_taken_back() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut host = Host::tuned(with_systemctl);
    std::fs::create_dir_all(host.dir.path().join("bin")).unwrap();
    let systemctl = host.dir.path().join("bin/systemctl");
    std::fs::write(&systemctl, SYSTEMCTL).unwrap();
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(host.dir.path().join("bin/started"), "1\n").unwrap();
    let read = host.path("bin/read");
    let (work, etc) = (host.open(), Etc::of(&host));
    etc.write("c", "old\n");
    let run = host.dispatch(&[
        ("c", "file", file("/etc/c", "new\n")),
        ("x", "service", json!({"name": "x", "state": "running", "restart_on": ["/etc/c"]})),
    ]);
    let told = complete(&work, run.clone()).await;
    assert_eq!(outcomes(&told), [Changed, Changed], "{:?}", told.messages());
    assert_eq!(std::fs::read_to_string(&read).unwrap(), "new\n");
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Changed, Changed], "{:?}", told.messages());
    assert_eq!(told.messages()[1], "systemctl restart -- x.service");
    assert_eq!(std::fs::read_to_string(&read).unwrap(), "new\nold\n");
    let again = host.undo(&run);
    let told = complete(&work, again).await;
    assert_eq!(outcomes(&told), [Unchanged, Unchanged], "{:?}", told.messages());
}

struct Etc(std::path::PathBuf);

impl Etc {
    fn of(host: &Host) -> Self {
        Self(host.root().join("etc"))
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.0.join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.0.join(name)).ok()
    }
}

#[tokio::test]
async fn an_undo_takes_back_in_reverse_order_and_can_itself_be_undone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut host = Host::new();
    let (work, etc, marks) = (host.open(), Etc::of(&host), host.path("marks"));
    etc.write("a", "old\n");
    etc.write("gone", "was here\n");
    std::fs::set_permissions(host.root().join("etc/a"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let mut absent = file("/etc/gone", "");
    absent.as_object_mut().unwrap().remove("content");
    absent["state"] = json!("absent");
    let run = host.dispatch(&[
        ("a", "file", file("/etc/a", "new\n")),
        ("same", "file", file("/etc/passwd", &etc.read("passwd").unwrap())),
        ("b", "file", file("/etc/b", "made\n")),
        ("c", "command", json!({"shell": format!("echo x >>{marks}")})),
        ("gone", "file", absent),
    ]);
    assert_eq!(
        outcomes(&complete(&work, run.clone()).await),
        [Changed, Unchanged, Changed, Changed, Changed]
    );
    assert_eq!((etc.read("a").as_deref(), etc.read("gone")), (Some("new\n"), None));

    let mut check = host.undo(&run);
    check.terms.check = true;
    let told = complete(&work, check).await;
    assert_eq!(outcomes(&told), [WouldChange, Skipped, WouldChange, Unchanged, WouldChange]);
    assert_eq!(told.messages()[2], "remove /etc/b");
    assert!(diffs(&told)[2].contains("-made"), "{:?}", diffs(&told));
    assert!(!diffs(&told)[4].contains("-new"), "it was not for everyone to read: {:?}", diffs(&told));
    assert_eq!(etc.read("b").as_deref(), Some("made\n"));

    let undo = host.undo(&run);
    let told = complete(&work, undo.clone()).await;
    assert_eq!(outcomes(&told), [Changed, Skipped, Changed, Unchanged, Changed], "{:?}", told.messages());
    assert_eq!(told.end(), (RunState::Ok, "3 changed, 1 unchanged, 1 could not be undone"));
    assert_eq!(told.messages()[1], "what a command did is not known");
    let mode = std::fs::metadata(host.root().join("etc/a")).unwrap().permissions().mode() & 0o777;
    assert_eq!((etc.read("a").as_deref(), mode), (Some("old\n"), 0o640));
    assert_eq!((etc.read("b"), etc.read("gone").as_deref()), (None, Some("was here\n")));
    assert_eq!(lines(&marks), 1);

    // Everything is as it was before that run: nothing is left to be taken back.
    let again = host.undo(&run);
    let told = complete(&work, again).await;
    assert_eq!(outcomes(&told), [Unchanged, Skipped, Unchanged, Unchanged, Unchanged]);
    let redo = host.undo(&undo);
    let told = complete(&work, redo).await;
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.messages());
    assert_eq!(outcomes(&told), [Changed, Unchanged, Changed, Unchanged, Changed]);
    assert_eq!(
        (etc.read("a").as_deref(), etc.read("b").as_deref(), etc.read("gone")),
        (Some("new\n"), Some("made\n"), None)
    );
}

#[tokio::test]
async fn what_somebody_else_changed_since_is_left_alone() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    let names = ["a", "b", "c"];
    let resources: Vec<_> =
        names.iter().map(|name| (*name, "file", file(&format!("/etc/{name}"), "new\n"))).collect();
    let run = host.dispatch(&resources);
    complete(&work, run.clone()).await;
    etc.write("b", "by hand\n");
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Changed, Failed, Changed]);
    let (state, message) = told.end();
    assert_eq!(state, RunState::Failed);
    assert!(message.starts_with("1 not taken back: t:file:b: changed since that run"), "{message}");
    assert_eq!((etc.read("a"), etc.read("b").as_deref(), etc.read("c")), (None, Some("by hand\n"), None));
}

/// A change whose proof failed, or that was cancelled, did happen: who mended by hand what it left keeps that.
#[tokio::test]
async fn what_was_mended_after_a_failed_proof_is_left_alone() {
    for mended in [true, false] {
        let mut host = Host::new();
        let (work, passwd) = (host.open(), host.root().join("etc/passwd"));
        std::fs::create_dir(host.root().join("bin")).unwrap();
        for shell in ["bash", "zsh"] {
            std::fs::write(host.root().join("bin").join(shell), "").unwrap();
        }
        std::fs::write(host.root().join("etc/shadow"), "").unwrap();
        let set = |to: &str| format!("sed -i s,/bin/[a-z]*$,/bin/{to}, {}", passwd.display());
        // `getent` is the proof: it knows nobody. The change itself is in passwd.
        host.fake("getent", "true");
        host.fake("usermod", &format!("case $2 in /bin/bash) {};; *) {};; esac", set("bash"), set("sh")));
        let run = host.dispatch(&[("me", "user", json!({"name": "me", "shell": "/bin/bash"}))]);
        let told = complete(&work, run.clone()).await;
        assert_eq!(outcomes(&told), [Failed], "{:?}", told.messages());
        assert!(told.messages()[0].contains("could not be observed"), "{:?}", told.messages());
        let shell =
            || std::fs::read_to_string(&passwd).unwrap().trim().rsplit('/').next().unwrap().to_owned();
        assert_eq!(shell(), "bash");
        if mended {
            let text = std::fs::read_to_string(&passwd).unwrap().replace("/bin/bash", "/bin/zsh");
            std::fs::write(&passwd, text).unwrap();
        }
        let undo = host.undo(&run);
        let told = complete(&work, undo).await;
        if mended {
            assert_eq!((outcomes(&told), shell()), (vec![Failed], "zsh".to_owned()), "{:?}", told.messages());
            assert!(told.messages()[0].contains("changed since that run"), "{:?}", told.messages());
        } else {
            assert_eq!((outcomes(&told), shell()), (vec![Changed], "sh".to_owned()), "{:?}", told.messages());
        }
    }
}

/// The same for a change that an operator cancelled when it was done in part.
#[tokio::test]
async fn what_was_mended_after_a_cancelled_change_is_left_alone() {
    let mut host = Host::new();
    let (work, passwd, begun) = (host.open(), host.root().join("etc/passwd"), host.path("begun"));
    std::fs::create_dir(host.root().join("bin")).unwrap();
    for shell in ["bash", "zsh"] {
        std::fs::write(host.root().join("bin").join(shell), "").unwrap();
    }
    std::fs::write(host.root().join("etc/shadow"), "").unwrap();
    let set = format!("sed -i s,/bin/[a-z]*$,/bin/bash, {}", passwd.display());
    host.fake("usermod", &format!("{set}; echo x >{begun}; exec sleep 30"));
    let run = host.dispatch(&[("me", "user", json!({"name": "me", "shell": "/bin/bash"}))]);
    let id = run.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(run.clone()).await.unwrap();
    until("the change", || lines(&begun) == 1).await;
    work.engine.cancel(id).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, id, &mut told).await;
    assert_eq!(told.end().0, RunState::Cancelled, "{:?}", told.messages());
    let text = std::fs::read_to_string(&passwd).unwrap().replace("/bin/bash", "/bin/zsh");
    std::fs::write(&passwd, &text).unwrap();
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Failed], "{:?}", told.messages());
    assert_eq!(std::fs::read_to_string(&passwd).unwrap(), text);
}

#[tokio::test]
async fn a_run_of_which_nothing_is_kept_cannot_be_undone() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    let run = host.dispatch(&[("a", "file", file("/etc/a", "new\n"))]);
    let unknown = host.undo(&run);
    let told = complete(&work, unknown).await;
    assert_eq!(told.end().0, RunState::Failed);
    assert!(told.end().1.starts_with(&format!("nothing is kept of the run {}", run.run)), "{:?}", told.end());
    complete(&work, run.clone()).await;
    // Another plan's records are not this plan's.
    let other = host.dispatch(&[("a", "file", file("/etc/a", "other\n"))]);
    let wrong = host.again(&other, Terms { undo_of: Some(run.run), ..Terms::default() });
    let told = complete(&work, wrong).await;
    assert!(told.end().1.contains("had another plan"), "{:?}", told.end());
    std::fs::remove_dir_all(host.state().join("backup").join(run.run.to_string())).unwrap();
    let pruned = host.undo(&run);
    assert_eq!(complete(&work, pruned).await.end().0, RunState::Failed);
    assert_eq!(etc.read("a").as_deref(), Some("new\n"));
}

/// I12: damaged and too new records are told, and are not taken for "nothing to undo".
#[tokio::test]
async fn records_that_cannot_be_read_are_told() {
    for (name, text, want) in [
        ("0.before.json", "{\"version\":1", "is damaged"),
        ("0.before.json", "{\"version\":2}", "has format 2"),
        ("0.after.json", "", "is damaged"),
        ("0.after.json", "{\"version\":9}", "has format 9"),
        ("run.json", "\0", "is damaged"),
    ] {
        let mut host = Host::new();
        let (work, etc) = (host.open(), Etc::of(&host));
        let run = host.dispatch(&[("a", "file", file("/etc/a", "new\n"))]);
        complete(&work, run.clone()).await;
        std::fs::write(host.state().join("backup").join(run.run.to_string()).join(name), text).unwrap();
        let undo = host.undo(&run);
        let told = complete(&work, undo).await;
        assert_eq!(told.end().0, RunState::Failed);
        assert!(told.end().1.contains(want), "{name}: {:?}", told.end());
        assert_eq!(etc.read("a").as_deref(), Some("new\n"));
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_changed() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    std::fs::remove_dir(host.state().join("backup")).unwrap();
    std::fs::write(host.state().join("backup"), "no directory").unwrap();
    let told = complete(&work, host.dispatch(&[("a", "file", file("/etc/a", "new\n"))])).await;
    assert_eq!(outcomes(&told), [Failed]);
    assert!(told.messages()[0].contains("cannot be kept in"), "{:?}", told.messages());
    assert_eq!((etc.read("a"), told.steps_started()), (None, 0));
}

/// A resource whose change failed half-way has no state "after": it is taken back from whatever it is in.
#[tokio::test]
async fn a_change_that_was_cut_off_is_taken_back_from_where_it_got() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    etc.write("a", "old\n");
    let run = host.dispatch(&[("a", "file", file("/etc/a", "new\n"))]);
    complete(&work, run.clone()).await;
    std::fs::remove_file(host.state().join("backup").join(run.run.to_string()).join("0.after.json")).unwrap();
    etc.write("a", "torn");
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Changed]);
    assert!(told.messages()[0].contains("the change itself was cut off"), "{:?}", told.messages());
    assert_eq!(etc.read("a").as_deref(), Some("old\n"));
}

/// The journal as if the power had gone before the first record of this kind about the file `a`.
fn cut_before(state: &Path, run: postern_proto::ids::RunId, text: &str) {
    use postern_agent::journal::{Journal, file_disk};
    let (mut journal, payloads) = Journal::open(&state.join("journal"), 1 << 20, file_disk).unwrap();
    let (mut kept, mut cut) = (Vec::new(), false);
    for payload in payloads {
        let records: Vec<serde_json::Value> = serde_json::from_slice(&payload).unwrap();
        let before = |record: &serde_json::Value| {
            let line = record.to_string();
            cut |= [&run.to_string(), text, "t:file:a"].iter().all(|part| line.contains(*part));
            !cut
        };
        let records: Vec<_> = records.into_iter().take_while(before).collect();
        if !records.is_empty() {
            kept.push(serde_json::to_vec(&records).unwrap());
        }
        if cut {
            break;
        }
    }
    assert!(cut, "nothing to cut at");
    journal.rewrite(&kept, 0).unwrap();
}

async fn unacked(work: &Work, dispatch: postern_agent::engine::Dispatch) {
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    whole(work, run).await;
}

/// The record was written, the step was not begun: the next try looks anew and keeps that.
#[tokio::test]
async fn killed_between_the_record_and_the_step() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    etc.write("a", "old\n");
    let run = host.dispatch(&[("a", "file", file("/etc/a", "new\n"))]);
    unacked(&work, run.clone()).await;
    work.kill().await;
    cut_before(&host.state(), run.run, "step_started");
    etc.write("a", "changed meanwhile\n");
    let work = host.open();
    whole(&work, run.run).await;
    assert_eq!(etc.read("a").as_deref(), Some("new\n"));
    let undo = host.undo(&run);
    complete(&work, undo).await;
    assert_eq!(etc.read("a").as_deref(), Some("changed meanwhile\n"));
}

/// The step had begun: what the second try sees may be its own work, so the first record stays.
#[tokio::test]
async fn killed_after_the_step_the_first_record_stays() {
    let mut host = Host::new();
    let (work, etc) = (host.open(), Etc::of(&host));
    etc.write("a", "old\n");
    let run = host.dispatch(&[("a", "file", file("/etc/a", "new\n"))]);
    unacked(&work, run.clone()).await;
    work.kill().await;
    cut_before(&host.state(), run.run, "step_finished");
    etc.write("a", "torn");
    let work = host.open();
    assert_eq!(whole(&work, run.run).await.end().0, RunState::Ok);
    assert_eq!(etc.read("a").as_deref(), Some("new\n"));
    let undo = host.undo(&run);
    complete(&work, undo).await;
    assert_eq!(etc.read("a").as_deref(), Some("old\n"));
}

#[tokio::test]
async fn killed_in_the_middle_of_an_undo_it_goes_on() {
    // Before the step acted, after it acted and before that was told, and with a torn result.
    for (now, cut, want) in [
        ("new\n", "step_finished", "taken back"),
        ("old\n", "step_finished", "took it back"),
        ("torn", "step_finished", "an earlier attempt was cut off"),
        ("new\n", "step_started", ""),
    ] {
        let mut host = Host::new();
        let (work, etc) = (host.open(), Etc::of(&host));
        etc.write("a", "old\n");
        let run =
            host.dispatch(&[("a", "file", file("/etc/a", "new\n")), ("b", "file", file("/etc/b", "b\n"))]);
        unacked(&work, run.clone()).await;
        let undo = host.undo(&run);
        unacked(&work, undo.clone()).await;
        assert_eq!((etc.read("a").as_deref(), etc.read("b")), (Some("old\n"), None));
        work.kill().await;
        cut_before(&host.state(), undo.run, cut);
        etc.write("a", now);
        let work = host.open();
        let told = whole(&work, undo.run).await;
        assert_eq!(told.end().0, RunState::Ok, "{now} {cut}: {:?}", told.messages());
        assert_eq!(etc.read("a").as_deref(), Some("old\n"), "{now} {cut}");
        let last = *told.messages().last().unwrap();
        assert!(want == "taken back" || last.contains(want), "{now} {cut}: {last}");
    }
}
