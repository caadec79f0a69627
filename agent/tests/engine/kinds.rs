//! Kinds of resources in whole runs, with programs that stand for apt, dpkg and systemd.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::support::*;
use postern_agent::engine::{Dispatch, Outgoing};
use postern_proto::event::{EventKind, Outcome, RunState};
use postern_proto::openpgp;
use postern_proto::plan::Terms;
use serde_json::json;

use Outcome::{Changed, Failed, Unchanged};

fn outcomes(told: &Told) -> Vec<Outcome> {
    told.outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

fn summaries(told: &Told) -> Vec<String> {
    let of = |event: &postern_proto::event::RunEvent| match &event.kind {
        EventKind::StepStarted { summary, .. } => Some(summary.clone()),
        _ => None,
    };
    told.events.iter().filter_map(of).collect()
}

/// A package as dpkg's status file has it.
fn installed(name: &str) -> String {
    format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n")
}

/// dpkg with these packages, and an apt and a dpkg that note what they are called for; the script says what apt
/// does to `status` and `extended_states`, in whose place it runs.
fn debian(host: &Host, packages: &[&str], apt: &str) {
    let root = host.root();
    for path in ["var/lib/dpkg/updates", "var/lib/apt/lists"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    let status: String = packages.iter().map(|name| installed(name)).collect();
    std::fs::write(root.join("var/lib/dpkg/status"), status).unwrap();
    std::fs::write(root.join("var/lib/dpkg/lock-frontend"), "").unwrap();
    std::fs::write(root.join("var/lib/apt/lists/x_Packages"), "").unwrap();
    let note =
        |program: &str| format!("echo {program} \"$@\" >>{}; cd {}", host.path("calls"), root.display());
    let set = r#"add() { printf 'Package: %s\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n' "$1"; }
                 put() { cat >new && mv new "$1"; }
                 status=var/lib/dpkg/status"#;
    host.fake("apt-get", &format!("{}\n{set}\n{apt}", note("apt-get")));
    host.fake("apt-cache", "echo '  Candidate: 1'");
    host.fake("dpkg", &note("dpkg"));
    host.fake("apt-mark", &note("apt-mark"));
}

fn calls(host: &Host) -> Vec<String> {
    let text = std::fs::read_to_string(host.path("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Somebody holds apt's lock: this process.
fn lock(host: &Host) -> File {
    let file = File::options().write(true).open(host.root().join("var/lib/dpkg/lock-frontend")).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    file
}

/// Runs this until a step says that it waits, does `meanwhile`, and runs it to the end.
async fn complete_around(work: &Work, dispatch: Dispatch, meanwhile: impl FnOnce()) -> Told {
    let (run, mut told, mut meanwhile) = (dispatch.run, Told::default(), Some(meanwhile));
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    while !told.is_over() {
        match next(&mut outbox).await {
            Outgoing::Event(event) if event.run != run => continue,
            outgoing => told.take(outgoing),
        }
        work.engine.acked(told.offset(run)).await;
        if summaries(&told).iter().any(|summary| summary.contains("waits for"))
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
    }
    assert!(meanwhile.is_none(), "nobody waited: {:?}", summaries(&told));
    told
}

const REMOVES_AA: &str = "test \"$1\" = update || { grep -v '^$' $status | awk '/^Package: /{p=$2} p!=\"aa\"' | \
                          sed 's/^Version.*/&\\n/' | put $status; }";

/// T11: what unattended-upgrades does while we wait for it is not what the run did, and an undo leaves it.
#[tokio::test]
async fn trap_11_what_others_do_while_their_lock_is_waited_for_is_theirs() {
    let mut host = Host::new();
    debian(&host, &["aa", "keep"], REMOVES_AA);
    let run = host.dispatch(&[("aa", "package", json!({"name": "aa", "state": "absent"}))]);
    let held = lock(&host);
    let work = host.open();
    let status = host.root().join("var/lib/dpkg/status");
    let told = complete_around(&work, run.clone(), || {
        let new = status.with_extension("upgraded");
        std::fs::write(&new, ["aa", "keep", "theirs"].map(installed).concat()).unwrap();
        std::fs::rename(&new, &status).unwrap();
        drop(held);
    })
    .await;
    assert_eq!(outcomes(&told), [Changed], "{:?} {:?}", told.messages(), summaries(&told));
    let waits = summaries(&told);
    assert!(waits[0].starts_with(&format!("waits for {} (", std::process::id())), "{waits:?}");
    assert!(waits[0].ends_with("to be done with /var/lib/dpkg/lock-frontend"), "{waits:?}");
    assert_eq!(calls(&host).len(), 1, "{:?}", calls(&host));

    let mut undo = host.undo(&run);
    undo.terms.check = true;
    let told = complete(&work, undo).await;
    let way = told.messages()[0].to_owned();
    assert!(way.contains("install") && way.contains("aa=1") && !way.contains("theirs"), "{way}");

    // The undo waits as well, and goes by what is there afterwards: somebody has brought it back.
    let (undo, held) = (host.undo(&run), lock(&host));
    let told = complete_around(&work, undo, || {
        let new = status.with_extension("upgraded");
        std::fs::write(&new, ["aa", "keep", "theirs"].map(installed).concat()).unwrap();
        std::fs::rename(&new, &status).unwrap();
        drop(held);
    })
    .await;
    assert_eq!((outcomes(&told), calls(&host).len()), (vec![Unchanged], 1), "{:?}", told.messages());
}

/// The holder may do what was declared: nothing is left to be done then.
#[tokio::test]
async fn trap_11_what_the_holder_of_a_lock_brought_about_is_not_done_again() {
    let mut host = Host::new();
    debian(&host, &["aa"], "exit 1");
    let run = host.dispatch(&[("aa", "package", json!({"name": "aa", "state": "absent"}))]);
    let held = lock(&host);
    let work = host.open();
    let status = host.root().join("var/lib/dpkg/status");
    let told = complete_around(&work, run, || {
        std::fs::write(status.with_extension("new"), "").unwrap();
        std::fs::rename(status.with_extension("new"), &status).unwrap();
        drop(held);
    })
    .await;
    assert_eq!((outcomes(&told), calls(&host)), (vec![Unchanged], vec![]), "{:?}", told.messages());
}

/// T11: an agent that ends while it waits has kept nothing and changed nothing, and begins again.
#[tokio::test]
async fn trap_11_a_wait_that_is_cut_off_was_no_change() {
    let mut host = Host::new();
    debian(&host, &["aa"], REMOVES_AA);
    let run = host.dispatch(&[("aa", "package", json!({"name": "aa", "state": "absent"}))]);
    let held = lock(&host);
    let work = host.open();
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(run.clone()).await.unwrap();
    let mut told = Told::default();
    while summaries(&told).is_empty() {
        told.take(next(&mut outbox).await);
    }
    work.kill().await;
    drop(held);
    let work = host.open();
    let mut outbox = work.engine.attach(vec![told.offset(run.run)], vec![]).await;
    to_the_end(&work.engine, &mut outbox, run.run, &mut told).await;
    assert_eq!(told.outcomes().last(), Some(&(2, Changed)), "{:?}", told.messages());
    let mut undo = host.undo(&run);
    undo.terms.check = true;
    let told = complete(&work, undo).await;
    assert!(told.messages()[0].contains("aa=1"), "what it was is not known: {:?}", told.messages());
}

/// Who marks a package as wanted keeps it, and the undo says so.
#[tokio::test]
async fn a_package_that_somebody_has_marked_since_survives_the_undo() {
    let mut host = Host::new();
    let installs = "{ cat $status; add app; add dep; add lib; } | put $status\n\
                    for n in dep lib; do printf 'Package: %s\\nArchitecture: amd64\\nAuto-Installed: 1\\n\\n' $n; done \
                    | put var/lib/apt/extended_states";
    debian(&host, &["keep"], installs);
    let run = host.dispatch(&[("app", "package", json!({"name": "app"}))]);
    let work = host.open();
    let told = complete(&work, run.clone()).await;
    assert_eq!(outcomes(&told), [Changed], "{:?}", told.messages());
    // apt-mark manual lib
    let extended = host.root().join("var/lib/apt/extended_states");
    let text = std::fs::read_to_string(&extended).unwrap();
    let marked = text.replace(
        "Package: lib\nArchitecture: amd64\nAuto-Installed: 1",
        "Package: lib\nArchitecture: amd64\nAuto-Installed: 0",
    );
    assert_ne!(text, marked);
    std::fs::write(&extended, marked).unwrap();
    host.fake(
        "dpkg",
        &format!(
            "echo dpkg \"$@\" >>{}; test $2 = --no-act || cp {1}/keep {1}/status",
            host.path("calls"),
            host.root().join("var/lib/dpkg").display()
        ),
    );
    std::fs::write(host.root().join("var/lib/dpkg/keep"), ["keep", "lib"].map(installed).concat()).unwrap();
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Changed], "{:?}", told.messages());
    assert!(told.messages()[0].contains("left alone: lib: pulled in by the run"), "{:?}", told.messages());
    let purged: Vec<_> = calls(&host).into_iter().filter(|call| call.contains("--purge")).collect();
    assert_eq!(purged, ["dpkg --force-hold --purge app dep"]);
}

/// A source that does not work is not left where every later `apt-get update` would trip over it.
#[tokio::test]
async fn a_repository_that_fails_leaves_no_source_behind() {
    // Only root can give files to root.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut host = Host::new();
    let tried = host.path("tried");
    debian(
        &host,
        &[],
        &format!(
            "for a; do case $a in Dir::Etc::sourcelist=*) cat .${{a#*=}} >>{tried};; esac; done\n\
             ls etc/apt/sources.list.d >>{tried}; test -e works || {{ echo E: no release >&2; exit 100; }}\n\
             : >var/lib/apt/lists/a.example_dists_s_InRelease"
        ),
    );
    for path in ["run", "etc/apt/sources.list.d"] {
        std::fs::create_dir_all(host.root().join(path)).unwrap();
    }
    let packet = [&[0xc6, 10, 4], &[7; 9][..]].concat();
    let own = openpgp::read(&packet).unwrap().fingerprints[0].to_string();
    let spec = json!({
        "name": "lab", "uris": ["http://a.example"], "suites": ["s"], "components": ["main"],
        "key": armored(&packet), "fingerprints": [own],
    });
    let run = host.dispatch(&[("lab", "apt_repository", spec)]);
    let work = host.open();
    let there = |host: &Host, path: &str| host.root().join(path).exists();
    let (sources, key) = ("etc/apt/sources.list.d/postern-lab.sources", "etc/apt/keyrings/postern-lab.gpg");
    for _ in 0..2 {
        let again = host.again(&run, Terms::default());
        let told = complete(&work, again).await;
        assert_eq!(outcomes(&told), [Failed], "{:?}", told.messages());
        assert!(told.messages()[0].contains("no release"), "{:?}", told.messages());
        assert!(!there(&host, sources) && !there(&host, key));
    }
    std::fs::write(host.root().join("works"), "").unwrap();
    host.fake("apt-get", &std::fs::read_to_string(host.path("bin/apt-get")).unwrap().replace(
        "for a; do",
        "test $1 = indextargets && echo '/etc/apt/sources.list.d/postern-lab.sources:2\tyes\tx' && exit 0\nfor a; do",
    ));
    let told = complete(&work, run).await;
    assert_eq!(outcomes(&told), [Changed], "{:?}", told.messages());
    assert!(there(&host, sources) && there(&host, key));
    let tried = std::fs::read_to_string(tried).unwrap();
    assert!(
        tried.contains("Signed-By: /run/postern-trial-lab.gpg") && !tried.contains("postern-lab.sources")
    );
    let left: Vec<_> = std::fs::read_dir(host.root().join("run")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let text = std::fs::read_to_string(host.root().join(sources)).unwrap();
    assert!(text.contains("Signed-By: /etc/apt/keyrings/postern-lab.gpg"), "{text}");
}

/// In the form in which keys are pasted into profiles.
fn armored(packet: &[u8]) -> String {
    use std::fmt::Write as _;
    const SET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n");
    for three in packet.chunks(3) {
        assert_eq!(three.len(), 3, "no padding is made here");
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        for at in [18, 12, 6, 0] {
            let _ = write!(text, "{}", char::from(SET[(bits >> at & 63) as usize]));
        }
    }
    text + "\n-----END PGP PUBLIC KEY BLOCK-----\n"
}

/// The looks of a run at its units share processes.
#[tokio::test]
async fn the_units_of_a_run_are_asked_for_together() {
    let mut host = Host::new();
    let show = format!(
        "echo x >>{}; shift 4; for u; do echo LoadState=loaded; echo ActiveState=active; echo SubState=running; \
         echo UnitFileState=enabled; echo NeedDaemonReload=no; echo Names=$u; echo; done",
        host.path("calls")
    );
    host.fake("systemctl", &show);
    let mut resources = Vec::new();
    for n in 0..40 {
        let name: &'static str = Box::leak(format!("r{n}").into_boxed_str());
        resources.push(if n < 35 {
            (name, "file", file(&format!("/etc/{name}"), "x\n"))
        } else {
            (name, "service", json!({"name": name, "state": "running", "enabled": true}))
        });
    }
    let work = host.open();
    let run = host.dispatch(&resources);
    complete(&work, run.clone()).await;
    let (mut best, mut started) = (Duration::MAX, Vec::new());
    for _ in 0..20 {
        let before = calls(&host).len();
        let (again, began) = (host.again(&run, Terms::default()), Instant::now());
        let told = complete(&work, again).await;
        best = best.min(began.elapsed());
        assert_eq!(told.end(), (RunState::Ok, "40 unchanged"), "{:?}", told.messages());
        started.push(calls(&host).len() - before);
    }
    println!("best {best:?}, processes {started:?}");
    started.sort_unstable();
    assert!(started[10] <= 2, "five units, processes of twenty runs: {started:?}");
}
