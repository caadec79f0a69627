//! The JSON of each thing that is shown. Every document names its schema and version; fields are only added.

use postern_proto::event::{EventKind, LogBody, LogFrame, RunEvent, StepEnd, Stream};
use serde_json::{Map, Value, json};

use super::view::{Counts, outcome_word};
use crate::client::{HostInfo, RunInfo, SecretInfo, Update, UpdateKind};

/// Milliseconds since the Unix epoch as RFC 3339; null for 0.
pub(crate) fn time_ms(ms: i64) -> Value {
    if ms == 0 {
        return Value::Null;
    }
    jiff::Timestamp::from_millisecond(ms).map_or(Value::Null, |time| time.to_string().into())
}

fn time_ns(ns: i64) -> Value {
    jiff::Timestamp::from_nanosecond(ns.into()).map_or(Value::Null, |time| time.to_string().into())
}

/// A text that is not there is null.
pub(crate) fn or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

pub(crate) fn host(host: &HostInfo) -> Value {
    json!({
        "schema": "postern/host/v1",
        "id": host.id.to_string(),
        "name": host.name,
        "ssh_address": or_null(&host.ssh_address),
        "also_at": host.also_at,
        "labels": host.labels,
        "link": host.link.as_str(),
        "agent_version": or_null(&host.agent_version),
        "os": or_null(&host.os_id),
        "os_version": or_null(&host.os_version),
        "arch": or_null(&host.arch),
        "hostname": or_null(&host.hostname),
        "last_seen": time_ms(host.last_seen_ms),
        "peer": or_null(&host.peer),
        "detail": or_null(&host.detail),
        "vars": host.vars,
        "profiles": host.profiles,
        "memory_mb": host.room.memory_mb,
        "swap_mb": host.room.swap_mb,
        "disk_free_mb": host.room.disk_free_mb,
        "var_free_mb": host.room.var_free_mb,
        "ssh_port": host.ssh.declared.as_ref().map_or("open", |said| said.port.as_str()),
        "ssh_port_since": time_ms(host.ssh.declared.as_ref().map_or(0, |said| said.at_ms)),
        "ssh_port_run": host.ssh.declared.as_ref().map(|said| said.run.to_string()),
    })
}

pub(crate) fn run(run: &RunInfo) -> Value {
    json!({
        "schema": "postern/run/v1",
        "id": run.id.to_string(),
        "host_id": run.host_id.to_string(),
        "host": run.host_name,
        "state": run.state.as_str(),
        "origin": run.origin,
        "check": run.check,
        "created": time_ms(run.created_ms),
        "finished": time_ms(run.finished_ms),
        "plan_sha256": run.plan.map(|plan| plan.to_string()),
        "message": or_null(&run.message),
        "resumes": run.resumes.map(|run| run.to_string()),
        "undoes": run.undoes.map(|run| run.to_string()),
    })
}

/// Of a secret, never the value.
pub(crate) fn secret(secret: &SecretInfo) -> Value {
    json!({
        "name": secret.name, "version": secret.version, "set": time_ms(secret.set_ms), "used_by": secret.used_by,
    })
}

pub(crate) fn update(update: &Update, host: &str) -> Value {
    match &update.kind {
        UpdateKind::Run(info) => run(info),
        UpdateKind::Event(it) => event(it, host),
        UpdateKind::Log(frame) => log(frame, host),
    }
}

fn event(event: &RunEvent, host: &str) -> Value {
    let (what, more) = match &event.kind {
        EventKind::Accepted { plan, resources } => {
            ("accepted", json!({"plan_sha256": plan.to_string(), "resources": resources}))
        }
        EventKind::ResourceStarted { address, attempt } => {
            ("resource-started", json!({"address": address, "attempt": attempt}))
        }
        EventKind::StepStarted { step, summary } => (
            "step-started",
            json!({"address": step.address, "attempt": step.attempt, "step": step.step, "summary": summary}),
        ),
        EventKind::StepFinished { step, end, .. } => {
            let (exit_code, signal, error) = match end {
                StepEnd::Done => (None, None, None),
                StepEnd::Exit(code) => (Some(*code), None, None),
                StepEnd::Signal(signal) => (None, Some(*signal), None),
                StepEnd::Error(error) => (None, None, Some(error)),
            };
            let more = json!({
                "address": step.address, "attempt": step.attempt, "step": step.step,
                "exit_code": exit_code, "signal": signal, "error": error,
            });
            ("step-finished", more)
        }
        EventKind::ResourceFinished { address, attempt, outcome, message, diff, duration_ns, seen } => {
            let more = json!({
                "address": address, "attempt": attempt, "outcome": outcome_word(*outcome).0.replace(' ', "-"),
                "message": or_null(message), "diff": or_null(diff), "seconds": *duration_ns as f64 / 1e9,
                "seen": or_null(seen),
            });
            ("resource-finished", more)
        }
        EventKind::Parked { why } => ("parked", json!({"message": or_null(why)})),
        EventKind::Unparked => ("unparked", json!({})),
        EventKind::Finished { state, message } => {
            ("finished", json!({"state": state.as_str(), "message": or_null(message)}))
        }
    };
    let mut value = json!({
        "schema": "postern/run-event/v1",
        "run": event.run.to_string(),
        "host": host,
        "seq": event.seq,
        "time": time_ns(event.time_ns),
        "event": what,
    });
    if let (Value::Object(to), Value::Object(more)) = (&mut value, more) {
        to.extend(more);
    }
    value
}

fn log(frame: &LogFrame, host: &str) -> Value {
    let mut value = json!({
        "schema": "postern/run-log/v1",
        "run": frame.run.to_string(),
        "host": host,
        "address": frame.step.address,
        "attempt": frame.step.attempt,
        "step": frame.step.step,
        "frame": frame.frame_no,
        "stream": match frame.stream { Stream::Stdout => "stdout", Stream::Stderr => "stderr" },
        "offset": frame.offset,
        "time": time_ns(frame.time_ns),
    });
    if let Value::Object(to) = &mut value {
        to.extend(body(&frame.body));
    }
    value
}

/// Text where the bytes are text; base64 where they are not, so that no byte is lost.
fn body(body: &LogBody) -> Map<String, Value> {
    use base64::Engine as _;
    let (name, value) = match body {
        LogBody::Data(data) => match std::str::from_utf8(data) {
            Ok(text) => ("text", text.into()),
            Err(_) => ("base64", base64::engine::general_purpose::STANDARD.encode(data).into()),
        },
        LogBody::Truncated { bytes, sha256 } => {
            let hash: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            ("truncated", json!({"bytes": bytes, "sha256": hash}))
        }
    };
    [(name.to_owned(), value)].into_iter().collect()
}

pub(crate) fn result(schema: &str, run: &RunInfo, counts: &Counts) -> Value {
    let counts: Map<_, _> =
        counts.each().iter().map(|(word, count)| (word.replace(' ', "_"), Value::from(*count))).collect();
    json!({
        "schema": schema,
        "host": run.host_name,
        "host_id": run.host_id.to_string(),
        "run": run.id.to_string(),
        "state": run.state.as_str(),
        "check": run.check,
        "message": or_null(&run.message),
        "counts": counts,
    })
}
