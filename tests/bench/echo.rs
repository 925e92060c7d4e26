//! Raw QUIC: a quinn echo server and its client, with belay's own transport parameters, sockets and
//! TLS, and nothing else of belay. Its round trip is the least that a tunnel can take, and its
//! memory the least that one can cost.

use anyhow::{Context, ensure};
use belay_certs::ca::Authority;
use belay_certs::issue::{self, DeviceKey, DeviceRequest};
use belay_certs::rollover::Authorities;
use belay_certs::shown::Shown;
use belay_certs::tls;
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use belay_transport::env::{Env, Side};
use belay_transport::params;
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig, TokioRuntime, VarInt};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First bytes of a stream that takes what comes, and of one that sends as many bytes as it is told.
const SINK: u8 = 1;
const SOURCE: u8 = 2;
/// What bulk is sent in.
static PIECE: [u8; 64 << 10] = [9; 64 << 10];
/// Streams of a bulk transfer, as many as belay's has.
pub(crate) const STREAMS: usize = 3;
/// The message that goes to and fro.
const MESSAGE: [u8; 64] = [7; 64];

/// Starts the echo server. It ends with the process.
pub(crate) fn start(dir: &Path) -> anyhow::Result<SocketAddr> {
    let env = Env::system();
    let authorities = Authorities::load_or_create(dir, env.clock.now_ms())?;
    let standing = authorities.standing();
    let authority = &standing.current;
    let server = issue::server(authority, &[RELAY_SERVER_NAME], env.random.bytes(), env.clock.now_ms())?;
    let shown = Shown::new(vec![server.0, authority.certificate().clone()], server.1)?;
    let tls = tls::relay(authorities, shown, Duration::ZERO, ALPN, tls::system_time())?;
    let crypto = QuicServerConfig::try_from(tls)?;
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
        let mut first = [0; 9];
        recv.read_exact(&mut first).await?;
        match first[0] {
            SINK => tokio::spawn(async move {
                while recv.read_chunk(usize::MAX, true).await?.is_some() {}
                send.write_all(&[0]).await?;
                send.finish()?;
                anyhow::Ok(())
            }),
            SOURCE => tokio::spawn(async move {
                let mut left = u64::from_le_bytes(first[1..].try_into()?);
                while left > 0 {
                    let piece = left.min(PIECE.len() as u64);
                    send.write_chunk(Bytes::from_static(&PIECE[..usize::try_from(piece)?])).await?;
                    left -= piece;
                }
                send.finish()?;
                anyhow::Ok(())
            }),
            _ => {
                let message = [&first[..], &recv.read_to_end(1 << 16).await?].concat();
                send.write_all(&message).await?;
                send.finish()?;
                continue;
            }
        };
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
        let issued = request.issue(&authority, "bench", "raw", env.random.bytes(), (now_ms, issue::DEVICE_LIFETIME))?;
        let time = tls::system_time();
        let config =
            tls::enrolled_client(std::slice::from_ref(authority.certificate()), issued.certificate, &key, ALPN, time)?;
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

    /// Sends so many bytes on each of some streams at once, and waits until all have arrived.
    pub(crate) async fn bulk_up(&self, each: usize) -> anyhow::Result<Duration> {
        self.on_streams(|mut send, mut recv| async move {
            send.write_all(&[SINK, 0, 0, 0, 0, 0, 0, 0, 0]).await?;
            let mut left = each;
            while left > 0 {
                let piece = left.min(PIECE.len());
                send.write_chunk(Bytes::from_static(&PIECE[..piece])).await?;
                left -= piece;
            }
            send.finish()?;
            recv.read_to_end(1).await?;
            Ok(())
        })
        .await
    }

    /// Receives so many bytes on each of some streams at once.
    pub(crate) async fn bulk_down(&self, each: usize) -> anyhow::Result<Duration> {
        self.on_streams(|mut send, mut recv| async move {
            send.write_all(&[&[SOURCE], &(each as u64).to_le_bytes()[..]].concat()).await?;
            send.finish()?;
            let mut came = 0;
            while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
                came += chunk.bytes.len();
            }
            ensure!(came == each, "{came} bytes came");
            Ok(())
        })
        .await
    }

    async fn on_streams<F>(&self, work: impl Fn(quinn::SendStream, quinn::RecvStream) -> F) -> anyhow::Result<Duration>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let start = Instant::now();
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (send, recv) = self.connection.open_bi().await?;
            streams.spawn(work(send, recv));
        }
        while let Some(ended) = streams.join_next().await {
            ended??;
        }
        Ok(start.elapsed())
    }
}
