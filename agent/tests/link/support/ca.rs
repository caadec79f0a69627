//! A certificate authority as the real one is: a root, an issuer for servers and one for agents.

use std::time::Duration;

use postern_proto::SERVER_NAME;
use postern_proto::ids::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;

use super::{DAY, now_s};

fn validity(params: &mut CertificateParams, from_s: i64, to_s: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from_s as u64);
    params.not_after = epoch + Duration::from_secs(to_s as u64);
}

/// A root with one issuer for servers and one for agents, as the real CA has them.
pub(crate) struct TestCa {
    pub(crate) root: CertifiedIssuer<'static, KeyPair>,
    pub(crate) servers: CertifiedIssuer<'static, KeyPair>,
    pub(crate) agents: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let params = |usage: Option<ExtendedKeyUsagePurpose>| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.extended_key_usages = usage.into_iter().collect();
            validity(&mut params, now_s() - 20 * 365 * DAY, now_s() + 20 * 365 * DAY);
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params(None), key()).unwrap();
        let issuer = |usage| CertifiedIssuer::signed_by(params(Some(usage)), key(), &root).unwrap();
        let servers = issuer(ExtendedKeyUsagePurpose::ServerAuth);
        let agents = issuer(ExtendedKeyUsagePurpose::ClientAuth);
        Self { root, servers, agents }
    }

    /// A certificate with this purpose from this issuer, as PEM chain and key.
    pub(crate) fn issue(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        usage: Option<ExtendedKeyUsagePurpose>,
        name: &str,
        (from_s, to_s): (i64, i64),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = usage.into_iter().collect();
        validity(&mut params, from_s, to_s);
        let leaf = params.signed_by(&key, issuer).unwrap();
        (format!("{}{}", leaf.pem(), issuer.pem()), key.serialize_pem())
    }

    pub(crate) fn server(&self, validity_s: (i64, i64)) -> (String, String) {
        Self::issue(&self.servers, Some(ExtendedKeyUsagePurpose::ServerAuth), SERVER_NAME, validity_s)
    }

    pub(super) fn agent(&self, csr: &[u8], host: HostId, (from_s, to_s): (i64, i64)) -> String {
        let mut csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(format!("postern:host:{host}").try_into().unwrap())];
        validity(&mut params, from_s, to_s);
        csr.params = params;
        format!("{}{}", csr.signed_by(&self.agents).unwrap().pem(), self.agents.pem())
    }
}
