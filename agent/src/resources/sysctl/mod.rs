//! `sysctl`: a setting of the kernel, in a file of its own for the next boot and in force now.

mod boot;

use postern_proto::ids::PlanHash;
use postern_proto::spec::{Presence, SysctlSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::boot::Setting;
use super::diff::unified;
use super::{Depth, ObserveError, Protect, Resource, Step, Undo, WriteFile, base64_bytes};
use crate::sys::{FileKind, Meta, Sys};

/// Where ours lie.
const DIRECTORY: &str = "/etc/sysctl.d";
/// The most that is read of a value or of our file, bytes.
const READ_LIMIT: u64 = 64 * 1024;
/// Permission bits of our file.
const MODE: u32 = 0o644;

/// Settings of the network with which a host can stop taking or answering packets, by the end of their names
/// (ip-sysctl.rst of the kernel's documentation). To forward switches router advertisements off, and with them
/// the way out over IPv6.
const CUT: &[&str] = &[
    "accept_local",
    "accept_ra",
    "accept_ra_defrtr",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "autoconf",
    "disable_ipv6",
    "disable_policy",
    "disable_xfrm",
    "forwarding",
    "ip_forward",
    "route_localnet",
    "rp_filter",
    "use_tempaddr",
];

pub(super) struct Sysctl;

/// What is there.
#[derive(Serialize, Deserialize)]
pub(super) struct Seen {
    file: Option<(Meta, Content)>,
    /// As the kernel says it; `None` when it has no such setting.
    live: Option<String>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Content(#[serde(with = "base64_bytes")] Vec<u8>);

impl Resource for Sysctl {
    type Spec = SysctlSpec;
    type Seen = Seen;

    async fn observe(spec: &SysctlSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let path = file_of(spec);
        let file = match host.meta(&path)? {
            Some(meta) if meta.kind == FileKind::File => {
                let content = host.read(&path, READ_LIMIT)?.unwrap_or_default();
                Some((meta, Content(content)))
            }
            Some(meta) => {
                let what = meta.kind.as_str();
                return Err(ObserveError::Obstacle(format!("{path} is {what}: remove it")));
            }
            None => None,
        };
        let live = live(spec, host)?;
        if spec.state == Presence::Absent || depth == Depth::Whole {
            return Ok(Seen { file, live });
        }
        let name = spec.dotted();
        if live.is_none() {
            let why = format!("the kernel of this host has no {name}: there is no {}", proc_of(spec));
            return Err(ObserveError::Obstacle(why));
        }
        if !host.is_directory(DIRECTORY)? {
            let why = format!("the directory {DIRECTORY} for {path} is not there: is systemd installed?");
            return Err(ObserveError::Obstacle(why));
        }
        if let Some(why) =
            boot::overruled(host, &file_name(spec), &spec.key())?.and_then(|by| lost(spec, &by))
        {
            return Err(ObserveError::Obstacle(why));
        }
        Ok(Seen { file, live })
    }

    fn plan(spec: &SysctlSpec, seen: &Seen) -> Vec<Step> {
        let path = file_of(spec);
        let Some(value) = spec.value.as_deref().filter(|_| spec.state == Presence::Present) else {
            return seen.file.iter().map(|_| Step::Remove { path: path.clone() }).collect();
        };
        let mut steps = Vec::new();
        // The kernel first: what it refuses is not written down for the next boot.
        if seen.live.as_deref().map(folded) != Some(folded(value)) {
            steps.push(Step::WriteKernel { path: proc_of(spec), value: value.to_owned() });
        }
        let content = content_of(spec, value);
        let same = |(meta, was): &(Meta, Content)| {
            was.0 == content.as_bytes() && (meta.mode, meta.uid, meta.gid) == (MODE, 0, 0)
        };
        if !seen.file.as_ref().is_some_and(same) {
            let content = content.into_bytes();
            let file = WriteFile { path, content, mode: MODE, uid: 0, gid: 0, validate: None };
            steps.push(Step::WriteFile(file));
        }
        steps
    }

    fn protect(spec: &SysctlSpec, _: &Seen) -> Option<Protect> {
        let key = spec.key();
        let (first, last) = (key.split('/').next(), key.rsplit('/').next());
        (first == Some("net") && last.is_some_and(|last| CUT.contains(&last))).then(Protect::default)
    }

    fn essence(spec: &SysctlSpec, seen: &Seen) -> serde_json::Value {
        let file = seen.file.as_ref().map(|(meta, content)| {
            json!({"sha256": PlanHash::of(&content.0), "mode": meta.mode, "uid": meta.uid, "gid": meta.gid})
        });
        // What is only not set at boot any more may be set now by anybody.
        let live = seen.live.as_deref().map(folded).filter(|_| spec.state == Presence::Present);
        json!({"file": file, "live": live})
    }

    fn undo(spec: &SysctlSpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        let mut steps = Vec::new();
        if let (Some(was), Presence::Present) = (&before.live, spec.state)
            && now.live.as_deref().map(folded) != Some(folded(was))
        {
            steps.push(Step::WriteKernel { path: proc_of(spec), value: was.clone() });
        }
        let path = file_of(spec);
        match (&before.file, &now.file) {
            (None, None) => {}
            (None, Some(_)) => steps.push(Step::Remove { path }),
            (Some(was), Some(is)) if same_file(was, is) => {}
            (Some((meta, content)), _) => steps.push(Step::WriteFile(WriteFile {
                path,
                content: content.0.clone(),
                mode: meta.mode,
                uid: meta.uid,
                gid: meta.gid,
                validate: None,
            })),
        }
        Undo::Steps(steps)
    }

    fn diff(spec: &SysctlSpec, seen: &Seen) -> String {
        let old = seen.file.as_ref().map(|(_, content)| content.0.as_slice());
        let value = spec.value.as_deref().filter(|_| spec.state == Presence::Present);
        let new = value.map(|value| content_of(spec, value));
        let mut text = String::new();
        if let (Some(live), Some(value)) = (&seen.live, value)
            && folded(live) != folded(value)
        {
            text = format!("{}: {} -> {}\n", spec.dotted(), folded(live), folded(value));
        }
        if let (Some((meta, _)), Some(_)) = (&seen.file, value) {
            text += &super::diff::attributes(&file_of(spec), meta, MODE, (0, "root"), (0, "root"));
        }
        text + &unified(&file_of(spec), old, new.as_deref().map(str::as_bytes))
    }
}

fn same_file(one: &(Meta, Content), other: &(Meta, Content)) -> bool {
    let attributes = |meta: &Meta| (meta.mode, meta.uid, meta.gid);
    one.1 == other.1 && attributes(&one.0) == attributes(&other.0)
}

/// A value with every run of white space as one space: the kernel answers with tabs.
fn folded(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The name of our file. A dot within a part becomes a `~`, which no name has.
fn file_name(spec: &SysctlSpec) -> String {
    format!("90-postern-{}.conf", spec.key().replace('.', "~").replace('/', "."))
}

fn file_of(spec: &SysctlSpec) -> String {
    format!("{DIRECTORY}/{}", file_name(spec))
}

fn proc_of(spec: &SysctlSpec) -> String {
    format!("/proc/sys/{}", spec.key())
}

fn content_of(spec: &SysctlSpec, value: &str) -> String {
    format!("# Written by Postern.\n{} = {}\n", spec.dotted(), value.trim())
}

/// What is in force. A group of settings is none.
fn live(spec: &SysctlSpec, host: &Sys) -> Result<Option<String>, ObserveError> {
    let path = proc_of(spec);
    if host.meta(&path)?.is_some_and(|meta| meta.kind == FileKind::Directory) {
        let why = format!("{} is a group of settings, not one", spec.dotted());
        return Err(ObserveError::Obstacle(why));
    }
    let bytes = host.read(&path, READ_LIMIT)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()))
}

/// Why what we write does not hold at the next boot; `None` where the other file says the same.
fn lost(spec: &SysctlSpec, by: &Setting) -> Option<String> {
    let value = folded(spec.value.as_deref().unwrap_or_default());
    let (name, place) = (spec.dotted(), format!("{} line {}", by.file, by.line));
    match by.value.as_deref().map(folded) {
        Some(theirs) if theirs == value => None,
        Some(theirs) => Some(format!(
            "{place} sets {name} to {theirs} at boot, after us: remove that line, or declare {theirs}"
        )),
        None => Some(format!("{place} keeps {name} from being set at boot: remove that line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(files: &[(&str, &str)]) -> (tempfile::TempDir, Sys) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys)
    }

    fn spec(json: serde_json::Value) -> SysctlSpec {
        serde_json::from_value(json).unwrap()
    }

    /// As the engine would, for the steps of this kind.
    fn act(steps: &[Step], sys: &Sys) {
        for step in steps {
            match step {
                Step::WriteKernel { path, value } => {
                    // A file of the kernel's is written in place and then holds what was written.
                    std::fs::write(sys.real(path), format!("{}\n", value.replace(' ', "\t"))).unwrap();
                }
                Step::WriteFile(file) => {
                    let (path, content) = (&*file.path, &*file.content);
                    let new =
                        crate::sys::NewFile { path, content, mode: file.mode, uid: file.uid, gid: file.gid };
                    sys.replace(&new, |_| Ok(())).unwrap().unwrap();
                }
                Step::Remove { path } => sys.remove(path).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }

    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const OURS: &str = "/etc/sysctl.d/90-postern-net.ipv4.ip_local_port_range.conf";

    #[test]
    fn what_can_cut_the_host_off_is_guarded() {
        let guarded = |name: &str| {
            let seen = Seen { file: None, live: None };
            Sysctl::protect(&spec(json!({"name": name, "value": "1"})), &seen).is_some()
        };
        for name in
            ["net.ipv4.ip_forward", "net/ipv6/conf/eth0.100/disable_ipv6", "net.ipv4.conf.all.rp_filter"]
        {
            assert!(guarded(name), "{name}");
        }
        for name in
            ["net.ipv4.conf.all.send_redirects", "vm.swappiness", "kernel.forwarding", "net.core.somaxconn"]
        {
            assert!(!guarded(name), "{name}");
        }
    }

    #[tokio::test]
    async fn plans_by_table() {
        let written = "# Written by Postern.\nnet.ipv4.ip_local_port_range = 1024 9999\n";
        let (kernel, file) =
            ("set net.ipv4.ip_local_port_range to 1024 9999".to_owned(), format!("write {OURS}"));
        let present = json!({"name": "net.ipv4.ip_local_port_range", "value": "1024 9999"});
        let absent = json!({"name": "net/ipv4/ip_local_port_range", "state": "absent"});
        let root = rustix::process::geteuid().is_root();
        let cases = [
            (&present, vec![(RANGE, "32768\t60999\n")], vec![kernel.clone(), file.clone()]),
            (&present, vec![(RANGE, "1024\t9999\n")], vec![file.clone()]),
            (&present, vec![(RANGE, "1024\t9999\n"), (OURS, "old")], vec![file.clone()]),
            (&present, vec![(RANGE, "1\t2\n"), (OURS, written)], vec![kernel]),
            (&present, vec![(RANGE, "1024\t9999\n"), (OURS, written)], vec![]),
            (&absent, vec![(RANGE, "1\t2\n"), (OURS, written)], vec![format!("remove {OURS}")]),
            (&absent, vec![(RANGE, "1\t2\n")], vec![]),
            (&absent, vec![], vec![]),
        ];
        for (json, files, want) in cases {
            let (dir, sys) = fixture(&files);
            std::fs::create_dir_all(dir.path().join("etc/sysctl.d")).unwrap();
            let spec = spec(json.clone());
            let seen = Sysctl::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            let steps: Vec<_> = Sysctl::plan(&spec, &seen).iter().map(Step::summary).collect();
            // Files of another user than root are ours to write again.
            if root {
                assert_eq!(steps, want, "{json} {files:?}");
                assert_eq!(Sysctl::diff(&spec, &seen).is_empty(), want.is_empty(), "{json} {files:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_said() {
        let on = json!({"name": "net.ipv4.ip_local_port_range", "value": "1 2"});
        let dir = ("/etc/sysctl.d/README", "");
        let cases = [
            (
                vec![dir],
                "the kernel of this host has no net.ipv4.ip_local_port_range: there is no /proc/sys/net",
            ),
            (
                vec![dir, ("/proc/sys/net/ipv4/ip_local_port_range/x", "")],
                "net.ipv4.ip_local_port_range is a group",
            ),
            (vec![(RANGE, "1\n")], "the directory /etc/sysctl.d for "),
            (
                vec![(RANGE, "1\n"), ("/etc/sysctl.d/95-x.conf", "#\n\nnet/ipv4/ip_local_port_range=3 4\n")],
                "/etc/sysctl.d/95-x.conf line 3 sets net.ipv4.ip_local_port_range to 3 4 at boot, after us",
            ),
            (
                vec![(RANGE, "1\n"), ("/etc/sysctl.d/95-x.conf", "-net.ipv4.ip_local_port_range\n")],
                "/etc/sysctl.d/95-x.conf line 1 keeps net.ipv4.ip_local_port_range from being set at boot",
            ),
        ];
        for (files, want) in cases {
            let (_dir, sys) = fixture(&files);
            let error =
                Sysctl::observe(&spec(on.clone()), &sys, Depth::Cheap).await.err().unwrap().to_string();
            assert!(error.starts_with(want), "{error}");
        }
        // The same value in a later file is no obstacle, however it is written.
        let (_dir, sys) = fixture(&[
            (RANGE, "1\n"),
            ("/etc/sysctl.d/95-x.conf", "net.ipv4.ip_local_port_range = 1\t  2\n"),
        ]);
        assert!(Sysctl::observe(&spec(on), &sys, Depth::Cheap).await.is_ok());
    }

    /// The contract of every kind: nothing left to do after the steps, and undone it is as before.
    #[tokio::test]
    async fn what_was_done_is_undone() {
        // Our file is to be root's.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let on = json!({"name": "net.ipv4.ip_local_port_range", "value": "1024 9999"});
        let off = json!({"name": "net.ipv4.ip_local_port_range", "state": "absent"});
        let live = (RANGE, "32768\t60999\n");
        let cases = [
            (&on, vec![live, ("/etc/sysctl.d/README", "")]),
            (&on, vec![live, (OURS, "net.ipv4.ip_local_port_range = 7 8\n")]),
            (&on, vec![(RANGE, "1024\t9999\n"), (OURS, "")]),
            (&off, vec![live, (OURS, "net.ipv4.ip_local_port_range = 32768 60999\n")]),
        ];
        for (json, files) in cases {
            let (dir, sys) = fixture(&files);
            let spec = spec(json.clone());
            let before = Sysctl::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            act(&Sysctl::plan(&spec, &before), &sys);
            let after = Sysctl::observe(&spec, &sys, Depth::Proof).await.unwrap();
            assert_eq!(Sysctl::plan(&spec, &after), [], "{json} {files:?}");
            assert_ne!(Sysctl::essence(&spec, &before), Sysctl::essence(&spec, &after));
            let kept: Seen = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
            match Sysctl::undo(&spec, &kept, &json!(null), &after) {
                Undo::Steps(steps) => act(&steps, &sys),
                Undo::Cannot(why) => panic!("{why}"),
            }
            let now = Sysctl::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            assert_eq!(Sysctl::essence(&spec, &now), Sysctl::essence(&spec, &before), "{json} {files:?}");
            for (path, content) in files {
                let is = std::fs::read_to_string(dir.path().join(path.trim_start_matches('/'))).unwrap();
                assert_eq!(is, content, "{json} {path}");
            }
        }
    }

    #[test]
    fn every_name_has_a_file_of_its_own() {
        let file = |name: &str| file_name(&spec(json!({"name": name, "value": "1"})));
        assert_eq!(file("net.ipv4.conf.eth0/1.rp_filter"), "90-postern-net.ipv4.conf.eth0~1.rp_filter.conf");
        assert_eq!(file("net/ipv4/conf/eth0/rp_filter"), "90-postern-net.ipv4.conf.eth0.rp_filter.conf");
        let text = content_of(&spec(json!({"name": "net/ipv4/conf/eth0.1/rp_filter"})), " 1 ");
        assert!(text.ends_with("\nnet.ipv4.conf.eth0/1.rp_filter = 1\n"), "{text}");
    }
}
