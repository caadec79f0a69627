//! What `postern drift` sees of a real host that somebody else has changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use anyhow::Result;
use postern_tests::lab::Image;
use postern_tests::rig::{self, managed, said};
use serde_json::Value;

const RESOURCES: &str = "  - file: {path: /etc/lab.conf, content: \"as declared\\n\", mode: '0644'}\n    id: conf\n  \
                         - service: {name: ssh, state: running}\n    id: ssh\n  - command: {argv: ['true']}\n    id: always\n  \
                         - command: {argv: [touch, /run/seeded], creates: /run/seeded}\n    id: seed\n";

#[test]
fn a_host_is_clean_until_somebody_changes_it() -> Result<()> {
    let Some((rig, host)) = managed("drift", Image::BOOKWORM)? else { return Ok(()) };
    let drift = |code: i32| -> Result<Value> {
        let ended = rig.run(&["--output", "json", "drift", &host.name])?.expect(code);
        Ok(serde_json::from_str(ended.stdout.trim())?)
    };
    assert_eq!(drift(0)?["state"], "unassigned");
    rig::apply(&rig, &host, RESOURCES, &[])?.expect(0);
    let clean = drift(0)?;
    assert_eq!((&clean["state"], &clean["as_declared"]), (&"clean".into(), &3.into()), "{clean}");
    assert_eq!(clean["not_compared"], serde_json::json!(["lab:command:always"]));

    host.sh("echo 'by hand' >/etc/lab.conf && systemctl stop ssh && rm /run/seeded")?;
    let drifted = drift(1)?;
    assert_eq!((&drifted["state"], &drifted["as_declared"]), (&"drifted".into(), &0.into()), "{drifted}");
    let differs = drifted["differs"].as_array().unwrap();
    let addresses: Vec<_> = differs.iter().map(|it| it["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["lab:file:conf", "lab:service:ssh", "lab:command:seed"]);
    let diff = differs[0]["diff"].as_str().unwrap();
    assert!(diff.contains("-by hand\n+as declared\n"), "{diff}");
    // It was looked at, and no more.
    assert_eq!(host.sh("cat /etc/lab.conf; systemctl is-active ssh || true")?, "by hand\ninactive");
    host.sh("test ! -e /run/seeded")?;
    assert_eq!(drift(1)?["differs"], drifted["differs"]);

    // What brings it back is any of its profiles, and then it is clean.
    rig::apply(&rig, &host, RESOURCES, &[])?.expect(0);
    let ended = rig.run(&["drift", "all"])?.expect(0);
    assert!(ended.stdout.starts_with("drift: clean: 3 as declared, 1 not compared"), "{}", said(&ended));

    // One that is away is told of at once: nothing waits for it, or runs on it when it is back.
    let runs = || rig.run(&["--output", "json", "runs", "-n", "1"]);
    let before = runs()?.expect(0).stdout;
    host.sh("systemctl stop postern-agent")?;
    rig::wait_for("the host is known to be away", std::time::Duration::from_secs(40), || {
        Ok(said(&rig.run(&["hosts"])?).contains(" down "))
    })?;
    rig.run(&["drift", "all"])?.expect(1).says("drift: its agent is not connected");
    assert_eq!(runs()?.expect(0).stdout, before);
    Ok(())
}
