//! What a relay is set up from: its store, its prices, the keys and the TLS of its endpoint.

use super::{ClockTime, StartError};
use crate::admission::Strangers;
use crate::config::{Config, Limits};
use crate::store::executor::{Db, Store, StoreConfig};
use crate::store::schema::Durability;
use crate::store::{StoreError, central};
use crate::stripe::relay_name;
use belay_certs::rollover::Authorities;
use belay_certs::shown::Shown;
use belay_certs::tls::Time;
use belay_certs::{CertError, file, issue, sha256, tls};
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_traces::{Exporter, Traces};
use belay_transport::env::Env;
use belay_transport::params::{self, EndpointKeys};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ServerConfig, TransportConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Bytes that one handshake may buffer before it is accepted, and all of them together.
const INCOMING_BUFFER: u64 = 64 << 10;
const INCOMING_BUFFERS: u64 = 8 << 20;
/// File of the relay's name in the state directory.
const NAME: &str = "relay.name";
/// How long open databases of one store thread may number.
const MAX_OPEN_PER_THREAD: usize = 512;

/// As many from one address as its handshakes of a few seconds, and four times as many in all as
/// handshakes at once.
pub(super) fn strangers(limits: &Limits) -> Arc<Strangers> {
    let from_one_address = (limits.handshakes_per_second as usize).saturating_mul(4).max(16);
    Strangers::new(from_one_address, limits.pending_handshakes.saturating_mul(4))
}

pub(super) fn store_config(config: &Config, inline: bool) -> StoreConfig {
    StoreConfig {
        dir: config.state_dir.clone(),
        threads: if inline { 0 } else { config.store_threads },
        durability: if inline { Durability::None } else { Durability::Full },
        idle_close: config.idle_close,
        max_open: MAX_OPEN_PER_THREAD,
    }
}

/// Records the configured price list in central and returns its version.
pub(crate) async fn record_prices(store: &Store, config: &Config, now_ms: u64) -> Result<i64, StoreError> {
    let models: std::collections::BTreeMap<_, _> =
        config.models.iter().map(|(name, model)| (name, (&model.name, &model.prices))).collect();
    // Models that only their provider names are priced by the catalogue.
    let prices = (&config.catalogue().source, &config.billing.default_price, models);
    let text = serde_json::to_string(&prices)
        .map_err(|error| StoreError::Failed { operation: "encode the price list", why: error.to_string() })?;
    let digest = sha256(text.as_bytes());
    store.run(Db::Central, move |connection| central::price_list(connection, digest, &text, now_ms)).await
}

/// The endpoint's secrets outlive the process, so that clients of a killed relay learn of it.
pub(super) fn endpoint_keys(state: &Path, env: &Env) -> Result<EndpointKeys, CertError> {
    let path = state.join("endpoint.keys");
    let bytes: [u8; 72] = match file::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| CertError::Invalid {
            what: "endpoint.keys",
            why: "it does not have 72 bytes; remove it and a new one is made".into(),
        })?,
        Err(CertError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let bytes = env.random.bytes();
            file::write_private(&path, &bytes)?;
            bytes
        }
        Err(error) => return Err(error),
    };
    let (mut reset, mut cid, mut token) = ([0; 32], [0; 8], [0; 32]);
    reset.copy_from_slice(&bytes[..32]);
    cid.copy_from_slice(&bytes[32..40]);
    token.copy_from_slice(&bytes[40..]);
    Ok(EndpointKeys { reset, cid, token })
}

/// What tells this relay from others at the same payment provider: it stays when its authority becomes another.
pub(super) fn lasting_name(state: &Path, authorities: &Authorities) -> Result<String, CertError> {
    let path = state.join(NAME);
    match file::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned()),
        Err(CertError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let name = relay_name(authorities.standing().current.certificate());
            file::write_private(&path, name.as_bytes())?;
            Ok(name)
        }
        Err(error) => Err(error),
    }
}

/// Where spans go, and the task that hands them over.
pub(super) fn traces_of(config: &Config, env: &Env) -> Result<(Option<Traces>, Option<Exporter>), StartError> {
    let made = config.traces.as_ref().map(|settings| Traces::new(settings, env.clone()));
    Ok(made.transpose().map_err(|error| StartError::Setup(error.to_string()))?.unzip())
}

/// The relay's own certificate is made anew so often, long before it ends.
const ANEW: Duration = Duration::from_secs(30 * 86_400);

/// A certificate of the relay's own, and its key. The authority goes along so that a client that knows only its fingerprint
/// can find it, and the word of the one before.
pub(crate) fn own_certificate(
    authorities: &Authorities,
    env: &Env,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertError> {
    let standing = authorities.standing();
    let (own, key) = issue::server(&standing.current, &[RELAY_SERVER_NAME], env.random.bytes(), env.clock.now_ms())?;
    Ok((std::iter::once(own).chain(standing.vouched()).collect(), key))
}

/// What both transports show: the relay's own certificate, made anew at every start.
pub(super) fn shown(authorities: &Authorities, env: &Env) -> Result<Arc<Shown>, CertError> {
    let (chain, key) = own_certificate(authorities, env)?;
    Shown::new(chain, key)
}

/// Shows another one from time to time. Tunnels that stand see nothing of it.
pub(super) async fn keep_shown(shown: Arc<Shown>, authorities: Arc<Authorities>, env: Env, stop: CancellationToken) {
    while timeout(ANEW, stop.cancelled()).await.is_err() {
        match own_certificate(&authorities, &env).and_then(|(chain, key)| shown.show(chain, key)) {
            Ok(()) => info!("the relay shows a new certificate from now on"),
            Err(error) => warn!(%error, "the relay's certificate cannot be made anew; it is tried again in a month"),
        }
    }
}

/// The TLS of both transports.
pub(super) fn tls_config(
    authorities: Arc<Authorities>,
    shown: Arc<Shown>,
    grace: Duration,
    env: &Env,
) -> Result<rustls::ServerConfig, StartError> {
    let time: Time = Arc::new(ClockTime(Arc::clone(&env.clock)));
    Ok(tls::relay(authorities, shown, grace, ALPN, time)?)
}

pub(super) fn quic_config(tls: rustls::ServerConfig, keys: &EndpointKeys) -> Result<ServerConfig, StartError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| StartError::Setup(error.to_string()))?;
    let mut config = ServerConfig::new(Arc::new(crypto), keys.token_key());
    let transport: Arc<TransportConfig> = params::relay();
    config
        .transport_config(transport)
        .max_incoming(1024)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    Ok(config)
}
