//! Which device certificates the relay takes: those of its authority, and for a while those that have ended, so that a
//! computer that slept for long can renew its own.

use crate::CertError;
use crate::identity::DeviceIdentity;
use crate::tls::crypto_provider;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::Duration;

/// Whoever takes a certificate that has ended sees to it that only renewal works with it.
#[derive(Debug)]
pub(crate) struct Lenient {
    inner: Arc<dyn ClientCertVerifier>,
    grace: Duration,
}

impl Lenient {
    /// For certificates that `roots` have signed, until so long after their end; clients without one are let in.
    pub(crate) fn new(roots: RootCertStore, grace: Duration) -> Result<Self, CertError> {
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| CertError::Tls(error.to_string()))?;
        Ok(Self { inner, grace })
    }
}

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) =
            &verified
        else {
            return verified;
        };
        let Ok(identity) = DeviceIdentity::from_certificate(end_entity) else { return verified };
        let ended = Duration::from_millis(identity.expires_ms);
        if Duration::from_secs(now.as_secs()) > ended + self.grace {
            return verified;
        }
        // As it was while it held.
        self.inner.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(ended))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
