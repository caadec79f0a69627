//! A preflight on hosts that are directories, with programs and files of their own.

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::resources::fixture::Fixture;

/// A host with memory, two file systems and names that all lead to this machine.
fn host() -> Fixture {
    let host = Fixture::new();
    host.write("proc/meminfo", "MemTotal: 491520 kB\nSwapTotal: 0 kB\n");
    host.write("var/x", "");
    host.program("getent", "case $2 in none*) exit 2;; esac; echo \"127.0.0.1 STREAM $2\"");
    host.program("apt-config", "true");
    host
}

/// What is lacking; empty where nothing is.
async fn look(host: &Fixture, spec: serde_json::Value, depth: Depth) -> String {
    let spec: PreflightSpec = serde_json::from_value(spec).unwrap();
    match Preflight::observe(&spec, &host.sys, depth).await {
        Ok(seen) => {
            assert!(Preflight::plan(&spec, &seen).is_empty());
            String::new()
        }
        Err(error) => error.to_string(),
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// T29: memory, disk, names, servers and apt's mirrors, each with its figure, in one answer.
#[tokio::test]
async fn trap_29_all_that_is_lacking_is_told_at_once() {
    let host = host();
    let (open, port) = listen().await;
    let (shut, closed) = listen().await;
    drop(shut);
    host.write("etc/apt/sources.list", format!("deb http://none.example:{port}/debian s main\n"));
    let spec = json!({
        "name": "x", "memory_mb": 700, "disk_free_mb": 1 << 30, "resolves": ["none.test", "some.test"],
        "reaches": ["apt", format!("some.test:{port}"), format!("some.test:{closed}")],
    });
    let why = look(&host, spec.clone(), Depth::Cheap).await;
    for want in [
        "5 things are lacking",
        "the host has 480 MB and no swap, together 700 MB are wanted",
        "disk: / has ",
        "1073741824 MB are wanted",
        "name: none.test: it has no address",
        &format!("server: some.test:{closed}: 127.0.0.1: Connection refused"),
        &format!("apt: none.example:{port}: it has no address"),
    ] {
        assert!(why.contains(want), "{want} is not in {why}");
    }
    assert_eq!(look(&host, spec, Depth::Whole).await, "", "what is taken back needs nothing");

    host.write("proc/meminfo", "MemTotal: 491520 kB\nSwapTotal: 524288 kB\n");
    host.write("etc/apt/sources.list", format!("deb http://some.example:{port}/debian s main\n"));
    let spec = json!({"name": "x", "memory_mb": 700, "disk_free_mb": 1, "resolves": ["some.test"],
        "reaches": ["apt", format!("some.test:{port}")]});
    assert_eq!(look(&host, spec, Depth::Proof).await, "");
    host.write("etc/apt/sources.list", "# deb http://some.example s main\n");
    let why = look(&host, json!({"name": "x", "reaches": ["apt"]}), Depth::Cheap).await;
    assert!(why.contains("no source is switched on"), "{why}");
    drop(open);
}

/// T29: a host that gets out by a proxy alone lacks nothing, as long as the proxy is there.
#[tokio::test]
async fn trap_29_a_host_behind_a_proxy_is_asked_for_its_proxy() {
    let host = host();
    let (proxy, port) = listen().await;
    host.write("etc/apt/sources.list", "deb http://none.example/debian s main\n");
    host.program("apt-config", &format!("echo 'Acquire::http::Proxy \"http://u:secret@some.test:{port}\";'"));
    let spec = json!({"name": "x", "reaches": ["apt"]});
    assert_eq!(look(&host, spec.clone(), Depth::Cheap).await, "");
    drop(proxy);
    let why = look(&host, spec, Depth::Cheap).await;
    assert!(
        why.contains(&format!("apt: its proxy some.test:{port}: 127.0.0.1: Connection refused")),
        "{why}"
    );
    assert!(!why.contains("secret"), "{why}");
}

/// Once all that the room is for is there, nothing is asked for, and nobody is called.
#[tokio::test]
async fn what_is_installed_needs_no_room() {
    let host = host();
    let spec = json!({"name": "x", "memory_mb": 1 << 20, "packages": ["curl", "chrony"]});
    let package = |name: &str| {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n")
    };
    host.write("var/lib/dpkg/status", package("curl"));
    assert!(look(&host, spec.clone(), Depth::Cheap).await.contains("memory: "));
    host.write("var/lib/dpkg/status.new", package("curl") + &package("chrony"));
    let path = |name: &str| host.at("var/lib/dpkg").join(name);
    std::fs::rename(path("status.new"), path("status")).unwrap();
    assert_eq!(look(&host, spec, Depth::Cheap).await, "");
}

/// T29: a clock that is far from the controller's, and one of which nobody has said anything.
#[tokio::test]
async fn trap_29_a_wrong_clock_is_told() {
    use crate::link::time::TrustedTime;
    let mut host = host();
    let spec = json!({"name": "x", "clock_s": 3600});
    assert_eq!(look(&host, spec.clone(), Depth::Cheap).await, "");
    let now = 1_800_000_000;
    let time = TrustedTime::new(std::sync::Arc::new(move || now - 7200), 0);
    time.told(now * 1000, now + 1);
    host.sys = host.sys.clone().with_around(crate::sys::Around { time, proxy: None });
    let why = look(&host, spec, Depth::Cheap).await;
    assert!(why.contains("clock: it is 7200 s behind what the controller says, 3600 s are allowed"), "{why}");
}
