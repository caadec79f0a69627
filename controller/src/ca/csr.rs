//! A certificate signing request of an agent: hostile input, of which only the public key is used.

use std::fmt;

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// No CSR is larger, bytes.
const MAX_CSR: usize = 16 * 1024;

/// SHA-256 of a public key as it stands in certificates (SubjectPublicKeyInfo). It is who an agent is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of this SubjectPublicKeyInfo.
    #[must_use]
    pub fn of(spki: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(spki).into())
    }

    /// From the store.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::hex(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {self}")
    }
}

/// Why a CSR is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CsrError {
    /// Not a CSR.
    #[error("not a certificate signing request")]
    Malformed,
    /// Larger than any.
    #[error("the certificate signing request has {0} bytes, the limit is {MAX_CSR}")]
    TooLarge(usize),
    /// Whoever sent it does not have the key.
    #[error("the certificate signing request is not signed by its own key")]
    Signature,
    /// A kind of key that is not taken.
    #[error("the key is of a kind that is not accepted; want ECDSA P-256, P-384 or Ed25519")]
    KeyKind,
}

/// The public key of an agent, proven to be held by whoever sent it.
#[derive(Debug)]
pub struct AgentKey {
    key: SubjectPublicKeyInfo,
    hash: KeyHash,
}

impl AgentKey {
    /// Takes the key out of a CSR in DER, after its signature was found good. Names and extensions in the
    /// CSR are not even looked at.
    pub fn from_csr(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLarge(der.len()));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let spki = csr.certification_request_info.subject_pki.raw;
        if !accepted(&csr) {
            return Err(CsrError::KeyKind);
        }
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CsrError::KeyKind)?;
        // What is registered is the hash of what will stand in the certificate, byte for byte.
        let hash = KeyHash::of(&rcgen::PublicKeyData::subject_public_key_info(&key));
        if hash != KeyHash::of(spki) {
            return Err(CsrError::KeyKind);
        }
        Ok(Self { key, hash })
    }

    /// The key's hash.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    pub(super) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }

    /// The hash of the key in a certificate; `None` when it does not parse.
    #[must_use]
    pub fn hash_of_certificate(der: &[u8]) -> Option<KeyHash> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(KeyHash::of(certificate.public_key().raw))
    }
}

fn accepted(csr: &X509CertificationRequest<'_>) -> bool {
    use x509_parser::oid_registry as oid;
    let algorithm = &csr.certification_request_info.subject_pki.algorithm;
    if algorithm.algorithm == oid::OID_SIG_ED25519 {
        return true;
    }
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    algorithm.algorithm == oid::OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == oid::OID_EC_P256 || curve == oid::OID_NIST_EC_P384)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    fn csr(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn takes_the_usual_keys_and_only_with_their_signature() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let der = csr(&key);
            AgentKey::from_csr(&der).unwrap();
            let mut forged = der.clone();
            *forged.last_mut().unwrap() ^= 1;
            assert_eq!(AgentKey::from_csr(&forged).unwrap_err(), CsrError::Signature);
            let mut longer = der;
            longer.push(0);
            assert_eq!(AgentKey::from_csr(&longer).unwrap_err(), CsrError::Malformed);
        }
        assert_eq!(AgentKey::from_csr(&vec![0; MAX_CSR + 1]).unwrap_err(), CsrError::TooLarge(MAX_CSR + 1));
    }

    proptest! {
        #[test]
        fn no_input_is_a_panic(bytes in any::<Vec<u8>>(), at in 0usize..300, flip in 1u8..) {
            let _ = AgentKey::from_csr(&bytes);
            let mut der = csr(&KeyPair::generate().unwrap());
            let at = at % der.len();
            der[at] ^= flip;
            let _ = AgentKey::from_csr(&der);
        }
    }
}
