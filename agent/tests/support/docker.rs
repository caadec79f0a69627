//! A stand-in for Docker's engine and for the agent's own programs that tell it something. It knows one service `web`: it
//! is what it was made as, and its task runs once a test says so.

use std::path::PathBuf;

use postern_agent::engine::SupervisorCommand;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Host, Work, supervisor};

/// What is told to the engine, and each wait, is a line of the file `log` of its host. A wait ends well once there is the
/// file `runs`, which is also what its task runs by, and badly once there is `broken`.
pub(crate) struct Docker {
    _serving: AbortOnDropHandle<()>,
}

pub(crate) fn web() -> Value {
    json!({"name": "web", "image": "nginx:1", "health": ["true"]})
}

impl Docker {
    pub(crate) fn on(host: &Host) -> Self {
        std::fs::create_dir_all(host.root().join("run")).unwrap();
        let (made, runs) = (host.path("made"), host.path("runs"));
        // One line of JSON on its standard input says what is told.
        host.fake(
            "stand-in",
            &format!(
                "log={}\ncase $1 in\nhttp-unix) call=$(cat); case $call in\n  *services/create*) echo make >>$log; test ! -e {} || exit 1\n    \
                 printf %s \"$call\" >{made}.new; mv {made}.new {made} ;;\n  *images/create*) echo pull >>$log ;;\n  \
                 *DELETE*) echo remove >>$log; rm -f {made} ;;\n  esac ;;\n\
                 settle-service) echo wait >>$log; while test ! -e {runs} && test -e {made}; do test ! -e {} || {{ echo no good >&2; exit 1; }}; sleep 0.02; done ;;\nesac",
                host.path("log"),
                host.path("unmakable"),
                host.path("broken"),
            ),
        );
        let stand_in = host.path("bin/stand-in");
        host.fake(
            "supervisor",
            &format!(
                "test $1 = http-unix && exec {stand_in} \"$@\"\n\
                 job=$(sed 's#/usr/local/bin/postern-agent#{stand_in}#')\n\
                 exec {} \"$@\" <<END\n$job\nEND",
                supervisor()
            ),
        );
        let listener = UnixListener::bind(host.root().join("run/docker.sock")).unwrap();
        let (made, runs) = (PathBuf::from(made), PathBuf::from(runs));
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 8192];
                let got = stream.read(&mut head).await.unwrap_or(0);
                let line = String::from_utf8_lossy(&head[..got]).into_owned();
                let path = line.split([' ', '?']).nth(1).unwrap_or_default();
                let service = std::fs::read(&made).ok().map(|call| {
                    let call: Value = serde_json::from_slice(&call).unwrap();
                    json!({"ID": "s", "Version": {"Index": 7}, "Spec": call["body"]})
                });
                let answer = match (path, service) {
                    ("/info", _) => Some(json!({"Swarm": {"ControlAvailable": true}})),
                    ("/services/web", service) => service,
                    ("/tasks", Some(service)) if runs.exists() => {
                        let spec = &service["Spec"]["TaskTemplate"];
                        Some(
                            json!([{"ID": "t", "Spec": spec, "DesiredState": "running", "Status": {"State": "running"}}]),
                        )
                    }
                    (path, _) if path.starts_with("/images/") => Some(json!({})),
                    _ => Some(json!([])),
                };
                let status = if answer.is_some() { 200 } else { 404 };
                let text = answer.unwrap_or_else(|| json!({"message": "none"})).to_string();
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", text.len());
                let _ = stream.write_all((head + &text).as_bytes()).await;
            }
        });
        Self { _serving: AbortOnDropHandle::new(serving) }
    }
}

/// An engine whose processes reach the stand-in.
pub(crate) fn open(host: &Host) -> Work {
    let mut config = host.config();
    config.supervisor = SupervisorCommand::of(PathBuf::from(host.path("bin/supervisor")));
    let (engine, driver) = postern_agent::engine::open(config).unwrap();
    Work { engine, driver: tokio::spawn(driver) }
}
