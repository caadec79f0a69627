//! TLS towards the controller: 1.3 only, pinned trust anchors, the controller's purpose and name always checked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::identity::Identity;
use super::time::TrustedTime;

/// The protocol of gRPC, in ALPN.
pub(crate) const ALPN: &[u8] = b"h2";

/// Why no TLS configuration can be made of what is stored.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The trust anchors are not certificates.
    #[error("the controller's CA is not usable: {0}")]
    Anchors(String),
    /// Key or chain of this agent.
    #[error("this agent's key or certificate is not usable: {0}")]
    Identity(String),
    /// The cryptographic provider.
    #[error("cannot set up TLS 1.3")]
    Provider(#[source] rustls::Error),
}

/// A configuration that trusts these anchors, with this agent's certificate or (for enrolment and renewal)
/// with none.
pub fn client_config(
    server_ca_pem: &str,
    identity: Option<&Identity>,
    time: TrustedTime,
) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for der in certificates(server_ca_pem).map_err(TlsSetupError::Anchors)? {
        roots.add(der).map_err(|error| TlsSetupError::Anchors(error.to_string()))?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| TlsSetupError::Anchors(error.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsSetupError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ControllerVerifier { inner, time }));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = certificates(identity.chain_pem()).map_err(TlsSetupError::Identity)?;
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem().as_bytes())
                .map_err(|error| TlsSetupError::Identity(error.to_string()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| TlsSetupError::Identity(error.to_string()))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed connection would show neither side's certificate again.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificates of a PEM text, at least one.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in it".into()) } else { Ok(certificates) }
}

/// First and last second in which all of these certificates are valid.
pub(crate) fn common_validity<'a>(
    chain: impl IntoIterator<Item = &'a CertificateDer<'a>>,
) -> Result<(i64, i64), String> {
    let mut window = (i64::MIN, i64::MAX);
    for der in chain {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        window.0 = window.0.max(validity.not_before.timestamp());
        window.1 = window.1.min(validity.not_after.timestamp());
    }
    Ok(window)
}

/// WebPKI's checks at a time judged by [`TrustedTime`], and the purpose spelled out in the certificate.
#[derive(Debug)]
struct ControllerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    time: TrustedTime,
}

impl ServerCertVerifier for ControllerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, leaf) = X509Certificate::from_der(end_entity).map_err(|error| bad(error.to_string()))?;
        // WebPKI accepts a certificate that names no purpose; a controller's always names its own (T32).
        let usage = leaf.extended_key_usage().map_err(|error| bad(error.to_string()))?;
        if !usage.is_some_and(|usage| usage.value.server_auth) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
        let (from, to) = common_validity(std::iter::once(end_entity).chain(intermediates)).map_err(bad)?;
        let Some(at) = self.time.judge_at(from, to) else {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
        };
        let at = std::time::Duration::from_secs(u64::try_from(at).unwrap_or(0));
        self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            UnixTime::since_unix_epoch(at),
        )
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
