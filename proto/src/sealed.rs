//! Sealing to a public key: HPKE (RFC 9180) in base mode, one message to one key. The suite is DHKEM(X25519,
//! HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.
//!
//! It is for what must go through places that keep what they see, as the output of a run or a plan does: one end makes
//! a key for this one message, the other seals to it, and what lies in between never had the means to open it.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::MontgomeryPoint;
use ring::{aead, hmac};
use zeroize::Zeroizing;

/// Of a key, public or private, bytes.
pub const KEY: usize = 32;
/// RFC 9180, 7.1 to 7.3: the suite's numbers.
const KEM_SUITE: &[u8] = b"KEM\x00\x20";
const SUITE: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x03";
const MODE_BASE: u8 = 0;

/// What anybody may have of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = SealedError;

    fn from_str(text: &str) -> Result<Self, SealedError> {
        let digits = text.as_bytes();
        let mut key = [0; KEY];
        if digits.len() != 2 * KEY || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(SealedError::Key);
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| SealedError::Key)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| SealedError::Key)?;
        }
        Ok(Self(key))
    }
}

/// What only one end has of a key.
pub struct PrivateKey(Zeroizing<[u8; KEY]>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PrivateKey {
    /// The key that these bytes are, which come from a source of randomness for cryptography or from where
    /// [`PrivateKey::bytes`] were put.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; KEY]>) -> Self {
        Self(bytes)
    }

    /// To keep it.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Its other half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(MontgomeryPoint::mul_base_clamped(*self.0).to_bytes())
    }

    /// The shared secret of RFC 7748; refused where the other side's key makes it one that everybody knows.
    fn agree(&self, with: &PublicKey) -> Result<Zeroizing<[u8; KEY]>, SealedError> {
        let shared = Zeroizing::new(MontgomeryPoint(with.0).mul_clamped(*self.0).to_bytes());
        if shared.iter().all(|byte| *byte == 0) { Err(SealedError::Key) } else { Ok(shared) }
    }
}

/// Why something was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// What was given is no key.
    #[error("not a key to seal to: want {} hexadecimal digits", 2 * KEY)]
    Key,
    /// It was sealed to another key or for something else, or was changed since, or is not all there.
    #[error(
        "it cannot be opened: it was sealed to another key, or was changed on its way, or is not all there"
    )]
    NotOpened,
    /// More than the cipher takes.
    #[error("too much to be sealed")]
    TooLong,
}

/// Seals a message. `once` must be new randomness: it is for this message alone. Only who says the same `info` can
/// open it. What comes out is the public half of `once`, and the cipher text with its tag.
pub fn seal(to: &PublicKey, once: &PrivateKey, info: &[u8], message: &[u8]) -> Result<Vec<u8>, SealedError> {
    seal_with(to, once, info, b"", message)
}

fn seal_with(
    to: &PublicKey,
    once: &PrivateKey,
    info: &[u8],
    beside: &[u8],
    message: &[u8],
) -> Result<Vec<u8>, SealedError> {
    let enc = once.public();
    let (key, nonce) = schedule(&*once.agree(to)?, &enc, to, info)?;
    // Encrypted where it lies: what was there before is not plain any more.
    let mut data = Vec::with_capacity(message.len() + key.algorithm().tag_len());
    data.extend_from_slice(message);
    key.seal_in_place_append_tag(nonce, aead::Aad::from(beside), &mut data)
        .map_err(|_| SealedError::TooLong)?;
    Ok([&enc.0[..], &data].concat())
}

/// Opens what [`seal`] made for this key, with the same `info`.
pub fn open(key: &PrivateKey, info: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    open_with(key, info, b"", sealed)
}

fn open_with(
    own: &PrivateKey,
    info: &[u8],
    beside: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let (enc, data) = sealed.split_first_chunk::<KEY>().ok_or(SealedError::NotOpened)?;
    let enc = PublicKey(*enc);
    let shared = own.agree(&enc).map_err(|_| SealedError::NotOpened)?;
    let (key, nonce) = schedule(&shared, &enc, &own.public(), info)?;
    let mut data = Zeroizing::new(data.to_vec());
    let length = key
        .open_in_place(nonce, aead::Aad::from(beside), &mut data)
        .map_err(|_| SealedError::NotOpened)?
        .len();
    data.truncate(length);
    Ok(data)
}

/// RFC 9180, 4.1 (`ExtractAndExpand`) and 5.1 (`KeySchedule` of the base mode): the key, and the nonce of its first
/// message, which is the only one.
fn schedule(
    shared: &[u8; KEY],
    enc: &PublicKey,
    to: &PublicKey,
    info: &[u8],
) -> Result<(aead::LessSafeKey, aead::Nonce), SealedError> {
    let prk = extract(KEM_SUITE, b"", b"eae_prk", shared);
    let shared = expand::<32>(KEM_SUITE, &*prk, b"shared_secret", &[&enc.0[..], &to.0].concat());
    let (psk, info) = (extract(SUITE, b"", b"psk_id_hash", b""), extract(SUITE, b"", b"info_hash", info));
    let context = [&[MODE_BASE][..], &*psk, &*info].concat();
    let secret = extract(SUITE, &*shared, b"secret", b"");
    let key = expand::<32>(SUITE, &*secret, b"key", &context);
    let nonce = expand::<{ aead::NONCE_LEN }>(SUITE, &*secret, b"base_nonce", &context);
    let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &*key).map_err(|_| SealedError::Key)?;
    Ok((aead::LessSafeKey::new(key), aead::Nonce::assume_unique_for_key(*nonce)))
}

/// `LabeledExtract`: HKDF's first half (RFC 5869).
fn extract(suite: &[u8], salt: &[u8], label: &[u8], secret: &[u8]) -> Zeroizing<[u8; 32]> {
    mac(salt, &[b"HPKE-v1", suite, label, secret])
}

/// `LabeledExpand`: HKDF's second half, for no more than its first block gives.
fn expand<const N: usize>(suite: &[u8], key: &[u8], label: &[u8], info: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 32, "one block") };
    let length = [0, N as u8];
    let block = mac(key, &[&length, b"HPKE-v1", suite, label, info, &[1]]);
    let mut out = Zeroizing::new([0; N]);
    out.iter_mut().zip(block.iter()).for_each(|(to, from)| *to = *from);
    out
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    let tag = context.sign();
    let mut out = Zeroizing::new([0; 32]);
    out.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn private(hex: &str) -> PrivateKey {
        PrivateKey::new(Zeroizing::new(bytes(hex).try_into().unwrap()))
    }

    fn of(byte: u8) -> PrivateKey {
        PrivateKey::new(Zeroizing::new([byte; KEY]))
    }

    /// RFC 9180, A.2.1: base mode, sequence number 0.
    #[test]
    fn as_the_standard_has_it() {
        let own = private("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        let once = private("f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600");
        let to = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
        assert_eq!(own.public().to_string(), to);
        let (info, beside) = (bytes("4f6465206f6e2061204772656369616e2055726e"), b"Count-0");
        let message = bytes("4265617574792069732074727574682c20747275746820626561757479");
        let sealed = seal_with(&to.parse().unwrap(), &once, &info, beside, &message).unwrap();
        let want = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a\
                    1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28";
        assert_eq!(sealed, bytes(want));
        assert_eq!(*open_with(&own, &info, beside, &sealed).unwrap(), message);
    }

    #[test]
    fn keys_are_read_strictly_and_not_shown() {
        let key = of(7);
        let public = key.public();
        assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public));
        let long = format!("{public}00");
        for bad in ["", "00", &long[..63], &long, &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(SealedError::Key), "{bad}");
        }
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
        // Of small order: every private key would agree on zero with them.
        for weak in ["00".repeat(32), format!("01{}", "00".repeat(31))] {
            let refused = seal(&weak.parse().unwrap(), &key, b"", b"x");
            assert_eq!(refused, Err(SealedError::Key));
        }
        assert_eq!(open(&key, b"", &[0; 80]).unwrap_err(), SealedError::NotOpened);
    }

    proptest! {
        #[test]
        fn only_the_same_key_and_purpose_open_what_is_whole(
            message in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let own = of(1);
            let sealed = seal(&own.public(), &of(2), b"for this", &message).unwrap();
            prop_assert_eq!(&**open(&own, b"for this", &sealed).unwrap(), &message[..]);
            prop_assert_eq!(open(&of(3), b"for this", &sealed).unwrap_err(), SealedError::NotOpened);
            prop_assert_eq!(open(&own, b"for that", &sealed).unwrap_err(), SealedError::NotOpened);
            let mut other = sealed.clone();
            let at = at.index(other.len());
            other[at] ^= 1 << bit;
            prop_assert_eq!(open(&own, b"for this", &other).unwrap_err(), SealedError::NotOpened);
            prop_assert!(open(&own, b"for this", &sealed[..at]).is_err());
        }
    }
}
