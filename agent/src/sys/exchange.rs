//! HTTP with programs of the host: one request over a connection of its own, and whether one says that it is ready.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Sys;

/// An answer, with the connection over which its body still comes.
pub(super) struct Answering {
    pub(super) response: Response<Incoming>,
    _requests: SendRequest<String>,
    _driving: AbortOnDropHandle<()>,
}

/// Asks over this connection, which ends with the answer. The caller has the deadline.
pub(super) async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<String>,
) -> Result<Answering, hyper::Error> {
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It is driven beside us, and ends with us.
    let driving = AbortOnDropHandle::new(tokio::spawn(async move {
        // An error shows at the request, which knows what it was for.
        let _ = connection.await;
    }));
    let response = requests.send_request(request).await?;
    Ok(Answering { response, _requests: requests, _driving: driving })
}

impl Sys {
    /// One GET on the loopback interface, whose answer is not read; the error is for people.
    pub async fn http_status(
        &self,
        at: SocketAddr,
        path: &str,
        limit: Duration,
    ) -> Result<StatusCode, String> {
        let late = || format!("no answer within {} s", limit.as_secs());
        timeout(limit, get(at, path)).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn get(at: SocketAddr, path: &str) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
    let request = Request::get(path).header("host", at.to_string()).body(String::new());
    let request = request.map_err(|error| error.to_string())?;
    Ok(send(stream, request).await.map_err(|error| error.to_string())?.response.status())
}
