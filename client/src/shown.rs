//! What a client shows to relays, and whom it trusts.

use crate::error::ClientError;
use crate::state::Identity;
use belay_certs::issue::DeviceKey;
use belay_certs::tls::{self, Time};
use belay_protocol::ALPN;
use belay_transport::env::{Clock, Env};
use belay_transport::params;
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::Duration;

/// The configurations of both transports.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) quic: ClientConfig,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Shown {
    pub(crate) fn new(config: rustls::ClientConfig) -> Result<Self, ClientError> {
        let tls = Arc::new(config);
        let crypto = QuicClientConfig::try_from(Arc::clone(&tls))
            .map_err(|error| ClientError::State { what: "the TLS configuration".into(), why: error.to_string() })?;
        let mut quic = ClientConfig::new(Arc::new(crypto));
        quic.transport_config(params::client());
        Ok(Self { quic, tls })
    }
}

/// rustls checks certificates by the client's clock.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now_ms())))
    }
}

pub(crate) fn clock_time(env: &Env) -> Time {
    Arc::new(ClockTime(Arc::clone(&env.clock)))
}

/// For a device that has joined.
pub(crate) fn certified(env: &Env, identity: &Identity, key: &DeviceKey) -> Result<rustls::ClientConfig, ClientError> {
    let certificate = CertificateDer::from(identity.certificate_der.0.clone());
    Ok(tls::enrolled_client(&identity.authorities(), certificate, key, ALPN, clock_time(env))?)
}
