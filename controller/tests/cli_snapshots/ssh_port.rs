//! What `postern ssh-port` says: closed with what was seen, not closed with what is missing, and how it stands.

use std::process::Stdio;
use std::time::Duration;

use postern_proto::event::{Outcome, RunState};
use postern_proto::v1::{self, LinkState, PortState};
use rustix::process::{Pid, Signal, kill_process};

use super::cli_support::{FakeOperator, Shell, host, run_id};
use super::scenarios::{Scenario, end, finished};

const GATE: &str =
    "name: gate\nresources:\n  - package: {name: iptables}\n  - firewall: {allow: [22/tcp, 443/tcp]}\n";
const OWN: &str = "name: gate\nresources:\n  - firewall: {allow: [443/tcp], ssh: closed}\n";
const V4: &str = "203.0.113.9";
const V6: &str = "2001:db8::9";

fn look(seen: &[(&str, u32, PortState)]) -> v1::LookAtPortsResponse {
    let one = |(address, port, state): &(&str, u32, PortState)| v1::PortSeen {
        address: (*address).to_owned(),
        port: *port,
        state: (*state).into(),
        why: match state {
            PortState::Open => String::new(),
            PortState::Refused => "connection refused".to_owned(),
            _ => "no answer in time".to_owned(),
        },
    };
    v1::LookAtPortsResponse { seen: seen.iter().map(one).collect(), unobservable: String::new() }
}

fn open() -> v1::LookAtPortsResponse {
    look(&[(V4, 22, PortState::Open), (V4, 443, PortState::Open), (V6, 22, PortState::Open)])
}

fn shut() -> v1::LookAtPortsResponse {
    look(&[(V4, 22, PortState::Dropped), (V4, 443, PortState::Open), (V6, 22, PortState::Refused)])
}

fn half() -> v1::LookAtPortsResponse {
    look(&[(V4, 22, PortState::Dropped), (V4, 443, PortState::Open), (V6, 22, PortState::Open)])
}

/// One host with a firewall, where this is seen, look by look.
fn gate(bundle: &str, looks: Vec<v1::LookAtPortsResponse>) -> FakeOperator {
    let mut web = host("web1", LinkState::Up);
    web.profiles = vec!["gate".into()];
    web.ssh_ports = vec![22];
    let assigned = v1::AssignedProfile {
        name: "gate".into(),
        bundle: postern::profile::Bundle::new("gate.yaml", bundle.as_bytes()).to_bytes().unwrap().into(),
        vars: Default::default(),
        assigned_unix_ms: 1_000,
        covers: Vec::new(),
    };
    FakeOperator {
        hosts: vec![web],
        assigned: vec![assigned],
        updates: vec![
            finished("gate:firewall:inbound", Outcome::Changed, "seen after it: link, closed 22", "", ""),
            end(RunState::Ok, ""),
        ],
        end: Some(RunState::Ok),
        back: Some(v1::RestartAgentResponse {
            peer: "203.0.113.9:40022".into(),
            took_ms: 2345,
            from_here: false,
            ssh_ports: vec![22],
        }),
        looks: std::sync::Arc::new(std::sync::Mutex::new(looks)),
        ..FakeOperator::default()
    }
}

/// The same, closed by a run.
fn closed(looks: Vec<v1::LookAtPortsResponse>) -> FakeOperator {
    let mut fake = gate(GATE, looks);
    for host in &mut fake.hosts {
        host.set_ssh_port(v1::SshPort::Closed);
        host.ssh_port_run = run_id().to_string();
        host.ssh_port_unix_ms = 1_000;
    }
    fake
}

fn away(mut fake: FakeOperator) -> FakeOperator {
    fake.hosts.iter_mut().for_each(|host| host.set_link(LinkState::Down));
    fake
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut lacking = gate(
        GATE,
        vec![v1::LookAtPortsResponse {
            unobservable: "the host is not known by an address that can be reached from here".into(),
            ..Default::default()
        }],
    );
    lacking.back = None;
    let mut over_ssh = gate(GATE, vec![open()]);
    over_ssh.back = over_ssh.back.map(|back| v1::RestartAgentResponse {
        peer: "127.0.0.1:50022".into(),
        from_here: true,
        ..back
    });
    let mut failed = gate(GATE, vec![open(), half()]);
    let why = "the change was taken back: closed 22 at 2001:db8::9: it still answers";
    failed.updates = vec![
        finished("gate:firewall:inbound", Outcome::Failed, why, "", ""),
        end(RunState::Failed, "gate:firewall:inbound failed"),
    ];
    failed.end = Some(RunState::Failed);
    let mut bare = gate(GATE, vec![open()]);
    bare.assigned = Vec::new();
    bare.hosts[0].profiles = Vec::new();
    let mut busy = closed(vec![shut()]);
    busy.hosts[0].ssh_port_changing = run_id().to_string();
    vec![
        Scenario::new(
            "ssh-port-close",
            Some(gate(GATE, vec![open(), shut()])),
            &[&["ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        Scenario::new(
            "ssh-port-close-json",
            Some(gate(GATE, vec![open(), shut()])),
            &[&["--output", "json", "ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        Scenario {
            files: &[("taken", "a file")],
            ..Scenario::new(
                "ssh-port-lacking",
                Some(lacking),
                &[
                    &["ssh-port", "close", "web1"],
                    &["ssh-port", "close", "nope", "--kit", "kits"],
                    &["ssh-port", "close", "web1", "--kit", "taken/kits"],
                    &["--output", "json", "ssh-port", "close", "web1", "--kit", "taken/kits"],
                ],
            )
        },
        Scenario::new(
            "ssh-port-over-ssh",
            Some(over_ssh),
            &[&["ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        Scenario::new(
            "ssh-port-taken-back",
            Some(failed),
            &[&["ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        // T24: the run ended well, and somebody still gets in.
        Scenario::new(
            "ssh-port-not-closed",
            Some(gate(GATE, vec![open(), half()])),
            &[&["ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        Scenario::new(
            "ssh-port-no-firewall",
            Some(bare),
            &[&["ssh-port", "close", "web1", "--kit", "kits"], &["ssh-port", "open", "web1"]],
        ),
        Scenario::new("ssh-port-own", Some(gate(OWN, vec![shut()])), &[&["ssh-port", "open", "web1"]]),
        Scenario::new(
            "ssh-port-closed",
            Some(closed(vec![shut()])),
            &[
                &["ssh-port", "status", "web1"],
                &["--output", "json", "ssh-port", "status", "web1"],
                &["ssh-port", "close", "web1", "--kit", "kits"],
                &["host", "show", "web1"],
                &["up", "root@web1.example", "--bootstrap"],
                &["ssh-port", "open", "web1"],
            ],
        ),
        Scenario::new(
            "ssh-port-busy",
            Some(busy),
            &[&["ssh-port", "status", "web1"], &["ssh-port", "close", "web1", "--kit", "kits"]],
        ),
        Scenario::new(
            "ssh-port-opened-by-hand",
            Some(closed(vec![half()])),
            &[&["ssh-port", "status", "web1"]],
        ),
        Scenario::new(
            "ssh-port-away",
            Some(away(closed(vec![shut()]))),
            &[
                &["ssh-port", "status", "web1"],
                &["ssh-port", "close", "web1", "--kit", "kits"],
                &["up", "root@web1.example"],
            ],
        ),
        Scenario::new(
            "ssh-port-open",
            Some(closed(vec![open()])),
            &[&["ssh-port", "open", "web1"], &["--output", "json", "ssh-port", "open", "web1"]],
        ),
    ]
}

/// The condition that is being looked at ends at once, nothing is changed, and the kit, which opens all hosts to whoever
/// has it, does not stay.
#[tokio::test]
async fn ctrl_c_in_the_middle_of_a_condition_closes_nothing() {
    let fake = FakeOperator { held: Some(Default::default()), ..gate(GATE, vec![open(), shut()]) };
    let shell = Shell::new();
    fake.serve(&shell.state());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(["ssh-port", "close", "web1", "--kit", "kits"]).current_dir(shell.dir.path());
    command.env("POSTERN_STATE_DIR", shell.state()).env("HOME", shell.dir.path()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let kits = || std::fs::read_dir(shell.dir.path().join("kits")).map_or(0, |kits| kits.flatten().count());
    let is_asked = async {
        while !fake.asked().contains(&"restart".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_asked).await.expect("the agent is restarted");
    assert_eq!(kits(), 1);
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let ended = ended.expect("it ends at once").unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("the port of SSH stays as it is; nothing was changed"), "{said}");
    assert!(said.contains("the recovery kit was removed again"), "{said}");
    assert_eq!(kits(), 0);
    assert_eq!(fake.asked().last().map(String::as_str), Some("restart"));
}
