//! HTTP over a Unix socket of the host, as Docker's engine speaks it: one connection for each call, a deadline for
//! each, and no answer larger than what is said beforehand.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::{Body as _, Incoming};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Sys, exchange};

/// The most that is kept of one answer, bytes. What an engine says of a service with its tasks takes some kilobytes.
const ANSWER_LIMIT: usize = 8 << 20;
/// The most of an answer that is told of in an error, characters.
const TOLD: usize = 400;

/// What failed in a call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens there.
    #[error("nobody answers at {socket}: {source}")]
    Away {
        /// Where.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("{what}: the connection to {socket} broke: {source}")]
    Broken {
        /// What was asked.
        what: String,
        /// Where.
        socket: String,
        /// Why.
        source: hyper::Error,
    },
    /// The request cannot be made.
    #[error("{what}: {source}")]
    Request {
        /// What was to be asked.
        what: String,
        /// Why not.
        source: http::Error,
    },
    /// There was no answer in time.
    #[error("{what}: {socket} did not answer within {} s", .after.as_secs())]
    Late {
        /// What was asked.
        what: String,
        /// Where.
        socket: String,
        /// Its time.
        after: Duration,
    },
    /// The answer was too long.
    #[error("{what}: the answer is longer than {ANSWER_LIMIT} bytes")]
    TooLong {
        /// What was asked.
        what: String,
    },
    /// The answer cannot be read.
    #[error("{what}: the answer cannot be read: {source}")]
    Unreadable {
        /// What was asked.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// It was refused.
    #[error("{what}: {status}: {message}")]
    Refused {
        /// What was asked.
        what: String,
        /// The status.
        status: StatusCode,
        /// In the other side's words.
        message: String,
    },
}

/// What is told of each line of an answer as it comes.
pub type Lines<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// One call.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What is to be done.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// One more header.
    pub header: Option<(&'a str, &'a str)>,
    /// JSON; none when empty.
    pub body: String,
    /// For all of it.
    pub limit: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The whole body, where it was not read line by line.
    pub body: Vec<u8>,
}

impl Call<'_> {
    fn what(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }

    /// Makes the call. Lines of a good answer go to `each` as they come, and are not kept, where there is one.
    pub async fn make(&self, socket: &Path, each: Option<Lines<'_>>) -> Result<Answer, CallError> {
        let late = || CallError::Late { what: self.what(), socket: shown(socket), after: self.limit };
        timeout(self.limit, self.send(socket, each)).await.map_err(|_| late())?
    }

    async fn send(&self, socket: &Path, each: Option<Lines<'_>>) -> Result<Answer, CallError> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(|source| CallError::Away { socket: shown(socket), source })?;
        let broken = |source| CallError::Broken { what: self.what(), socket: shown(socket), source };
        // Engines want some name; which one does not matter on a socket.
        let mut request = Request::builder().method(&self.method).uri(self.path).header("host", "docker");
        if !self.body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        if let Some((name, value)) = self.header {
            request = request.header(name, value);
        }
        let request = request
            .body(self.body.clone())
            .map_err(|source| CallError::Request { what: self.what(), source })?;
        let mut answering = exchange::send(stream, request).await.map_err(broken)?;
        let status = answering.response.status();
        let each = each.filter(|_| status.is_success());
        let body = self.read(answering.response.body_mut(), each).await.map_err(|error| match error {
            ReadError::Broken(source) => broken(source),
            ReadError::TooLong => CallError::TooLong { what: self.what() },
        })?;
        Ok(Answer { status, body })
    }

    async fn read(&self, body: &mut Incoming, mut each: Option<Lines<'_>>) -> Result<Vec<u8>, ReadError> {
        let mut kept: Vec<u8> = Vec::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            let frame = frame.map_err(ReadError::Broken)?;
            let data: Bytes = frame.into_data().unwrap_or_default();
            if kept.len() + data.len() > ANSWER_LIMIT {
                return Err(ReadError::TooLong);
            }
            kept.extend_from_slice(&data);
            if let Some(each) = &mut each {
                while let Some(end) = kept.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = kept.drain(..=end).collect();
                    each(line.trim_ascii());
                }
            }
        }
        if let Some(each) = each
            && !kept.trim_ascii().is_empty()
        {
            each(kept.trim_ascii());
            kept.clear();
        }
        Ok(kept)
    }

    /// The error that an answer is, for one that is none of success.
    pub fn refused(&self, answer: &Answer) -> CallError {
        CallError::Refused { what: self.what(), status: answer.status, message: message(&answer.body) }
    }
}

enum ReadError {
    Broken(hyper::Error),
    TooLong,
}

fn shown(socket: &Path) -> String {
    socket.display().to_string()
}

/// What an engine says of an error, `{"message": …}`, on one line.
fn message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = String::from_utf8_lossy(body);
    let said = json["message"].as_str().unwrap_or(&text);
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD).collect()
}

impl Sys {
    /// Asks for something at a socket of the host; `None` where there is no such thing (404).
    pub async fn ask(
        &self,
        socket: &str,
        path: &str,
        limit: Duration,
    ) -> Result<Option<serde_json::Value>, CallError> {
        let call = Call { method: Method::GET, path, header: None, body: String::new(), limit };
        let answer = call.make(&self.real(socket), None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status.is_success() {
            return Err(call.refused(&answer));
        }
        serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|source| CallError::Unreadable { what: call.what(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A socket whose server answers one connection with these bytes and then keeps it open.
    fn server(answer: Vec<u8>) -> (tempfile::TempDir, tokio::task::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 65536];
            let got = stream.read(&mut asked).await.unwrap();
            // Whoever asked may have heard enough.
            let _ = stream.write_all(&answer).await;
            asked.truncate(got);
            tokio::time::sleep(Duration::from_secs(30)).await;
            asked
        });
        (dir, served)
    }

    fn call(limit_ms: u64) -> Call<'static> {
        let limit = Duration::from_millis(limit_ms);
        Call { method: Method::POST, path: "/x?secret=1", header: None, body: "{}".to_owned(), limit }
    }

    #[tokio::test]
    async fn answers_are_bounded_in_time_and_size() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec();
        let (dir, _server) = server(ok);
        let answer = call(5000).make(&dir.path().join("s"), None).await.unwrap();
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"{}"[..]));

        let (dir, _server) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec());
        let late = call(200).make(&dir.path().join("s"), None).await.unwrap_err().to_string();
        assert!(late.starts_with("POST /x: ") && late.contains("did not answer within"), "{late}");

        let mut long = b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n".to_vec();
        long.resize(9_000_000, b' ');
        let (dir, _server) = server(long);
        let long = call(20_000).make(&dir.path().join("s"), None).await.unwrap_err().to_string();
        assert!(long.contains("longer than"), "{long}");

        let refused =
            b"HTTP/1.1 409 Conflict\r\ncontent-length: 21\r\n\r\n{\"message\":\"in\\nuse\"}".to_vec();
        let (dir, _server) = server(refused);
        let answer = call(5000).make(&dir.path().join("s"), None).await.unwrap();
        assert_eq!(call(1).refused(&answer).to_string(), "POST /x: 409 Conflict: in use");

        let nobody = call(100).make(Path::new("/no/such"), None).await.unwrap_err().to_string();
        assert!(nobody.starts_with("nobody answers at /no/such"), "{nobody}");
    }

    #[tokio::test]
    async fn lines_are_told_as_they_come() {
        let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\r\n\r\n2\r\nbc\r\n4\r\nd\r\ne\r\n0\r\n\r\n";
        let (dir, _server) = server(text.as_bytes().to_vec());
        let mut lines = Vec::new();
        let mut each = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        let answer = call(5000).make(&dir.path().join("s"), Some(&mut each)).await.unwrap();
        assert_eq!((lines, answer.body.len()), (vec!["a".to_owned(), "bcd".to_owned(), "e".to_owned()], 0));
    }
}
