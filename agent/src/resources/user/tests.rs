//! Tests of the kind `user`.

use super::*;

const HASH: &str = "$6$salt$0123456789abcdefghij";

/// A host with the users root, ada (in adm and users) and bob, and nobody's group `eve`.
fn fixture() -> (tempfile::TempDir, Sys) {
    let dir = tempfile::tempdir().unwrap();
    for path in ["etc", "bin", "usr/sbin", "home/ada"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    let write = |path: &str, text: &str| std::fs::write(dir.path().join(path), text).unwrap();
    write("bin/bash", "");
    write("bin/sh", "");
    write("usr/sbin/nologin", "");
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000:Ada:/home/ada:/bin/bash\n\
         bob:x:1001:100::/home/bob:/bin/sh\nodd:x:zz:1::/:\nlow:x:300:100::/none:/usr/sbin/nologin\n",
    );
    write("etc/group", "root:x:0:\nada:x:1000:\nusers:x:100:ada\nadm:x:4:ada,bob\nsudo:x:27:\neve:x:1007:\n");
    write(
        "etc/shadow",
        &format!("root:*:19000:0:99999:7:::\nada:{HASH}:19000:0:99999:7:::\nbob:!:1::::::\n"),
    );
    let sys = Sys::rooted(dir.path().to_owned(), String::new());
    (dir, sys)
}

fn spec(json: serde_json::Value) -> UserSpec {
    serde_json::from_value(json).unwrap()
}

async fn look(sys: &Sys, spec: &UserSpec) -> Seen {
    User::observe(spec, sys, Depth::Cheap).await.unwrap()
}

fn shown(steps: &[Step]) -> Vec<String> {
    steps.iter().map(Step::summary).collect()
}

#[tokio::test]
async fn plans_by_table() {
    let (_dir, sys) = fixture();
    let other = "$6$salt$aaaaaaaaaaaaaaaaaaaa";
    let cases = [
        (json!({"name": "ada"}), Ok(vec![])),
        (json!({"name": "ada", "uid": 1000, "home": "/home/ada", "shell": "/bin/bash"}), Ok(vec![])),
        (json!({"name": "ada", "groups": ["adm"], "comment": "Ada", "group": "ada"}), Ok(vec![])),
        (json!({"name": "ada", "groups": ["users", "adm"], "exclusive_groups": true}), Ok(vec![])),
        (json!({"name": "ada", "password_hash": HASH}), Ok(vec![])),
        (json!({"name": "ada", "password_hash": other}), Ok(vec!["chpasswd --encrypted"])),
        (
            json!({"name": "ada", "groups": ["adm", "sudo"]}),
            Ok(vec!["usermod --append --groups sudo -- ada"]),
        ),
        (
            json!({"name": "ada", "groups": ["sudo"], "exclusive_groups": true}),
            Ok(vec!["usermod --groups sudo -- ada"]),
        ),
        (json!({"name": "ada", "exclusive_groups": true}), Ok(vec!["usermod --groups '' -- ada"])),
        (
            json!({"name": "ada", "shell": "/bin/sh", "comment": "A L", "group": "users"}),
            Ok(vec!["usermod --shell /bin/sh --comment 'A L' --gid users -- ada"]),
        ),
        // Its primary group is one it is in; its home is made, a program's is not.
        (json!({"name": "bob", "groups": ["users"]}), Ok(vec!["mkhomedir_helper bob 0077"])),
        (json!({"name": "low", "state": "present"}), Ok(vec![])),
        (json!({"name": "ada.l"}), Ok(vec!["useradd --shell /bin/bash --create-home --user-group -- ada.l"])),
        (
            json!({"name": "eve", "system": true, "groups": ["adm", "sudo"], "uid": 700, "comment": "E",
                   "home": "/srv/eve", "password_hash": HASH}),
            Ok(vec![
                "useradd --shell /usr/sbin/nologin --no-create-home --system --uid 700 --gid eve \
                 --groups adm,sudo --home-dir /srv/eve --comment E -- eve",
                "chpasswd --encrypted",
            ]),
        ),
        (json!({"name": "ada", "state": "absent"}), Ok(vec!["userdel -- ada"])),
        (json!({"name": "none", "state": "absent"}), Ok(vec![])),
        (json!({"name": "ada", "uid": 1500}), Err("ada has the uid 1000, not 1500")),
        (json!({"name": "new", "uid": 1000}), Err("the uid 1000 is that of ada")),
        (json!({"name": "ada", "home": "/srv/ada"}), Err("the home of ada is /home/ada, not /srv/ada")),
        (json!({"name": "ada", "groups": ["docker"]}), Err("there is no group docker on this host")),
        (json!({"name": "new", "group": "new"}), Err("there is no group new on this host")),
        (json!({"name": "ada", "shell": "/bin/fish"}), Err("the shell /bin/fish is not on this host")),
        (json!({"name": "ada", "password_hash": "hunter2"}), Err("the password_hash of ada is no hash")),
        (json!({"name": "odd"}), Err("the line of odd in /etc/passwd cannot be read")),
    ];
    for (json, want) in cases {
        let spec = spec(json.clone());
        match (User::observe(&spec, &sys, Depth::Cheap).await, want) {
            (Ok(seen), Ok(want)) => {
                assert_eq!(shown(&User::plan(&spec, &seen)), want, "{json}");
                let diff = User::diff(&spec, &seen);
                assert_eq!(diff.is_empty(), want.is_empty(), "{json}: {diff}");
            }
            (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
            (got, want) => panic!("{json}: {:?}, wanted {want:?}", got.map(|_| ())),
        }
    }
}

/// I7, T46: neither the old nor the new hash is in an argument vector, a diff or an essence.
#[tokio::test]
async fn trap_46_a_password_goes_over_stdin_only() {
    let (_dir, sys) = fixture();
    let new = "$y$j9T$saltsaltsalt$0123456789abcdefghijABCDEFGHIJ";
    for name in ["ada", "new"] {
        let spec = spec(json!({"name": name, "password_hash": new}));
        let seen = look(&sys, &spec).await;
        let steps = User::plan(&spec, &seen);
        let Some(Step::Exec(last)) = steps.last() else { panic!("{steps:?}") };
        assert_eq!(last.stdin.as_deref(), Some(&*format!("{name}:{new}\n")));
        assert_eq!(last.waits_for, ["/etc/.pwd.lock"]);
        let diff = User::diff(&spec, &seen);
        assert!(diff.contains("its password is set"), "{diff}");
        let told = format!("{diff}{steps:?}{:?}{}", shown(&steps), User::essence(&spec, &seen));
        assert!(!told.contains(new) && !told.contains(HASH), "{told}");
    }
    let gone = spec(json!({"name": "ada", "state": "absent"}));
    let essence = User::essence(&gone, &look(&sys, &gone).await).to_string();
    assert!(essence.contains("19000") && !essence.contains(HASH), "{essence}");
}

/// Before, what is then done to the files, and the way back.
#[tokio::test]
async fn undo_by_table() {
    let made = |line: &str| format!("root:x:0:0:root:/root:/bin/bash\n{line}");
    let ada = "ada:x:1000:1000:Ada:/home/ada:/bin/bash\n";
    let shadow = "ada:$6$s$0123456789abcdefghijk:20000:0:99999:7:::\n";
    let cases = [
        (
            json!({"name": "new"}),
            vec![
                ("passwd", made("new:x:1002:1002::/home/new:/bin/bash\n")),
                ("group", "new:x:1002:\n".into()),
            ],
            vec!["userdel -- new"],
        ),
        // Its group was there before it: userdel takes it along, unless others are in it.
        (
            json!({"name": "eve"}),
            vec![("passwd", made("eve:x:1002:1007::/home/eve:/bin/bash\n"))],
            vec!["userdel -- eve", "groupadd --gid 1007 -- eve"],
        ),
        (
            json!({"name": "eve"}),
            vec![
                ("passwd", made("eve:x:1002:1007::/home/eve:/bin/bash\n")),
                ("group", "eve:x:1007:eve,ada\n".into()),
            ],
            vec!["userdel -- eve"],
        ),
        (
            json!({"name": "ada", "state": "absent"}),
            vec![
                ("passwd", made("")),
                ("group", "users:x:100:\nadm:x:4:\n".into()),
                ("shadow", String::new()),
            ],
            vec![
                "groupadd --gid 1000 -- ada",
                "useradd --no-create-home --uid 1000 --gid 1000 --home-dir /home/ada --shell \
                 /bin/bash --comment Ada --groups adm,users -- ada",
                "chpasswd --encrypted",
                "chage --lastday 19000 --mindays 0 --maxdays 99999 --warndays 7 --inactive -1 --expiredate -1 \
                 -- ada",
            ],
        ),
        (
            json!({"name": "ada", "shell": "/bin/sh", "comment": "x", "groups": ["adm", "sudo"]}),
            vec![
                ("passwd", made("ada:x:1000:1000:x:/home/ada:/bin/sh\n")),
                ("group", "ada:x:1000:\nusers:x:100:\nadm:x:4:ada\nsudo:x:27:ada\nnew:x:5:ada\n".into()),
            ],
            vec!["usermod --shell /bin/bash --comment Ada -- ada", "gpasswd --delete ada sudo"],
        ),
        (
            json!({"name": "ada", "groups": ["sudo"], "exclusive_groups": true, "group": "users"}),
            vec![
                ("passwd", made("ada:x:1000:100:Ada:/home/ada:/bin/bash\n")),
                ("group", "ada:x:1000:\nusers:x:100:\nadm:x:4:\nsudo:x:27:ada\n".into()),
            ],
            vec!["usermod --gid 1000 --groups adm,users -- ada"],
        ),
        (
            json!({"name": "ada", "password_hash": "$6$s$0123456789abcdefghijk"}),
            vec![("passwd", made(ada)), ("shadow", shadow.into())],
            vec![
                "chpasswd --encrypted",
                "chage --lastday 19000 --mindays 0 --maxdays 99999 --warndays 7 --inactive -1 --expiredate -1 \
                 -- ada",
            ],
        ),
    ];
    for (json, files, want) in cases {
        let (dir, sys) = fixture();
        let spec = spec(json.clone());
        let before = look(&sys, &spec).await;
        for (file, text) in files {
            std::fs::write(dir.path().join("etc").join(file), text).unwrap();
        }
        let files = Files::read(&sys).unwrap();
        let now = files.seen(&spec.name, &sys).unwrap();
        assert_ne!(User::essence(&spec, &before), User::essence(&spec, &now), "{json}");
        // It is kept as JSON in between.
        let kept = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
        match User::undo(&spec, &kept, &serde_json::Value::Null, &now) {
            Undo::Steps(steps) => {
                assert_eq!(shown(&steps), want, "{json}");
                let stdin = steps.iter().find_map(|step| match step {
                    Step::Exec(exec) => exec.stdin.clone(),
                    _ => None,
                });
                let ada = Some(format!("ada:{HASH}\n"));
                assert_eq!(stdin, want.contains(&"chpasswd --encrypted").then_some(ada).flatten());
            }
            Undo::Cannot(why) => panic!("{json}: {why}"),
        }
    }
}

/// What others do to a user is not ours to mind, unless it was declared.
#[tokio::test]
async fn essences_by_table() {
    let cases = [
        (json!({"name": "ada"}), ("/bin/bash", "/bin/sh"), "passwd", true),
        (json!({"name": "ada", "shell": "/bin/bash"}), ("/bin/bash", "/bin/sh"), "passwd", false),
        (json!({"name": "ada"}), ("ada:x:1000", "ada:x:1009"), "passwd", false),
        (json!({"name": "ada", "groups": ["adm"]}), ("sudo:x:27:", "sudo:x:27:ada"), "group", true),
        (json!({"name": "ada", "groups": ["adm"]}), ("ada,bob", "bob"), "group", false),
        (
            json!({"name": "ada", "groups": ["adm"], "exclusive_groups": true}),
            ("sudo:x:27:", "sudo:x:27:ada"),
            "group",
            false,
        ),
        (json!({"name": "ada"}), (HASH, "!"), "shadow", true),
        (json!({"name": "ada", "password_hash": HASH}), (HASH, "!"), "shadow", false),
        (json!({"name": "ada", "state": "absent"}), (HASH, "!"), "shadow", false),
    ];
    for (json, (from, to), file, same) in cases {
        let (dir, sys) = fixture();
        let spec = spec(json.clone());
        let before = Files::read(&sys).unwrap().seen("ada", &sys).unwrap();
        let path = dir.path().join("etc").join(file);
        // The line of ada, not that of root, which has the same shell.
        let text = std::fs::read_to_string(&path).unwrap().replace("root:/bin/bash", "root:/bin/zsh");
        assert!(text.contains(from), "{json}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let after = Files::read(&sys).unwrap().seen("ada", &sys).unwrap();
        assert_eq!(User::essence(&spec, &before) == User::essence(&spec, &after), same, "{json} {to}");
    }
}

#[test]
fn another_source_of_names_is_noticed() {
    let row = Row { uid: 7, gid: 8, home: "/h".into(), shell: "/s".into(), ..Row::default() };
    for (there, line, same) in [
        (Some(&row), "ada:x:7:8:c:/h:/s", true),
        (Some(&row), "ada:x:9:8:c:/h:/s", false),
        (Some(&row), "ada:x:7:8:c:/h:/other", false),
        (Some(&row), "", false),
        (None, "", true),
        (None, "ada:x:7:8:c:/h:/s", false),
    ] {
        assert_eq!(disagrees("ada", there, line).is_none(), same, "{line:?}");
    }
}
