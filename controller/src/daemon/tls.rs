//! TLS 1.3 on the agents' port: the controller's certificate, renewed by itself, and what a client
//! certificate proves.

use std::sync::{Arc, PoisonError, RwLock};

use postern_proto::ids::HostId;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;

use super::config::{Clock, StartError};
use crate::ca::{AgentKey, Authority, HOST_URI, KeyHash, ServerCertificate};

/// The certificate in use. New connections get the newest.
#[derive(Debug)]
pub(crate) struct Current {
    provider: Arc<CryptoProvider>,
    key: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Current {
    /// Puts another certificate in use.
    pub(crate) fn set(&self, certificate: ServerCertificate) -> Result<(), StartError> {
        let key = CertifiedKey::from_der(certificate.chain, certificate.key, &self.provider)
            .map_err(|error| StartError::Tls(error.to_string()))?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Time(Clock);

impl rustls::time_provider::TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(std::time::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// The one configuration of the port. A client certificate may be left out; one that is shown must be of
/// the `agents` issuer and valid.
pub(crate) fn configure(ca: &Authority, clock: &Clock) -> Result<(ServerConfig, Arc<Current>), StartError> {
    let tls = |error: &dyn std::fmt::Display| StartError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.agents_issuer().clone()).map_err(|error| tls(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        // Nobody needs to learn from the handshake who signs agents.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| tls(&error))?;
    let current = Arc::new(Current { provider: Arc::clone(&provider), key: RwLock::new(None) });
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not show its certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, current))
}

/// What the certificate of an agent says, after the handshake has found it good.
pub(crate) struct Identity {
    pub(crate) host: HostId,
    pub(crate) key: KeyHash,
    pub(crate) not_before_ms: i64,
    pub(crate) not_after_ms: i64,
}

/// `None` for a certificate that our authority never made.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, leaf) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = &leaf.subject_alternative_name().ok()??.value.general_names;
    let [GeneralName::URI(uri)] = names.as_slice() else { return None };
    Some(Identity {
        host: uri.strip_prefix(HOST_URI)?.parse().ok()?,
        key: AgentKey::hash_of_certificate(certificate)?,
        not_before_ms: leaf.validity().not_before.timestamp().checked_mul(1000)?,
        not_after_ms: leaf.validity().not_after.timestamp().checked_mul(1000)?,
    })
}
