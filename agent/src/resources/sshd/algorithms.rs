//! Which algorithms are sound, best first: as `ssh-audit` judges them, without NIST's curves, SHA-1, CBC, and
//! MACs that are not encrypt-then-MAC.

/// Keyword of sshd_config, the word `ssh -Q` has for it, and the algorithms. The certificates of a host key's
/// type belong to it.
pub(super) const PREFERRED: [(&str, &str, &[&str]); 4] = [
    (
        "KexAlgorithms",
        "kex",
        &[
            "mlkem768x25519-sha256",
            "sntrup761x25519-sha512",
            "sntrup761x25519-sha512@openssh.com",
            "curve25519-sha256",
            "curve25519-sha256@libssh.org",
            "diffie-hellman-group18-sha512",
            "diffie-hellman-group16-sha512",
        ],
    ),
    (
        "Ciphers",
        "cipher",
        &[
            "chacha20-poly1305@openssh.com",
            "aes256-gcm@openssh.com",
            "aes128-gcm@openssh.com",
            "aes256-ctr",
            "aes192-ctr",
            "aes128-ctr",
        ],
    ),
    (
        "MACs",
        "mac",
        &["hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com"],
    ),
    (
        "HostKeyAlgorithms",
        "HostKeyAlgorithms",
        &[
            "ssh-ed25519",
            "ssh-ed25519-cert-v01@openssh.com",
            "sk-ssh-ed25519@openssh.com",
            "sk-ssh-ed25519-cert-v01@openssh.com",
            "rsa-sha2-512",
            "rsa-sha2-512-cert-v01@openssh.com",
            "rsa-sha2-256",
            "rsa-sha2-256-cert-v01@openssh.com",
        ],
    ),
];

/// Prints what this OpenSSH knows, a blank line after each kind.
pub(super) const QUERY: &str =
    "for kind in kex cipher mac HostKeyAlgorithms; do ssh -Q $kind || exit 1; echo; done";

/// The preferred ones that the host knows, for each keyword; `None` where none is left of one.
pub(super) fn known(answer: &str) -> Option<Vec<(String, String)>> {
    let mut kinds = answer.split("\n\n");
    let mut settings = Vec::new();
    for (keyword, _, preferred) in PREFERRED {
        let known: Vec<&str> = kinds.next()?.lines().map(str::trim).collect();
        let kept: Vec<&str> = preferred.iter().copied().filter(|name| known.contains(name)).collect();
        if kept.is_empty() {
            return None;
        }
        settings.push((keyword.to_owned(), kept.join(",")));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_asks_for_every_list_in_order() {
        let words: Vec<&str> = PREFERRED.iter().map(|(_, word, _)| *word).collect();
        assert!(QUERY.starts_with(&format!("for kind in {}; do", words.join(" "))));
    }

    #[test]
    fn only_what_the_host_knows_and_is_sound() {
        let answer = "ecdh-sha2-nistp256\ncurve25519-sha256\n\naes128-cbc\naes256-ctr\n\nhmac-sha1\n\
                      hmac-sha2-256-etm@openssh.com\n\nssh-rsa\nrsa-sha2-256\nssh-ed25519\n\n";
        let got = known(answer).unwrap();
        let want = [
            ("KexAlgorithms", "curve25519-sha256"),
            ("Ciphers", "aes256-ctr"),
            ("MACs", "hmac-sha2-256-etm@openssh.com"),
            ("HostKeyAlgorithms", "ssh-ed25519,rsa-sha2-256"),
        ];
        assert_eq!(got, want.map(|(keyword, list)| (keyword.to_owned(), list.to_owned())));
        assert_eq!(known("diffie-hellman-group1-sha1\n\nx\n\ny\n\nz\n"), None);
        assert_eq!(known(""), None);
    }
}
