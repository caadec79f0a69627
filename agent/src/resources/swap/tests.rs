//! Plans, ways back and obstacles of swap files.

use serde_json::json;

use super::*;
use crate::resources::fixture::Fixture;

fn spec(json: serde_json::Value) -> SwapSpec {
    serde_json::from_value(json).unwrap()
}

fn lines(steps: &[Step]) -> Vec<String> {
    steps.iter().map(Step::summary).collect()
}

fn file(mb: u64) -> Option<File> {
    Some(File { bytes: mb << 20, private: true, whole: true })
}

/// The host once this is in force.
fn in_force(spec: &SwapSpec) -> Seen {
    Seen {
        file: file(spec.size_mb.unwrap()),
        used: true,
        unit: Some(make::unit(&unit_text(spec))),
        enabled: true,
        free_kib: 1 << 20,
        ..Seen::default()
    }
}

const NEW: &str = "/swapfile.postern-new";

fn made(mb: u64) -> Vec<String> {
    vec![
        format!("install -m 0600 /dev/null {NEW}"),
        format!("dd if=/dev/zero of={NEW} bs=1M count={mb} conv=notrunc,fsync status=none"),
        format!("mkswap {NEW}"),
    ]
}

#[test]
fn plans_and_ways_back_by_table() {
    let spec = spec(json!({"size_mb": 512}));
    let now = in_force(&spec);
    let unit = "/etc/systemd/system/swapfile.swap";
    let (moved, start) = (format!("mv -fT -- {NEW} /swapfile"), "systemctl start -- swapfile.swap");
    let (write, reload) = (format!("write {unit}"), "systemctl daemon-reload");
    let (enable, disable) = ("systemctl enable -- swapfile.swap", "systemctl disable -- swapfile.swap");
    let off = "swapoff -- /swapfile";
    let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let bare = Seen::default();
    let other_size = Seen { file: file(256), ..now.clone() };
    let cases = [
        (now.clone(), vec![]),
        (bare.clone(), [made(512), texts(&[&moved, &write, reload, enable, start])].concat()),
        (
            Seen { btrfs: true, ..bare.clone() },
            [
                made(512)[..1].to_vec(),
                vec![format!("chattr +C {NEW}")],
                made(512)[1..].to_vec(),
                texts(&[&moved, &write, reload, enable, start]),
            ]
            .concat(),
        ),
        (Seen { used: false, ..now.clone() }, texts(&[start])),
        (Seen { enabled: false, ..now.clone() }, texts(&[enable])),
        (Seen { unit: None, enabled: false, ..now.clone() }, texts(&[&write, reload, enable])),
        (other_size.clone(), [made(512), texts(&[off, &moved, start])].concat()),
        (
            Seen { file: Some(File { private: false, ..file(512).unwrap() }), ..now.clone() },
            texts(&["set owner and mode 0600 of /swapfile"]),
        ),
        (
            Seen { file: Some(File { whole: false, ..file(512).unwrap() }), ..now.clone() },
            [made(512), texts(&[off, &moved, start])].concat(),
        ),
        // Swap of others counts, but takes nothing away that is there.
        (Seen { others_kib: 512 * 1024 - 4, ..bare.clone() }, vec![]),
        (Seen { others_kib: 1 << 30, ..now.clone() }, vec![]),
        // Somebody's own file and line in fstab.
        (Seen { unit: None, enabled: false, in_fstab: true, ..now.clone() }, vec![]),
        (
            Seen { unit: None, enabled: false, used: false, in_fstab: true, ..now.clone() },
            texts(&["swapon -- /swapfile"]),
        ),
    ];
    for (seen, want) in cases {
        assert_eq!(lines(&Swap::plan(&spec, &seen)), want, "{seen:?}");
        assert_eq!(Swap::diff(&spec, &seen).is_empty(), want.is_empty(), "{seen:?}");
    }
    let undo = |before: &Seen, now: &Seen| match Swap::undo(&spec, before, &json!(null), now) {
        Undo::Steps(steps) => lines(&steps),
        Undo::Cannot(why) => panic!("{why}"),
    };
    let gone = texts(&[disable, off, "remove /swapfile", &format!("remove {unit}"), reload]);
    assert_eq!(undo(&bare, &now), gone);
    assert_eq!(undo(&now, &bare), [made(512), texts(&[&moved, &write, reload, enable, start])].concat());
    assert_eq!(undo(&other_size, &now), [made(256), texts(&[off, &moved, start])].concat());

    let absent = super::tests::spec(json!({"state": "absent"}));
    assert_eq!(lines(&Swap::plan(&absent, &now)), gone);
    assert_eq!(Swap::plan(&absent, &Seen { others_kib: 7, ..bare }), []);
}

/// What does not fit into memory stays where it is.
#[test]
fn a_swap_file_that_memory_cannot_take_back_is_left_in_use() {
    let spec = spec(json!({"size_mb": 512}));
    let full = Seen { used_kib: 300 * 1024, free_kib: 200 * 1024, ..in_force(&spec) };
    let Undo::Cannot(why) = Swap::undo(&spec, &Seen::default(), &json!(null), &full) else { panic!() };
    assert!(why.starts_with("300 MB are swapped out to /swapfile, and there are only 200 MB"), "{why}");
    let room = Seen { free_kib: 300 * 1024, ..full.clone() };
    assert!(matches!(Swap::undo(&spec, &Seen::default(), &json!(null), &room), Undo::Steps(_)));
    // Nothing is taken out of use where only the mode is set.
    assert_eq!(make::no_room_in_memory(&spec, &wanted(&spec, &full), &full), None);
}

#[test]
fn lines_of_fstab_by_table() {
    for (line, want) in [
        ("/swapfile none swap sw 0 0", true),
        ("/swapfile\tswap\tswap\tdefaults", true),
        ("/swapfile none swap sw,noauto 0 0", false),
        ("# /swapfile none swap sw 0 0", false),
        ("/swapfile2 none swap sw 0 0", false),
        ("/swapfile /mnt ext4 loop 0 0", false),
        ("", false),
    ] {
        assert_eq!(in_fstab(line, "/swapfile"), want, "{line}");
    }
}

fn host() -> Fixture {
    let host = Fixture::without_programs();
    host.write("proc/meminfo", "MemTotal: 491520 kB\nMemAvailable: 300000 kB\nSwapTotal: 0 kB\n");
    host.write("proc/swaps", "Filename Type Size Used Priority\n");
    host
}

async fn look(host: &Fixture, json: serde_json::Value) -> Result<Seen, String> {
    Swap::observe(&spec(json), &host.sys, Depth::Cheap).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn what_is_in_the_way_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    // A directory of root's is asked for.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = host();
    let want = json!({"path": "/var/swap", "size_mb": 16});
    let why = async |json: &serde_json::Value| look(&host, json.clone()).await.unwrap_err();
    assert!(why(&want).await.starts_with("/var is no directory"), "{}", why(&want).await);
    std::fs::create_dir(host.at("var")).unwrap();
    std::fs::set_permissions(host.at("var"), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(why(&want).await.starts_with("others than root can write /var"), "{}", why(&want).await);
    std::fs::set_permissions(host.at("var"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let large = json!({"path": "/var/swap", "size_mb": 1 << 20});
    let (room, here) = (host.sys.room("/var").unwrap(), why(&large).await);
    match KINDS.contains(&room.kind) {
        true => {
            assert!(here.contains("and 1048576 MB of swap must leave 512 MB of them"), "{here}");
            assert!(look(&host, want.clone()).await.is_ok());
        }
        false => assert!(here.contains("that the kernel cannot swap to"), "{here}"),
    }
    host.write("var/swap", [7u8; 8192]);
    assert!(why(&want).await.starts_with("/var/swap is a file and no swap file"), "{}", why(&want).await);
    // One that is swap, by the kernel's mark, is taken for what it is.
    let mut marked = vec![0; 16 << 20];
    marked[4086..4096].copy_from_slice(MARK);
    host.write("var/swap", marked);
    host.write("run/systemd/container", "lxc\n");
    assert!(why(&want).await.starts_with("this host is a container (lxc)"), "{}", why(&want).await);
    std::fs::remove_file(host.at("run/systemd/container")).unwrap();
    host.write("etc/fstab", "/var/swap none swap sw 0 0\n");
    let absent = json!({"path": "/var/swap", "state": "absent"});
    assert!(
        why(&absent).await.starts_with("a line in /etc/fstab swaps to /var/swap"),
        "{}",
        why(&absent).await
    );
    host.write("etc/fstab", "");
    host.write(
        "proc/swaps",
        "Filename Type Size Used Priority\n/var/swap file 16380 400000 -2\n/dev/x partition 8 0 -3\n",
    );
    assert!(why(&absent).await.starts_with("390 MB are swapped out to /var/swap"), "{}", why(&absent).await);
    host.write(
        "proc/swaps",
        "Filename Type Size Used Priority\n/var/swap file 16380 4 -2\n/dev/x partition 8 0 -3\n",
    );
    let seen = look(&host, absent).await.unwrap();
    assert_eq!((seen.used, seen.used_kib, seen.others_kib), (true, 4, 8));
}
