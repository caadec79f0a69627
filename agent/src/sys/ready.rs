//! Whether a program of the host says that it is ready, over HTTP on the loopback interface.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Sys;

impl Sys {
    /// One GET, whose answer is not read; the error is for people.
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
    let broken = |error: hyper::Error| error.to_string();
    let (mut requests, connection) =
        http1::handshake::<_, String>(TokioIo::new(stream)).await.map_err(broken)?;
    // It is driven beside us, and ends with us.
    let _driving = AbortOnDropHandle::new(tokio::spawn(async move {
        // An error shows at the request.
        let _ = connection.await;
    }));
    let request = Request::get(path).header("host", at.to_string()).body(String::new());
    let request = request.map_err(|error| error.to_string())?;
    Ok(requests.send_request(request).await.map_err(broken)?.status())
}
