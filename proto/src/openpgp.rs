//! Which OpenPGP keys a text or file holds: as much of RFC 4880 and RFC 9580 as fingerprints need.
//!
//! Nothing is verified here. A full fingerprint pins the key itself, and apt verifies with that key what it is
//! used for; what belongs to a key (subkeys, names) is bound to it by signatures that apt's verifier checks.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

/// The most that is read as keys, bytes; a distribution's key ring has some 60 KB.
pub const KEY_LIMIT: usize = 1 << 20;

/// The fingerprint of a version 4 key: what `gpg --show-keys` prints in 40 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 20]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("want a full fingerprint: 40 hexadecimal digits, with or without spaces")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: Vec<u32> = text
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .map(|c| c.to_digit(16).ok_or(BadFingerprint))
            .collect::<Result<_, _>>()?;
        let mut bytes = [0; 20];
        if digits.len() != 40 {
            return Err(BadFingerprint);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::try_from(pair.iter().fold(0, |all, digit| all * 16 + digit)).unwrap_or_default();
        }
        Ok(Self(bytes))
    }
}

/// Why something is not the public keys that were wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// More than [`KEY_LIMIT`].
    #[error("it has {0} bytes, the limit is {KEY_LIMIT}")]
    TooLong(usize),
    /// Neither armour nor packets.
    #[error("it is not an OpenPGP key")]
    NoKey,
    /// An armour of something else.
    #[error("it is a {0}, not a public key")]
    Other(String),
    /// The armour or a packet is cut off or damaged.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// A secret key where public ones are wanted.
    #[error("it holds a secret key: want the public one, as `gpg --export --armor` writes it")]
    Secret,
    /// A version that has other fingerprints.
    #[error("it holds a key of version {0}: only version 4 is understood")]
    Version(u8),
    /// Another key than those that are pinned.
    #[error("it holds the key {found}, and only {pinned} is trusted")]
    Foreign {
        /// What is in it.
        found: Fingerprint,
        /// What may be in it, for people.
        pinned: String,
    },
}

/// Public keys as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeys {
    /// The packets alone, in the binary form: what was looked at and nothing else.
    pub packets: Vec<u8>,
    /// The fingerprints of all primary keys, at least one.
    pub fingerprints: Vec<Fingerprint>,
}

/// Reads keys, and checks that every primary key among them is one of these.
pub fn read_pinned(bytes: &[u8], pinned: &[Fingerprint]) -> Result<PublicKeys, KeyError> {
    let keys = read(bytes)?;
    match keys.fingerprints.iter().find(|found| !pinned.contains(found)) {
        None => Ok(keys),
        Some(found) => {
            let pinned = pinned.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            Err(KeyError::Foreign { found: *found, pinned })
        }
    }
}

/// Reads keys in the text or the binary form.
pub fn read(bytes: &[u8]) -> Result<PublicKeys, KeyError> {
    if bytes.len() > KEY_LIMIT {
        return Err(KeyError::TooLong(bytes.len()));
    }
    let text = String::from_utf8_lossy(bytes);
    let packets = if text.lines().any(|line| line.starts_with("-----BEGIN PGP ")) {
        blocks(&text)?
    } else {
        bytes.to_vec()
    };
    let fingerprints = primary_keys(&packets)?;
    Ok(PublicKeys { packets, fingerprints })
}

/// The packets of every armoured block, decoded.
fn blocks(text: &str) -> Result<Vec<u8>, KeyError> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(what) = line.strip_prefix("-----BEGIN PGP ") else { continue };
        match what.trim_end_matches('-') {
            "PUBLIC KEY BLOCK" => {}
            "PRIVATE KEY BLOCK" => return Err(KeyError::Secret),
            other => return Err(KeyError::Other(other.chars().take(40).collect::<String>().to_lowercase())),
        }
        // Headers, up to an empty line.
        if !lines.by_ref().any(str::is_empty) {
            return Err(KeyError::Damaged("its armour has no empty line after its headers"));
        }
        let (mut body, mut sum, mut whole) = (String::new(), None, false);
        for line in lines.by_ref() {
            if line.starts_with("-----END PGP ") {
                whole = true;
                break;
            }
            match line.strip_prefix('=') {
                Some(check) if check.len() == 4 => sum = Some(check.to_owned()),
                _ => body.push_str(line.trim()),
            }
        }
        if !whole {
            return Err(KeyError::Damaged("its armour has no end"));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| KeyError::Damaged("its armour"));
        let bytes = decode(&body)?;
        if let Some(sum) = sum
            && decode(&sum)? != crc24(&bytes).to_be_bytes()[1..]
        {
            return Err(KeyError::Damaged("its check sum is another one"));
        }
        blocks.extend(bytes);
    }
    Ok(blocks)
}

/// RFC 4880, 6.1.
fn crc24(bytes: &[u8]) -> u32 {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4cfb;
            }
        }
    }
    crc & 0x00ff_ffff
}

/// Walks the packets (RFC 4880, 4.2) and takes the fingerprints of primary keys.
fn primary_keys(mut rest: &[u8]) -> Result<Vec<Fingerprint>, KeyError> {
    let mut keys = Vec::new();
    const CUT: KeyError = KeyError::Damaged("a packet is cut off");
    while let Some((head, after)) = rest.split_first() {
        if head & 0x80 == 0 {
            return Err(if keys.is_empty() { KeyError::NoKey } else { KeyError::Damaged("no packet") });
        }
        let (tag, len, after) = if head & 0x40 != 0 {
            let (len, after) = new_length(after)?;
            (head & 0x3f, len, after)
        } else {
            let width = match head & 3 {
                0 => 1,
                1 => 2,
                2 => 4,
                _ => return Err(KeyError::Damaged("a packet of no length")),
            };
            let (len, after) = after.split_at_checked(width).ok_or(CUT)?;
            (head >> 2 & 0x0f, number(len), after)
        };
        let (body, next) = after.split_at_checked(len).ok_or(CUT)?;
        match tag {
            // A primary key.
            6 => keys.push(fingerprint(body)?),
            5 | 7 => return Err(KeyError::Secret),
            // What belongs to a key that came before: signatures, subkeys, names, pictures, trust, padding.
            2 | 10 | 12 | 13 | 14 | 17 | 21 if !keys.is_empty() => {}
            _ if keys.is_empty() => return Err(KeyError::NoKey),
            _ => return Err(KeyError::Damaged("it holds a packet that is no part of a key")),
        }
        rest = next;
    }
    if keys.is_empty() { Err(KeyError::NoKey) } else { Ok(keys) }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte))
}

/// RFC 4880, 4.2.2. Partial lengths are for data, never for keys.
fn new_length(rest: &[u8]) -> Result<(usize, &[u8]), KeyError> {
    const CUT: KeyError = KeyError::Damaged("a packet is cut off");
    let (first, rest) = rest.split_first().ok_or(CUT)?;
    match first {
        0..192 => Ok((usize::from(*first), rest)),
        192..224 => {
            let (second, rest) = rest.split_first().ok_or(CUT)?;
            Ok(((usize::from(*first) - 192) * 256 + usize::from(*second) + 192, rest))
        }
        255 => {
            let (len, rest) = rest.split_at_checked(4).ok_or(CUT)?;
            Ok((number(len), rest))
        }
        224..255 => Err(KeyError::Damaged("a packet in parts")),
    }
}

/// RFC 4880, 12.2: SHA-1 over 0x99, the length in two bytes, and the packet's body.
fn fingerprint(body: &[u8]) -> Result<Fingerprint, KeyError> {
    match body.first() {
        Some(4) => {}
        Some(other) => return Err(KeyError::Version(*other)),
        None => return Err(KeyError::Damaged("an empty key")),
    }
    let len = u16::try_from(body.len()).map_err(|_| KeyError::Damaged("a key that is too long"))?;
    let mut hash = Sha1::new();
    hash.update([0x99]);
    hash.update(len.to_be_bytes());
    hash.update(body);
    Ok(Fingerprint(hash.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A key ring of gpg's own, in a folder of its own.
    struct Gpg(tempfile::TempDir);

    impl Gpg {
        fn new() -> Option<Self> {
            let there = Command::new("gpg").arg("--version").output().is_ok();
            let home = Self(tempfile::Builder::new().prefix("k").tempdir().ok()?);
            there.then_some(home)
        }

        fn run(&self, args: &[&str]) -> Vec<u8> {
            let mut gpg = Command::new("gpg");
            gpg.args(["--batch", "--quiet", "--homedir"]).arg(self.0.path()).args(args);
            let out = gpg.output().unwrap();
            assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
            out.stdout
        }

        fn make(&self, name: &str, algorithm: &str) -> Fingerprint {
            self.run(&["--passphrase", "", "--quick-generate-key", name, algorithm, "sign", "0"]);
            let listed = self.run(&["--with-colons", "--list-keys", name]);
            let listed = String::from_utf8(listed).unwrap();
            let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
            line.split(':').nth(9).unwrap().parse().unwrap()
        }
    }

    impl Drop for Gpg {
        fn drop(&mut self) {
            let _ =
                Command::new("gpgconf").arg("--homedir").arg(self.0.path()).args(["--kill", "all"]).output();
        }
    }

    /// Keys that gpg makes, in the forms that gpg writes; its own fingerprints are the measure.
    #[test]
    fn keys_of_gpg_are_read_as_gpg_reads_them() {
        let Some(gpg) = Gpg::new() else {
            // Debian has it everywhere; a machine without it is told apart from one where it was checked.
            assert!(std::env::var_os("CI").is_none(), "gpg is needed for this test");
            return;
        };
        let (one, two) = (gpg.make("one", "ed25519"), gpg.make("two", "rsa2048"));
        gpg.run(&["--passphrase", "", "--quick-add-key", &two.to_string(), "rsa2048", "encr", "0"]);
        let binary = gpg.run(&["--export", "one"]);
        assert_eq!(read(&binary), Ok(PublicKeys { packets: binary.clone(), fingerprints: vec![one] }));
        let text = gpg.run(&["--armor", "--export", "two"]);
        let read_two = read(&text).unwrap();
        assert_eq!(read_two.packets, gpg.run(&["--export", "two"]));
        assert_eq!(read_two.fingerprints, [two], "a subkey is not a primary key");
        let both = gpg.run(&["--armor", "--export"]);
        assert_eq!(read(&both).unwrap().fingerprints, [one, two]);
        let glued = [gpg.run(&["--armor", "--export", "one"]), text.clone()].concat();
        assert_eq!(read(&glued).unwrap().fingerprints, [one, two], "every block counts");
        assert!(read_pinned(&both, &[two, one]).is_ok());
        let refused = read_pinned(&both, &[one]).unwrap_err().to_string();
        assert_eq!(refused, format!("it holds the key {two}, and only {one} is trusted"));

        let secret = gpg.run(&["--armor", "--export-secret-keys", "one"]);
        assert_eq!(read(&secret), Err(KeyError::Secret));
        assert_eq!(read(&gpg.run(&["--export-secret-keys", "one"])), Err(KeyError::Secret));

        // A key that is cut off anywhere is not taken, whatever is left of it.
        for cut in 1..binary.len() {
            if let Ok(keys) = read(&binary[..cut]) {
                assert_eq!(keys.fingerprints, [one], "only between whole packets");
            }
        }
        let mut damaged = String::from_utf8(text).unwrap();
        let at = damaged.find("\n\n").unwrap() + 100;
        let other = if damaged.as_bytes()[at] == b'A' { "B" } else { "A" };
        damaged.replace_range(at..=at, other);
        assert_eq!(read(damaged.as_bytes()), Err(KeyError::Damaged("its check sum is another one")));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let armour = |what: &str, body: &str| {
            format!("-----BEGIN PGP {what}-----\n\n{body}\n-----END PGP {what}-----\n").into_bytes()
        };
        let cases: Vec<(Vec<u8>, KeyError)> = vec![
            (Vec::new(), KeyError::NoKey),
            (b"<html>404</html>".to_vec(), KeyError::NoKey),
            (armour("SIGNATURE", "iQ=="), KeyError::Other("signature".into())),
            (armour("PUBLIC KEY BLOCK", ""), KeyError::NoKey),
            (armour("PUBLIC KEY BLOCK", "!"), KeyError::Damaged("its armour")),
            (
                b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n".to_vec(),
                KeyError::Damaged("its armour has no end"),
            ),
            (vec![0x99, 0, 9, 4], KeyError::Damaged("a packet is cut off")),
            (vec![0xc6, 1, 6], KeyError::Version(6)),
            (vec![0xc6, 0xff, 0xff, 0xff, 0xff, 0xff], KeyError::Damaged("a packet is cut off")),
            (vec![0xc6, 0xe1], KeyError::Damaged("a packet in parts")),
            (vec![0x9b, 0], KeyError::Damaged("a packet of no length")),
            (vec![0xc2, 1, 4], KeyError::NoKey),
            (vec![0xc6, 1, 4, 0xcb, 0], KeyError::Damaged("it holds a packet that is no part of a key")),
            (vec![0; KEY_LIMIT + 1], KeyError::TooLong(KEY_LIMIT + 1)),
        ];
        for (bytes, want) in cases {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            assert_eq!(read(&bytes), Err(want), "{shown:?}");
        }
    }

    #[test]
    fn fingerprints_by_table() {
        let plain = "0123456789ABCDEF0123456789abcdef01234567";
        let spaced = "0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567";
        let parsed: Fingerprint = plain.parse().unwrap();
        assert_eq!(parsed, spaced.parse().unwrap());
        assert_eq!(parsed.to_string(), plain.to_uppercase());
        for bad in ["", "89ABCDEF", &plain[1..], &format!("{plain}0"), &plain.replace('0', "g"), "0x01234567"]
        {
            assert_eq!(bad.parse::<Fingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = read(&bytes);
        }
    }
}
