//! Trusting a relay by the fingerprint of its authority, before its certificate is on this
//! computer. Afterwards the authority's certificate itself is the only root.

use crate::sha256;
use crate::tls::crypto_provider;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::Arc;
use thiserror::Error as ThisError;

/// Verifies that the chain ends in the authority with that fingerprint, and everything else as
/// usual.
#[derive(Debug)]
pub struct PinnedAuthority {
    fingerprint: [u8; 32],
}

impl PinnedAuthority {
    /// Trusts the authority whose certificate has this SHA-256.
    #[must_use]
    pub fn new(fingerprint: [u8; 32]) -> Self {
        Self { fingerprint }
    }
}

/// What is wrong with a relay that shows another authority; it stands in the error of the handshake.
pub const NOT_NAMED: &str = "its authority is not the one that the invite names; ask for a new invite";

#[derive(ThisError)]
#[error("{NOT_NAMED}")]
struct NotNamed;

// rustls shows what others find wrong with a certificate for programmers only.
impl fmt::Debug for NotNamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NOT_NAMED)
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|certificate| sha256(certificate) == self.fingerprint);
        let Some(pinned) = pinned else {
            return Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotNamed)))));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &crypto_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &crypto_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}
