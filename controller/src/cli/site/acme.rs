//! What is in one of Traefik's files of accounts and certificates, for people. Never a key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// One file: by resolver, as Traefik 3 writes it (`pkg/provider/acme`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    account: Option<Account>,
    #[serde(default)]
    certificates: Option<Vec<Held>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Account {
    #[serde(default)]
    email: String,
}

#[derive(Deserialize)]
struct Held {
    #[serde(default)]
    domain: Domain,
    /// PEM in base64, the leaf first.
    #[serde(default)]
    certificate: String,
}

#[derive(Default, Deserialize)]
struct Domain {
    #[serde(default)]
    main: String,
    #[serde(default)]
    sans: Vec<String>,
}

/// A certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) domain: String,
    /// Other names that it is for.
    also: Vec<String>,
    /// Until when, where that can be read.
    until: Option<jiff::Timestamp>,
}

/// What is known of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// Addresses of accounts; empty where an account has none.
    pub(super) accounts: Vec<String>,
    pub(super) certificates: Vec<Certificate>,
}

/// Reads one; nothing where it is something else.
pub(super) fn about(content: &[u8]) -> About {
    let stored: std::collections::BTreeMap<String, Stored> =
        serde_json::from_slice(content).unwrap_or_default();
    let mut about = About::default();
    for Stored { account, certificates } in stored.into_values() {
        about.accounts.extend(account.map(|account| account.email));
        for Held { domain, certificate } in certificates.unwrap_or_default() {
            let until = until(&certificate);
            about.certificates.push(Certificate { domain: domain.main, also: domain.sans, until });
        }
    }
    about
}

/// The end of the first certificate of a chain.
fn until(encoded: &str) -> Option<jiff::Timestamp> {
    let pem = STANDARD.decode(encoded).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&pem.contents).ok()?;
    jiff::Timestamp::from_second(leaf.validity().not_after.timestamp()).ok()
}

impl About {
    /// For a line; empty where nothing is known. What has ended by `now` is marked.
    pub(super) fn text(&self, now: jiff::Timestamp) -> String {
        let account = |email: &String| match email.is_empty() {
            true => "an account".to_owned(),
            false => format!("account {email}"),
        };
        let certificate = |it: &Certificate| {
            let more =
                if it.also.is_empty() { String::new() } else { format!(" (and {})", it.also.join(", ")) };
            let until = it.until.map_or(String::new(), |until| {
                let day = until.strftime("%Y-%m-%d");
                if until <= now { format!(", ended {day}") } else { format!(" until {day}") }
            });
            format!("{}{more}{until}", it.domain)
        };
        let parts = self.accounts.iter().map(account).chain(self.certificates.iter().map(certificate));
        parts.collect::<Vec<_>>().join("; ")
    }

    pub(super) fn document(&self) -> Value {
        let certificate = |it: &Certificate| {
            json!({
                "domain": it.domain, "also": it.also, "until": it.until.map(|until| until.to_string()),
            })
        };
        self.certificates.iter().map(certificate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_traefik_wrote_is_told_without_its_keys() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["app.example.org".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 5, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        let file = json!({
            "cloudflare": {
                "Account": {"Email": "ada@example.org", "PrivateKey": "k3y", "KeyType": "4096",
                    "Registration": {"body": {"status": "valid"}, "uri": "https://acme.example/1"}},
                "Certificates": [
                    {"domain": {"main": "app.example.org", "sans": ["www.example.org"]},
                        "certificate": STANDARD.encode(pem), "key": STANDARD.encode("k3y"), "Store": "default"},
                    {"domain": {"main": "odd.example.org"}, "certificate": "?", "key": "", "Store": "default"},
                ],
            },
            "staging": {"Account": {"Email": "", "PrivateKey": "k3y"}, "Certificates": null},
        });
        let about = about(file.to_string().as_bytes());
        assert_eq!(
            about.text(jiff::Timestamp::UNIX_EPOCH),
            "account ada@example.org; an account; app.example.org (and www.example.org) until 2031-05-01; odd.example.org"
        );
        let then = "2031-05-01T00:00:00Z".parse().unwrap();
        assert!(about.text(then).contains("(and www.example.org), ended 2031-05-01; odd"));
        assert_eq!(about.document()[0]["until"], "2031-05-01T00:00:00Z");
        assert!(!about.document().to_string().contains("k3y"));
        for other in ["", "{", "[]", "{}", "{\"a\": 1}", "{\"a\": {}}"] {
            assert_eq!(super::about(other.as_bytes()).text(jiff::Timestamp::MAX), "", "{other}");
        }
    }
}
