//! Output: recorded exactly once, in order, byte for byte, resumed from any offset, within its windows.

use std::time::Duration;

use crate::support::*;
use postern_agent::engine::Outgoing;
use postern_proto::event::{EventKind, LogBody, RunOffset, RunState, StepId, Stream};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// One run with several steps, some of them with output on both streams.
async fn rich(host: &mut Host, work: &Work) -> (postern_proto::ids::RunId, Told) {
    let noisy = "i=0; while [ $i -lt 40 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; head -c 100000 /dev/zero";
    let dispatch = host.dispatch(&[
        ("a", "command", json!({ "shell": noisy })),
        ("b", "file", file("/etc/b", "b")),
        ("c", "command", json!({"argv": ["true"]})),
        ("d", "command", json!({"shell": "echo last"})),
    ]);
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while !told.is_over() {
        told.take(next(&mut outbox).await);
    }
    (run, told)
}

/// T35: whatever the controller says it has, it gets exactly the rest.
#[tokio::test]
async fn trap_35_resume_from_any_offset_sends_exactly_the_missing_part() {
    let mut host = Host::new();
    let work = host.open();
    let (run, all) = rich(&mut host, &work).await;
    let mut steps: Vec<StepId> = all.frames.iter().map(|frame| frame.step.clone()).collect();
    steps.dedup();
    assert_eq!(steps.len(), 2);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % (n + 1)
    };
    for round in 0..120 {
        let event_seq = below(all.events.len() as u64);
        let logs: Vec<(StepId, u64)> =
            steps.iter().map(|step| (step.clone(), below(all.next_frame(step)))).collect();
        let has = |step: &StepId| logs.iter().find(|(of, _)| of == step).map_or(0, |(_, next)| *next);
        let acked = RunOffset { run, event_seq, logs: logs.clone() };
        let mut outbox = work.engine.attach(vec![acked], vec![]).await;
        let (mut events, mut frames) = (Vec::new(), Vec::new());
        let want_events = &all.events[event_seq as usize..];
        let want_frames: Vec<_> =
            all.frames.iter().filter(|frame| frame.frame_no >= has(&frame.step)).cloned().collect();
        // The last round but one acks everything, after which there would be nothing left to resume.
        while events.len() < want_events.len() || frames.len() < want_frames.len() {
            match next(&mut outbox).await {
                Outgoing::Event(event) => {
                    if let EventKind::StepFinished { step, frames: of, .. } = &event.kind {
                        let got = frames.iter().filter(|f: &&postern_proto::event::LogFrame| f.step == *step);
                        assert_eq!(
                            has(step) + got.count() as u64,
                            *of,
                            "round {round}: output before the end"
                        );
                    }
                    events.push(event);
                }
                Outgoing::Log(frame) => frames.push(frame),
                postern_agent::engine::Outgoing::SecretsWanted { .. } => {}
            }
        }
        assert_eq!(events, want_events, "round {round}");
        assert_eq!(frames, want_frames, "round {round}");
        let more = tokio::time::timeout(Duration::from_millis(2), outbox.next()).await;
        assert!(more.is_err(), "nothing more: {more:?}");
        // What is acked whole is gone; so never ack it all.
        if round % 10 == 0 && event_seq < all.events.len() as u64 {
            work.kill_and_reopen_check(&host).await;
        }
    }
}

impl Work {
    /// A snapshot says the same all the time.
    async fn kill_and_reopen_check(&self, _host: &Host) {
        let snapshot = self.engine.snapshot().await;
        assert_eq!(snapshot.runs.len(), 1);
        assert_eq!(snapshot.runs[0].logs.len(), 2);
    }
}

#[tokio::test]
async fn a_newer_session_ends_an_older_one_and_held_runs_stay() {
    let mut host = Host::new();
    let work = host.open();
    let (run, _) = rich(&mut host, &work).await;
    let mut old = work.engine.attach(vec![], vec![]).await;
    next(&mut old).await;
    let mut held = work.engine.attach(vec![], vec![run]).await;
    assert_eq!(tokio::time::timeout(LIMIT, old.next()).await.unwrap(), None);
    let sent = tokio::time::timeout(Duration::from_millis(100), held.next()).await;
    assert!(sent.is_err(), "a run that the controller does not know is not sent: {sent:?}");
    assert_eq!(work.engine.snapshot().await.runs.len(), 1, "it is kept");
}

/// The order of the writes is the order of the frames, across both streams.
#[tokio::test]
async fn stdout_and_stderr_interleave_truly() {
    let mut host = Host::new();
    let work = host.open();
    let script = "for i in 1 2 3 4 5; do echo o$i; sleep 0.05; echo e$i >&2; sleep 0.05; done";
    let told = complete(&work, host.shell(script)).await;
    let said: Vec<_> = told
        .frames
        .iter()
        .map(|frame| match &frame.body {
            LogBody::Data(data) => (frame.stream, String::from_utf8_lossy(data).trim().to_owned()),
            LogBody::Truncated { .. } => panic!("truncated"),
        })
        .collect();
    let want: Vec<_> = (1..=5)
        .flat_map(|i| [(Stream::Stdout, format!("o{i}")), (Stream::Stderr, format!("e{i}"))])
        .collect();
    assert_eq!(said, want);
    assert!(told.frames.is_sorted_by_key(|frame| frame.time_ns));
}

/// Output is there while the process runs.
#[tokio::test]
async fn output_is_live() {
    let mut host = Host::new();
    let work = host.open();
    let go = host.path("go");
    let dispatch = host.shell(&format!("printf prompt; while ! test -e {go}; do sleep 0.01; done"));
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while told.frames.is_empty() {
        told.take(next(&mut outbox).await);
    }
    assert_eq!(told.output(Stream::Stdout), b"prompt");
    std::fs::write(go, "").unwrap();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
}

/// T37: what had to be dropped is counted, hashed and marked; beginning and end are there byte for byte.
#[tokio::test]
async fn trap_37_a_flood_is_cut_in_the_middle_and_says_so() {
    let mut host = Host::tuned(|config| config.limits.spool_bytes = 1 << 20);
    let work = host.open();
    let script = "seq 1 3000000; echo the end; seq 1 10 >&2";
    let told = complete(&work, host.shell(script)).await;
    assert_eq!(told.end().0, RunState::Ok);
    let mut full = (1..=3_000_000).map(|i| format!("{i}\n")).collect::<String>();
    full.push_str("the end\n");
    let mut at = 0usize;
    let mut cuts = 0;
    for frame in told.frames.iter().filter(|frame| frame.stream == Stream::Stdout) {
        assert_eq!(frame.offset, at as u64);
        match &frame.body {
            LogBody::Data(data) => {
                assert_eq!(&full.as_bytes()[at..at + data.len()], data);
                at += data.len();
            }
            LogBody::Truncated { bytes, sha256 } => {
                cuts += 1;
                let cut = &full.as_bytes()[at..at + *bytes as usize];
                assert_eq!(Sha256::digest(cut).as_slice(), sha256);
                at += cut.len();
            }
        }
    }
    assert_eq!((at, cuts), (full.len(), 1));
    assert_eq!(
        told.output(Stream::Stderr),
        (1..=10).map(|i| format!("{i}\n")).collect::<String>().as_bytes()
    );
    let kept = told.output(Stream::Stdout).len();
    assert!((700_000..1 << 20).contains(&kept), "{kept}");
}

/// More output than the window waits for acks; events of other runs do not wait with it.
#[tokio::test]
async fn output_beyond_the_window_waits_until_acked() {
    let mut host = Host::tuned(|config| {
        config.limits.run_window = 200_000;
        config.limits.agent_window = 300_000;
    });
    let work = host.open();
    let dispatch = host.shell("head -c 500000 /dev/urandom | od -An -v -tx1");
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    let mut stalls = 0;
    while !told.is_over() {
        match tokio::time::timeout(Duration::from_millis(150), outbox.next()).await {
            Ok(outgoing) => told.take(outgoing.unwrap()),
            Err(_) => {
                stalls += 1;
                let bytes: usize = told.output(Stream::Stdout).len();
                assert!(bytes <= stalls * 200_000, "{bytes} bytes after {stalls} windows");
                // Control first: another run is told of while this one stalls.
                if stalls == 2 {
                    let other = host.shell("true");
                    let mut heard = Told::default();
                    work.engine.dispatch(other).await.unwrap();
                    while !heard.is_over() {
                        heard.take(next(&mut outbox).await);
                    }
                }
                work.engine.acked(told.offset(run)).await;
            }
        }
    }
    let size = told.output(Stream::Stdout).len();
    assert_eq!(size, 500_000 * 3 + 500_000 / 16);
    assert!(stalls >= size / 200_000 - 1, "{stalls}");
}

/// A window smaller than a frame still lets one frame through at a time.
#[tokio::test]
async fn a_tiny_window_never_locks_up() {
    let mut host = Host::tuned(|config| {
        config.limits.run_window = 100;
        config.limits.agent_window = 100;
    });
    let work = host.open();
    let told = complete(&work, host.shell("head -c 300000 /dev/zero; echo end >&2")).await;
    assert_eq!(told.output(Stream::Stdout), vec![0; 300_000]);
    assert_eq!(told.output(Stream::Stderr), b"end\n");
}

/// A full disk loses text, never the exit status. The disk is a small tmpfs, which needs root.
#[tokio::test]
async fn a_full_disk_loses_text_and_keeps_the_exit_status() {
    let mut host = Host::new();
    std::fs::create_dir(host.state()).unwrap();
    std::fs::set_permissions(host.state(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status();
    let state = host.state().to_str().unwrap().to_owned();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", &state])
        .is_ok_and(|s| s.success())
    {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    let _mounted = Mounted(state.clone());
    let work = host.open();
    let dispatch = host.shell("seq 1 2000000; exit 5");
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    let ended = |event: &postern_proto::event::RunEvent| match &event.kind {
        EventKind::StepFinished { end, .. } => Some(end.clone()),
        _ => None,
    };
    assert_eq!(told.events.iter().find_map(ended), Some(postern_proto::event::StepEnd::Exit(5)));
    let dropped: u64 = told
        .frames
        .iter()
        .filter_map(|frame| match frame.body {
            LogBody::Truncated { bytes, .. } => Some(bytes),
            LogBody::Data(_) => None,
        })
        .sum();
    let full: usize = (1..=2_000_000).map(|i: u32| i.to_string().len() + 1).sum();
    assert_eq!(dropped as usize + told.output(Stream::Stdout).len(), full);
    assert!(dropped > 0);
    drop(outbox);
    work.kill().await;
}

/// Unmounted whatever happens; lazily, since a failed test may still have files open.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).status();
    }
}

/// A spool that was damaged, cut short or lost after its step had ended: what cannot be read is marked, the
/// rest is told as it is, and the run is told to its end. A later session tells the same.
#[tokio::test]
async fn output_that_cannot_be_read_any_more_is_marked_and_the_run_ends() {
    for damage in ["flip", "cut", "gone"] {
        let mut host = Host::new();
        let work = host.open();
        let script = "for i in 1 2 3 4; do echo out$i; sleep 0.03; echo error$i >&2; sleep 0.03; done";
        let dispatch = host.shell(script);
        let run = dispatch.run;
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        work.engine.dispatch(dispatch).await.unwrap();
        let mut before = Told::default();
        while !before.is_over() {
            before.take(next(&mut outbox).await);
        }
        let frames = before.frames.len();
        assert_eq!(frames, 8);
        let entry = std::fs::read_dir(host.state().join("spool")).unwrap().next().unwrap();
        let spool = entry.unwrap().path();
        let mut bytes = std::fs::read(&spool).unwrap();
        let place = |text: &[u8]| bytes.windows(text.len()).position(|part| part == text).unwrap();
        match damage {
            // Both the third frame (of stdout) and the fourth (of stderr).
            "flip" => {
                for at in [place(b"out2"), place(b"error2")] {
                    bytes[at] ^= 1;
                }
                std::fs::write(&spool, bytes).unwrap();
            }
            "cut" => {
                let at = place(b"error3");
                std::fs::write(&spool, &bytes[..at]).unwrap();
            }
            _ => std::fs::remove_file(&spool).unwrap(),
        }
        for have in [0, 3, 5] {
            // Nothing is there to say how much a lost spool held.
            if damage == "gone" && have > 0 {
                continue;
            }
            let mut told = Told::default();
            let mut outbox = work.engine.attach(vec![], vec![]).await;
            while told.frames.len() < have {
                told.take(next(&mut outbox).await);
            }
            outbox = work.engine.attach(vec![told.offset(run)], vec![]).await;
            while !told.is_over() {
                told.take(next(&mut outbox).await);
            }
            assert_eq!(told.frames.len(), frames, "{damage}");
            let marked: Vec<u64> = told
                .frames
                .iter()
                .filter(|frame| matches!(frame.body, LogBody::Truncated { .. }))
                .map(|frame| frame.frame_no)
                .collect();
            let want: &[u64] = match damage {
                "flip" => &[2, 3],
                "cut" => &[5, 6, 7],
                _ => &[0, 1, 2, 3, 4, 5, 6, 7],
            };
            assert_eq!(marked, want, "{damage}");
            for frame in told.frames.iter().filter(|frame| !want.contains(&frame.frame_no)) {
                assert_eq!(*frame, before.frames[frame.frame_no as usize], "{damage}");
            }
        }
        drop(outbox);
    }
}
