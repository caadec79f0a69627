//! Whether a service says that it is ready.

use std::time::Duration;

use postern_proto::spec::ServiceSpec;

use super::super::ObserveError;
use super::LOOK_AGAIN;
use crate::sys::Sys;

/// The time a unit may take to say whether it is ready.
const READY_LIMIT: Duration = Duration::from_secs(3);

/// What a unit says that is asked whether it is ready and is not; `None` where it is, or where nobody asks.
pub(super) async fn unready(spec: &ServiceSpec, host: &Sys) -> Option<String> {
    let ready = spec.ready.as_deref()?;
    let (at, path) = match ServiceSpec::ready_at(ready) {
        Ok(found) => found,
        Err(why) => return Some(why),
    };
    match host.http_status(at, path, READY_LIMIT).await {
        Ok(status) if status.is_success() => None,
        Ok(status) => Some(format!("{ready} answers {status}")),
        Err(why) => Some(format!("{ready}: {why}")),
    }
}

/// Waits until it says so, for as long as it is given.
pub(super) async fn becomes_ready(spec: &ServiceSpec, host: &Sys) -> Result<(), ObserveError> {
    let until = tokio::time::Instant::now() + Duration::from_secs(spec.ready_within_s());
    while let Some(why) = unready(spec, host).await {
        if tokio::time::Instant::now() >= until {
            let (unit, within) = (spec.unit(), spec.ready_within_s());
            return Err(ObserveError::Obstacle(format!(
                "{unit} runs and was not ready within {within} s: {why}; `journalctl -u {unit}` may say why"
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Seen;
    use super::super::tests::{seen, spec, verbs};
    use super::*;

    /// A listener that answers 503 so many times and then 200.
    async fn says(unready: usize) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ready", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for asked in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 512];
                let got = stream.read(&mut head).await.unwrap();
                assert!(head[..got].starts_with(b"GET /ready HTTP/1.1\r\n"));
                let status = if asked < unready { "503 Service Unavailable" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn one_that_says_it_is_not_ready_is_restarted_and_then_waited_for() {
        let host = Sys::rooted(std::env::temp_dir(), String::new());
        let ready = |url: String, within: u64| {
            spec(serde_json::json!({"name": "x", "state": "running", "ready": url, "ready_s": within}))
        };
        let one = ready(says(1).await, 60);
        let why = unready(&one, &host).await.unwrap();
        assert!(why.ends_with("/ready answers 503 Service Unavailable"), "{why}");
        let up = seen("active", "enabled");
        assert_eq!(verbs(&one, &Seen { unready: Some(why), ..up.clone() }), ["restart"]);
        assert_eq!(verbs(&one, &up), [""; 0]);
        assert_eq!(unready(&one, &host).await, None);
        becomes_ready(&ready(says(3).await, 60), &host).await.unwrap();
        let never = becomes_ready(&ready(says(usize::MAX).await, 1), &host).await.unwrap_err().to_string();
        assert!(never.contains("x.service runs and was not ready within 1 s: http://127.0.0.1:"), "{never}");
        let gone = ready("http://127.0.0.1:1/".into(), 1);
        assert!(unready(&gone, &host).await.unwrap().contains("refused"));
        assert_eq!(unready(&spec(serde_json::json!({"name": "x", "state": "running"})), &host).await, None);
    }
}
