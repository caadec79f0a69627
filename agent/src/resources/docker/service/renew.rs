//! Starts the tasks of a service anew, as an update would that changes nothing: what it reads at its start only has
//! changed.

use std::io::Write;

use super::super::{ASK_LIMIT, MANAGED, SOCKET, http_unix};
use super::{Seen, Service, Step, Tasks, Value, change, hold, settle, text};
use crate::sys::{CallError, Sys};

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resources::docker) enum Renewed {
    /// New tasks run.
    Restarted,
    /// There is no such service, or none of its tasks is to run.
    Absent,
}

/// Why they were not started anew, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources::docker) struct NotRenewed {
    /// For people.
    pub(in crate::resources::docker) why: String,
    /// No update was made: the tasks are those of before.
    pub(in crate::resources::docker) as_before: bool,
}

fn as_before(why: impl std::fmt::Display) -> NotRenewed {
    NotRenewed { why: why.to_string(), as_before: true }
}

fn unknown(why: impl std::fmt::Display) -> NotRenewed {
    NotRenewed { why: why.to_string(), as_before: false }
}

/// How an engine refuses an update of a service that somebody else has changed since we looked.
const CHANGED: &str = "out of sequence";

/// Starts them anew; ports that go from one task to the next are held meanwhile.
pub(in crate::resources::docker) async fn renew(
    sys: &Sys,
    name: &str,
    wait_s: u64,
    out: &mut (dyn Write + Send),
) -> Result<Renewed, NotRenewed> {
    let mut first = true;
    loop {
        let looked = look(sys, name).await.map_err(as_before)?;
        let Some((service, tasks)) = looked else { return Ok(Renewed::Absent) };
        match update(sys, name, &service, &tasks, wait_s, out).await {
            Err(error) if first && error.why.contains(CHANGED) => first = false,
            done => return done.map(|()| Renewed::Restarted),
        }
    }
}

/// The service with its tasks, where some are to run.
async fn look(sys: &Sys, name: &str) -> Result<Option<(Value, Vec<Value>)>, String> {
    let looked = match settle::look(sys, name).await {
        // No manager of a Swarm, or one that has no leader just now: only the first has no services.
        Err(error @ CallError::Refused { .. }) if is_unavailable(&error) => {
            let info = sys.ask(SOCKET, "/info", ASK_LIMIT).await.map_err(|error| error.to_string())?;
            if text(&info.unwrap_or_default(), "/Swarm/LocalNodeState") != "inactive" {
                return Err(error.to_string());
            }
            None
        }
        looked => looked.map_err(|error| error.to_string())?,
    };
    let Some((service, tasks)) = looked.filter(|(service, _)| text(service, "/Spec/Name") == name) else {
        return Ok(None);
    };
    if service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64() == Some(0) {
        return Ok(None);
    }
    if service["Spec"]["Labels"].get(MANAGED).is_none() {
        return Err(format!("the service {name} was not made by Postern"));
    }
    Ok(Some((service, tasks)))
}

fn is_unavailable(error: &CallError) -> bool {
    matches!(error, CallError::Refused { status, .. } if status.as_u16() == 503)
}

async fn update(
    sys: &Sys,
    name: &str,
    service: &Value,
    tasks: &[Value],
    wait_s: u64,
    out: &mut (dyn Write + Send),
) -> Result<(), NotRenewed> {
    for step in steps(name, service, tasks, wait_s) {
        match step {
            Step::HttpUnix(call) => {
                let call = serde_json::to_string(&call).map_err(as_before)?;
                if let Err(why) = http_unix(sys, &call, out).await {
                    // It may have been made although its answer was lost.
                    let now = settle::look(sys, name).await.ok().flatten();
                    let same = now.is_some_and(|(now, _)| now["Version"] == service["Version"]);
                    return Err(if same { as_before(why) } else { unknown(why) });
                }
            }
            Step::Exec(exec) => {
                match exec.argv.iter().skip(1).map(String::as_str).collect::<Vec<_>>().as_slice() {
                    ["hold-ports", ports, seconds] => {
                        // What comes after it goes on all the same: some connections are refused for a moment.
                        if let Err(why) = hold::hold_ports(sys, ports, seconds, out).await {
                            let _ = writeln!(out, "{why}");
                        }
                    }
                    ["settle-service", name, seconds, "updated"] => {
                        settle::settle_service(sys, name, seconds, true, out).await.map_err(unknown)?;
                    }
                    other => return Err(unknown(format!("no step of an update: {other:?}"))),
                }
            }
            _ => return Err(unknown("no step of an update")),
        }
    }
    Ok(())
}

/// The steps of an update that only counts up.
fn steps(name: &str, service: &Value, tasks: &[Value], wait_s: u64) -> Vec<Step> {
    let tasks = Tasks::of(service, tasks);
    let there = Service {
        id: text(service, "/ID").to_owned(),
        index: service["Version"]["Index"].as_u64().unwrap_or(0),
        settled: tasks.settled(service),
        stuck: settle::is_stuck(service),
        spec: service["Spec"].clone(),
        tasks,
    };
    let again = again(&there.spec);
    change(name, &Seen { service: Some(there), ..Seen::default() }, again, wait_s)
}

/// The same service, counted up: a Swarm starts its tasks anew.
pub(super) fn again(spec: &Value) -> Value {
    let mut again = spec.clone();
    let count = again["TaskTemplate"]["ForceUpdate"].as_u64().unwrap_or(0);
    again["TaskTemplate"]["ForceUpdate"] = (count + 1).into();
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_update_that_changes_nothing_but_its_count() {
        let port = json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 80, "PublishMode": "host"});
        let mut service = json!({"ID": "s1", "Version": {"Index": 7}, "Spec": {
            "Name": "traefik", "Labels": {MANAGED: "true"}, "Mode": {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ForceUpdate": 2, "ContainerSpec": {"Image": "traefik", "Hostname": "kept"}},
            "EndpointSpec": {"Ports": [port]},
        }});
        let task = json!({"DesiredState": "running", "Status": {"State": "running"},
            "Spec": service["Spec"]["TaskTemplate"]});
        let made = steps("traefik", &service, &[task], 60);
        let lines: Vec<String> =
            made.iter().map(|step| step.summary().replace("/usr/local/bin/postern-", "")).collect();
        assert_eq!(
            lines,
            [
                "agent hold-ports 80 60",
                "update the service traefik",
                "agent settle-service traefik 60 updated"
            ]
        );
        let Some(Step::HttpUnix(call)) = made.get(1) else { panic!("{lines:?}") };
        assert_eq!(call.path, "/services/s1/update?version=7");
        service["Spec"]["TaskTemplate"]["ForceUpdate"] = 3.into();
        assert_eq!(call.body, service["Spec"]);
    }
}
