//! At which other addresses of a host its SSH server answers, so that a guard can watch it there too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use russh::client::{self, Handler};
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};
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

/// Whether an address leads to one host from everywhere, and not to another one from each network.
fn is_public(address: IpAddr) -> bool {
    match address {
        // RFC 1918, and RFC 6598 of providers and meshes.
        IpAddr::V4(v4) => !(v4.is_private() || v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => !v6.is_unique_local(),
    }
}

/// Which of the addresses that a host says it has are worth a look; `known` is where it was reached. A host that is
/// reached at a public address is not looked for in private networks: there is somebody else. Pure.
pub(crate) fn candidates(addresses: &[IpAddr], known: Option<IpAddr>) -> Vec<IpAddr> {
    let private = known.is_some_and(|known| !is_public(known));
    let others = addresses.iter().copied();
    let others = others.filter(|it| Some(*it) != known && is_elsewhere(*it) && (private || is_public(*it)));
    others.take(MOST).collect()
}

/// By which names a server may sign with this key; RSA with SHA-1 is not one any more.
fn algorithms(key: &PublicKey) -> Vec<Algorithm> {
    match key.algorithm() {
        Algorithm::Rsa { .. } => {
            [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).to_vec()
        }
        other => vec![other],
    }
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
                let config = Arc::new(config(algorithms(&key)));
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
        assert_eq!(candidates(&all, known), parse(&["2001:db8::1"]));
        let inside = Some("10.0.0.1".parse().unwrap());
        assert_eq!(candidates(&all, inside), parse(&["192.0.2.1", "2001:db8::1"]));
        let net = parse(&["10.1.2.3", "172.16.0.1", "100.64.0.1", "fd00::1"]);
        assert_eq!(candidates(&net, known), Vec::<IpAddr>::new());
        assert_eq!(candidates(&net, inside), net);
        let known = inside;
        let many = parse(&["10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
        assert_eq!(candidates(&many, known).len(), 4);
    }
}
