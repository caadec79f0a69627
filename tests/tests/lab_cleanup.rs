//! That the lab leaves nothing behind, however its process ends; its gate; and its command.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postern_tests::lab::{self, HostSpec, Image, Lab};

const BOOT: Duration = Duration::from_secs(60);

/// Hosts of at most one test at a time: a small machine must do.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finish(mut command: Command) -> (bool, String) {
    let out = command.output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

/// Waits for a state.
fn until(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !look() {
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Command lines of all processes.
fn processes() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.map(|c| String::from_utf8_lossy(&c).replace('\0', " ")).collect()
}

/// Everything on the machine that bears the mark of a run, by kind.
fn traces(run: u8) -> BTreeMap<&'static str, Vec<String>> {
    let output = |argv: &[&str]| {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]);
        finish(command).1
    };
    let (prefix, chain) = (format!("postern-lab-{run}-"), format!("PLAB-{run}-"));
    let (bridge, veth, folder) = (format!("plb{run}:"), format!("plv{run}h"), format!("/runs/{run}/"));
    let pick = |text: String, marks: &[&String]| -> Vec<String> {
        text.lines().filter(|l| marks.iter().any(|m| l.contains(m.as_str()))).map(str::to_owned).collect()
    };
    let ours =
        [prefix.clone(), folder.clone(), format!("lab supervise {run} "), format!("lab guardian {run} ")];
    let processes = processes().into_iter().filter(|l| ours.iter().any(|o| l.contains(o))).collect();
    BTreeMap::from([
        ("network namespaces", pick(output(&["ip", "netns", "list"]), &[&prefix])),
        ("links", pick(output(&["ip", "-o", "link"]), &[&bridge, &veth])),
        ("mounts", pick(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), &[&folder])),
        ("control groups", pick(output(&["find", "/sys/fs/cgroup", "-type", "d"]), &[&prefix])),
        ("IPv4 rules", pick(output(&["iptables-save"]), &[&chain])),
        ("IPv6 rules", pick(output(&["ip6tables-save"]), &[&chain])),
        ("folders", folder_of(run).into_iter().collect()),
        ("nspawn's own", pick(output(&["find", "/run/systemd/nspawn"]), &[&prefix])),
        ("processes", processes),
    ])
}

fn folder_of(run: u8) -> Option<String> {
    let state = std::env::var("POSTERN_LAB_STATE").unwrap_or_else(|_| "/var/lib/postern-lab".to_owned());
    let dir = format!("{state}/runs/{run}");
    std::path::Path::new(&dir).exists().then_some(dir)
}

/// Not a test: the processes that other tests kill.
#[test]
#[ignore = "run by other tests, which kill it"]
fn victim() {
    // Waits to be killed; the end of standard input means that the other test has died itself.
    let wait = || std::io::stdin().read_line(&mut String::new()).unwrap();
    let mut out = std::io::stdout();
    match std::env::var("LAB_VICTIM").as_deref() {
        Ok("host") => {
            let lab = lab::require().unwrap();
            writeln!(out, "\nOPEN {}", lab.run()).unwrap();
            let mut first = HostSpec::new("one", Image::BOOKWORM);
            first.internet = true;
            let first = lab.make(first).unwrap();
            first.wait_ssh(BOOT).unwrap();
            let mut small = HostSpec::new("two", Image::TRIXIE);
            small.disk_limit = Some(32 << 20);
            let _second = lab.make(small).unwrap();
            lab.allow_port(17_300).unwrap();
            writeln!(out, "\nMADE {}", lab.run()).unwrap();
            wait();
        }
        Ok("image") => {
            writeln!(out, "\nBUILD 0").unwrap();
            Lab::prepare_image(Image::BOOKWORM).unwrap();
        }
        _ => {}
    }
}

/// Starts a victim, waits for its line, looks, waits for so long more, kills it, and returns the number on the line.
fn kill_victim(kind: &str, line: &str, cache: Option<&Path>, after: Duration, look: impl FnOnce(u8)) -> u8 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "victim", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LAB_VICTIM", kind);
    if let Some(cache) = cache {
        command.env("POSTERN_LAB_CACHE", cache);
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let number = lines.map_while(Result::ok).find_map(|l| l.strip_prefix(line)?.trim().parse::<u8>().ok());
    let number = number.unwrap_or_else(|| panic!("the victim ended before it said {line}"));
    look(number);
    std::thread::park_timeout(after);
    child.kill().unwrap();
    child.wait().unwrap();
    number
}

fn nothing_left(run: u8) {
    let left = || traces(run).into_iter().filter(|(_, found)| !found.is_empty()).collect::<Vec<_>>();
    let end = Instant::now() + Duration::from_secs(30);
    while !left().is_empty() {
        assert!(Instant::now() < end, "run {run} left behind: {:#?}", left());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn a_killed_process_leaves_nothing_behind() {
    let _turn = turn();
    if lab::require().is_none() {
        return;
    }
    let run = kill_victim("host", "MADE", None, Duration::ZERO, |run| {
        for (kind, found) in traces(run) {
            // nspawn of some versions keeps nothing of its own.
            assert!(!found.is_empty() || kind == "nspawn's own", "this test does not see {kind}");
        }
    });
    nothing_left(run);
}

#[test]
fn a_process_killed_while_it_makes_a_host_leaves_nothing_behind() {
    let _turn = turn();
    if lab::require().is_none() {
        return;
    }
    for after in [0, 20, 60, 150, 300, 450, 600, 900] {
        let run = kill_victim("host", "OPEN", None, Duration::from_millis(after), |_| {});
        nothing_left(run);
    }
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing_behind() {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let run = lab.run();
    let host = lab.make(HostSpec::new("gone", Image::BOOKWORM)).unwrap();
    assert!(lab.make(HostSpec::new("gone", Image::BOOKWORM)).is_err(), "a name is taken once");
    assert!(lab.make(HostSpec::new("../up", Image::BOOKWORM)).is_err());
    host.wait_ssh(BOOT).unwrap();
    drop(lab);
    assert!(traces(run).values().any(|v| !v.is_empty()), "a lab lives as long as its last host");
    drop(host);
    // No wait: once drop has returned, it is done.
    let left: Vec<_> = traces(run).into_iter().filter(|(_, found)| !found.is_empty()).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn the_command_makes_hosts_that_stay() {
    let _turn = turn();
    if lab::require().is_none() {
        return;
    }
    let name = format!("cli-{}", std::process::id());
    let lab = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(args);
        finish(command)
    };
    let key = tempfile::tempdir().unwrap();
    let file = key.path().join("id");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file);
    assert!(finish(keygen).0);
    let (fine, text) = lab(&["make", &name, "--image", "trixie", "--key", &file.display().to_string()]);
    assert!(!fine && text.contains("is a private key"), "{text}");

    let public = file.with_extension("pub").display().to_string();
    let (fine, text) = lab(&["make", &name, "--image", "trixie", "--key", &public]);
    assert!(fine, "{text}");
    let host = Lab::find(&name).unwrap();
    let number = Lab::list().unwrap().into_iter().find(|h| h.name == name).unwrap().run;
    let theirs = format!("IdentityFile={}", file.display());
    let mut command = host.ssh_with("root", &[&theirs]);
    command.arg("hostname");
    assert_eq!(finish(command), (true, name.clone()));
    drop(host);
    // Neither dropping it here nor another lab's sweep ends it.
    drop(lab::require());
    assert_eq!(lab(&["enter", &name, "--", "echo", "inside"]), (true, "inside".to_owned()));
    assert!(!lab(&["enter", &name, "--", "false"]).0);
    assert!(lab(&["reboot", &name]).0);
    assert!(lab(&["list"]).1.lines().any(|l| l.starts_with(&name) && l.contains("running")));
    let (fine, text) = lab(&["make", &name]);
    assert!(!fine && text.contains("already"), "{text}");
    assert_eq!(lab(&["destroy", &name]), (true, String::new()));
    nothing_left(number);
    let (fine, text) = lab(&["destroy", &name]);
    assert!(!fine && text.contains("there is no host"), "{text}");
}

/// What a build in this cache has left: half images, finished ones.
fn images_in(cache: &Path) -> (Vec<String>, Vec<String>) {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned());
    folders.partition(|name| name.starts_with(".build-"))
}

#[test]
fn a_killed_build_leaves_no_image_that_looks_whole() {
    let _turn = turn();
    if lab::require().is_none() {
        return;
    }
    let cache = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = cache.path().display().to_string();
    let building = || processes().iter().any(|l| l.contains("mmdebstrap") && l.contains(&place));
    let grown =
        || images_in(cache.path()).0.iter().any(|half| cache.path().join(half).join("root/usr").exists());
    let mut halves = Vec::new();
    for _ in 0..2 {
        kill_victim("image", "BUILD", Some(cache.path()), Duration::ZERO, |_| {
            until("the build is in the middle", Duration::from_secs(120), || building() && grown());
            let (half, whole) = images_in(cache.path());
            assert_eq!((half.len(), whole.len()), (1, 0), "a later build clears away what a killed one left");
            halves.extend(half);
        });
        until("the build ends with its owner", Duration::from_secs(60), || !building());
    }
    halves.dedup();
    assert_eq!(halves.len(), 2);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&place), "the build left a mount");
}

#[test]
fn without_root_a_lab_test_is_skipped_aloud_or_fails_when_required() {
    // A copy, since the build folder may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let as_nobody = |required: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        command.args(["--exact", "a_lab_that_is_dropped_leaves_nothing_behind"]);
        command.env("POSTERN_REQUIRE_LAB", required).current_dir("/");
        finish(command)
    };
    let (fine, text) = as_nobody("0");
    assert!(fine && text.contains("SKIPPED lab: root is missing"), "{text}");
    let (fine, text) = as_nobody("1");
    assert!(!fine && text.contains("the lab is required but cannot run: root is missing"), "{text}");
}
