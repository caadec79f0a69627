//! Volumes against an engine that answers by table, in a directory that stands for a host.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::parcel::File;

use super::super::fake::Fake;
use super::*;

const VOLUME: &str = "traefik-acme";
const SERVICE: &str = "traefik";
const DIR: &str = "/var/lib/docker/volumes/traefik-acme/_data";
const ACME: &[u8] = b"{\"cloudflare\": {\"Account\": {\"PrivateKey\": \"k3y\"}}}";

fn said() -> Value {
    json!({"Name": VOLUME, "Driver": "local", "Options": null, "Mountpoint": DIR})
}

/// An engine with the volume.
fn fake() -> Fake {
    let fake = Fake::new();
    fs::create_dir_all(at(&fake, "")).unwrap();
    fake.answers("GET /volumes/traefik-acme", 200, said());
    fake
}

fn at(fake: &Fake, name: &str) -> PathBuf {
    fake.sys.real(DIR).join(name)
}

fn run_dir(fake: &Fake) -> Vec<String> {
    let mut names = fake.sys.list("/run/postern-agent/volumes").unwrap();
    names.sort();
    names
}

fn file(name: &str, content: &[u8]) -> File {
    File { name: name.to_owned(), content: Zeroizing::new(content.to_vec()) }
}

fn parcel(files: &[(&str, &[u8])]) -> Parcel {
    let files = files.iter().map(|(name, content)| file(name, content)).collect();
    Parcel { files, ..Parcel::default() }
}

async fn back_up(fake: &Fake) -> Result<(Parcel, String), String> {
    let (key, mut out) = (new_key(), Vec::new());
    seal_volume(&fake.sys, VOLUME, &key.public().to_string(), &mut out).await?;
    let text = String::from_utf8(out).unwrap();
    let sealed = parcel::from_text(&text).unwrap();
    Ok((Parcel::open(Way::Backup, VOLUME, &key, &sealed).unwrap(), text))
}

/// Sealed to the key that the host makes for it.
fn sealed(fake: &Fake, parcel: &Parcel) -> Vec<u8> {
    let mut out = Vec::new();
    volume_key(&fake.sys, &mut out).unwrap();
    let key = String::from_utf8(out).unwrap().trim().parse().unwrap();
    parcel.seal(Way::Restore, VOLUME, &key, &new_key()).unwrap()
}

async fn open(fake: &Fake, text: &str, replace: bool) -> Result<Restored, String> {
    let mut out = Vec::new();
    let what = (VOLUME, SERVICE, replace);
    open_volume(&fake.sys, what, &mut text.as_bytes(), &mut out, &mut std::io::sink()).await?;
    Ok(serde_json::from_slice(&out).unwrap())
}

async fn put_back(fake: &Fake, sealed: &[u8]) -> Result<Restored, String> {
    open(fake, &STANDARD.encode(sealed), false).await
}

async fn restore(fake: &Fake, parcel: &Parcel) -> Result<Restored, String> {
    let sealed = sealed(fake, parcel);
    put_back(fake, &sealed).await
}

async fn replace(fake: &Fake, parcel: &Parcel) -> Result<Restored, String> {
    let sealed = STANDARD.encode(sealed(fake, parcel));
    open(fake, &sealed, true).await
}

fn snapshot(fake: &Fake) -> Vec<(String, Vec<u8>)> {
    let mut names = fake.sys.list(DIR).unwrap();
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::read(at(fake, &name)).unwrap_or_default())).collect()
}

#[tokio::test]
async fn trap_48_files_are_taken_and_nothing_is_followed() {
    let fake = fake();
    fs::write(fake.sys.real("/outside"), "s3cret of somebody else").unwrap();
    fs::write(at(&fake, "cloudflare.json"), ACME).unwrap();
    fs::write(at(&fake, "hetzner.json"), "").unwrap();
    fs::write(at(&fake, "cloudflare.json.before-restore"), "old").unwrap();
    fs::write(at(&fake, "cloudflare.json.before-restore.2"), "older").unwrap();
    fs::write(at(&fake, "two words"), "x").unwrap();
    symlink(fake.sys.real("/outside"), at(&fake, "link.json")).unwrap();
    fs::create_dir(at(&fake, "below")).unwrap();
    fs::write(at(&fake, "below/deep.json"), "{}").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at(&fake, "pipe"), rustix::fs::Mode::RUSR).unwrap();

    let (parcel, text) = back_up(&fake).await.unwrap();
    assert_eq!(parcel.files, [file("cloudflare.json", ACME)]);
    let left = [
        "below is a directory",
        "hetzner.json is empty",
        "link.json is a symbolic link",
        "pipe is not a regular file",
        "two words has a name that is not carried",
    ];
    assert_eq!(parcel.left_out, left);
    // Neither as it is nor in base64, at any alignment.
    for form in [
        "k3y".to_owned(),
        STANDARD.encode("PrivateKey"),
        STANDARD.encode("rivateKey"),
        STANDARD.encode("ivateKey"),
    ] {
        assert!(!text.contains(form.trim_end_matches('=')), "{form}");
    }
}

#[tokio::test]
async fn what_cannot_be_backed_up_is_said() {
    let fake = fake();
    let refused = back_up(&fake).await.unwrap_err();
    assert_eq!(refused, "there is no certificate and no account in the Docker volume traefik-acme yet");
    fs::write(at(&fake, "cloudflare.json"), "").unwrap();
    symlink("cloudflare.json", at(&fake, "link.json")).unwrap();
    let refused = back_up(&fake).await.unwrap_err();
    assert!(refused.ends_with(" yet (cloudflare.json is empty, link.json is a symbolic link)"), "{refused}");
    fs::write(at(&fake, "large.json"), vec![b'1'; MOST_BYTES + 1]).unwrap();
    assert!(back_up(&fake).await.unwrap_err().contains("the limit is 4194304"));
    let refused = seal_volume(&fake.sys, VOLUME, "zz", &mut Vec::new()).await.unwrap_err();
    assert!(refused.contains("64 hexadecimal digits"), "{refused}");

    let mut other = said();
    other["Options"] = json!({"type": "nfs"});
    fake.answers("GET /volumes/traefik-acme", 200, other);
    assert!(back_up(&fake).await.unwrap_err().contains("no plain directory"));
    let none = Fake::new();
    assert!(back_up(&none).await.unwrap_err().starts_with("there is no Docker volume traefik-acme"));
    fs::remove_file(none.sys.real("/run/docker.sock")).unwrap();
    assert!(back_up(&none).await.unwrap_err().contains("engine does not run here"));
}

/// Traefik writes its files over themselves.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let sys = Sys::rooted(dir.path().to_owned(), String::new());
    let path = dir.path().join("cloudflare.json");
    fs::write(&path, &ACME[..20]).unwrap();
    assert!(take(&sys, "/").await.unwrap_err().contains("no whole JSON"));
    let writer = path.clone();
    tokio::spawn(async move {
        tokio::time::sleep(READ_AGAIN * 3).await;
        fs::write(writer, ACME).unwrap();
    });
    assert_eq!(take(&sys, "/").await.unwrap().files, [file("cloudflare.json", ACME)]);
    // First it is emptied, and written only then.
    fs::write(&path, "").unwrap();
    assert_eq!(take(&sys, "/").await.unwrap().left_out, ["cloudflare.json is empty"]);
    tokio::spawn(async move {
        tokio::time::sleep(READ_AGAIN * 2).await;
        fs::write(path, ACME).unwrap();
    });
    let taken = take(&sys, "/").await.unwrap();
    assert_eq!((taken.files, taken.left_out), (vec![file("cloudflare.json", ACME)], Vec::new()));
}

/// A backup is older than what is there, as often as not.
#[tokio::test]
async fn what_differs_is_replaced_by_order_only() {
    let fake = fake();
    let names = ["a.json", "b.json", "c.json"];
    let wanted = parcel(&names.map(|name| (name, ACME)));
    for (name, content) in names.iter().zip(["{\"a\": {\"Certificates\": [1]}}", "", "no JSON"]) {
        fs::write(at(&fake, name), content).unwrap();
    }
    let before = snapshot(&fake);
    let refused = restore(&fake, &wanted).await.unwrap_err();
    assert!(refused.starts_with("nothing was restored: ") && refused.contains("`--replace`"), "{refused}");
    assert!(refused.contains("other content in a.json, c.json already"), "{refused}");
    assert_eq!((snapshot(&fake), run_dir(&fake)), (before, Vec::new()));
    let kept: Vec<_> =
        replace(&fake, &wanted).await.unwrap().files.into_iter().map(|file| file.kept_as).collect();
    let kept_as = |name: &str| Some(format!("{name}.before-restore"));
    assert_eq!(kept, [kept_as("a.json"), None, kept_as("c.json")]);
    // What has nothing in it is no loss.
    for blank in
        ["", "{}", "{\"cloudflare\": null}", "{\"cloudflare\": {\"Account\": null, \"Certificates\": []}}"]
    {
        fs::write(at(&fake, "a.json"), blank).unwrap();
        assert!(restore(&fake, &wanted).await.unwrap().files[0].written, "{blank}");
    }
}

/// A Traefik that ends may write what it has in memory.
#[tokio::test]
async fn what_is_written_over_while_it_is_restarted_is_told() {
    let stored = |key: &str, domains: &[&str]| {
        let certificates: Vec<Value> = domains.iter().map(|it| json!({"domain": {"main": it}})).collect();
        let account = json!({"Email": "ada@example.org", "PrivateKey": key});
        json!({"cloudflare": {"Account": account, "Certificates": certificates}}).to_string()
    };
    let put = stored("k3y", &["a.example.org", "b.example.org"]);
    for (there, lost) in [
        (put.clone(), false),
        (stored("k3y", &["b.example.org", "c.example.org", "a.example.org"]), false),
        (stored("k3y", &["b.example.org", "c.example.org"]), true),
        (stored("other", &["a.example.org", "b.example.org"]), true),
        (String::new(), true),
        ("{}".to_owned(), true),
    ] {
        let fake = fake();
        let wanted = parcel(&[("a.json", put.as_bytes())]);
        // The moment at which the new one runs.
        let path = at(&fake, "a.json");
        let script = format!("case $* in *POSTERN-HOLD*) printf '%s' '{there}' >{}; esac", path.display());
        fake.program("iptables", &script);
        fake.program("ip6tables", "exit 1");
        runs(&fake, "completed");
        fake.answers("POST /services/s/update", 200, json!({}));
        let restored = restore(&fake, &wanted).await.unwrap();
        let told = (Service::Overwritten, "a.json was written over meanwhile".to_owned());
        let good = (Service::Restarted, String::new());
        assert_eq!((restored.service, restored.trouble), if lost { told } else { good }, "{there}");
        assert_eq!(run_dir(&fake).len(), usize::from(lost), "it is remembered");
    }
}

/// A service of ours with a port of the host, and its one task, which runs as it says.
fn runs(fake: &Fake, update: &str) {
    let port = json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 1, "PublishMode": "host"});
    let mut service = super::super::settle::tests::service("traefik:v3", update);
    service["Spec"]["Name"] = SERVICE.into();
    service["Spec"]["Labels"] = json!({super::super::MANAGED: "true"});
    service["Spec"]["EndpointSpec"] = json!({"Ports": [port]});
    let task = json!({"ID": "t", "DesiredState": "running", "Status": {"State": "running"},
        "Spec": service["Spec"]["TaskTemplate"]});
    fake.answers("GET /services/traefik", 200, service);
    fake.answers("GET /tasks", 200, json!([task]));
}

/// What is held for an update is let go where there is none.
#[tokio::test]
async fn an_update_that_is_refused_holds_no_port() {
    let fake = fake();
    let log = fake.dir.path().join("held");
    fake.program("iptables", &format!("echo \"$5 $6\" >>{}", log.display()));
    fake.program("ip6tables", "exit 1");
    runs(&fake, "");
    fake.answers("POST /services/s/update", 500, json!({"message": "not now"}));
    let restored = restore(&fake, &parcel(&[("a.json", b"1")])).await.unwrap();
    assert_eq!((restored.service, run_dir(&fake).len()), (Service::NotRestarted, 1));
    let log = fs::read_to_string(log).unwrap();
    let (_, after) = log.split_once("-I PREROUTING\n").unwrap();
    assert_eq!(after, "-D PREROUTING\n-F POSTERN-HOLD\n-X POSTERN-HOLD\n");
}

#[tokio::test]
async fn one_restore_at_a_time() {
    let fake = fake();
    let sent = sealed(&fake, &parcel(&[("a.json", b"1")]));
    let lock = keys::lock(&fake.sys).unwrap();
    for refused in [
        volume_key(&fake.sys, &mut Vec::new()).unwrap_err(),
        volume_piece(&fake.sys, "0", &mut &b""[..]).unwrap_err(),
        put_back(&fake, &sent).await.unwrap_err(),
    ] {
        assert!(refused.contains("another restore goes on here"), "{refused}");
    }
    drop(lock);
    put_back(&fake, &sent).await.unwrap();
}

#[tokio::test]
async fn what_a_restore_that_was_cut_off_left_goes() {
    let fake = fake();
    let hour = Duration::from_secs(3600);
    let forget = |idle| keys::forget(&fake.sys, idle);
    assert_eq!(forget(Duration::ZERO), Ok(false));
    assert!(!fake.sys.real("/run/postern-agent/volumes").exists(), "nothing is made where there was nothing");
    let begin = || {
        let sent = sealed(&fake, &parcel(&[("a.json", b"1")]));
        keys::add(&fake.sys, 0, b"piece").unwrap();
        keys::set_unread(&fake.sys, "other", true).unwrap();
        assert_eq!(run_dir(&fake), ["key", "sealed", "unread-other"]);
        sent
    };
    begin();
    let lock = keys::lock(&fake.sys).unwrap();
    assert_eq!(forget(Duration::ZERO), Ok(false), "a restore that goes on keeps it");
    drop(lock);
    assert_eq!((forget(hour), run_dir(&fake).len()), (Ok(false), 3), "one that was just begun");
    // A piece that came since: it goes on.
    let back_by = |name: &str, age| {
        let file = fs::File::open(fake.sys.real("/run/postern-agent/volumes").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    };
    back_by("key", hour * 2);
    assert_eq!((forget(hour), run_dir(&fake).len()), (Ok(false), 3));
    back_by("sealed", hour * 2);
    assert_eq!((forget(hour), run_dir(&fake)), (Ok(true), vec!["unread-other".to_owned()]));
    // An agent that starts waits for no time.
    let sent = begin();
    let started = tokio::time::timeout(Duration::from_secs(2), forget_restores(fake.sys.clone()));
    assert!(started.await.is_err(), "it goes on looking");
    assert_eq!(run_dir(&fake), ["unread-other"]);
    let refused = put_back(&fake, &sent).await.unwrap_err();
    assert!(refused.contains("not here any more: restore again"), "{refused}");
}

/// What was written before something went wrong is said.
#[tokio::test]
async fn how_far_it_got_is_told() {
    let fake = fake();
    // In the way of what is written before it takes the file's place.
    fs::create_dir(at(&fake, ".b.json.postern-new")).unwrap();
    let wanted = parcel(&[("a.json", b"1"), ("b.json", b"2")]);
    let refused = restore(&fake, &wanted).await.unwrap_err();
    assert!(refused.starts_with("restored up to here: a.json; then: "), "{refused}");
}

#[tokio::test]
async fn a_host_made_anew_has_the_same_files() {
    let fake = Fake::new();
    let wanted = parcel(&[("cloudflare.json", ACME), ("note", b"x")]);
    let sent = sealed(&fake, &wanted);
    // An engine makes the directory; this one only says that it did.
    fs::create_dir_all(at(&fake, "")).unwrap();
    fake.answers("POST /volumes/create", 201, said());
    let restored = put_back(&fake, &sent).await.unwrap();
    assert_eq!(fake.body_of("POST /volumes/create"), json!({"Name": VOLUME}));
    assert!(restored.files.iter().all(|file| file.written && file.kept_as.is_none()), "{restored:?}");
    assert_eq!(restored.service, Service::Absent);
    assert_eq!(
        snapshot(&fake),
        [("cloudflare.json".to_owned(), ACME.to_vec()), ("note".to_owned(), b"x".to_vec())]
    );
    assert_eq!(fs::metadata(at(&fake, "note")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(run_dir(&fake), Vec::<String>::new(), "no key, no cipher text, nothing unread");
    // The key was for once.
    fake.answers("GET /volumes/traefik-acme", 200, said());
    assert!(put_back(&fake, &sent).await.unwrap_err().contains("not here any more"));

    let again = restore(&fake, &wanted).await.unwrap();
    assert!(again.files.iter().all(|file| !file.written), "{again:?}");
    assert_eq!(again.service, Service::Unchanged);
    fs::set_permissions(at(&fake, "note"), fs::Permissions::from_mode(0o644)).unwrap();
    let again = restore(&fake, &wanted).await.unwrap();
    assert_eq!(again.files.iter().map(|file| file.written).collect::<Vec<_>>(), [false, true]);
    assert_eq!(fs::metadata(at(&fake, "note")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn what_is_there_is_kept() {
    let fake = fake();
    let kept = |restored: Restored| restored.files[0].kept_as.clone();
    fs::write(at(&fake, "a.json"), "1").unwrap();
    assert_eq!(
        kept(replace(&fake, &parcel(&[("a.json", b"2")])).await.unwrap()).unwrap(),
        "a.json.before-restore"
    );
    assert_eq!(
        kept(replace(&fake, &parcel(&[("a.json", b"3")])).await.unwrap()).unwrap(),
        "a.json.before-restore.2"
    );
    // What is kept already is not kept twice.
    assert_eq!(
        kept(replace(&fake, &parcel(&[("a.json", b"1")])).await.unwrap()).unwrap(),
        "a.json.before-restore.3"
    );
    assert_eq!(
        kept(replace(&fake, &parcel(&[("a.json", b"4")])).await.unwrap()).unwrap(),
        "a.json.before-restore"
    );
    let names = ["a.json", "a.json.before-restore", "a.json.before-restore.2", "a.json.before-restore.3"];
    assert_eq!(snapshot(&fake).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
    assert_eq!(fs::read(at(&fake, "a.json.before-restore")).unwrap(), b"1");
    for value in [&b"5"[..], b"6", b"7", b"8", b"9", b"10"] {
        replace(&fake, &parcel(&[("a.json", value)])).await.unwrap();
    }
    let refused = replace(&fake, &parcel(&[("b.json", b"1"), ("a.json", b"11")])).await.unwrap_err();
    assert!(refused.contains("remove those first"), "{refused}");
    assert!(!at(&fake, "b.json").exists(), "all is decided before anything is written");
}

#[tokio::test]
async fn nothing_is_written_of_what_cannot_be_opened() {
    let fake = fake();
    fs::write(at(&fake, "a.json"), "1").unwrap();
    let before = snapshot(&fake);
    let wanted = parcel(&[("a.json", b"2")]);

    let mut changed = sealed(&fake, &wanted);
    *changed.last_mut().unwrap() ^= 1;
    let refused = put_back(&fake, &changed).await.unwrap_err();
    assert!(refused.starts_with("nothing was restored: it cannot be opened"), "{refused}");
    let short = sealed(&fake, &wanted);
    assert!(put_back(&fake, &short[..short.len() - 1]).await.is_err());
    // To the key of another restore.
    let other = wanted.seal(Way::Restore, VOLUME, &new_key().public(), &new_key()).unwrap();
    sealed(&fake, &wanted);
    assert!(put_back(&fake, &other).await.is_err());
    sealed(&fake, &wanted);
    let refused = open(&fake, "no base64!", true).await;
    assert!(refused.unwrap_err().contains("not as it was sent"));
    assert_eq!((snapshot(&fake), run_dir(&fake)), (before, Vec::new()));
}

#[tokio::test]
async fn trap_48_no_link_is_written_through() {
    let fake = fake();
    fs::write(fake.sys.real("/outside"), "theirs").unwrap();
    symlink(fake.sys.real("/outside"), at(&fake, "b.json")).unwrap();
    let refused = restore(&fake, &parcel(&[("a.json", b"1"), ("b.json", b"2")])).await.unwrap_err();
    assert!(refused.contains("b.json is a symbolic link"), "{refused}");
    assert!(!at(&fake, "a.json").exists());
    assert_eq!(fs::read(fake.sys.real("/outside")).unwrap(), b"theirs");
    // A link in the place of what is kept is not written through either.
    fs::remove_file(at(&fake, "b.json")).unwrap();
    fs::write(at(&fake, "b.json"), "1").unwrap();
    symlink(fake.sys.real("/outside"), at(&fake, "b.json.before-restore")).unwrap();
    let restored = replace(&fake, &parcel(&[("b.json", b"2")])).await.unwrap();
    assert_eq!(restored.files[0].kept_as.as_deref(), Some("b.json.before-restore.2"));
    assert_eq!(fs::read(fake.sys.real("/outside")).unwrap(), b"theirs");
}

#[tokio::test]
async fn what_is_too_long_for_one_plan_comes_in_pieces() {
    let fake = fake();
    let content = vec![7; 900_000];
    let sent = sealed(&fake, &parcel(&[("a", &content)]));
    let (first, rest) = sent.split_at(parcel::PIECE_BYTES);
    let piece =
        |offset: &str, bytes: &[u8]| volume_piece(&fake.sys, offset, &mut STANDARD.encode(bytes).as_bytes());
    assert!(piece("1", first).unwrap_err().contains("does not follow"));
    assert!(piece("x", first).unwrap_err().contains("offset"));
    piece("0", first).unwrap();
    assert!(piece("0", first).is_err(), "once");
    put_back(&fake, rest).await.unwrap();
    assert_eq!(fs::read(at(&fake, "a")).unwrap(), content);
    // Those of a restore that was not ended go with its key.
    sealed(&fake, &parcel(&[]));
    piece("0", first).unwrap();
    sealed(&fake, &parcel(&[]));
    assert_eq!(run_dir(&fake), ["key"]);
}

/// T07: that a service has to be restarted is not forgotten.
#[tokio::test]
async fn trap_07_a_restart_that_failed_is_made_up_for() {
    let fake = fake();
    let mut service = super::super::settle::tests::service("traefik:v3", "");
    service["Spec"]["Name"] = SERVICE.into();
    fake.answers("GET /services/traefik", 200, service.clone());
    fake.answers("GET /tasks", 200, json!([]));
    let foreign = replace(&fake, &parcel(&[("a.json", b"0")])).await.unwrap();
    assert_eq!(foreign.trouble, "the service traefik was not made by Postern");
    service["Spec"]["Labels"] = json!({super::super::MANAGED: "true"});
    fake.answers("GET /services/traefik", 200, service);
    fake.answers("POST /services/s/update", 500, json!({"message": "not now"}));
    let wanted = parcel(&[("a.json", b"1")]);
    for written in [true, false] {
        let restored = replace(&fake, &wanted).await.unwrap();
        assert_eq!((restored.files[0].written, restored.service), (written, Service::NotRestarted));
        assert!(restored.trouble.ends_with("not now"), "{restored:?}");
        assert_eq!(run_dir(&fake), ["unread-traefik-acme"]);
    }
    fake.answers("GET /services/traefik", 404, json!({"message": "none"}));
    assert_eq!(restore(&fake, &wanted).await.unwrap().service, Service::Absent);
    assert_eq!(restore(&fake, &wanted).await.unwrap().service, Service::Unchanged);
    // An engine that is no manager of a Swarm.
    fs::write(at(&fake, "a.json"), "2").unwrap();
    fake.answers("GET /services/traefik", 503, json!({"message": "no swarm"}));
    // Also one that has lost its leader says so: its services are there.
    for state in ["active", "pending", "error"] {
        fake.answers("GET /info", 200, json!({"Swarm": {"LocalNodeState": state}}));
        let restored = replace(&fake, &wanted).await.unwrap();
        assert_eq!(restored.service, Service::NotRestarted, "{state}");
        assert!(restored.trouble.ends_with("no swarm"), "{restored:?}");
        assert_eq!(run_dir(&fake), ["unread-traefik-acme"]);
    }
    fake.answers("GET /info", 200, json!({"Swarm": {"LocalNodeState": "inactive"}}));
    assert_eq!(restore(&fake, &wanted).await.unwrap().service, Service::Absent);
}

#[test]
fn names_of_what_was_kept() {
    for kept in ["a.json.before-restore", "a.before-restore.2"] {
        assert!(is_kept(kept), "{kept}");
    }
    for other in ["a.json", "a.before-restored", "a.before-restore.x", "before-restore"] {
        assert!(!is_kept(other), "{other}");
    }
}
