//! The rustls configurations of both sides: TLS 1.3 only, aws-lc-rs, post-quantum key exchange
//! preferred, no early data, no session resumption. Callers over HTTP may come with TLS 1.2, and resume.
//!
//! Resumption is off: a resumed session would carry the certificate of an earlier handshake, and
//! over QUIC it saves no round trip without early data, which could be replayed.

use crate::CertError;
use crate::issue::DeviceKey;
use crate::pin::PinnedAuthority;
use crate::rollover::Authorities;
use crate::shown::Shown;
use crate::verify::Lenient;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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

/// The relay's side. Clients without a certificate are let in as far as enrolment; one with a certificate that the
/// authority did not sign, or that ended longer than `grace` ago, is refused in the handshake. With one that has ended
/// since, nothing may work but its renewal: that is for the caller to see to.
pub fn relay(
    authorities: Arc<Authorities>,
    shown: Arc<Shown>,
    grace: Duration,
    alpn: &[u8],
    time: Time,
) -> Result<ServerConfig, CertError> {
    let verifier = Lenient::new(authorities, grace)?;
    let mut config = ServerConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| CertError::Tls(error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(shown);
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

/// An enrolled client; it trusts relays of any of these authorities.
pub fn enrolled_client(
    authorities: &[CertificateDer<'static>],
    certificate: CertificateDer<'static>,
    key: &DeviceKey,
    alpn: &[u8],
    time: Time,
) -> Result<ClientConfig, CertError> {
    let failed = |error: rustls::Error| CertError::Tls(error.to_string());
    let config = ClientConfig::builder_with_details(crypto_provider(), time)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(authorities)?)
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

pub(crate) fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, CertError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| CertError::Tls(error.to_string()))?;
    }
    Ok(roots)
}
