//! Which device certificates the relay takes: those of its authority, and for a while those that have ended, so that a
//! computer that slept for long can renew its own.

use crate::CertError;
use crate::identity::DeviceIdentity;
use crate::rollover::{Authorities, Standing};
use crate::tls::{crypto_provider, roots};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Whoever takes a certificate that has ended sees to it that only renewal works with it.
#[derive(Debug)]
pub(crate) struct Lenient {
    authorities: Arc<Authorities>,
    /// For the authorities as they were when it was made.
    made: RwLock<(Arc<Standing>, Arc<dyn ClientCertVerifier>)>,
    grace: Duration,
}

impl Lenient {
    /// For certificates that a trusted authority has signed, until so long after their end; clients without one are let
    /// in.
    pub(crate) fn new(authorities: Arc<Authorities>, grace: Duration) -> Result<Self, CertError> {
        let standing = authorities.standing();
        let made = RwLock::new((Arc::clone(&standing), verifier(&standing)?));
        Ok(Self { authorities, made, grace })
    }

    /// For the authorities as they are now.
    fn inner(&self) -> Arc<dyn ClientCertVerifier> {
        let standing = self.authorities.standing();
        {
            let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
            if Arc::ptr_eq(&made.0, &standing) {
                return Arc::clone(&made.1);
            }
        }
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        // What was read from its files once can be used; if not, those of before are trusted.
        if let Ok(other) = verifier(&standing) {
            *made = (standing, other);
        }
        Arc::clone(&made.1)
    }
}

fn verifier(standing: &Standing) -> Result<Arc<dyn ClientCertVerifier>, CertError> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&standing.trusted())?), crypto_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| CertError::Tls(error.to_string()))
}

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Devices have one certificate each, and need no hint which one to show.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let inner = self.inner();
        let verified = inner.verify_client_cert(end_entity, intermediates, now);
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
        inner.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(ended))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner().supported_verify_schemes()
    }
}
