//! One HTTP/2 connection that its owner sees end: hyper without a pool, a queue or a reconnect of its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tower::Service;

use super::dial::Connection;

/// A PING this often, also while nothing else is sent.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Between PINGs.
    pub interval: Duration,
    /// For the answer.
    pub timeout: Duration,
}

impl Default for KeepAlive {
    /// 20 s and 10 s: a dead peer is known within 30 s.
    fn default() -> Self {
        Self { interval: Duration::from_secs(20), timeout: Duration::from_secs(10) }
    }
}

/// For the handshake's SETTINGS to be written.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What the controller may send ahead on one stream: more than a plan would gain nothing.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same over all streams.
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// What lies in HTTP/2's own send buffer is beyond reach of what is more urgent: little.
const SEND_BUFFER: usize = 64 * 1024;

/// Requests on one connection. The connection ends when the last clone is dropped.
#[derive(Clone)]
pub struct Http2 {
    requests: http2::SendRequest<Body>,
}

/// The connection itself, to be kept as long as it is wanted.
pub struct Driving(#[allow(dead_code)] AbortOnDropHandle<()>);

/// Begins HTTP/2 on a connection.
pub async fn open(connection: Connection, keep: KeepAlive) -> Result<(Http2, Driving), String> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(keep.interval)
        .keep_alive_timeout(keep.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    let handshake = builder.handshake(TokioIo::new(connection.tls));
    let (requests, driver) = timeout(HANDSHAKE, handshake)
        .await
        .map_err(|_| "timed out in the HTTP/2 handshake".to_owned())?
        .map_err(|error| chain(&error))?;
    let task = tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(error = chain(&error), "connection ended");
        }
    });
    Ok((Http2 { requests }, Driving(AbortOnDropHandle::new(task))))
}

/// Scheme and authority of every request.
#[must_use]
pub fn origin(server_name: &str) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = server_name.parse::<Authority>().ok();
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).unwrap_or_default()
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}
