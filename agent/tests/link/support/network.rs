//! What lies between an agent and its controller.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::DEADLINE;

/// A TCP forwarder that can stop forwarding without closing anything: a half-open connection.
pub(crate) struct Hose {
    pub(crate) at: SocketAddr,
    stalls: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Hose {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stalls, stall) = watch::channel(0);
        let task = async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let mut stall = stall.clone();
                stall.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let (mut near, mut far) = (near, far);
                    // A stall lasts as long as this connection does; a later one is forwarded again.
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = stall.changed() => {}
                    }
                    let _open = (near, far);
                    tokio::time::sleep(DEADLINE).await;
                });
            }
        };
        Self { at, stalls, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Forwards nothing more over the connections that are open now, and closes none.
    pub(crate) fn stall(&self) {
        self.stalls.send_modify(|count| *count += 1);
    }
}

/// An HTTP CONNECT proxy; gives what it was asked, and refuses what lacks the credentials.
pub(crate) async fn connect_proxy(
    authorization: Option<&'static str>,
) -> (SocketAddr, Arc<Mutex<VecDeque<String>>>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(VecDeque::new()));
    let heads = asked.clone();
    let task = async move {
        loop {
            let Ok((mut near, _)) = listener.accept().await else { return };
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = near.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let wanted = authorization.map(|it| format!("Proxy-Authorization: {it}\r\n"));
                let allowed = wanted.is_none_or(|wanted| head.contains(&wanted));
                heads.lock().unwrap().push_back(head);
                if !allowed {
                    let _ = near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
                    return;
                }
                let Ok(mut far) = TcpStream::connect(&target).await else {
                    let _ = near.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
                    return;
                };
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    };
    (at, asked, AbortOnDropHandle::new(tokio::spawn(task)))
}
