//! Whether other machines are reached from this host, and what is known of the time beyond its own clock.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Sys;
use crate::link::proxy;
use crate::link::route::{Proxy, Target};
use crate::link::time::TrustedTime;

/// More addresses than this of one name are not tried.
const ADDRESSES: usize = 16;

/// What this process knows of the world around its host.
#[derive(Clone, Debug)]
pub struct Around {
    /// The time, as controllers tell it.
    pub time: TrustedTime,
    /// The proxy by which the controller is reached.
    pub proxy: Option<Proxy>,
}

impl Sys {
    /// The same host, with what is known around it.
    #[must_use]
    pub fn with_around(self, around: Around) -> Self {
        Self { around: Some(Arc::new(around)), ..self }
    }

    /// How far the host's clock is from what is known of the time, seconds, more is ahead; `None` where nothing is
    /// known.
    #[must_use]
    pub fn clock_off_s(&self) -> Option<i64> {
        self.around.as_ref()?.time.off_s()
    }

    /// The proxy by which the controller is reached.
    #[must_use]
    pub fn proxy(&self) -> Option<Proxy> {
        self.around.as_ref()?.proxy.clone()
    }

    /// The addresses of a name, as the programs of this host find them; the error is for people.
    pub async fn addresses(&self, name: &str, limit: Duration) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let said = match self.run(&["getent", "ahosts", name], &[], limit).await {
            Ok(said) => said,
            Err(super::SysError::TimedOut { .. }) => {
                return Err(format!("no name server answered within {} s", limit.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        };
        let mut addresses: Vec<IpAddr> = Vec::new();
        for line in String::from_utf8_lossy(&said.stdout).lines() {
            let address = line.split_whitespace().next().and_then(|word| word.parse().ok());
            addresses.extend(address.filter(|address| !addresses.contains(address)));
        }
        addresses.truncate(ADDRESSES);
        if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
    }

    /// Whether a TCP connection is accepted there, by any of its addresses; the error is for people.
    pub async fn connects(&self, to: &Target, limit: Duration) -> Result<(), String> {
        self.connect(to, limit).await.map(drop)
    }

    /// Whether this proxy connects to it; the error is for people.
    pub async fn connects_by(&self, by: &Proxy, to: &Target, limit: Duration) -> Result<(), String> {
        let asked = async {
            let mut stream = self.connect(&by.at, limit).await?;
            proxy::connect(&mut stream, by, to).await.map_err(|error| error.to_string())
        };
        timeout(limit, asked).await.unwrap_or_else(|_| Err(late(limit)))
    }

    async fn connect(&self, to: &Target, limit: Duration) -> Result<TcpStream, String> {
        let connected = async {
            let addresses = self.addresses(&to.host, limit).await?;
            // Side by side: where one family leads nowhere, the other is not kept waiting.
            let tries = addresses.into_iter().map(|address| async move {
                let at = SocketAddr::new(address, to.port);
                TcpStream::connect(at).await.map_err(|error| format!("{address}: {error}"))
            });
            first_of(tries).await.map_err(|whys| whys.join(", "))
        };
        timeout(limit, connected).await.unwrap_or_else(|_| Err(late(limit)))
    }
}

/// Tries all of them side by side until one works; or what went wrong with each, in their order, whichever of them
/// failed first.
pub(crate) async fn first_of<T, F: Future<Output = Result<T, String>>>(
    tries: impl Iterator<Item = F>,
) -> Result<T, Vec<String>> {
    let placed = |(place, attempt): (usize, F)| async move { attempt.await.map_err(|why| (place, why)) };
    let mut tries: FuturesUnordered<_> = tries.enumerate().map(placed).collect();
    let mut whys = Vec::new();
    while let Some(done) = tries.next().await {
        match done {
            Ok(found) => return Ok(found),
            Err(why) => whys.push(why),
        }
    }
    whys.sort_unstable();
    Err(whys.into_iter().map(|(_, why)| why).collect())
}

fn late(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A host whose resolver knows one name, with an address where nothing answers first.
    fn host() -> (tempfile::TempDir, Sys) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let getent = dir.path().join("getent");
        let script = "#!/bin/sh\ntest \"$2\" = two.test || exit 2\nprintf '::1 STREAM two.test\\n::1 DGRAM\\n127.0.0.1 STREAM\\n'\n";
        std::fs::write(&getent, script).unwrap();
        std::fs::set_permissions(&getent, std::fs::Permissions::from_mode(0o755)).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), dir.path().display().to_string());
        (dir, sys)
    }

    /// T29: a host without IPv6, or whose name servers tell of it, is reached all the same.
    #[tokio::test]
    async fn trap_29_one_family_is_enough() {
        let (dir, sys) = host();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let sys = Sys { path_env: path, ..sys };
        // On IPv4 alone.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = |host: &str, port| Target { host: host.to_owned(), port };
        assert_eq!(sys.addresses("two.test", LIMIT).await.unwrap().len(), 2);
        assert_eq!(sys.connects(&at("two.test", port), LIMIT).await, Ok(()));
        let none = sys.connects(&at("none.test", port), LIMIT).await.unwrap_err();
        assert_eq!(none, "it has no address");
        drop(listener);
        let refused = sys.connects(&at("two.test", port), LIMIT).await.unwrap_err();
        assert!(refused.contains("refused"), "{refused}");
    }

    #[tokio::test]
    async fn trap_29_a_proxy_is_asked_for_what_it_reaches() {
        let (_dir, sys) = host();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let by: Proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let got = stream.read(&mut head).await.unwrap();
                let allowed = head[..got].starts_with(b"CONNECT good.test:443 ");
                let answer = if allowed { "HTTP/1.1 200 ok\r\n\r\n" } else { "HTTP/1.1 403 no\r\n\r\n" };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let ask = async |name: &str| {
            let to = Target { host: name.to_owned(), port: 443 };
            sys.connects_by(&by, &to, LIMIT).await
        };
        assert_eq!(ask("good.test").await, Ok(()));
        assert!(ask("bad.test").await.unwrap_err().contains("does not allow it"));
    }
}
