//! `authorized_key`: a public key that logs a user in over SSH.

use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_account};

/// One key in the user's own `.ssh/authorized_keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizedKeySpec {
    /// Whom it logs in.
    pub user: String,
    /// The line of a `.pub` file.
    pub key: String,
    /// What stands before it, as sshd(8) has it: `restrict,command="…"`. None when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// There, or not there.
    #[serde(default)]
    pub state: Presence,
}

/// A public key, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginKey {
    /// `ssh-ed25519`, `sk-ssh-ed25519@openssh.com`, …
    pub algorithm: String,
    /// The key itself, in the one way base 64 can spell it.
    pub base64: String,
    /// What comes after it; empty when nothing.
    pub comment: String,
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
}

/// The shortest RSA key that sshd takes, bits: sshd_config(5), RequiredRSASize.
const RSA_BITS: usize = 1024;

impl LoginKey {
    /// Reads the line of a `.pub` file. The error is for people and does not repeat the line: it may be a
    /// private key.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        if line.contains("PRIVATE KEY") {
            return Err("is a private key: want the line of the .pub file beside it".to_owned());
        }
        if line.contains(char::is_control) {
            return Err("want one line, without control characters".to_owned());
        }
        let word = line.split(' ').next().unwrap_or_default();
        if word.ends_with("-cert-v01@openssh.com") {
            return Err(format!(
                "a certificate ({word}): want the key of its authority, with the option cert-authority"
            ));
        }
        let key = PublicKey::from_openssh(line).map_err(|error| {
            format!("not a public key as a .pub file has it, TYPE BASE64 COMMENT ({error})")
        })?;
        let algorithm = key.algorithm().to_string();
        match key.key_data() {
            KeyData::Ed25519(_)
            | KeyData::Ecdsa(_)
            | KeyData::SkEd25519(_)
            | KeyData::SkEcdsaSha2NistP256(_) => {}
            KeyData::Rsa(rsa) => {
                let bits = rsa.n().as_positive_bytes().map_or(0, bits);
                if bits < RSA_BITS {
                    return Err(format!("an RSA key of {bits} bits: sshd takes none below {RSA_BITS}"));
                }
            }
            _ => return Err(format!("sshd takes no key of the type {algorithm}")),
        }
        let text = key.to_openssh().map_err(|error| format!("cannot be written again: {error}"))?;
        let base64 = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let comment = line.splitn(3, ' ').nth(2).unwrap_or_default().trim().to_owned();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        Ok(Self { algorithm, base64, comment, fingerprint })
    }
}

fn bits(number: &[u8]) -> usize {
    let zeros = number.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() * 8).saturating_sub(zeros)
}

/// Why sshd would not read these as options; it would then take the whole line for no key.
fn check_options(options: &str) -> Option<&'static str> {
    if options.is_empty() {
        return Some("is empty: leave it out");
    }
    if options.contains(char::is_control) {
        return Some("has a control character");
    }
    if options.starts_with('#') {
        return Some("starts with #, which makes the line a comment");
    }
    let (mut quoted, mut escaped) = (false, false);
    for c in options.chars() {
        match c {
            // sshd(8): a quote in a value is written \".
            '"' if !escaped => quoted = !quoted,
            ' ' if !quoted => return Some("has a space outside of quotes"),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    quoted.then_some("has a quote that is not closed")
}

impl ResourceSpec for AuthorizedKeySpec {
    const KIND: &'static str = "authorized_key";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("user", Holds::Text, "Whom it logs in."),
        Field::required("key", Holds::Text, "The public key: the line of a .pub file, of any type."),
        Field::optional("options", Holds::Text, "What stands before it, as in sshd(8); none when left out."),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
    ];
    const DOC: &'static str = "A public key that logs a user in over SSH.";
    const CANNOT_UNDO: &'static str = "sessions that were opened with the key";

    fn natural_name(&self) -> String {
        match LoginKey::parse(&self.key) {
            Ok(key) => format!("{} {}", self.user, key.fingerprint),
            Err(_) => self.user.clone(),
        }
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_account("user", &self.user, &mut errors);
        if let Err(why) = LoginKey::parse(&self.key) {
            errors.push(SpecError::new("key", why));
        }
        if let Some(why) = self.options.as_deref().and_then(check_options) {
            errors.push(SpecError::new("options", why));
        }
        if self.state == Presence::Absent && self.options.is_some() {
            errors.push(SpecError::new("options", "a key that is to be absent has none"));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ssh-keygen made, and its name for the type and the fingerprint.
    const KEYS: &[(&str, &str, &str)] = &[
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI ada@home two words",
            "ssh-ed25519",
            "SHA256:RtzFmC6MBPm7nWfojVdH85zd79zZNuSqiDhIAg7y/uA",
        ),
        (
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKI1NLy4Yifs/5inuEb4cy6XyJbwmHDs2fW1/VY7MoU8RS3zwwX96ZOTLQhEk9ubYW9dEraC+4FWfhL8AaVmHvw= e256",
            "ecdsa-sha2-nistp256",
            "SHA256:4azkt0lyL9xAs7iBHD+UYqQXJkUahmiJVRoZ3ebEu8A",
        ),
        (
            "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBA6qn64wMNE+cUa8WJTc7IQgGz7VSadCsz/HMSlXoVgbudYI4bSPpukL0vslriikZPe5q3J2rp5gp7yTTif6UKROmruzGEMq5Bv0H4oEgWIBR3U5kyIQ2q/1t/rmrNSnCw== e384",
            "ecdsa-sha2-nistp384",
            "SHA256:Zp5rsUsI2IAUE2KpwiRHZN9FRKJo58jnuGsW6ZINfH4",
        ),
        (
            "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAHS5F264d+5qtqHQkn7Uu37YJoZg74G35Ogfw9xGLcPWyZW9jF9qn7oXZSOKfPLWtuxWYUNjIU0QCCQc8ZOoKLSXwF9Mqd576NNNQNTm/vuoHGMVARFBSKVR8o81B/Nh53CTzOlmm2GyaImqLEWYQI91mKQZ7FRqEPAdfMS8+lDi9gZ/Q== e521",
            "ecdsa-sha2-nistp521",
            "SHA256:bFsXbdhd+zvAII2vxlsFAzriSrr2/8scJ10wbXZTW/U",
        ),
        (
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC/a/5LsWmgPuG33c1Dfu6uuKBdY1gjpPeCx+KabUe8XgqPvUMVkc0xxLA7zbXpRBFP3H7HjzXbWmFsC9ObxdpdasDIoGh/fv6Dmc7wzPKZCeL3GnC4CQhl1IINBUYwiT4qgOgo0M/SMvbPirg6vMcdqwN8xByiYul557NDYoUFxCsiMXxThtUDRO3hv0WHynNCg3bCmYvb3hqu9a/04g+LdyuBeyQEjl2NNUJPKY2Hav1m0Y33z6ylP/4fpw/VepjYVwvimVYvq70ppFig58zAruDV3kVo6jsdorL9j8pargjJSH8tCB+b808evgT8Zxd5NKQhvGwddM3oV8m+T4qX r",
            "ssh-rsa",
            "SHA256:ZZRWnwGb6bQiT4U+UpLKWais+zUhfnD3hXfDd9ySw/U",
        ),
        (
            "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnIAAAABHNzaDo= yubi",
            "sk-ssh-ed25519@openssh.com",
            "SHA256:in7tW9UppYKSSjTjcWmmiAwmX6Ro04nFn/Of/QWzUXY",
        ),
        (
            "sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBKI1NLy4Yifs/5inuEb4cy6XyJbwmHDs2fW1/VY7MoU8RS3zwwX96ZOTLQhEk9ubYW9dEraC+4FWfhL8AaVmHvwAAAAEc3NoOg== yubi",
            "sk-ecdsa-sha2-nistp256@openssh.com",
            "SHA256:Vesb98UgQf/zbRcowK/fZfB6NVv9aIywUFzL//2j63c",
        ),
    ];

    const DSA: &str = "ssh-dss AAAAB3NzaC1kc3MAAACBAN1ySdqjyjYqotyT2irXX+6WRTgh5hqAEmwhas81c/VLxne9R0VAOQs6Zo5sxIah9KHtkVAwH98sqdnh9k67WrDlD//MXebzI9GBHmR0/mQCcCjs98CNNePvQ+uLwMq7iVGA0KkP4/u81kiUKhEqZwC5Ke5frvVnrb9Dgm+PgheXAAAAFQD3wrV/JJO7phkFrlX/S3yvvsd2YQAAAIBfl3BXWKQB6gKp6qid5HPCqr3Jtr+NwTiHb/UZfacGOyMpoTlqeewDku5WnM8/HuGDXsMTFt1B8cEwCcBzKxnKzP2hk2BAnQgbzrxdoS63aQnVle9Dl9wA/IV+F4pKKFBFFtdvZGAW2zEs6tKhHj/hTzRHVsgn67W/HRMEG2TEfwAAAIEAk9fTjmDWk+azDtcRXj2UI3aW59pZcUnk6wU74QdWXsaRSMsyfEBifTtATzhISWkR9bEGc8SEL9OIaPnt9Ofw2Q57vP38KfUMvSrqR7o9p4ysrT0isnXrVHItDY91MtJgi2kcks08WHsXaZOizzrfArrlwK6ZEX9SmHrDs+IMbUM= d";
    const SHORT_RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADA5";
    const CERTIFICATE: &str = "ecdsa-sha2-nistp256-cert-v01@openssh.com AAAAKGVjZHNhLXNoYTItbmlzdHAyNTYtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgBwH1zFt3ZWAywsnowe7itrsABGfrITOZEYxNxZc2EHwAAAAIbmlzdHAyNTYAAABBBKI1NLy4Yifs/5inuEb4cy6XyJbwmHDs2fW1/VY7MoU8RS3zwwX96ZOTLQhEk9ubYW9dEraC+4FWfhL8AaVmHvwAAAAAAAAAAAAAAAEAAAACaWQAAAAHAAAAA2FkYQAAAAAAAAAA//////////8AAAAAAAAAggAAABVwZXJtaXQtWDExLWZvcndhcmRpbmcAAAAAAAAAF3Blcm1pdC1hZ2VudC1mb3J3YXJkaW5nAAAAAAAAABZwZXJtaXQtcG9ydC1mb3J3YXJkaW5nAAAAAAAAAApwZXJtaXQtcHR5AAAAAAAAAA5wZXJtaXQtdXNlci1yYwAAAAAAAAAAAAAAMwAAAAtzc2gtZWQyNTUxOQAAACBk9v+YS5SwtdmYFBKLnfhSFLadEs3OhOPEqata/hrZyAAAAFMAAAALc3NoLWVkMjU1MTkAAABAMc5d9qyEvKcooF2THCPv+2pf+3W/qrEwq6NJqEqzmsm7kkXO0OTsI+5XHhgmiJ665SSGshfHqgH1T1UpkejZCQ== e256";

    /// T14: a key is whatever a library reads as one, not what begins with `ssh-`.
    #[test]
    fn trap_14_keys_of_every_type() {
        for (line, algorithm, fingerprint) in KEYS {
            let key = LoginKey::parse(line).unwrap();
            assert_eq!((&*key.algorithm, &*key.fingerprint), (*algorithm, *fingerprint), "{line}");
            assert_eq!(format!("{} {} {}", key.algorithm, key.base64, key.comment), *line);
            let spec = AuthorizedKeySpec {
                user: "ada.l".into(),
                key: format!("{line}\n"),
                options: None,
                state: Presence::Present,
            };
            assert_eq!(spec.validate(), []);
            assert_eq!(spec.natural_name(), format!("ada.l {fingerprint}"));
        }
        assert_eq!(LoginKey::parse(KEYS[0].0).unwrap().comment, "ada@home two words");
    }

    #[test]
    fn what_is_no_key_for_a_login() {
        let ed = KEYS[0].0;
        let two = format!("{ed}\n{ed}");
        let other_type = ed.replacen("ssh-ed25519", "ssh-rsa", 1);
        let cut = &ed[..ed.len() - 40];
        let options = format!("restrict {ed}");
        let secret = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAAsecret\n";
        let unknown = "ssh-warp AAAACHNzaC13YXJwAAAAAXg=";
        for (line, want) in [
            ("", "not a public key"),
            ("hello", "not a public key"),
            (&*two, "want one line"),
            (&*other_type, "not a public key"),
            (cut, "not a public key"),
            (&*options, "not a public key"),
            (secret, "is a private key"),
            (DSA, "sshd takes no key of the type ssh-dss"),
            (unknown, "invalid label: 'ssh-warp'"),
            (SHORT_RSA, "an RSA key of 1021 bits"),
            (CERTIFICATE, "a certificate (ecdsa-sha2-nistp256"),
        ] {
            let why = LoginKey::parse(line).unwrap_err();
            assert!(why.contains(want), "{line}: {why}");
            assert!(!why.contains("AAAA"), "{why}");
        }
    }

    #[test]
    fn options_by_table() {
        for good in [
            "restrict",
            "restrict,command=\"/usr/bin/rsync --server\"",
            "from=\"10.0.0.0/8,::1\",no-pty",
            "command=\"echo \\\"two words\\\"\"",
        ] {
            assert_eq!(check_options(good), None, "{good}");
        }
        for bad in [
            "",
            "restrict ",
            "restrict no-pty",
            "command=\"a",
            "restrict\nssh-ed25519 AAAA",
            "# restrict",
            "a\"\\\" b",
        ] {
            assert!(check_options(bad).is_some(), "{bad}");
        }
    }
}
