//! The certificate authority: a root, one issuer for the controller, one for agents, and what they sign.
//!
//! Agents trust the root and one server name; the controller trusts the `agents` issuer alone. Both
//! issuers carry the one key usage of their leaves, so that neither side's certificate is of use on the
//! other (T32). Every name in a certificate is set here; a CSR gives its public key and nothing else.
//!
//! The private keys lie in the state directory, encrypted with the key of [`crate::seal`].

mod csr;
mod files;

pub use csr::{AgentKey, CsrError, KeyHash};

use std::path::Path;
use std::time::{Duration, SystemTime};

use postern_proto::SERVER_NAME;
use postern_proto::ids::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use self::files::{Material, Part};
use crate::seal::{KeyError, SealKey};

/// The prefix of the URI that names a host in its certificate.
pub const HOST_URI: &str = "postern:host:";
/// Certificates are valid from this long before they were made, for hosts whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// How long the certificate of the controller is valid; it is renewed at half of that.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the root and both issuers are valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Why there is no certificate authority, or why it would not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a state, but not its authority.
    #[error("the certificate authority is missing: {0} is not there; restore it from a backup")]
    Missing(std::path::PathBuf),
    /// It is there and cannot be used.
    #[error("the certificate authority in {path} is corrupt: {why}; restore it from a backup")]
    Corrupt {
        /// The directory or file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A newer version wrote it.
    #[error(
        "the certificate authority in {path} has format {found}, this version knows {known}: use a newer postern"
    )]
    TooNew {
        /// The directory.
        path: std::path::PathBuf,
        /// What it says.
        found: u32,
        /// [`files::FORMAT`].
        known: u32,
    },
    /// Its private keys are encrypted with another key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The disk would not.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A key could not be made or a certificate could not be signed.
    #[error("{action}")]
    Sign {
        /// What was being made.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: rcgen::Error,
    },
}

fn sign_error(action: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Sign { action, source }
}

/// The authority of one controller. Holds the issuers' private keys; the root's is only read to check it.
pub struct Authority {
    root_pem: String,
    root_der: CertificateDer<'static>,
    servers: Signer,
    agents: Signer,
}

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate for an agent.
#[derive(Clone, Debug)]
pub struct AgentCertificate {
    /// Leaf, then the `agents` issuer.
    pub chain_pem: String,
    /// Hex.
    pub serial: String,
    /// Milliseconds since the Unix epoch.
    pub not_after_ms: i64,
}

/// A certificate for the controller, with the key that was made for it. It is never stored.
pub struct ServerCertificate {
    /// Leaf, then the `servers` issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When to have the next one made.
    pub renew_at: SystemTime,
}

impl Authority {
    /// Makes root and issuers in `state_dir`. The caller has made sure that this is a first start.
    pub fn create(state_dir: &Path, now: SystemTime, key: &SealKey) -> Result<Self, CaError> {
        let material = generate(now)?;
        files::write(state_dir, &material, key)?;
        Self::open(state_dir, key)
    }

    /// Reads what [`Authority::create`] made.
    pub fn open(state_dir: &Path, key: &SealKey) -> Result<Self, CaError> {
        let dir = files::directory(state_dir);
        let material = files::read(state_dir, key)?;
        let corrupt = |part: &str, why: String| CaError::Corrupt { path: dir.join(part), why };
        let root_der = CertificateDer::from_pem_slice(material.root.certificate.as_bytes())
            .map_err(|error| corrupt("root.crt", error.to_string()))?;
        Signer::load("root", &material.root, None).map_err(|why| corrupt("root.key", why))?;
        let servers = Signer::load("servers", &material.servers, Some(&root_der))
            .map_err(|why| corrupt("servers.crt", why))?;
        let agents = Signer::load("agents", &material.agents, Some(&root_der))
            .map_err(|why| corrupt("agents.crt", why))?;
        Ok(Self { root_pem: material.root.certificate, root_der, servers, agents })
    }

    /// True when something lies where an authority would.
    pub fn exists(state_dir: &Path) -> Result<bool, CaError> {
        files::exists(state_dir)
    }

    /// True when a private key of it is encrypted, so that its key must not be made anew.
    pub fn is_sealed(state_dir: &Path) -> Result<bool, CaError> {
        files::has_sealed(state_dir)
    }

    /// Encrypts the private keys that an older version left in clear. True when there were some.
    pub fn encrypt(state_dir: &Path, key: &SealKey) -> Result<bool, CaError> {
        files::encrypt(state_dir, key)
    }

    /// Removes what an unfinished first start left behind. Never called once anything was handed out.
    pub fn discard(state_dir: &Path) -> Result<(), CaError> {
        files::discard(state_dir)
    }

    /// What agents trust, PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// SHA-256 of the root certificate, hex: ties the store to this authority.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        use sha2::Digest as _;
        hex(&sha2::Sha256::digest(&self.root_der))
    }

    /// The only issuer whose client certificates count.
    #[must_use]
    pub fn agents_issuer(&self) -> &CertificateDer<'static> {
        &self.agents.der
    }

    /// A certificate for `key`, naming `host`, valid until `life` from `now`.
    pub fn issue_agent(
        &self,
        host: HostId,
        key: &AgentKey,
        now: SystemTime,
        life: Duration,
    ) -> Result<AgentCertificate, CaError> {
        let action = "signing an agent's certificate";
        let mut params =
            leaf(&format!("postern host {host}"), now, life, ExtendedKeyUsagePurpose::ClientAuth)?;
        let uri = format!("{HOST_URI}{host}").try_into().map_err(sign_error(action))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let serial = params.serial_number.as_ref().map(|serial| hex(&serial.to_bytes())).unwrap_or_default();
        let not_after_ms = params.not_after.unix_timestamp().saturating_mul(1000);
        let certificate =
            params.signed_by(key.public_key(), &self.agents.issuer).map_err(sign_error(action))?;
        Ok(AgentCertificate {
            chain_pem: format!("{}{}", certificate.pem(), self.agents.pem),
            serial,
            not_after_ms,
        })
    }

    /// A new key and certificate for the controller.
    pub fn issue_server(&self, now: SystemTime) -> Result<ServerCertificate, CaError> {
        let action = "signing the controller's certificate";
        let mut params = leaf("postern controller", now, SERVER_LIFE, ExtendedKeyUsagePurpose::ServerAuth)?;
        let name = SERVER_NAME.try_into().map_err(sign_error(action))?;
        params.subject_alt_names = vec![SanType::DnsName(name)];
        let key = KeyPair::generate().map_err(sign_error("making the controller's key"))?;
        let certificate = params.signed_by(&key, &self.servers.issuer).map_err(sign_error(action))?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone(), self.servers.der.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            renew_at: now + SERVER_LIFE / 2,
        })
    }
}

impl Signer {
    /// Parses key and certificate and checks that they belong together and under `root`.
    fn load(name: &str, part: &Part, root: Option<&CertificateDer<'_>>) -> Result<Self, String> {
        let key = KeyPair::from_pem(&part.key).map_err(|error| format!("{name}.key: {error}"))?;
        let der = CertificateDer::from_pem_slice(part.certificate.as_bytes())
            .map_err(|error| format!("{name}.crt: {error}"))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| format!("{name}.crt: {error}"))?;
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(format!("{name}.key and {name}.crt do not belong together"));
        }
        if let Some(root) = root {
            let (_, root) =
                x509_parser::parse_x509_certificate(root).map_err(|error| format!("root.crt: {error}"))?;
            parsed
                .verify_signature(Some(root.public_key()))
                .map_err(|_| format!("{name}.crt is not signed by root.key"))?;
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| format!("{name}.crt: {error}"))?;
        Ok(Self { issuer, pem: part.certificate.clone(), der })
    }
}

fn generate(now: SystemTime) -> Result<Material, CaError> {
    let key = || KeyPair::generate().map_err(sign_error("making a key of the certificate authority"));
    let (root_key, servers_key, agents_key) = (key()?, key()?, key()?);
    let action = "signing the certificate authority";
    let root_params = issuer_params("postern root", now, 1, None)?;
    let root = root_params.self_signed(&root_key).map_err(sign_error(action))?;
    let root_part = Part { certificate: root.pem(), key: Zeroizing::new(root_key.serialize_pem()) };
    let signer = Issuer::new(root_params, root_key);
    let part = |name, usage, key: KeyPair| {
        let certificate =
            issuer_params(name, now, 0, Some(usage))?.signed_by(&key, &signer).map_err(sign_error(action))?;
        Ok::<_, CaError>(Part { certificate: certificate.pem(), key: Zeroizing::new(key.serialize_pem()) })
    };
    Ok(Material {
        root: root_part,
        servers: part("postern servers", ExtendedKeyUsagePurpose::ServerAuth, servers_key)?,
        agents: part("postern agents", ExtendedKeyUsagePurpose::ClientAuth, agents_key)?,
    })
}

fn params(name: &str, now: SystemTime, life: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    // A clock before 1970 gives nothing to go back to.
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = now.checked_add(life).unwrap_or(now).into();
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn issuer_params(
    name: &str,
    now: SystemTime,
    path_len: u8,
    usage: Option<ExtendedKeyUsagePurpose>,
) -> Result<CertificateParams, CaError> {
    let mut params = params(name, now, AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = usage.into_iter().collect();
    Ok(params)
}

fn leaf(
    name: &str,
    now: SystemTime,
    life: Duration,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, CaError> {
    let mut params = params(name, now, life)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(params)
}

/// 16 random bytes, positive and without a leading zero as DER wants it.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let key = SealKey::create(&dir.path().join("key")).unwrap();
        let ca = Authority::create(dir.path(), SystemTime::now(), &key).unwrap();
        (dir, ca)
    }

    fn key(dir: &Path) -> SealKey {
        SealKey::read(&dir.join("key")).unwrap().unwrap()
    }

    /// As version 0.1.0 left it.
    fn in_clear(dir: &Path) {
        let ca = dir.join("ca");
        for name in ["root.key", "servers.key", "agents.key"] {
            let sealed = std::fs::read_to_string(ca.join(name)).unwrap();
            let clear = key(dir).open_text(&format!("ca/{name}"), &sealed).unwrap();
            std::fs::write(ca.join(name), &**clear).unwrap();
        }
        std::fs::write(ca.join("format"), "1\n").unwrap();
    }

    fn clear_keys(dir: &Path) -> usize {
        let files = std::fs::read_dir(dir.join("ca")).unwrap();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        texts.filter(|text| text.contains("PRIVATE KEY")).count()
    }

    #[test]
    fn keys_in_clear_are_encrypted_also_after_a_cut_at_any_place() {
        let (dir, ca) = fresh();
        assert_eq!(clear_keys(dir.path()), 0);
        let sealed = |name: &str| std::fs::read(dir.path().join("ca").join(name)).unwrap();
        let names = ["format", "root.key", "servers.key", "agents.key"];
        let done: Vec<_> = names.iter().map(|name| sealed(name)).collect();
        for cut in 0..=names.len() {
            in_clear(dir.path());
            assert_eq!(clear_keys(dir.path()), 3);
            for (name, content) in names.iter().zip(&done).take(cut) {
                std::fs::write(dir.path().join("ca").join(name), content).unwrap();
            }
            // The next one was being written.
            std::fs::write(dir.path().join("ca/root.key.new"), "half").unwrap();
            let key = key(dir.path());
            assert_eq!(Authority::is_sealed(dir.path()).unwrap(), cut >= 2);
            assert_eq!(Authority::open(dir.path(), &key).unwrap().fingerprint(), ca.fingerprint(), "{cut}");
            assert_eq!(Authority::encrypt(dir.path(), &key).unwrap(), cut < names.len());
            assert_eq!(clear_keys(dir.path()), 0, "{cut}");
            assert_eq!(Authority::open(dir.path(), &key).unwrap().fingerprint(), ca.fingerprint());
        }
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (dir, _ca) = fresh();
        let other = SealKey::create(&dir.path().join("other")).unwrap();
        let error = Authority::open(dir.path(), &other).err().unwrap();
        assert!(matches!(error, CaError::Key(KeyError::Wrong { .. })), "{error}");
        // One in the place of another.
        std::fs::copy(dir.path().join("ca/agents.key"), dir.path().join("ca/servers.key")).unwrap();
        let error = Authority::open(dir.path(), &key(dir.path())).err().unwrap();
        assert!(matches!(error, CaError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn opens_what_it_made() {
        let (dir, ca) = fresh();
        let again = Authority::open(dir.path(), &key(dir.path())).unwrap();
        assert_eq!(again.fingerprint(), ca.fingerprint());
        assert_eq!(again.root_pem(), ca.root_pem());
    }

    #[test]
    fn names_and_usages_come_from_the_ca_alone() {
        let (_dir, ca) = fresh();
        let key = KeyPair::generate().unwrap();
        // A CSR that asks for everything: another host, the server's name, server usage, a CA.
        let mut wants = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        wants.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        wants.is_ca = IsCa::NoCa;
        let csr = wants.serialize_request(&key).unwrap();
        let agent_key = AgentKey::from_csr(csr.der()).unwrap();
        let host = HostId::generate();
        let made = ca.issue_agent(host, &agent_key, SystemTime::now(), Duration::from_secs(3600)).unwrap();
        let der = CertificateDer::from_pem_slice(made.chain_pem.as_bytes()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 1);
        assert!(
            matches!(names[0], x509_parser::extensions::GeneralName::URI(uri) if uri == format!("{HOST_URI}{host}"))
        );
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert!(!leaf.is_ca());
        assert_eq!(AgentKey::hash_of_certificate(&der).unwrap(), agent_key.hash());
    }

    #[test]
    fn issuers_are_limited() {
        let (dir, _ca) = fresh();
        for (file, server) in [("servers.crt", true), ("agents.crt", false)] {
            let pem = std::fs::read(dir.path().join("ca").join(file)).unwrap();
            let der = CertificateDer::from_pem_slice(&pem).unwrap();
            let (_, issuer) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert_eq!(issuer.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
            let usage = issuer.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.server_auth, usage.client_auth), (server, !server));
        }
    }

    #[test]
    fn partly_there_is_corrupt_and_never_a_first_start() {
        for gone in ["root.crt", "root.key", "servers.crt", "agents.key", "format"] {
            let (dir, _ca) = fresh();
            std::fs::remove_file(dir.path().join("ca").join(gone)).unwrap();
            assert!(
                matches!(Authority::open(dir.path(), &key(dir.path())), Err(CaError::Corrupt { .. })),
                "{gone}"
            );
            assert!(matches!(
                Authority::create(dir.path(), SystemTime::now(), &key(dir.path())),
                Err(CaError::Corrupt { .. })
            ));
        }
    }

    #[test]
    fn missing_corrupt_and_too_new_differ() {
        let (dir, _ca) = fresh();
        std::fs::rename(dir.path().join("ca"), dir.path().join("elsewhere")).unwrap();
        assert!(matches!(Authority::open(dir.path(), &key(dir.path())), Err(CaError::Missing(_))));
        let (dir, _ca) = fresh();
        let file = |name: &str| dir.path().join("ca").join(name);
        std::fs::write(file("format"), "99\n").unwrap();
        assert!(matches!(
            Authority::open(dir.path(), &key(dir.path())),
            Err(CaError::TooNew { found: 99, .. })
        ));
        std::fs::write(file("format"), "1\n").unwrap();
        let (other_dir, _other) = fresh();
        std::fs::copy(other_dir.path().join("ca/agents.crt"), file("agents.crt")).unwrap();
        assert!(matches!(Authority::open(dir.path(), &key(dir.path())), Err(CaError::Corrupt { .. })));
        // The other's key, in clear as format 1 had it: it opens, and does not belong here.
        in_clear(other_dir.path());
        std::fs::copy(other_dir.path().join("ca/agents.key"), file("agents.key")).unwrap();
        let Err(CaError::Corrupt { why, .. }) = Authority::open(dir.path(), &key(dir.path())) else {
            panic!()
        };
        assert!(why.contains("not signed by root"), "{why}");
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, _ca) = fresh();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("ca")), 0o700);
        for name in ["root.key", "servers.key", "agents.key"] {
            assert_eq!(mode(&dir.path().join("ca").join(name)), 0o600, "{name}");
        }
    }
}
