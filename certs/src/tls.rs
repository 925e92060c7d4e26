//! The rustls configurations of both sides: TLS 1.3 only, aws-lc-rs, post-quantum key exchange
//! preferred, no early data, no session resumption. Callers over HTTP may come with TLS 1.2, and resume.
//!
//! Resumption is off: a resumed session would carry the certificate of an earlier handshake, and
//! over QUIC it saves no round trip without early data, which could be replayed.

use crate::CertError;
use crate::ca::Authority;
use crate::issue::DeviceKey;
use crate::pin::PinnedAuthority;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, OnceLock};

/// The wall clock for certificate checks; a simulation brings its own.
pub type Time = Arc<dyn TimeProvider>;

/// The machine's clock.
#[must_use]
pub fn system_time() -> Time {
    Arc::new(DefaultTimeProvider)
}

/// aws-lc-rs with X25519MLKEM768 first.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups =
            vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
        Arc::new(provider)
    });
    Arc::clone(provider)
}

/// The relay's side. Clients without a certificate are let in as far as enrolment; one with a
/// certificate that the authority did not sign, or that has expired, is refused in the handshake.
pub fn relay(
    authority: &Authority,
    server: (CertificateDer<'static>, PrivateKeyDer<'static>),
    alpn: &[u8],
    time: Time,
) -> Result<ServerConfig, CertError> {
    let failed = |error: &dyn std::fmt::Display| CertError::Tls(error.to_string());
    let roots = roots(authority.certificate())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(&error))?;
    let (certificate, key) = server;
    // The authority goes along so that a client that knows only its fingerprint can find it.
    let chain = vec![certificate, authority.certificate().clone()];
    let mut config = ServerConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| failed(&error))?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A server for callers that show no certificate, over HTTP. `chain`: its own certificate first.
pub fn web(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[&[u8]],
    time: Time,
) -> Result<ServerConfig, CertError> {
    let failed = |error: rustls::Error| CertError::Tls(error.to_string());
    let mut config = ServerConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(failed)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.max_early_data_size = 0;
    Ok(config)
}

/// A client that is to enrol: it knows the authority's fingerprint and has no certificate.
pub fn enrolling_client(fingerprint: [u8; 32], alpn: &[u8], time: Time) -> Result<ClientConfig, CertError> {
    let config = ClientConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| CertError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority::new(fingerprint)))
        .with_no_client_auth();
    Ok(finish_client(config, alpn))
}

/// An enrolled client.
pub fn enrolled_client(
    authority: &CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: &DeviceKey,
    alpn: &[u8],
    time: Time,
) -> Result<ClientConfig, CertError> {
    let failed = |error: rustls::Error| CertError::Tls(error.to_string());
    let config = ClientConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(vec![certificate], key.to_rustls()?)
        .map_err(failed)?;
    Ok(finish_client(config, alpn))
}

fn finish_client(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    config
}

fn roots(authority: &CertificateDer<'static>) -> Result<RootCertStore, CertError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|error| CertError::Tls(error.to_string()))?;
    Ok(roots)
}
