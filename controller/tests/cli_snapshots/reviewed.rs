//! A plan that was reviewed: what is in its file, and what is refused.

use std::os::unix::fs::PermissionsExt as _;

use postern_proto::event::{EventKind, Outcome};
use postern_proto::ids::PlanHash;
use serde_json::Value;

use super::cli_support::{FakeOperator, Shell, event, id_of};
use super::scenarios::{MINE, has_other, sees};

const OUT: [&str; 6] = ["apply", "hello", "-H", "web1", "--plan-out", "plan.json"];
const IN: [&str; 4] = ["apply", "plan.json", "-H", "web1"];

async fn written() -> (Shell, Value) {
    let shell = Shell::new();
    sees().serve(&shell.state());
    let ended = shell.run(&OUT).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let path = shell.dir.path().join("plan.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let document = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    (shell, document)
}

#[tokio::test]
async fn a_reviewed_plan_has_what_was_seen_of_every_resource() {
    let (shell, document) = written().await;
    assert_eq!(document["schema"], "postern/reviewed-plan/v1");
    assert_eq!((&document["host"], &document["host_id"]), (&"web1".into(), &id_of("web1").into()));
    let plan = document["plan"].as_str().unwrap();
    assert_eq!(document["plan_sha256"], PlanHash::of(plan.as_bytes()).to_string());
    let approved: Vec<_> = document["approved"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| format!("{} {}", it["address"].as_str().unwrap(), it["seen"].as_str().unwrap()))
        .collect();
    let [one, two, three] = ["11", "22", "33"].map(|byte| byte.repeat(32));
    let want = [
        format!("hello:package:cron {one}"),
        format!("hello:file:motd {two}"),
        format!("hello:service:cron {three}"),
        "hello:command:first-hello ".into(),
    ];
    assert_eq!(approved, want);
    let preview = document["preview"].as_array().unwrap();
    assert!(preview.contains(&"    +Hello".into()), "{preview:?}");
    // And that is what is sent.
    let ended = shell.run(&IN).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test]
async fn a_reviewed_plan_that_was_touched_is_refused() {
    let (shell, document) = written().await;
    let plan = document["plan"].as_str().unwrap();
    for (field, value, why) in [
        ("plan", Value::from(plan.replace("cron", "nginx")), "is not the one that was reviewed"),
        ("plan_sha256", "00".into(), "is not the one that was reviewed"),
        ("approved", Value::Array(Vec::new()), "what was approved is not what the plan has"),
        ("schema", "postern/reviewed-plan/v2".into(), "this build knows postern/reviewed-plan/v1"),
        ("surprise", 1.into(), "unknown field"),
    ] {
        let mut touched = document.clone();
        touched[field] = value;
        // In this order, as the program writes it.
        let mut text = format!("{{\"schema\": {}", touched["schema"]);
        for (key, value) in touched.as_object().unwrap().iter().filter(|(key, _)| *key != "schema") {
            text += &format!(", {}: {value}", Value::from(key.as_str()));
        }
        shell.file("touched.json", &(text + "}"));
        let ended = shell.run(&["apply", "touched.json", "-H", "web1"]).await;
        assert_eq!(ended.code, 2, "{field}: {ended:?}");
        assert!(ended.stderr.starts_with("error[plan-file]: "), "{field}: {ended:?}");
        assert!(ended.stderr.contains(why), "{field}: {ended:?}");
    }
}

/// The plan has what the host, its operator and the secrets' records say, and the profile that it has already.
#[tokio::test]
async fn a_plan_is_made_of_what_is_known_of_the_host() {
    let shell = Shell::new();
    let finished = |address: &str| {
        event(EventKind::ResourceFinished {
            address: address.parse().unwrap(),
            attempt: 1,
            outcome: Outcome::WouldChange,
            message: String::new(),
            diff: String::new(),
            duration_ns: 0,
            seen: String::new(),
        })
    };
    let mut fake = has_other();
    let updates = ["other:file:/etc/other", "mine:file:/etc/mine"].map(finished);
    fake = FakeOperator { updates: updates.into_iter().chain(fake.updates).collect(), ..fake };
    fake.serve(&shell.state());
    shell.file("mine.yaml", MINE);
    let ended = shell.run(&["apply", "mine.yaml", "-H", "web1", "--plan-out", "plan.json"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let text = std::fs::read(shell.dir.path().join("plan.json")).unwrap();
    let document: Value = serde_json::from_slice(&text).unwrap();
    let plan: Value = serde_json::from_str(document["plan"].as_str().unwrap()).unwrap();
    assert_eq!(plan["resources"][0]["spec"]["content"], "kept");
    assert_eq!(
        plan["resources"][1]["spec"]["content"],
        serde_json::json!({"$text": ["ada 1 12 ", {"secret": {"id": "db", "version": 2}}]})
    );
    let assigned: Vec<_> = document["assign"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(assigned, ["mine"], "what the host has already stays as it is");
}
