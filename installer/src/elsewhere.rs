//! At which other addresses of a host its SSH server answers, so that a guard can watch it there too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use russh::client::{self, Handler};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use tokio::net::TcpStream;

use crate::connect::config;

/// Addresses that are looked at.
const MOST: usize = 4;
/// For all of them together.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether an address can be a host's own, seen from another machine.
fn is_elsewhere(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

/// Which of the addresses that a host says it has are worth a look; `known` is where it was reached. Pure.
pub(crate) fn candidates(addresses: &[IpAddr], known: Option<IpAddr>) -> Vec<IpAddr> {
    let others = addresses.iter().copied().filter(|it| Some(*it) != known && is_elsewhere(*it));
    others.take(MOST).collect()
}

/// Whether the server has this key.
struct SameServer {
    key: PublicKey,
    same: Arc<AtomicBool>,
}

impl Handler for SameServer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let same = offered.public_key().key_data() == self.key.key_data();
        self.same.store(same, Ordering::Relaxed);
        Ok(same)
    }
}

/// Those of these addresses at which the SSH server of a host answers that has this key: whatever a host says of its
/// addresses, somebody else's are not among them.
pub(crate) async fn look(addresses: Vec<IpAddr>, port: u16, key: Option<PublicKey>) -> Vec<IpAddr> {
    let Some(key) = key else { return Vec::new() };
    let looks = addresses.into_iter().map(|address| {
        let (key, same) = (key.clone(), Arc::new(AtomicBool::new(false)));
        async move {
            let server = SameServer { same: Arc::clone(&same), key: key.clone() };
            let look = async {
                let tcp = TcpStream::connect(SocketAddr::new(address, port)).await.ok()?;
                let config = Arc::new(config(vec![key.algorithm()]));
                let handle = client::connect_stream(config, tcp, server).await.ok()?;
                handle.disconnect(russh::Disconnect::ByApplication, "", "").await.ok()
            };
            // The handshake proves that it holds the key, not only that it shows it.
            let done = tokio::time::timeout(LIMIT, look).await.ok().flatten();
            (done.is_some() && same.load(Ordering::Relaxed)).then_some(address)
        }
    });
    join_all(looks).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_worth_a_look() {
        let parse = |texts: &[&str]| texts.iter().map(|it| it.parse().unwrap()).collect::<Vec<IpAddr>>();
        let all = parse(&[
            "192.0.2.1",
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.0.1",
            "224.0.0.1",
            "2001:db8::1",
            "10.0.0.1",
        ]);
        let known = Some("192.0.2.1".parse().unwrap());
        assert_eq!(candidates(&all, known), parse(&["2001:db8::1", "10.0.0.1"]));
        let many = parse(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
        assert_eq!(candidates(&many, known).len(), 4);
    }
}
