//! The temporary route: the host's loopback, through our SSH connection, to the controller's listener.

/// Keeps the SSH connection that carries the agent's only route to the controller. Dropping it ends the
/// route at once; [`TemporaryRoute::close`] also takes its configuration off the host.
#[derive(Debug)]
pub struct TemporaryRoute {
    address: String,
}

impl TemporaryRoute {
    /// What the agent dials on the host.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns when the SSH connection has ended by itself.
    pub async fn ended(&mut self) {}

    /// Takes the route's configuration off the host and closes SSH. The agent goes on without a route.
    pub async fn close(self) {}
}
