//! Who the agent is: its key (born here), its certificate, its cluster and whom it trusts, in one file.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use postern_proto::ids::{ClusterId, HostId};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::private_file::{self, Prepared};
use super::tls::{certificates, common_validity};

/// The version of the identity's JSON.
const IDENTITY_VERSION: u64 = 1;
/// The largest identity that is read, bytes.
const MAX_BYTES: u64 = 256 * 1024;
/// The directory of the identity in the agent's state.
pub(crate) const IDENTITY_DIR: &str = "identity";
const IDENTITY_FILE: &str = "identity.json";

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not enrolled.
    #[error("this host is not enrolled: there is no {}", .0.display())]
    Missing(PathBuf),
    /// It is there and cannot be believed.
    #[error("the identity {} is corrupt ({why}); move it away to enrol this host anew", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer agent wrote it.
    #[error("the identity {} has version {version}, this agent knows {IDENTITY_VERSION}: update the agent", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u64,
    },
    /// The disk.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A key that does not leave this host, with what its certificate is asked for with.
pub struct Key(KeyPair);

impl Key {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    /// A certificate request in DER, signed by the key. It asks for no name: names come from the CA.
    pub fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

/// What the agent is to the controller.
#[derive(Clone)]
pub struct Identity {
    host: HostId,
    cluster: ClusterId,
    key_pem: Zeroizing<String>,
    chain_pem: String,
    server_ca_pem: String,
    floor_s: i64,
    not_before_s: i64,
    not_after_s: i64,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("host", &self.host).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    version: u64,
    host_id: HostId,
    cluster_id: ClusterId,
    // Borrowed when written, so that no second copy of the key is left in memory.
    key_pem: Cow<'a, str>,
    certificate_chain_pem: Cow<'a, str>,
    server_ca_pem: Cow<'a, str>,
    trusted_time_floor_s: i64,
}

impl Identity {
    /// Puts together what an enrolment or renewal gave; refuses a certificate that is not for this key.
    pub fn new(
        host: HostId,
        cluster: ClusterId,
        key: &Key,
        chain_pem: String,
        server_ca_pem: String,
        floor_s: i64,
    ) -> Result<Self, String> {
        Self::check(host, cluster, Zeroizing::new(key.0.serialize_pem()), chain_pem, server_ca_pem, floor_s)
    }

    fn check(
        host: HostId,
        cluster: ClusterId,
        key_pem: Zeroizing<String>,
        chain_pem: String,
        server_ca_pem: String,
        floor_s: i64,
    ) -> Result<Self, String> {
        let key = KeyPair::from_pem(&key_pem).map_err(|error| format!("its key: {error}"))?;
        let chain = certificates(&chain_pem).map_err(|error| format!("its certificate: {error}"))?;
        certificates(&server_ca_pem).map_err(|error| format!("the controller's CA: {error}"))?;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|error| error.to_string())?;
        if leaf.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("its certificate is for another key".into());
        }
        let (not_before_s, not_after_s) = common_validity(&chain[..1])?;
        Ok(Self { host, cluster, key_pem, chain_pem, server_ca_pem, floor_s, not_before_s, not_after_s })
    }

    /// The host's id.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The controller's.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// When the certificate begins and ends, seconds since the Unix epoch.
    #[must_use]
    pub fn validity_s(&self) -> (i64, i64) {
        (self.not_before_s, self.not_after_s)
    }

    /// The stored floor of trusted time, seconds since the Unix epoch.
    #[must_use]
    pub fn floor_s(&self) -> i64 {
        self.floor_s
    }

    /// Trust anchors for the controller, PEM.
    #[must_use]
    pub fn server_ca_pem(&self) -> &str {
        &self.server_ca_pem
    }

    /// The agent's own chain, leaf first, PEM.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(crate) fn set_floor(&mut self, floor_s: i64) {
        self.floor_s = self.floor_s.max(floor_s);
    }

    /// The key, to ask for the next certificate with.
    pub fn key(&self) -> Result<Key, rcgen::Error> {
        KeyPair::from_pem(&self.key_pem).map(Key)
    }
}

/// Where the identity lies.
#[derive(Clone, Debug)]
pub struct IdentityStore {
    file: PathBuf,
}

impl IdentityStore {
    /// The identity in this state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join(IDENTITY_DIR).join(IDENTITY_FILE) }
    }

    /// Reads and checks it.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        let bytes = match private_file::read(&self.file, MAX_BYTES) {
            Ok(Some(bytes)) => Zeroizing::new(bytes),
            Ok(None) => return Err(IdentityError::Missing(self.file.clone())),
            Err(source) => return Err(self.io("read", source)),
        };
        self.parse(&bytes)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Identity, IdentityError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let corrupt = |why: String| IdentityError::Corrupt { path: self.file.clone(), why };
        // The JSON on one line, its checksum on the next: a flipped bit in a certificate would still parse.
        let text = std::str::from_utf8(bytes).map_err(|error| corrupt(error.to_string()))?;
        let mut lines = text.lines();
        let (json, sum) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let Version { version } = serde_json::from_str(json).map_err(|error| corrupt(error.to_string()))?;
        if version > IDENTITY_VERSION {
            return Err(IdentityError::TooNew { path: self.file.clone(), version });
        }
        if sum != checksum(json) {
            return Err(corrupt("its checksum is wrong".into()));
        }
        let it: Stored<'_> = serde_json::from_str(json).map_err(|error| corrupt(error.to_string()))?;
        Identity::check(
            it.host_id,
            it.cluster_id,
            Zeroizing::new(it.key_pem.into_owned()),
            it.certificate_chain_pem.into_owned(),
            it.server_ca_pem.into_owned(),
            it.trusted_time_floor_s,
        )
        .map_err(corrupt)
    }

    /// Writes it beside the old one; nothing is replaced before [`Staged::commit`].
    pub fn stage(&self, identity: &Identity) -> Result<Staged, IdentityError> {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        private_file::private_dir(dir).map_err(|source| self.io("make the directory of", source))?;
        let stored = Stored {
            version: IDENTITY_VERSION,
            host_id: identity.host,
            cluster_id: identity.cluster,
            key_pem: Cow::Borrowed(&identity.key_pem),
            certificate_chain_pem: Cow::Borrowed(&identity.chain_pem),
            server_ca_pem: Cow::Borrowed(&identity.server_ca_pem),
            trusted_time_floor_s: identity.floor_s,
        };
        let json = serde_json::to_string(&stored).map(Zeroizing::new);
        let json = json.map_err(|error| self.io("encode", io::Error::other(error)))?;
        let bytes = Zeroizing::new(format!("{}\n{}\n", *json, checksum(&json)));
        let prepared = private_file::prepare(&self.file, bytes.as_bytes());
        let prepared = prepared.map_err(|source| self.io("write", source))?;
        Ok(Staged { prepared, file: self.file.clone() })
    }

    /// Replaces it as a whole; durable on return.
    pub fn store(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.stage(identity)?.commit()
    }

    fn io(&self, doing: &'static str, source: io::Error) -> IdentityError {
        IdentityError::Io { doing, path: self.file.clone(), source }
    }
}

/// A new identity that is on disk and not yet in force.
pub struct Staged {
    prepared: Prepared,
    file: PathBuf,
}

impl Staged {
    /// Puts it in force.
    pub fn commit(self) -> Result<(), IdentityError> {
        self.prepared.commit().map_err(|source| IdentityError::Io {
            doing: "replace",
            path: self.file,
            source,
        })
    }
}

fn checksum(json: &str) -> String {
    format!("crc32 {:08x}", crc32fast::hash(json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let key = Key::generate().unwrap();
        let certificate = CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key.0).unwrap();
        Identity::new(
            HostId::generate(),
            ClusterId::generate(),
            &key,
            certificate.pem(),
            certificate.pem(),
            7,
        )
        .unwrap()
    }

    #[test]
    fn missing_corrupt_and_too_new_are_three_answers() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::new(dir.path());
        assert!(matches!(store.load(), Err(IdentityError::Missing(_))));

        let identity = identity();
        store.store(&identity).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!((loaded.host(), loaded.floor_s()), (identity.host(), 7));
        assert!(!loaded.key().unwrap().request().unwrap().is_empty());

        let good = std::fs::read(&store.file).unwrap();
        for at in [0, 30, good.len() / 2, good.len() - 3] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&store.file, &bad).unwrap();
            assert!(matches!(store.load(), Err(IdentityError::Corrupt { .. })), "bit flipped at {at}");
        }
        for cut in [0, 1, 100, good.len() - 5] {
            std::fs::write(&store.file, &good[..cut]).unwrap();
            assert!(matches!(store.load(), Err(IdentityError::Corrupt { .. })), "cut at {cut}");
        }
        std::fs::write(&store.file, "{\"version\":2,\"novel\":true}\n").unwrap();
        assert!(matches!(store.load(), Err(IdentityError::TooNew { version: 2, .. })));
    }

    #[test]
    fn a_certificate_for_another_key_is_refused() {
        let (one, two) = (identity(), Key::generate().unwrap());
        let chain = one.chain_pem().to_owned();
        let error = Identity::new(one.host, one.cluster, &two, chain.clone(), chain, 0).unwrap_err();
        assert!(error.contains("another key"), "{error}");
    }

    #[test]
    fn the_key_is_never_shown() {
        assert!(!format!("{:?}", identity()).contains("PRIVATE"));
    }
}
