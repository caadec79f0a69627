//! `postern-agent http-unix`: makes one call to a program that listens on a Unix socket, and says how it went.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::super::HttpUnix;
use super::{hold, text};
use crate::sys::{Call, Sys};

/// The most things of which it is remembered how far they are.
const TRACKED: usize = 256;
/// Docker's header for the login at an image's registry (Engine API, Authentication).
const REGISTRY_AUTH: &str = "x-registry-auth";
/// For a look at what an id stands for.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// How long what was removed may still be seen.
const GONE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Does what a step says; progress goes to `out`. The error is for people.
pub(crate) async fn http_unix(sys: &Sys, request: &str, out: &mut (dyn Write + Send)) -> Result<(), String> {
    let mut call: HttpUnix =
        serde_json::from_str(request).map_err(|error| format!("the call cannot be read: {error}"))?;
    // Ports are held for an update alone: where that is not made, nobody is to wait for it.
    let is_update = call.path.starts_with("/services/");
    let made = filled_and_made(sys, &mut call, out).await;
    if made.is_err() && is_update {
        hold::release(sys).await;
    }
    made
}

async fn filled_and_made(sys: &Sys, call: &mut HttpUnix, out: &mut (dyn Write + Send)) -> Result<(), String> {
    fill_ids(sys, &call.socket, &mut call.body).await?;
    let method = Method::from_bytes(call.method.as_bytes()).map_err(|error| error.to_string())?;
    let body = if call.body.is_null() { String::new() } else { call.body.to_string() };
    let header = (!call.registry_auth.is_empty()).then_some((REGISTRY_AUTH, call.registry_auth.as_str()));
    let request = Call { method, path: &call.path, header, body, limit: Duration::from_secs(call.limit_s) };
    make(sys, call, &request, out).await?;
    if request.method == Method::DELETE && call.path.starts_with("/networks/") {
        until_gone(sys, call).await;
    }
    Ok(())
}

/// The engine answers when its Swarm has forgotten a network; the node's own part of it goes a moment later, and would
/// be taken for the network meanwhile. One that stays is for the next look to tell.
async fn until_gone(sys: &Sys, call: &HttpUnix) {
    let until = tokio::time::Instant::now() + GONE;
    while matches!(sys.ask(&call.socket, &call.path, LOOK_LIMIT).await, Ok(Some(_)))
        && tokio::time::Instant::now() < until
    {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn make(
    sys: &Sys,
    call: &HttpUnix,
    request: &Call<'_>,
    out: &mut (dyn Write + Send),
) -> Result<(), String> {
    let mut progress = Progress::default();
    let mut each = |line: &[u8]| progress.line(line, out);
    let socket = sys.real(&call.socket);
    let made = if call.progress {
        request.make(&socket, Some(&mut each)).await
    } else {
        request.make(&socket, None).await
    };
    let answer = made.map_err(|error| error.to_string())?;
    if let Some(why) = progress.failed {
        return Err(why);
    }
    if !answer.status.is_success() && !call.fine.contains(&answer.status.as_u16()) {
        return Err(request.refused(&answer).to_string());
    }
    if !call.progress {
        warnings(&answer.body, out);
    }
    Ok(())
}

/// What an engine has to say of what it did.
fn warnings(body: &[u8], out: &mut (dyn Write + Send)) {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let many = said["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for warning in many.chain(said["Warning"].as_str()).filter(|text| !text.is_empty()) {
        // Who reads it may be gone; the call was made all the same.
        let _ = writeln!(out, "warning: {warning}");
    }
}

/// Puts the id of what stands at a path in the place of `{"$id": PATH}`.
async fn fill_ids(sys: &Sys, socket: &str, body: &mut Value) -> Result<(), String> {
    let mut open = vec![body];
    while let Some(value) = open.pop() {
        if let Some(path) = value.get("$id").and_then(Value::as_str).map(str::to_owned) {
            let found = sys.ask(socket, &path, LOOK_LIMIT).await.map_err(|error| error.to_string())?;
            let found = found.ok_or_else(|| format!("{path} is not there any more"))?;
            let id = [text(&found, "/ID"), text(&found, "/Id")].into_iter().find(|id| !id.is_empty());
            *value = id.ok_or_else(|| format!("{path} has no id"))?.into();
            continue;
        }
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(map) => open.extend(map.values_mut()),
            _ => {}
        }
    }
    Ok(())
}

/// Lines of JSON that tell how far a pull is; a line is told where a layer comes to something new, not for each byte.
#[derive(Default)]
struct Progress {
    last: HashMap<String, String>,
    failed: Option<String>,
}

impl Progress {
    fn line(&mut self, line: &[u8], out: &mut (dyn Write + Send)) {
        let Ok(said) = serde_json::from_slice::<Value>(line) else { return };
        let why = [text(&said, "/errorDetail/message"), text(&said, "/error")];
        if let Some(why) = why.into_iter().find(|why| !why.is_empty()) {
            self.failed = Some(why.to_owned());
            return;
        }
        let (id, status) = (text(&said, "/id"), text(&said, "/status"));
        if status.is_empty() || self.last.get(id).is_some_and(|last| last == status) {
            return;
        }
        if self.last.len() < TRACKED {
            self.last.insert(id.to_owned(), status.to_owned());
        }
        let _ = if id.is_empty() { writeln!(out, "{status}") } else { writeln!(out, "{id}: {status}") };
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;
    use serde_json::json;

    fn call(method: &str, path: &str, body: Value, progress: bool) -> String {
        let call = HttpUnix {
            what: "x".to_owned(),
            socket: super::super::SOCKET.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            registry_auth: String::new(),
            body,
            progress,
            fine: vec![404],
            limit_s: 10,
        };
        serde_json::to_string(&call).unwrap()
    }

    async fn run(fake: &Fake, call: &str) -> (Result<(), String>, String) {
        let mut out = Vec::new();
        let done = http_unix(&fake.sys, call, &mut out).await;
        (done, String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn ids_are_filled_in_and_answers_are_told() {
        let fake = Fake::new();
        fake.answers("GET /configs/a", 200, json!({"ID": "id-of-a"}));
        fake.answers("POST /x", 201, json!({"ID": "new", "Warnings": ["mind the gap"]}));
        let body = json!({"List": [{"ConfigID": {"$id": "/configs/a"}}], "Data": "s3cret"});
        let (done, said) = run(&fake, &call("POST", "/x", body, false)).await;
        assert_eq!((done, said.as_str()), (Ok(()), "warning: mind the gap\n"));
        assert_eq!(fake.body_of("POST /x"), json!({"List": [{"ConfigID": "id-of-a"}], "Data": "s3cret"}));

        let (done, _) = run(&fake, &call("POST", "/x", json!({"$id": "/configs/b"}), false)).await;
        assert_eq!(done.unwrap_err(), "/configs/b is not there any more");
        assert_eq!(
            run(&fake, &call("DELETE", "/configs/b", Value::Null, false)).await.0,
            Ok(()),
            "404 is fine"
        );
        fake.answers("DELETE /secrets/a", 409, json!({"message": "in use"}));
        let (refused, _) = run(&fake, &call("DELETE", "/secrets/a", Value::Null, false)).await;
        assert_eq!(refused.unwrap_err(), "DELETE /secrets/a: 409 Conflict: in use");
    }

    #[tokio::test]
    async fn a_network_that_is_removed_is_waited_for() {
        let fake = Fake::new();
        fake.answers("DELETE /networks/a", 204, Value::Null);
        fake.answers("GET /networks/a", 200, json!({"Id": "of the node"}));
        let remove = call("DELETE", "/networks/a", Value::Null, false);
        let mut removing = std::pin::pin!(run(&fake, &remove));
        let moment = Duration::from_millis(500);
        assert!(tokio::time::timeout(moment, &mut removing).await.is_err(), "it is seen still");
        fake.answers("GET /networks/a", 404, json!({"message": "no such network"}));
        let (done, _) = tokio::time::timeout(Duration::from_secs(10), removing).await.expect("it is gone");
        assert_eq!(done, Ok(()));
    }

    #[tokio::test]
    async fn a_pull_tells_what_is_new_and_how_it_fails() {
        let fake = Fake::new();
        let lines = "{\"status\":\"Pulling\",\"id\":\"a\"}\n{\"status\":\"Downloading\",\"id\":\"b\"}\n\
                     {\"status\":\"Downloading\",\"id\":\"b\",\"progressDetail\":{\"current\":7}}\n{\"status\":\"Done\"}\n";
        fake.answers_text("POST /images/create", 200, lines);
        let (done, said) = run(&fake, &call("POST", "/images/create?fromImage=a", Value::Null, true)).await;
        assert_eq!((done, said.as_str()), (Ok(()), "a: Pulling\nb: Downloading\nDone\n"));
        let auth = "x-registry-auth";
        assert_eq!(fake.header_of("POST /images/create", auth), None);
        let mut login: HttpUnix =
            serde_json::from_str(&call("POST", "/images/create?fromImage=a", Value::Null, true)).unwrap();
        login.registry_auth = "e30=".to_owned();
        let (done, said) = run(&fake, &serde_json::to_string(&login).unwrap()).await;
        assert_eq!((done, said.contains("e30")), (Ok(()), false));
        assert_eq!(fake.header_of("POST /images/create", auth).as_deref(), Some("e30="));
        fake.answers_text("POST /images/create", 200, "{\"errorDetail\":{\"message\":\"no such tag\"}}\n");
        let (done, _) = run(&fake, &call("POST", "/images/create?fromImage=a", Value::Null, true)).await;
        assert_eq!(done.unwrap_err(), "no such tag");
    }
}
