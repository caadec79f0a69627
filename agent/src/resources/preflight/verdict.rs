//! What of a preflight is lacking, in words: what was found, what is wanted, what to do. Pure.

use postern_proto::spec::PreflightSpec;

use crate::sys::{Memory, Room};

/// Swap is offered in steps of this, MiB.
const SWAP_STEP_MB: u64 = 512;
/// What gives room on most hosts.
const MAKE_ROOM: &str =
    "make room (apt-get clean; journalctl --vacuum-size=50M; docker system prune) or take a larger disk";

/// What was found on the host.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) memory: Memory,
    /// The file system of `/`.
    pub(super) root: Room,
    /// The one of `/var`.
    pub(super) var: Room,
    /// See [`crate::sys::Sys::clock_off_s`].
    pub(super) clock_off_s: Option<i64>,
    pub(super) gone: Vec<Gone>,
}

/// What is not there in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// A name has no address.
    Name { name: String, why: String },
    /// No way leads to a server; why, for each way.
    Server { of_apt: bool, whys: Vec<String> },
    /// apt gets packages from nowhere.
    Sources,
}

/// Everything that is lacking, one text each.
pub(super) fn lacking(spec: &PreflightSpec, found: &Found) -> Vec<String> {
    let mut lacking = Vec::new();
    lacking.extend(spec.memory_mb.and_then(|wanted| memory(wanted, found.memory)));
    lacking.extend(disks(spec, found));
    lacking.extend(spec.clock_s.and_then(|most| clock(most, found.clock_off_s?)));
    lacking.extend(found.gone.iter().map(gone));
    lacking
}

/// All of it in one text; nothing where nothing is lacking.
pub(super) fn told(lacking: &[String]) -> Option<String> {
    match lacking {
        [] => None,
        [one] => Some(format!("one thing is lacking, and nothing was installed: {one}")),
        all => {
            let parts: Vec<String> = (1..).zip(all).map(|(no, one)| format!("({no}) {one}")).collect();
            Some(format!("{} things are lacking, and nothing was installed: {}", all.len(), parts.join("; ")))
        }
    }
}

fn memory(wanted: u64, memory: Memory) -> Option<String> {
    if memory.total_kib == 0 {
        return Some("memory: /proc/meminfo does not say how much there is: is /proc mounted?".to_owned());
    }
    let (total, swap) = (memory.total_kib / 1024, memory.swap_kib / 1024);
    let have = (memory.total_kib + memory.swap_kib) / 1024;
    let short = wanted.checked_sub(have).filter(|short| *short > 0)?;
    let swap = match swap {
        0 => "no swap".to_owned(),
        mb => format!("{mb} MB of swap"),
    };
    let offered = short.next_multiple_of(SWAP_STEP_MB);
    Some(format!(
        "memory: the host has {total} MB and {swap}, together {wanted} MB are wanted: give it swap, \
         `swap: {{size_mb: {offered}}}` before this (in `base`: --var swap_mb={offered}), or take a larger machine"
    ))
}

fn disks(spec: &PreflightSpec, found: &Found) -> Vec<String> {
    let mb = |room: Room| room.free >> 20;
    let short = |path: &str, room: Room, wanted: Option<u64>| {
        let wanted = wanted.filter(|wanted| *wanted > mb(room))?;
        Some(format!("disk: {path} has {} MB free, {wanted} MB are wanted: {MAKE_ROOM}", mb(room)))
    };
    if let (true, Some(root), Some(var)) =
        (found.root.dev == found.var.dev, spec.disk_free_mb, spec.var_free_mb)
    {
        // What is for one is not there for the other.
        let (free, wanted) = (mb(found.root), root + var);
        let lacks = wanted > free;
        return lacks.then(|| both(free, root, var)).into_iter().collect();
    }
    let root = short("/", found.root, spec.disk_free_mb);
    root.into_iter().chain(short("/var", found.var, spec.var_free_mb)).collect()
}

fn both(free: u64, root: u64, var: u64) -> String {
    format!(
        "disk: / and /var are one file system with {free} MB free, {root} + {var} = {} MB are wanted: {MAKE_ROOM}",
        root + var
    )
}

fn clock(most: u64, off: i64) -> Option<String> {
    if off.unsigned_abs() <= most {
        return None;
    }
    let way = if off < 0 { "behind" } else { "ahead of" };
    let off = off.unsigned_abs();
    Some(format!(
        "clock: it is {off} s {way} what the controller says, {most} s are allowed: set it (timedatectl set-time), or \
         the controller's where that one is wrong"
    ))
}

fn gone(gone: &Gone) -> String {
    match gone {
        Gone::Name { name, why } => format!(
            "name: {name}: {why}: is it written so, and do the name servers in /etc/resolv.conf answer?"
        ),
        Gone::Server { of_apt: false, whys } => format!(
            "server: {}: let the host out to it (firewall, routes), or name its proxy in /etc/environment",
            whys.join("; ")
        ),
        Gone::Server { of_apt: true, whys } => format!(
            "apt: {}: let the host out to it, name another mirror in /etc/apt, or a proxy (Acquire::http::Proxy)",
            whys.join("; ")
        ),
        Gone::Sources => {
            "apt: no source is switched on: see /etc/apt/sources.list and sources.list.d".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Found {
        let room = |dev| Room { free: 1000 << 20, dev, kind: 0xef53 };
        Found {
            memory: Memory { total_kib: 480 * 1024, swap_kib: 512 * 1024, ..Memory::default() },
            root: room(1),
            var: room(1),
            clock_off_s: Some(-30),
            gone: Vec::new(),
        }
    }

    /// T29: what is asked for, what is changed on a good host, and how each thing that is lacking begins.
    #[test]
    fn trap_29_what_is_lacking_by_table() {
        type Change = fn(&mut Found);
        let all =
            json!({"name": "x", "memory_mb": 900, "disk_free_mb": 400, "var_free_mb": 600, "clock_s": 60});
        let one = |field: &str, value: u64| json!({"name": "x", field: value});
        let cases: &[(serde_json::Value, Change, &[&str])] = &[
            (all.clone(), |_| {}, &[]),
            (
                all.clone(),
                |it| it.memory.swap_kib = 0,
                &[
                    "memory: the host has 480 MB and no swap, together 900 MB are wanted: give it swap, `swap: \
                   {size_mb: 512}` before this (in `base`: --var swap_mb=512), or",
                ],
            ),
            (
                one("memory_mb", 2000),
                |_| {},
                &[
                    "memory: the host has 480 MB and 512 MB of swap, together 2000 MB are wanted: give it swap, `swap: \
                   {size_mb: 1024}`",
                ],
            ),
            (one("memory_mb", 992), |_| {}, &[]),
            (
                one("memory_mb", 1),
                |it| it.memory = Memory::default(),
                &["memory: /proc/meminfo does not say"],
            ),
            (
                all.clone(),
                |it| it.root.free = 999 << 20,
                &[
                    "disk: / and /var are one file system with 999 MB free, 400 + 600 = 1000 MB are wanted: make room",
                ],
            ),
            (
                all.clone(),
                |it| (it.var.dev, it.root.free, it.var.free) = (2, 399 << 20, 599 << 20),
                &["disk: / has 399 MB free, 400 MB are", "disk: /var has 599 MB free, 600 MB are"],
            ),
            (all.clone(), |it| (it.var.dev, it.root.free, it.var.free) = (2, 400 << 20, 600 << 20), &[]),
            (one("disk_free_mb", 1001), |_| {}, &["disk: / has 1000 MB free"]),
            (one("var_free_mb", 1000), |_| {}, &[]),
            (
                all.clone(),
                |it| it.clock_off_s = Some(-61),
                &["clock: it is 61 s behind what the controller says, 60 s are"],
            ),
            (all.clone(), |it| it.clock_off_s = Some(61), &["clock: it is 61 s ahead of what"]),
            (all.clone(), |it| it.clock_off_s = None, &[]),
            (one("memory_mb", 1), |it| it.clock_off_s = Some(i64::MIN), &[]),
            (all.clone(), |it| it.clock_off_s = Some(i64::MIN), &["clock: "]),
            (
                all,
                |it| {
                    it.memory.swap_kib = 0;
                    it.root.free = 0;
                    it.clock_off_s = Some(1 << 40);
                    it.gone = vec![
                        Gone::Name { name: "a.example".into(), why: "it has no address".into() },
                        Gone::Server { of_apt: false, whys: vec!["b:443: refused".into(), "c: no".into()] },
                        Gone::Server { of_apt: true, whys: vec!["its proxy p:1: refused".into()] },
                        Gone::Sources,
                    ];
                },
                &[
                    "memory: ",
                    "disk: ",
                    "clock: ",
                    "name: a.example: it has no address: is it written so, and do the name servers",
                    "server: b:443: refused; c: no: let the host out to it",
                    "apt: its proxy p:1: refused: let the host out",
                    "apt: no source is switched on",
                ],
            ),
        ];
        for (spec, change, want) in cases {
            let mut found = good();
            change(&mut found);
            let got = lacking(&serde_json::from_value(spec.clone()).unwrap(), &found);
            assert_eq!(got.len(), want.len(), "{spec} {got:#?}");
            for (got, want) in got.iter().zip(*want) {
                assert!(got.starts_with(want), "{got}\nis not\n{want}");
            }
        }
    }

    #[test]
    fn all_is_told_at_once() {
        let lacking = |count: usize| vec!["a: b".to_owned(); count];
        assert_eq!(told(&lacking(0)), None);
        assert_eq!(told(&lacking(1)).unwrap(), "one thing is lacking, and nothing was installed: a: b");
        let two = told(&lacking(2)).unwrap();
        assert_eq!(two, "2 things are lacking, and nothing was installed: (1) a: b; (2) a: b");
    }
}
