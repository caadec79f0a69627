//! `postern-agent settle-service`: waits until the tasks of a service are as it says, and tells on the way what becomes
//! of them. How a service stands is decided here for looks, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ASK_LIMIT, SOCKET, encoded, filters, hold, text};
use crate::sys::Sys;

const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A task that runs for so long has not ended at its start. An update has its own time for that.
const STEADY: Duration = Duration::from_secs(5);
/// So many tasks that fail one after another will not do better by themselves.
const FAILURES: usize = 3;
/// From when a task runs, a port that does not answer is held no longer.
const HELD: Duration = Duration::from_secs(10);
/// Within this time a Swarm has begun an update, or it has nothing to do for it.
const BEGUN: Duration = Duration::from_secs(5);

/// How the tasks of a service are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tasks {
    /// They run, and as the service says now.
    pub(super) running: u64,
    /// They run, or are to, as it said before.
    pub(super) old: u64,
    /// They failed, as it says now.
    pub(super) failed: usize,
    /// Why the last one failed.
    pub(super) trouble: String,
}

/// What of a container's description makes a task of now.
const TOLD: [&str; 8] =
    ["Image", "Args", "Env", "Configs", "Secrets", "Mounts", "Healthcheck", "StopGracePeriod"];

/// Whether a task is as the service says now. The engine does not tell which version of a service a task was made for
/// (swarmkit's `SpecVersion`), and the service's own counts up with a label, too; so what a Swarm itself compares then
/// is compared here (swarmkit, `IsTaskDirty`). Placement is not: a task that is where it may be stays.
fn same_spec(task: &Value, service: &Value) -> bool {
    let (spec, wanted) = (&task["Spec"], &service["Spec"]["TaskTemplate"]);
    let (of_task, of_service) = (&spec["ContainerSpec"], &wanted["ContainerSpec"]);
    TOLD.iter().all(|name| of_task[*name] == of_service[*name])
        && spec["Resources"] == wanted["Resources"]
        && spec["ForceUpdate"] == wanted["ForceUpdate"]
        // In both by their ids, in the order in which they were given.
        && items(&spec["Networks"]) == items(&wanted["Networks"])
        && same_ports(task, service)
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Whether the ports that a task has of the host are the service's. They are not in its spec: what is told is what its
/// container got, from when it runs. Of one that has none, that says nothing, and neither of a port that is the whole
/// Swarm's; see [`Wait::is_yet_to_begin`].
fn same_ports(task: &Value, service: &Value) -> bool {
    let of_host = |list| -> BTreeSet<(&str, u64, u64)> {
        let held = items(list).iter().filter(|port| text(port, "/PublishMode") == "host");
        let number = |port: &Value, name: &str| port[name].as_u64().unwrap_or(0);
        held.map(|port| (text(port, "/Protocol"), number(port, "TargetPort"), number(port, "PublishedPort")))
            .collect()
    };
    let has = of_host(&task["Status"]["PortStatus"]["Ports"]);
    let wanted = of_host(&service["Spec"]["EndpointSpec"]["Ports"]);
    // One that is published at 0 gets any.
    let fits = |got: &(&str, u64, u64), said: &(&str, u64, u64)| {
        (got.0, got.1) == (said.0, said.1) && (got.2 == said.2 || said.2 == 0)
    };
    has.is_empty()
        || has.iter().all(|got| wanted.iter().any(|said| fits(got, said)))
            && wanted.iter().all(|said| has.iter().any(|got| fits(got, said)))
}

/// How long a service is to stand as it should before it is believed. With a health check a task is told to run only
/// once it has passed one, which says more than any time.
fn steady_for(service: &Value) -> Duration {
    let test = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["Test"].as_array();
    let checked =
        test.and_then(|test| test.first()).and_then(Value::as_str).is_some_and(|first| first != "NONE");
    if checked { Duration::ZERO } else { STEADY }
}

/// It stands still for good: only another update makes it go on.
pub(super) fn is_stuck(service: &Value) -> bool {
    matches!(text(service, "/UpdateStatus/State"), "paused" | "rollback_paused")
}

impl Tasks {
    /// How they are, of what the engine says of the service and of its tasks. Pure.
    pub(super) fn of(service: &Value, tasks: &[Value]) -> Self {
        let mut all = Self::default();
        // One that has failed says more than one that waits for its port, however late that is.
        let mut last = (false, "");
        for task in tasks {
            let (state, wanted) = (text(task, "/Status/State"), text(task, "/DesiredState"));
            let now = same_spec(task, service);
            match (state, now) {
                ("running", true) if wanted == "running" => all.running += 1,
                ("running", _) => all.old += 1,
                (_, false) if wanted == "running" => all.old += 1,
                ("failed" | "rejected" | "complete", true) => all.failed += 1,
                _ => {}
            }
            let (mut why, at) = (text(task, "/Status/Err"), text(task, "/Status/Timestamp"));
            if state == "complete" && why.is_empty() {
                why = "its program ended by itself, with exit status 0";
            }
            let over = matches!(state, "failed" | "rejected" | "complete");
            if !why.is_empty() && (over || state == "pending") && (over, at) >= last {
                last = (over, at);
                all.trouble = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
            }
        }
        all
    }

    /// All that are wanted run, and no others, as the service says now: that may be what it said before an update that
    /// failed.
    pub(super) fn settled(&self, service: &Value) -> bool {
        let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0);
        let update = text(service, "/UpdateStatus/State");
        self.running == wanted && self.old == 0 && matches!(update, "" | "completed" | "rollback_completed")
    }
}

/// Asks for a service and its tasks.
pub(super) async fn look(
    sys: &Sys,
    name: &str,
) -> Result<Option<(Value, Vec<Value>)>, crate::sys::CallError> {
    let Some(service) = sys.ask(SOCKET, &format!("/services/{}", encoded(name)), ASK_LIMIT).await? else {
        return Ok(None);
    };
    let tasks = format!("/tasks?filters={}", filters("service", text(&service, "/ID")));
    let tasks = sys.ask(SOCKET, &tasks, ASK_LIMIT).await?;
    let tasks = tasks.and_then(|tasks| tasks.as_array().cloned()).unwrap_or_default();
    Ok(Some((service, tasks)))
}

/// Waits for a service to settle, or for its containers to be gone where there is no such service. Where it was `updated`
/// just before, an update that was rolled back is an error. The error is for people.
pub(crate) async fn settle_service(
    sys: &Sys,
    name: &str,
    seconds: &str,
    updated: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), String> {
    let seconds: u64 = seconds.parse().map_err(|_| "want a name and seconds".to_owned())?;
    let held = hold::is_held(sys).await;
    let mut wait = Wait {
        name,
        since: Instant::now(),
        until: Instant::now() + Duration::from_secs(seconds),
        held,
        updated,
        told: BTreeMap::new(),
        over: None,
    };
    let ended = wait.wait(sys, seconds, out).await;
    if wait.held {
        hold::release(sys).await;
    }
    ended
}

struct Wait<'a> {
    name: &'a str,
    since: Instant,
    until: Instant,
    /// Ports are held until the new task has them.
    held: bool,
    /// It was updated just before.
    updated: bool,
    /// What was told last of the update, and of each task.
    told: BTreeMap<String, String>,
    /// Tasks that had failed when the wait began: what they failed by may be mended since.
    over: Option<BTreeSet<String>>,
}

impl Wait<'_> {
    async fn wait(&mut self, sys: &Sys, seconds: u64, out: &mut (dyn Write + Send)) -> Result<(), String> {
        let mut steady: Option<Instant> = None;
        let mut runs: Option<Instant> = None;
        loop {
            let looked = look(sys, self.name).await.map_err(|error| error.to_string())?;
            let Some((service, tasks)) = looked else { return self.gone(sys, seconds).await };
            self.tell(&service, &tasks, out);
            let now = Tasks::of(&service, &self.of_this_wait(tasks));
            if let Some(why) = self.failed(&service, &now) {
                return Err(why);
            }
            let begun = !self.is_yet_to_begin(&service);
            if self.held && begun && now.old == 0 && self.answers(sys, &service).await {
                // Also before Docker says that the task is well, which it finds out some seconds later.
                self.let_go(sys).await;
            }
            if self.held && begun && now.running > 0 && runs.get_or_insert_with(Instant::now).elapsed() > HELD
            {
                self.let_go(sys).await;
            }
            if begun && now.settled(&service) {
                let since = *steady.get_or_insert_with(Instant::now);
                if since.elapsed() >= steady_for(&service) {
                    return Ok(());
                }
            } else {
                steady = None;
            }
            if Instant::now() >= self.until {
                let Tasks { running, old, trouble, .. } = now;
                let why = if trouble.is_empty() { String::new() } else { format!(": {trouble}") };
                let old = if old > 0 { format!(", {old} as it was before") } else { String::new() };
                let name = self.name;
                return Err(format!(
                    "the service {name} is not as declared after {seconds} s: {running} tasks run{old}{why}"
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn of_this_wait(&mut self, tasks: Vec<Value>) -> Vec<Value> {
        let failed =
            |task: &&Value| matches!(text(task, "/Status/State"), "failed" | "rejected" | "complete");
        // What was made just before has no past.
        let updated = self.updated;
        let over = self.over.get_or_insert_with(|| match updated {
            true => BTreeSet::new(),
            false => tasks.iter().filter(failed).map(|task| text(task, "/ID").to_owned()).collect(),
        });
        tasks.into_iter().filter(|task| !over.contains(text(task, "/ID"))).collect()
    }

    /// An update of ports alone that the Swarm has not begun: for a moment all looks as if it were through, where its
    /// tasks do not tell their ports.
    fn is_yet_to_begin(&self, service: &Value) -> bool {
        let before = &service["PreviousSpec"]["EndpointSpec"];
        self.updated
            && text(service, "/UpdateStatus/State").is_empty()
            && !service["PreviousSpec"].is_null()
            && *before != service["Spec"]["EndpointSpec"]
            && self.since.elapsed() < BEGUN
    }

    async fn let_go(&mut self, sys: &Sys) {
        hold::release(sys).await;
        self.held = false;
    }

    /// Why there is nothing to wait for any more.
    fn failed(&self, service: &Value, tasks: &Tasks) -> Option<String> {
        let name = self.name;
        let said = text(service, "/UpdateStatus/Message");
        let why = if tasks.trouble.is_empty() { said } else { &tasks.trouble };
        match text(service, "/UpdateStatus/State") {
            "rollback_completed" if self.updated => {
                Some(format!("the update of {name} failed and was rolled back: {why}"))
            }
            "paused" | "rollback_paused" if self.updated => {
                Some(format!("the update of {name} failed and stands still: {why}"))
            }
            "" if tasks.failed >= FAILURES && tasks.running == 0 => {
                Some(format!("the tasks of {name} fail: {why}"))
            }
            _ => None,
        }
    }

    /// Whether the new task has the ports. Its container must run first: to one that does not, a connection is neither
    /// made nor refused, and Docker's proxy has taken ours by then.
    async fn answers(&self, sys: &Sys, service: &Value) -> bool {
        let Ok(containers) = sys.ask(SOCKET, &self.containers(), ASK_LIMIT).await else { return false };
        let runs = containers.as_ref().and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        runs && self.ports_answer(service).await
    }

    /// Where the engine tells of the service's containers that run.
    fn containers(&self) -> String {
        let label = format!("com.docker.swarm.service.name={}", self.name);
        let filters = json!({"label": [label], "status": ["running"]}).to_string();
        format!("/containers/json?filters={}", encoded(&filters))
    }

    async fn ports_answer(&self, service: &Value) -> bool {
        let ports = service["Spec"]["EndpointSpec"]["Ports"].as_array();
        for port in ports.into_iter().flatten() {
            let held = text(port, "/PublishMode") == "host" && text(port, "/Protocol") == "tcp";
            let number = port["PublishedPort"].as_u64().and_then(|port| u16::try_from(port).ok());
            if held && !hold::answers(number.unwrap_or(0)).await {
                return false;
            }
        }
        true
    }

    /// The containers of a service that is gone end after it.
    async fn gone(&self, sys: &Sys, seconds: u64) -> Result<(), String> {
        let path = self.containers();
        loop {
            let left = sys.ask(SOCKET, &path, ASK_LIMIT).await.map_err(|error| error.to_string())?;
            if left.and_then(|left| left.as_array().map(Vec::len)).unwrap_or(0) == 0 {
                return Ok(());
            }
            if Instant::now() >= self.until {
                return Err(format!("containers of {} still run after {seconds} s", self.name));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Tells what is new. Who reads it may be gone; the wait is the same.
    fn tell(&mut self, service: &Value, tasks: &[Value], out: &mut (dyn Write + Send)) {
        let mut news = Vec::new();
        let update = text(service, "/UpdateStatus/State");
        if !update.is_empty() {
            news.push(("update".to_owned(), format!("{update}: {}", text(service, "/UpdateStatus/Message"))));
        }
        for task in tasks.iter().take(50) {
            let id: String = text(task, "/ID").chars().take(12).collect();
            let why = text(task, "/Status/Err");
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            news.push((format!("task {id}"), format!("{}{why}", text(task, "/Status/State"))));
        }
        for (what, now) in news {
            if self.told.get(&what) != Some(&now) {
                let _ = writeln!(out, "{what}: {now}");
                self.told.insert(what, now);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fake::Fake;
    use super::*;

    pub(in super::super) fn service(image: &str, update: &str) -> Value {
        json!({"ID": "s", "Version": {"Index": 7}, "UpdateStatus": {"State": update, "Message": "because"},
            "Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": 1}},
                "TaskTemplate": {"ContainerSpec": {"Image": image}}}})
    }

    fn task(image: &str, state: &str, wanted: &str, why: &str) -> Value {
        json!({"ID": format!("{image}{state}"), "DesiredState": wanted, "Spec": {"ContainerSpec": {"Image": image}},
            "Status": {"State": state, "Err": why, "Timestamp": "2026-01-01T00:00:00Z"}})
    }

    #[test]
    fn how_tasks_stand_by_table() {
        let cases = [
            (vec![task("b", "running", "running", "")], "", true),
            (vec![task("b", "running", "running", "")], "completed", true),
            (vec![task("b", "running", "running", "")], "updating", false),
            (vec![task("a", "running", "running", "")], "", false),
            (vec![task("b", "running", "running", ""), task("a", "running", "shutdown", "")], "", false),
            (vec![task("b", "running", "running", ""), task("a", "shutdown", "shutdown", "")], "", true),
            (vec![task("b", "starting", "running", "")], "", false),
            (vec![task("b", "running", "running", ""), task("b", "failed", "shutdown", "x")], "", true),
            (vec![], "", false),
        ];
        for (tasks, update, want) in cases {
            let service = service("b", update);
            assert_eq!(Tasks::of(&service, &tasks).settled(&service), want, "{tasks:?} {update}");
        }
    }

    fn port(target: u64, published: u64, mode: &str) -> Value {
        json!({"Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": mode})
    }

    /// As Docker tells it: ports of a task twice, for each family of addresses, and networks by their ids.
    #[test]
    fn a_task_of_before_is_told_by_its_ports_and_networks() {
        let host = |number: u64| port(number, number, "host");
        let cases = [
            (json!([host(80), host(80)]), json!([host(80)]), true),
            (json!([host(443), host(80)]), json!([host(80), host(443)]), true),
            (json!([host(80), host(443)]), json!([host(80)]), false),
            (json!([host(80)]), json!([host(80), host(443)]), false),
            (json!([host(80)]), json!([port(8080, 80, "host")]), false),
            (json!([host(80)]), json!([]), false),
            (json!([host(80)]), json!([port(80, 80, "ingress")]), false),
            // Which one it gets is not said.
            (json!([port(80, 32768, "host")]), json!([port(80, 0, "host")]), true),
            // It tells of none of its own.
            (json!(null), json!([host(80)]), true),
            (json!(null), json!([port(80, 80, "ingress")]), true),
            (json!(null), json!(null), true),
        ];
        for (has, says, same) in cases {
            let mut service = service("b", "");
            service["Spec"]["EndpointSpec"] = json!({"Mode": "vip", "Ports": says});
            let mut task = task("b", "running", "running", "");
            task["Status"]["PortStatus"] = json!({"Ports": has});
            let of = Tasks::of(&service, &[task]);
            assert_eq!((of.running, of.old), (u64::from(same), u64::from(!same)), "{has} {says}");
        }
        let net = |id: &str| json!([{"Target": id}]);
        for (of_task, of_service, same) in [
            (net("a"), net("a"), true),
            (net("a"), net("b"), false),
            (json!(null), net("b"), false),
            (net("a"), json!([]), false),
            (json!(null), json!([]), true),
        ] {
            let mut service = service("b", "");
            service["Spec"]["TaskTemplate"]["Networks"] = of_service;
            let mut task = task("b", "running", "running", "");
            task["Spec"]["Networks"] = of_task;
            assert_eq!(Tasks::of(&service, &[task]).settled(&service), same, "{service}");
        }
    }

    /// A moment after an update of a port of the whole Swarm: its tasks do not tell such ports.
    #[tokio::test]
    async fn an_update_that_the_swarm_has_not_begun_is_waited_for() {
        let fake = Fake::new();
        for program in ["iptables", "ip6tables"] {
            fake.program(program, "exit 1");
        }
        let mut service = service("b", "");
        let health = json!({"Test": ["CMD", "true"]});
        service["Spec"]["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = health.clone();
        service["Spec"]["EndpointSpec"] = json!({"Mode": "vip", "Ports": [port(80, 80, "ingress")]});
        let mut task = task("b", "running", "running", "");
        task["Spec"]["ContainerSpec"]["Healthcheck"] = health;
        fake.answers("GET /tasks", 200, json!([task]));
        let mut of_label = service["Spec"].clone();
        of_label["Labels"] = json!({"x": "y"});
        let mut of_port = service["Spec"].clone();
        of_port["EndpointSpec"]["Ports"] = json!([port(80, 81, "ingress")]);
        // One that was just made, one of a label alone, one of a port, looked at later, and one that is through.
        for (before, state, updated, settled) in [
            (Value::Null, "", true, true),
            (of_label, "", true, true),
            (of_port.clone(), "", true, false),
            (of_port.clone(), "", false, true),
            (of_port, "completed", true, true),
        ] {
            service["PreviousSpec"] = before;
            service["UpdateStatus"]["State"] = state.into();
            fake.answers("GET /services/web", 200, service.clone());
            let got = settle_service(&fake.sys, "web", "0", updated, &mut Vec::new()).await;
            assert_eq!(got.is_ok(), settled, "{service} {updated}: {got:?}");
        }
    }

    #[test]
    fn a_health_check_that_was_passed_needs_no_further_time() {
        let cases = [
            (json!(null), STEADY),
            (json!({}), STEADY),
            (json!({"Test": []}), STEADY),
            (json!({"Test": ["NONE"]}), STEADY),
            (json!({"Test": ["CMD", "traefik", "healthcheck"]}), Duration::ZERO),
            (json!({"Test": ["CMD-SHELL", "true"]}), Duration::ZERO),
        ];
        for (health, want) in cases {
            let mut service = service("b", "");
            service["Spec"]["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = health.clone();
            assert_eq!(steady_for(&service), want, "{health}");
        }
        assert_eq!(steady_for(&service("b", "")), STEADY);
    }

    #[test]
    fn a_failure_says_more_than_a_wait() {
        let mut waits = task("a", "pending", "running", "no suitable node");
        waits["Status"]["Timestamp"] = "2026-01-01T00:00:09Z".into();
        for tasks in [
            [waits.clone(), task("b", "complete", "shutdown", "")],
            [task("b", "complete", "shutdown", ""), waits],
        ] {
            let trouble = Tasks::of(&service("b", ""), &tasks).trouble;
            assert_eq!(trouble, "its program ended by itself, with exit status 0");
        }
    }

    #[tokio::test]
    async fn the_wait_ends_by_what_is_seen() {
        let cases = [
            (service("b", "completed"), vec![task("b", "running", "running", "")], "9", Ok(())),
            (
                service("b", "rollback_completed"),
                vec![task("b", "running", "running", ""), task("c", "failed", "shutdown", "exit 1")],
                "9",
                Err("the update of web failed and was rolled back: exit 1"),
            ),
            (service("b", "paused"), vec![], "9", Err("the update of web failed and stands still: because")),
            (
                service("b", ""),
                vec![task("b", "failed", "shutdown", "no such image"); 3],
                "9",
                Err("the tasks of web fail: no such image"),
            ),
            (
                service("b", ""),
                vec![task("b", "pending", "running", "no suitable node")],
                "0",
                Err("the service web is not as declared after 0 s: 0 tasks run: no suitable node"),
            ),
        ];
        for (service, tasks, seconds, want) in cases {
            let fake = Fake::new();
            for program in ["iptables", "ip6tables"] {
                fake.program(program, "exit 1");
            }
            fake.answers("GET /services/web", 200, service.clone());
            fake.answers("GET /tasks", 200, tasks.into());
            let got = settle_service(&fake.sys, "web", seconds, true, &mut Vec::new()).await;
            assert_eq!(got, want.map_err(str::to_owned), "{service}");
        }
    }
}
