//! The temporary route: the host's loopback, through our SSH connection, to the controller's listener.

use std::net::SocketAddr;
use std::time::Duration;

use russh::Disconnect;

use crate::connect::Connection;
use crate::error::{BootstrapError, Code};
use crate::exec;
use crate::root::Root;
use crate::script;

const DEADLINE: Duration = Duration::from_secs(30);

/// Keeps the SSH connection that carries the agent's only route to the controller. Dropping it ends the
/// route at once; [`TemporaryRoute::close`] also takes its configuration off the host.
pub struct TemporaryRoute {
    connection: Connection,
    root: Root,
    address: String,
    over: bool,
}

impl std::fmt::Debug for TemporaryRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TemporaryRoute").field("address", &self.address).finish_non_exhaustive()
    }
}

impl TemporaryRoute {
    pub(crate) fn new(connection: Connection, root: Root, address: String) -> Self {
        Self { connection, root, address, over: false }
    }

    /// What the agent dials on the host.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns when the SSH connection has ended by itself, and the route with it.
    pub async fn ended(&mut self) {
        if !self.over {
            // How it ended is the same to whoever waits: the route is gone.
            let _ = (&mut self.connection.handle).await;
            self.over = true;
        }
    }

    /// Takes the route's configuration off the host and closes SSH. The agent keeps running and has no
    /// route until it is given one.
    pub async fn close(self) -> Result<(), BootstrapError> {
        if self.over {
            let text = "the SSH connection that carried the temporary route has ended";
            return Err(BootstrapError::new(Code::ConnectionCut, text));
        }
        let input = self.root.input().secret(zeroize::Zeroizing::new(script::drop_route()));
        let what = "removing the temporary route";
        let output = exec::run(&self.connection.handle, self.root.shell, input, what, DEADLINE).await;
        disconnect(self.connection).await;
        match output? {
            output if output.code == Some(0) => Ok(()),
            output => Err(BootstrapError::new(Code::RouteFailed, format!("{what}: {}", output.complaint()))),
        }
    }
}

/// Asks the host's sshd to listen on its loopback and to bring what connects there to `listener`.
pub(crate) async fn open(connection: &Connection, listener: SocketAddr) -> Result<String, BootstrapError> {
    connection.route.set(listener);
    let asking = connection.handle.tcpip_forward("127.0.0.1", 0);
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(Ok(port)) if port != 0 => Ok(format!("127.0.0.1:{port}")),
        Ok(Ok(_)) => Err(BootstrapError::new(Code::RouteFailed, "the host's sshd named no port to forward")),
        Ok(Err(error)) => {
            Err(BootstrapError::new(Code::RouteFailed, "the host's sshd does not forward a port to us")
                .caused_by(error))
        }
        Err(_) => Err(BootstrapError::new(Code::RouteFailed, "the host's sshd does not answer about a port")),
    }
}

/// Closes SSH in an orderly way, jump hosts last.
pub(crate) async fn disconnect(connection: Connection) {
    let Connection { handle, mut upstream, .. } = connection;
    let close = |handle: crate::connect::Handle| async move {
        let _ = handle.disconnect(Disconnect::ByApplication, "", "").await;
        // The session's task ends once the packet is out and the socket closed.
        let _ = tokio::time::timeout(Duration::from_secs(2), handle).await;
    };
    close(handle).await;
    while let Some(handle) = upstream.pop() {
        close(handle).await;
    }
}
