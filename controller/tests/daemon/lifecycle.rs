//! A daemon's own life: private ones end, stopped ones let go.

use std::time::Duration;

use postern::daemon;
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;

use crate::support::{Rig, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_private_daemon_ends_when_idle_and_not_before() {
    // Longer than a busy machine takes from one line of this to the next, or it ends before it is watched.
    const IDLE: Duration = Duration::from_secs(2);
    const LONGER: Duration = Duration::from_secs(3);
    let mut rig = Rig::with(|config| config.private = Some(IDLE)).await;
    let mut agent = rig.agent("one").await;
    let operator = rig.operator().await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    let mut daemon = rig.daemon.take().unwrap();
    let early = tokio::time::timeout(LONGER, daemon.finished()).await;
    assert!(early.is_err(), "an operator is connected");
    drop((operator, updates));
    let early = tokio::time::timeout(LONGER, daemon.finished()).await;
    assert!(early.is_err(), "a run is not over");
    line.dispatch().await;
    let refused = v1::DispatchRefused { seq: 1, run_id: run.id, ..Default::default() };
    line.send(Up::Refused(refused)).await;
    soon("the end", daemon.finished()).await;
    daemon.shutdown().await;
    assert!(!daemon::socket_path(rig.state_dir()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_private_stays() {
    let mut rig = Rig::start().await;
    let mut daemon = rig.daemon.take().unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), daemon.finished()).await.is_err());
    let (socket, address) = (daemon.socket().to_owned(), daemon.local_addr());
    daemon.shutdown().await;
    assert!(tokio::net::UnixStream::connect(socket).await.is_err());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
