//! What an SSH server shows to somebody who does not log in.

#![allow(clippy::unwrap_used, reason = "test code")]
#![allow(dead_code, reason = "the host has more than this file uses")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Host, SSHD};
use postern_installer::{LoginSeen, LookError, look_at_login};

const LIMIT: Duration = Duration::from_secs(20);

fn address(host: &Host) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], host.port))
}

fn public_key(host: &Host) -> String {
    std::fs::read_to_string(host.key().with_extension("pub")).unwrap()
}

#[tokio::test]
async fn keys_and_passwords_that_a_server_takes() {
    if common::missing().is_some() {
        return;
    }
    let open = Host::new();
    let keys = [public_key(&open)];
    let seen = look_at_login(address(&open), "op", &keys, LIMIT).await.unwrap();
    assert_eq!(seen, LoginSeen { takes_key: true, takes_password: true });
    // Another's key, and a user that is not there, are not taken.
    let other = Host::new();
    for (user, keys) in [("op", [public_key(&other)]), ("nobody-here", keys.clone())] {
        let seen = look_at_login(address(&open), user, &keys, LIMIT).await.unwrap();
        assert!(!seen.takes_key, "{user}: {seen:?}");
    }
    // The one that is right counts wherever it stands.
    let both = [public_key(&other), public_key(&open)];
    assert!(look_at_login(address(&open), "op", &both, LIMIT).await.unwrap().takes_key);

    let hardened = Host::with(&SSHD.replace("PasswordAuthentication yes", "PasswordAuthentication no"), "");
    let seen = look_at_login(address(&hardened), "op", &[public_key(&hardened)], LIMIT).await.unwrap();
    assert_eq!(seen, LoginSeen { takes_key: true, takes_password: false });
    let denied = Host::with(&format!("DenyUsers op\n{SSHD}"), "");
    let seen = look_at_login(address(&denied), "op", &[public_key(&denied)], LIMIT).await.unwrap();
    assert!(!seen.takes_key, "{seen:?}");
}

#[tokio::test]
async fn what_is_no_server_says_why() {
    // Bound and never listened on: nobody else gets this port meanwhile.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let closed = nobody.local_addr().unwrap();
    let error = look_at_login(closed, "op", &[], LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), "connection refused");
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let error = look_at_login(at, "op", &[], Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, LookError::TimedOut), "{error}");
    let error = look_at_login(at, "op", &["no key".to_owned()], LIMIT).await.unwrap_err();
    assert!(matches!(error, LookError::NoKey), "{error}");
}
