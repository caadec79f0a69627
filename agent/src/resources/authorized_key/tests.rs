//! Tests of the kind `authorized_key`.

use super::*;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI";
const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnJ";

/// A host on which the user ada is who runs the test.
fn fixture() -> (tempfile::TempDir, Sys, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let meta = std::fs::metadata(dir.path()).unwrap();
    let ssh = dir.path().join("home/ada/.ssh");
    for path in ["etc", "home/ada"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    let passwd =
        format!("ada:x:{}:{}::/home/ada:/bin/bash\nlost:x:7:7::/home/lost:/bin/sh\n", meta.uid(), meta.gid());
    std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
    let sys = Sys::rooted(dir.path().to_owned(), String::new());
    (dir, sys, ssh)
}

fn set(ssh: &std::path::Path, text: &str) {
    let _ = std::fs::create_dir(ssh);
    std::fs::set_permissions(ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = ssh.join("authorized_keys");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn spec(options: Option<&str>, state: &str) -> AuthorizedKeySpec {
    let mut json = json!({"user": "ada", "key": format!("{KEY} ada@home"), "state": state});
    if let Some(options) = options {
        json["options"] = options.into();
    }
    serde_json::from_value(json).unwrap()
}

async fn look_at(sys: &Sys, spec: &AuthorizedKeySpec) -> Seen {
    AuthorizedKey::observe(spec, sys, Depth::Cheap).await.unwrap()
}

/// Does what the steps say, as far as this kind has them.
fn act(sys: &Sys, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::WriteFile(file) => {
                let WriteFile { path, content, mode, uid, gid, .. } = &file;
                let (mode, uid, gid) = (*mode, *uid, *gid);
                let new = crate::sys::NewFile { path, content, mode, uid, gid };
                sys.replace(&new, |_| Ok(())).unwrap().unwrap();
            }
            Step::SetAttributes { path, mode, uid, gid, seen } => {
                sys.set_attributes(&path, mode, uid, gid, seen).unwrap();
            }
            Step::MakeDirectory { path, mode, uid, gid } => {
                sys.make_directory(&path, mode, uid, gid).unwrap();
            }
            Step::Remove { path } => sys.remove(&path).unwrap(),
            Step::RemoveDirectory { path } => sys.remove_directory(&path).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// The file before, the options, the file after (present), the file after (absent). Undo brings the first
/// one back, byte for byte.
#[tokio::test]
async fn files_by_table() {
    let ours = format!("{KEY} ada@home\n");
    let foreign = format!("# by hand\n\n  {OTHER} x\n#{KEY} off\nno key at all");
    let cases = [
        (None, None, ours.clone(), None),
        (Some(String::new()), None, ours.clone(), Some(String::new())),
        (Some(foreign.clone()), None, format!("{foreign}\n{ours}"), Some(foreign.clone())),
        (Some(format!("{OTHER}\n{ours}")), None, format!("{OTHER}\n{ours}"), Some(format!("{OTHER}\n"))),
        // Another comment is no other key; one that was there is kept.
        (
            Some(format!("\t{KEY}  old comment\r\n{OTHER}\n")),
            None,
            format!("\t{KEY}  old comment\r\n{OTHER}\n"),
            Some(format!("{OTHER}\n")),
        ),
        (
            Some(format!("{KEY} old\n{OTHER}\n")),
            Some("restrict,command=\"a b\""),
            format!("restrict,command=\"a b\" {KEY} old\n{OTHER}\n"),
            Some(format!("{OTHER}\n")),
        ),
        // Its place is kept, a second line that could allow more is not.
        (
            Some(format!("command=\"x \\\" y\",pty {KEY}\n{OTHER}\n{KEY} again\n")),
            None,
            format!("{KEY}\n{OTHER}\n"),
            Some(format!("{OTHER}\n")),
        ),
        // An authority's key is another thing than a login's.
        (
            Some(format!("cert-authority {KEY}\n")),
            None,
            format!("cert-authority {KEY}\n{ours}"),
            Some(String::new()),
        ),
        // Only the beginning of a longer one.
        (
            Some(format!("{KEY}AAAA x\nssh-rsa {}\n", &KEY[12..])),
            None,
            format!("{KEY}AAAA x\nssh-rsa {}\n{ours}", &KEY[12..]),
            Some(format!("{KEY}AAAA x\nssh-rsa {}\n", &KEY[12..])),
        ),
    ];
    for (old, options, present, absent) in cases {
        for (state, want) in [("present", Some(&present)), ("absent", absent.as_ref())] {
            let (_dir, sys, ssh) = fixture();
            if let Some(old) = &old {
                set(&ssh, old);
            }
            let spec = spec(options.filter(|_| state == "present"), state);
            let before = look_at(&sys, &spec).await;
            let steps = AuthorizedKey::plan(&spec, &before);
            let changes = want != old.as_ref();
            assert_eq!(!steps.is_empty(), changes, "{old:?} {state}");
            assert_eq!(!AuthorizedKey::diff(&spec, &before).is_empty(), changes, "{old:?} {state}");
            act(&sys, steps);
            let read = || std::fs::read_to_string(ssh.join("authorized_keys")).ok();
            assert_eq!(read().as_ref(), want, "{old:?} {state}");
            let after = look_at(&sys, &spec).await;
            assert_eq!(AuthorizedKey::plan(&spec, &after), [], "{old:?} {state}");
            let essence = |seen| AuthorizedKey::essence(&spec, seen);
            assert_eq!(essence(&before) != essence(&after), changes, "{old:?} {state}");
            if changes {
                let kept = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
                match AuthorizedKey::undo(&spec, &kept, &serde_json::Value::Null, &after) {
                    Undo::Steps(steps) => act(&sys, steps),
                    Undo::Cannot(why) => panic!("{why}"),
                }
                assert_eq!((read(), ssh.exists()), (old.clone(), old.is_some()), "{old:?} {state}");
            }
        }
    }
}

/// Other keys that came since stay; owner and mode come back.
#[tokio::test]
async fn the_way_back_leaves_what_others_did() {
    let (_dir, sys, ssh) = fixture();
    let file = ssh.join("authorized_keys");
    let add = |text: &str| {
        let now = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, now + text).unwrap();
    };
    let present = spec(None, "present");
    let before = look_at(&sys, &present).await;
    act(&sys, AuthorizedKey::plan(&present, &before));
    add(&format!("{OTHER}\n"));
    let now = look_at(&sys, &present).await;
    act(&sys, way_back(&LoginKey::parse(KEY).unwrap(), &before, &now));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{OTHER}\n"));

    set(&ssh, &format!("pty {KEY} a\n{OTHER}\n"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let absent = spec(None, "absent");
    let before = look_at(&sys, &absent).await;
    act(&sys, AuthorizedKey::plan(&absent, &before));
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o640, "only the line is ours");
    add("# new\n");
    let now = look_at(&sys, &absent).await;
    act(&sys, way_back(&LoginKey::parse(KEY).unwrap(), &before, &now));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{OTHER}\n# new\npty {KEY} a\n"));

    let before = look_at(&sys, &present).await;
    act(&sys, AuthorizedKey::plan(&present, &before));
    let modes = || [&ssh, &file].map(|path| std::fs::metadata(path).unwrap().mode() & 0o7777);
    assert_eq!(modes(), [0o700, 0o600]);
    let now = look_at(&sys, &present).await;
    act(&sys, way_back(&LoginKey::parse(KEY).unwrap(), &before, &now));
    assert_eq!(modes(), [0o755, 0o640]);
}

/// T48: what the user put in the way is neither followed nor copied.
#[tokio::test]
async fn trap_48_links_and_files_of_others_in_a_home() {
    let present = spec(None, "present");
    let refused = async |sys: &Sys| {
        let error = AuthorizedKey::observe(&present, sys, Depth::Cheap).await.unwrap_err();
        error.to_string()
    };
    let (dir, sys, ssh) = fixture();
    symlink(dir.path().join("etc"), &ssh).unwrap();
    assert!(refused(&sys).await.contains("/home/ada/.ssh is a symbolic link"));
    std::fs::remove_file(&ssh).unwrap();
    set(&ssh, "");
    std::fs::remove_file(ssh.join("authorized_keys")).unwrap();
    symlink("/etc/passwd", ssh.join("authorized_keys")).unwrap();
    assert!(refused(&sys).await.contains("authorized_keys is a symbolic link"));
    let mut lost = present.clone();
    lost.user = "lost".to_owned();
    let error = AuthorizedKey::observe(&lost, &sys, Depth::Cheap).await.unwrap_err().to_string();
    assert!(error.contains("the home of lost"), "{error}");
    lost.state = Presence::Absent;
    assert!(AuthorizedKey::observe(&lost, &sys, Depth::Proof).await.is_ok());
    // Only root can have a file of somebody else's there.
    if rustix::process::geteuid().is_root() {
        std::fs::remove_file(ssh.join("authorized_keys")).unwrap();
        let passwd = "ada:x:4242:4242::/home/ada:/bin/bash\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        set(&ssh, "secret of root\n");
        assert!(refused(&sys).await.contains("belongs to uid 0 (mode 0600)"));
    }
}

#[test]
fn what_sshd_would_do_by_table() {
    let user = Account { name: "ada".into(), uid: 1000, gid: 1000, home: "/home/ada".into() };
    let root = Account { name: "root".into(), uid: 0, gid: 0, home: "/root".into() };
    let usual = "pubkeyauthentication yes\nstrictmodes yes\npermitrootlogin without-password\n\
                 authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n";
    let dir = |uid, mode| Meta {
        kind: FileKind::Directory,
        mode,
        uid,
        gid: 0,
        len: 0,
        mtime_ns: 0,
        id: FileId::default(),
    };
    let with = |from: &str, to: &str| usual.replace(from, to);
    let cases = [
        (usual.to_owned(), &user, dir(1000, 0o755), None),
        (usual.to_owned(), &user, dir(0, 0o755), None),
        (usual.to_owned(), &user, dir(1000, 0o775), Some("others can write to /home/ada (mode 0775)")),
        (usual.to_owned(), &user, dir(1001, 0o755), Some("belongs to uid 1001")),
        (with("strictmodes yes", "strictmodes no"), &user, dir(1000, 0o777), None),
        (with(".ssh/authorized_keys ", "%h/.ssh/authorized_keys "), &user, dir(0, 0o755), None),
        (with(".ssh/authorized_keys ", "/home/%u/.ssh/authorized_keys "), &user, dir(0, 0o755), None),
        (
            with(".ssh/authorized_keys ", "/etc/ssh/keys/%u "),
            &user,
            dir(0, 0o755),
            Some("does not look into /home/ada/.ssh/authorized_keys"),
        ),
        (
            with("pubkeyauthentication yes", "pubkeyauthentication no"),
            &user,
            dir(0, 0o755),
            Some("takes no keys"),
        ),
        (with("without-password", "no"), &user, dir(0, 0o755), None),
        (with("without-password", "no"), &root, dir(0, 0o700), Some("PermitRootLogin is no")),
        (
            with("without-password", "forced-commands-only"),
            &root,
            dir(0, 0o700),
            Some("keys with a command only"),
        ),
        (usual.to_owned(), &root, dir(0, 0o700), None),
    ];
    for (config, user, home, want) in cases {
        let seen = Seen { home: user.home.clone(), ..Seen::default() };
        let why = refused(&config, &spec(None, "present"), user, &seen, Some(&home));
        match (why, want) {
            (None, None) => {}
            (Some(why), Some(want)) => assert!(why.contains(want), "{why}"),
            (got, want) => panic!("{config} {user:?}: {got:?}, wanted {want:?}"),
        }
    }
}
