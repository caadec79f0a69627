//! A service against an engine that answers by table.

use super::super::fake::Fake;
use super::super::settle::tests::service;
use super::*;

fn spec(changed: Value) -> SwarmServiceSpec {
    let mut json = json!({"name": "web", "image": "nginx:1", "networks": ["proxy"], "ports": ["80"],
        "configs": {"/etc/web.conf": "old"}, "secrets": {"/run/secrets/token": "t0ken"}});
    for (name, value) in changed.as_object().unwrap() {
        json[name] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

fn fake() -> Fake {
    let fake = Fake::new();
    fake.answers("GET /info", 200, json!({"Swarm": {"ControlAvailable": true}}));
    fake.answers("GET /networks", 200, json!([{"Id": "n1", "Name": "proxy"}]));
    fake.answers("GET /configs", 200, json!([]));
    fake.answers("GET /secrets", 200, json!([]));
    fake
}

/// The engine has what these steps told it.
fn is_told(fake: &Fake, steps: &[Step]) {
    let (mut configs, mut secrets) = (Vec::new(), Vec::new());
    for step in steps {
        let Step::HttpUnix(call) = step else { continue };
        let made = json!({"Spec": call.body});
        match call.path.as_str() {
            "/configs/create" => configs.push(made),
            "/secrets/create" => secrets.push(json!({"Spec": {"Name": call.body["Name"]}})),
            path if path.starts_with("/services/") => {
                let mut there = service("nginx:1", "");
                there["Spec"] = call.body.clone();
                there["Spec"]["TaskTemplate"]["Networks"][0]["Target"] = "n1".into();
                let task = json!({"Spec": there["Spec"]["TaskTemplate"], "DesiredState": "running",
                    "Status": {"State": "running"}});
                fake.answers("GET /services/web", 200, there);
                fake.answers("GET /tasks", 200, json!([task]));
            }
            _ => {}
        }
    }
    fake.answers("GET /configs", 200, configs.into());
    fake.answers("GET /secrets", 200, secrets.into());
}

async fn seen(spec: &SwarmServiceSpec, fake: &Fake) -> Seen {
    SwarmService::observe(spec, &fake.sys, Depth::Cheap).await.unwrap()
}

fn lines(steps: &[Step]) -> Vec<String> {
    let short = |step: &Step| step.summary().replace(AGENT_BINARY, "agent");
    // Which hash it is does not matter here.
    steps
        .iter()
        .map(short)
        .map(|line| {
            line.split(' ')
                .map(|word| if word.starts_with("web-") { "web-…" } else { word })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

/// The login that the step which pulls has, as the engine reads it.
fn login(spec: &SwarmServiceSpec, seen: &Seen) -> Value {
    let steps = SwarmService::plan(spec, seen);
    let Step::HttpUnix(call) = &steps[0] else { panic!("{steps:?}") };
    assert!(call.what.starts_with("pull the image"), "{call:?}");
    serde_json::from_slice(&URL_SAFE.decode(&call.registry_auth).unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn a_registry_is_given_its_login_with_the_pull_alone() {
    let fake = fake();
    let with =
        |image: &str| spec(json!({"image": image, "registry_user": "ada", "registry_password": "s3cret?>"}));
    let hub = "https://index.docker.io/v1/";
    for (image, at) in [
        ("nginx:1", hub),
        ("ada/app:1", hub),
        ("ghcr.io/ada/app:1", "ghcr.io"),
        ("localhost/app:1", "localhost"),
        ("registry:5000/app:1", "registry:5000"),
    ] {
        let spec = with(image);
        let want = json!({"username": "ada", "password": "s3cret?>", "serveraddress": at});
        assert_eq!(login(&spec, &seen(&spec, &fake).await), want, "{image}");
    }
    let plain = spec(json!({}));
    let before = seen(&plain, &fake).await;
    assert_eq!(login(&plain, &before), Value::Null);

    let spec = with("nginx:1");
    let steps = SwarmService::plan(&spec, &before);
    for step in &steps[1..] {
        let Step::HttpUnix(call) = step else { continue };
        assert!(call.registry_auth.is_empty() && !call.body.to_string().contains("s3cret"), "{call:?}");
    }
    assert!(!format!("{steps:?}").contains(&URL_SAFE.encode("s3cret?>")), "{steps:?}");
    // Another login is no other service.
    is_told(&fake, &steps);
    fake.answers("GET /images/nginx%3A1/json", 200, json!({}));
    assert_eq!(lines(&SwarmService::plan(&plain, &seen(&plain, &fake).await)), [""; 0]);
    assert_eq!(lines(&SwarmService::plan(&spec, &seen(&spec, &fake).await)), [""; 0]);
}

#[tokio::test]
async fn an_image_that_was_removed_is_pulled_again_for_tasks_that_do_not_run() {
    let (fake, spec) = (fake(), spec(json!({})));
    is_told(&fake, &SwarmService::plan(&spec, &seen(&spec, &fake).await));
    fake.answers("GET /tasks", 200, json!([]));
    let want = ["pull the image nginx:1", "agent settle-service web 120"];
    assert_eq!(lines(&SwarmService::plan(&spec, &seen(&spec, &fake).await)), want);
    fake.answers("GET /images/nginx%3A1/json", 200, json!({}));
    assert_eq!(lines(&SwarmService::plan(&spec, &seen(&spec, &fake).await)), want[1..]);
}

#[tokio::test]
async fn trap_20_what_is_new_has_a_name_of_its_own_and_the_old_goes_last() {
    let (fake, old) = (fake(), spec(json!({})));
    let steps = SwarmService::plan(&old, &seen(&old, &fake).await);
    let want = [
        "pull the image nginx:1",
        "make the config web-…",
        "make the secret web-…",
        "make the service web",
        "agent settle-service web 120 updated",
    ];
    assert_eq!(lines(&steps), want);
    assert_eq!(SwarmService::waits(&old, &seen(&old, &fake).await), 1, "a new service starts by itself");
    is_told(&fake, &steps);
    let before = seen(&old, &fake).await;
    assert_eq!(SwarmService::plan(&old, &before), [], "{:?}", before.shape());

    // Another token: the ports are held, and the old secret goes when the new one is in use.
    fake.answers("GET /images/nginx%3A1/json", 200, json!({"Id": "x"}));
    let new = spec(json!({"secrets": {"/run/secrets/token": "other"}}));
    let now = seen(&new, &fake).await;
    let steps = SwarmService::plan(&new, &now);
    let want = [
        "make the secret web-…",
        "agent hold-ports 80 90",
        "update the service web",
        "agent settle-service web 120 updated",
        "remove the secret web-…",
    ];
    assert_eq!(lines(&steps), want);
    assert_eq!(SwarmService::waits(&new, &now), 0, "what is held is let go at once");
    let Step::HttpUnix(update) = &steps[2] else { panic!("{:?}", steps[2]) };
    assert!(update.path.ends_with("/update?version=7"), "{}", update.path);
    // No value is in what is kept or shown, and the name is of no use without the key.
    let (kept, shown) = (serde_json::to_string(&now).unwrap(), SwarmService::hidden_diff(&new, &now));
    let plain = shape::config_name("web", "/run/secrets/token", "other");
    let encoded = STANDARD.encode("t0ken");
    for text in [&kept, &shown, &format!("{steps:?}")] {
        let told = ["t0ken", &*encoded, &plain].into_iter().find(|value| text.contains(*value));
        assert_eq!(told, None, "{text}");
    }
    let elsewhere = fake.sys.clone().with_key([8; 32]);
    let there = SwarmService::observe(&new, &elsewhere, Depth::Cheap).await.unwrap();
    assert_ne!(there.secret_names, now.secret_names, "a name is of no use without this host's key");

    // Once the old value is gone, nobody can bring it back; before that, it can be undone.
    let after = Seen { secrets: [now.secret_names["/run/secrets/token"].clone()].into(), ..now.clone() };
    let undo = SwarmService::undo(&new, &before, &Value::Null, &after);
    assert!(matches!(&undo, Undo::Cannot(why) if why.contains("nobody can read")), "{undo:?}");
    let Undo::Steps(back) = SwarmService::undo(&new, &before, &Value::Null, &now) else { panic!() };
    assert_eq!(lines(&back)[1], "update the service web");
}

#[tokio::test]
async fn a_config_that_was_collected_comes_back_with_an_undo() {
    let (fake, old) = (fake(), spec(json!({"secrets": {}})));
    is_told(&fake, &SwarmService::plan(&old, &seen(&old, &fake).await));
    let before = seen(&old, &fake).await;
    let new = spec(json!({"secrets": {}, "configs": {"/etc/web.conf": "new"}}));
    is_told(&fake, &SwarmService::plan(&new, &seen(&new, &fake).await));
    let after = seen(&new, &fake).await;
    let diff = SwarmService::diff(&new, &before);
    assert!(diff.contains("-old") && diff.contains("+new"), "{diff}");
    let Undo::Steps(back) = SwarmService::undo(&new, &before, &Value::Null, &after) else { panic!() };
    let want = [
        "make the config web-…",
        "agent hold-ports 80 90",
        "update the service web",
        "agent settle-service web 120 updated",
        "remove the config web-…",
    ];
    assert_eq!(lines(&back), want);
    let Step::HttpUnix(update) = &back[2] else { panic!() };
    assert_eq!(
        update.body["TaskTemplate"]["Networks"][0]["Target"], "proxy",
        "by name: the id may be another"
    );
    // There was none before: it is removed, and what was its own with it.
    let Undo::Steps(back) = SwarmService::undo(&new, &Seen::default(), &Value::Null, &after) else {
        panic!()
    };
    assert_eq!(
        lines(&back),
        ["remove the service web", "agent settle-service web 120", "remove the config web-…"]
    );
}

#[tokio::test]
async fn what_is_in_the_way_is_said() {
    let fake = fake();
    let foreign = service("nginx:1", "");
    fake.answers("GET /services/web", 200, foreign);
    fake.answers("GET /tasks", 200, json!([]));
    let sys = &fake.sys;
    let why = |spec: SwarmServiceSpec| async move {
        let looked = SwarmService::observe(&spec, sys, Depth::Cheap).await;
        looked.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(why(spec(json!({}))).await.starts_with("the service web was not made by Postern"));
    assert!(
        why(spec(json!({"state": "absent"}))).await.starts_with("the service web was not made by Postern")
    );
    let none = why(spec(json!({"name": "other", "networks": ["nosuch"]}))).await;
    assert!(none.starts_with("there is no network nosuch"), "{none}");
    fake.answers("GET /info", 200, json!({"Swarm": {"ControlAvailable": false}}));
    assert!(why(spec(json!({}))).await.starts_with("a service needs a Swarm"));
    assert_eq!(why(spec(json!({"state": "absent"}))).await, "");
}
