use super::super::docker::fake::Fake;
use super::*;

fn spec(json: serde_json::Value) -> SshdSpec {
    serde_json::from_value(json).unwrap()
}

fn shown(steps: &[Step]) -> Vec<String> {
    steps.iter().map(Step::summary).collect()
}

fn up(spec: &SshdSpec) -> Seen {
    let settings = settings(spec, vec![("Ciphers".to_owned(), "aes256-ctr".to_owned())]);
    let conf = Some(Owned::new(text(&settings).as_bytes()));
    let ports = [22].into();
    Seen { conf, settings, active: true, run_dir: true, ports, ..Seen::default() }
}

#[test]
fn plans_and_ways_back_by_table() {
    let plain = spec(json!({"users": ["ada"]}));
    let moved = spec(json!({"users": ["ada"], "ports": ["2222"]}));
    let now = up(&plain);
    let (write, reload) = (format!("write {CONF}"), &*format!("{AGENT_BINARY} reload-ssh"));
    let socket = Seen { active: false, socket: true, run_dir: false, ..up(&moved) };
    let (make_run, make) = (
        format!("make the directory {RUN_DIR} (0755)"),
        format!("make the directory {SOCKET_CONF_DIR} (0755)"),
    );
    let write_socket = format!("write {SOCKET_CONF}");
    let (stop, start) = ("systemctl stop -- ssh.socket ssh.service", "systemctl start -- ssh.socket");
    let right = Owned::new(socket_text(&moved, &socket).unwrap().as_bytes());
    let right = Seen { socket_conf: Some(right), socket_dir: true, ports: [2222].into(), ..socket.clone() };
    let cases = [
        (&plain, now.clone(), vec![]),
        (&plain, Seen { conf: None, ..now.clone() }, vec![&*write, reload]),
        (&plain, Seen { stale: true, ..now.clone() }, vec![reload]),
        (&plain, Seen { conf: None, active: false, ports: [].into(), ..now.clone() }, vec![&*write]),
        (&moved, Seen { ports: [2222].into(), ..up(&moved) }, vec![]),
        (&moved, up(&moved), vec![reload]),
        // T06: ports are the socket's, which is made anew, and never masked.
        (&moved, socket.clone(), vec![&*make, &*write_socket, "systemctl daemon-reload", stop, start]),
        (
            &moved,
            Seen { conf: None, active: true, ..socket.clone() },
            vec![&*make_run, &*write, &*make, &*write_socket, "systemctl daemon-reload", stop, start],
        ),
        (&moved, right.clone(), vec![]),
        (&moved, Seen { ports: [22].into(), ..right.clone() }, vec!["systemctl daemon-reload", stop, start]),
        // One that does not run listens nowhere, and one that runs does somewhere.
        (&moved, Seen { active: false, ports: [].into(), ..up(&moved) }, vec![]),
        (&plain, Seen { ports: [].into(), ..now.clone() }, vec![reload]),
        (&moved, Seen { stale: true, active: true, ..right.clone() }, vec!["systemctl stop -- ssh.service"]),
    ];
    for (spec, seen, want) in cases {
        assert_eq!(shown(&Sshd::plan(spec, &seen)), want, "{spec:?} {seen:?}");
        assert_eq!(Sshd::diff(spec, &seen).is_empty(), want.is_empty(), "{seen:?}");
    }
    let undo = |before: &Seen, now: &Seen| match Sshd::undo(&plain, before, &json!(null), now) {
        Undo::Steps(steps) => shown(&steps),
        Undo::Cannot(why) => panic!("{why}"),
    };
    let bare = Seen { conf: None, ..now.clone() };
    assert_eq!(undo(&bare, &now), [&*format!("remove {CONF}"), reload]);
    let back = [
        &*format!("remove {CONF}"),
        &*format!("remove {SOCKET_CONF}"),
        &*format!("remove the directory {SOCKET_CONF_DIR}"),
        "systemctl daemon-reload",
        stop,
        start,
    ];
    assert_eq!(undo(&Seen { conf: None, ..socket }, &right), back);
}

/// T05: what sshd says it would do counts, and not what is in a file.
#[test]
fn trap_05_what_is_in_force_is_compared() {
    let settings = settings(&spec(json!({"users": ["ada"], "root_login": "prohibit-password"})), vec![]);
    let config = |change: (&str, &str)| {
        let mut config: BTreeMap<String, String> =
            settings.iter().map(|(keyword, value)| (keyword.to_lowercase(), value.clone())).collect();
        config.insert(change.0.to_owned(), change.1.to_owned());
        otherwise(&settings, &config)
    };
    assert_eq!(config(("permitrootlogin", "without-password")), None);
    assert_eq!(config(("port", "2222")), None);
    assert_eq!(config(("passwordauthentication", "yes")).unwrap(), "PasswordAuthentication yes");
    assert_eq!(config(("authenticationmethods", "any")).unwrap(), "AuthenticationMethods any");
    assert_eq!(otherwise(&settings, &BTreeMap::new()).unwrap(), "PermitRootLogin ");
}

/// T05: each user, root and anybody else are asked about, over IPv4, IPv6 and from the host itself.
#[tokio::test]
async fn trap_05_what_sshd_would_do_is_asked_for_each_user_and_address() {
    let fake = Fake::new();
    let sshd = fake.dir.path().join("bin/sshd").display().to_string();
    let spec = spec(json!({"users": ["ada", "bob"]}));
    let seen = up(&spec);
    let in_force: String = seen
        .settings
        .iter()
        .map(|(keyword, value)| format!("{} {value}\n", keyword.to_lowercase()))
        .collect();
    std::fs::write(fake.dir.path().join("config"), in_force).unwrap();
    let (config, asked) = (fake.dir.path().join("config"), fake.dir.path().join("asked"));
    let script =
        |first: &str| format!("echo \"$*\" >>{}; {first}; cat {}", asked.display(), config.display());
    fake.program("sshd", &script(":"));
    assert_eq!(prove(&spec, &fake.sys, &sshd, &seen).await.unwrap(), None);
    let asked = std::fs::read_to_string(&asked).unwrap();
    for user in ["ada", "bob", "root", ANYBODY] {
        for address in ADDRESSES {
            let line = format!("-T -C user={user},host=localhost,addr={address}\n");
            assert!(asked.contains(&line), "{line}{asked}");
        }
    }
    for (user, address) in [("bob", "2001:db8::1"), ("root", "127.0.0.1"), (ANYBODY, "192.0.2.1")] {
        let other = format!("case $3 in user={user},*addr={address}) echo passwordauthentication yes;; esac");
        fake.program("sshd", &script(&other));
        let why = prove(&spec, &fake.sys, &sshd, &seen).await.unwrap().unwrap();
        let want = format!(
            "for {user} from {address}, sshd would have PasswordAuthentication yes in spite of {CONF}"
        );
        assert_eq!(why, want);
    }
    fake.program("sshd", &script(":"));
    let deaf = Seen { ports: [].into(), ..seen.clone() };
    let why = prove(&spec, &fake.sys, &sshd, &deaf).await.unwrap().unwrap();
    assert!(why.starts_with("sshd listens on {}"), "{why}");
    fake.program("sshd", "echo 'sshd_config line 3: no' >&2; exit 255");
    let why = prove(&spec, &fake.sys, &sshd, &seen).await.unwrap_err().to_string();
    assert!(why.contains("sshd's files are not in order (sshd -t): sshd_config line 3: no"), "{why}");
}

/// T07 under a clock that was wrong when a file was changed.
#[test]
fn trap_07_a_change_that_is_still_to_come_is_none_by_table() {
    for (changed, read, now, want) in
        [(5, 5, 9, false), (6, 5, 9, true), (9, 5, 9, true), (10, 5, 9, false), (10, 20, 9, false)]
    {
        assert_eq!(is_newer(changed, read, now), want, "{changed} {read} {now}");
    }
}

/// T07: derived from what is on the host, whoever wrote it.
#[test]
fn trap_07_files_newer_than_what_sshd_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    for path in ["etc/ssh/sshd_config.d", "run"] {
        std::fs::create_dir_all(at(path)).unwrap();
    }
    std::fs::write(at("etc/ssh/sshd_config"), "Include /etc/ssh/sshd_config.d/*.conf\n").unwrap();
    let sys = Sys::rooted(dir.path().to_owned(), String::new());
    let read = |ago: i64| {
        let time = std::time::SystemTime::now() + Duration::from_secs(3600)
            - Duration::from_secs(ago.unsigned_abs());
        std::fs::File::create(at("run/sshd.pid")).unwrap().set_modified(time).unwrap();
    };
    assert!(!stale(&sys).unwrap(), "no server that wrote one");
    read(7200);
    assert!(stale(&sys).unwrap());
    read(0);
    assert!(!stale(&sys).unwrap());
    // A file that was taken out leaves no trace but in its directory.
    let conf_dir = sys.ctime_ns(CONF_DIR).unwrap().unwrap();
    let newest = conf_dir.max(sys.ctime_ns("/etc/ssh/sshd_config").unwrap().unwrap());
    let nanos = Duration::from_nanos(u64::try_from(newest + 1).unwrap());
    std::fs::File::create(at("run/sshd.pid")).unwrap().set_modified(std::time::UNIX_EPOCH + nanos).unwrap();
    assert!(!stale(&sys).unwrap());
    // The clock of files goes in steps of some milliseconds.
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while sys.ctime_ns(CONF_DIR).unwrap().unwrap() <= newest + 1 && std::time::Instant::now() < until {
        std::fs::write(at("etc/ssh/sshd_config.d/x.conf"), "").unwrap();
        std::fs::remove_file(at("etc/ssh/sshd_config.d/x.conf")).unwrap();
    }
    assert!(stale(&sys).unwrap());
}

#[test]
fn a_guard_sees_every_administrator_log_in() {
    let spec = spec(json!({"users": ["ada", "bob"], "ports": ["22", "2222"]}));
    let keys = [("ada".to_owned(), vec!["k".to_owned()])].into();
    let protect = Sshd::protect(&spec, &Seen { keys, ..up(&spec) }).unwrap();
    let watched: Vec<_> = protect.predicates.iter().map(Predicate::to_string).collect();
    assert_eq!(watched, ["inbound 22", "inbound 2222", "ssh login of ada on port 22"]);
    assert_eq!(protect.reload[1], ["systemctl", "reload-or-restart", "ssh.service"]);
    let socket = Sshd::protect(&spec, &Seen { socket: true, ..up(&spec) }).unwrap();
    let programs: Vec<_> = socket.reload[1..].iter().map(|argv| argv.join(" ")).collect();
    assert_eq!(programs, ["systemctl stop ssh.socket ssh.service", "systemctl start ssh.socket"]);
    let new = Sshd::protect(&spec, &Seen { conf: None, ..up(&spec) }).unwrap();
    let watched: Vec<_> = new.predicates.iter().skip(2).map(Predicate::to_string).collect();
    let none = |user| format!("ssh takes no password from {user} on port 22");
    assert_eq!(watched, ["ada", "bob", "root"].map(none));
}
