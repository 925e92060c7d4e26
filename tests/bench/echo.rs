//! Raw QUIC: a quinn echo server and its client, with belay's own transport parameters, sockets and
//! TLS, and nothing else of belay. Its round trip is the least that a tunnel can take, and its
//! memory the least that one can cost.

use anyhow::{Context, ensure};
use belay_certs::ca::Authority;
use belay_certs::issue::{self, DeviceKey, DeviceRequest};
use belay_certs::tls;
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_transport::env::{Env, Side};
use belay_transport::params;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig, TokioRuntime, VarInt};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The message that goes to and fro.
const MESSAGE: [u8; 64] = [7; 64];

/// Starts the echo server. It ends with the process.
pub(crate) fn start(dir: &Path) -> anyhow::Result<SocketAddr> {
    let env = Env::system();
    let authority = Authority::load_or_create(dir, env.clock.now_ms())?;
    let server = issue::server(&authority, RELAY_SERVER_NAME, env.random.bytes(), env.clock.now_ms())?;
    let crypto = QuicServerConfig::try_from(tls::relay(&authority, server, ALPN, tls::system_time())?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(params::relay());
    let socket = env.net.bind_udp((Ipv4Addr::LOCALHOST, 0).into(), Side::Relay)?;
    let endpoint_config = params::endpoint(&env.random, None);
    let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, Some(config), socket, Arc::new(TokioRuntime))?;
    let address = endpoint.local_addr()?;
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(serve(incoming));
        }
    });
    Ok(address)
}

async fn serve(incoming: Incoming) -> anyhow::Result<()> {
    let connection = incoming.await?;
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(params::STREAMS_AFTER_HELLO));
    loop {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let message = recv.read_to_end(1 << 16).await?;
        send.write_all(&message).await?;
        send.finish()?;
    }
}

/// Makes raw connections, each from a socket of its own, as a belay client does.
#[derive(Debug)]
pub(crate) struct Dialer {
    config: ClientConfig,
    server: SocketAddr,
    env: Env,
}

impl Dialer {
    /// For the server at `server`, with a device certificate of the same authority.
    pub(crate) fn new(dir: &Path, server: SocketAddr) -> anyhow::Result<Self> {
        let env = Env::system();
        let now_ms = env.clock.now_ms();
        let authority = Authority::load_or_create(dir, now_ms)?;
        let key = DeviceKey::generate()?;
        let request = DeviceRequest::from_der(&key.request()?)?;
        let issued = request.issue(&authority, "bench", "raw", env.random.bytes(), now_ms)?;
        let time = tls::system_time();
        let config = tls::enrolled_client(authority.certificate(), issued.certificate, &key, ALPN, time)?;
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
        config.transport_config(params::client());
        Ok(Self { config, server, env })
    }

    pub(crate) async fn dial(&self) -> anyhow::Result<Raw> {
        let socket = self.env.net.bind_udp((Ipv4Addr::UNSPECIFIED, 0).into(), Side::Client)?;
        let endpoint_config = params::endpoint(&self.env.random, None);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, None, socket, Arc::new(TokioRuntime))?;
        let connection = endpoint.connect_with(self.config.clone(), self.server, RELAY_SERVER_NAME)?.await?;
        Ok(Raw { connection, _endpoint: endpoint })
    }
}

/// A raw connection.
#[derive(Debug)]
pub(crate) struct Raw {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Raw {
    /// Sends a message on a fresh stream and waits for its echo; nanoseconds.
    pub(crate) async fn round_trip(&self) -> anyhow::Result<u64> {
        let start = Instant::now();
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&MESSAGE).await?;
        send.finish()?;
        let echo = recv.read_to_end(1 << 16).await?;
        let took = start.elapsed();
        ensure!(echo == MESSAGE, "the echo is another message");
        u64::try_from(took.as_nanos()).context("an endless round trip")
    }
}
