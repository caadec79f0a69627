//! Measures, on demand: `cargo test -p postern-agent --test engine speed:: -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use crate::support::*;
use postern_proto::event::RunState;
use serde_json::json;

fn percentile(times: &mut [Duration], of: usize) -> Duration {
    times.sort();
    times[(times.len() * of / 100).min(times.len() - 1)]
}

/// From dispatch to the durable end of a no-op command, as the link sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn dispatch_of_true() {
    let mut host = Host::new();
    let work = host.open();
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    for script in [json!({"argv": ["true"]}), json!({"argv": ["echo", "hi"]})] {
        let (mut accepted, mut ended, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..500 {
            // Beside it, in the same moment: what the machine takes to start two processes.
            let began = Instant::now();
            for program in [supervisor().as_str(), "true"] {
                let mut command = tokio::process::Command::new(program);
                command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
                command.arg("supervise").status().await.unwrap();
            }
            bare.push(began.elapsed());
            let dispatch = host.command(script.clone());
            let run = dispatch.run;
            let began = Instant::now();
            work.engine.dispatch(dispatch).await.unwrap();
            accepted.push(began.elapsed());
            let mut told = Told::default();
            while !told.is_over() {
                told.take(next(&mut outbox).await);
            }
            ended.push(began.elapsed());
            assert_eq!(told.end().0, RunState::Ok);
            work.engine.acked(told.offset(run)).await;
        }
        println!(
            "{script}: two bare processes p50 {:?}; accepted p50 {:?}, ended p50 {:?} p99 {:?}",
            percentile(&mut bare, 50),
            percentile(&mut accepted, 50),
            percentile(&mut ended, 50),
            percentile(&mut ended, 99)
        );
    }
}

/// Lines of output through supervisor, spool and session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn lines_per_second() {
    let mut host = Host::new();
    let work = host.open();
    let began = Instant::now();
    let dispatch = host.shell("seq 1 3000000");
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut bytes = 0;
    loop {
        match next(&mut outbox).await {
            postern_agent::engine::Outgoing::Event(event) => {
                if matches!(event.kind, postern_proto::event::EventKind::Finished { .. }) {
                    break;
                }
            }
            postern_agent::engine::Outgoing::Log(frame) => {
                bytes += frame.body.stream_bytes();
                let ack = postern_proto::event::RunOffset {
                    run,
                    event_seq: 0,
                    logs: vec![(frame.step.clone(), frame.frame_no + 1)],
                };

                work.engine.acked(ack).await;
            }
            postern_agent::engine::Outgoing::SecretsWanted { .. } => {}
        }
    }
    let took = began.elapsed();
    println!("3 000 000 lines, {bytes} bytes in {took:?}: {:.0} lines/s", 3e6 / took.as_secs_f64());
}

/// What the machine itself takes, to compare with: one fdatasync, one process, one supervisor without a job.
#[test]
#[ignore = "a measurement"]
fn the_floor() {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("f")).unwrap();
    file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let measure = |what: &str, act: &mut dyn FnMut(u64)| {
        let mut times: Vec<Duration> = (0..300)
            .map(|i| {
                let began = Instant::now();
                act(i);
                began.elapsed()
            })
            .collect();
        println!("{what}: p50 {:?} p99 {:?}", percentile(&mut times, 50), percentile(&mut times, 99));
    };
    measure("fdatasync", &mut |i| {
        file.write_all_at(&[b'x'; 600], i * 600).unwrap();
        file.sync_data().unwrap();
    });
    measure("true", &mut |_| {
        std::process::Command::new("true").status().unwrap();
    });
    let program = supervisor();
    measure("supervise without a job", &mut |_| {
        std::process::Command::new(&program)
            .arg("supervise")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
    });
}
