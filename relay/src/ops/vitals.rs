//! Whether the relay makes progress: its endpoint answers, the threads of its store work, its timers run, and HTTP is
//! served, if it is. Asked from outside, as a caller would: what looks alive from inside may be alone in that.

use crate::store::executor::Store;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// What does not make progress.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Stuck {
    /// The endpoint for UDP.
    #[error("the endpoint at {0} (UDP) does not answer")]
    Endpoint(SocketAddr),
    /// The HTTP listener.
    #[error("the HTTP listener at {0} does not answer")]
    Http(SocketAddr),
    /// Threads of the store.
    #[error("{stuck} of {all} threads of the store do not answer")]
    Store {
        /// Of so many.
        all: usize,
        /// So many.
        stuck: usize,
    },
}

/// Where a relay is asked.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// Where it listens over UDP.
    pub quic: SocketAddr,
    /// Where it serves HTTP without TLS.
    pub http: Option<SocketAddr>,
    /// Its store.
    pub store: Store,
}

/// This machine's own address for one that listens everywhere.
fn near(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(at) if at.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, at.port()).into(),
        SocketAddr::V6(at) if at.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, at.port()).into(),
        other => other,
    }
}

impl Vitals {
    /// Asks all of them, each for so long at most. Errors: the first that does not answer.
    pub async fn check(&self, patience: Duration) -> Result<(), Stuck> {
        let (quic, http) = (near(self.quic), self.http.map(near));
        let store = self.store.answering(patience);
        let (quic_lives, http_lives, (all, answering)) =
            tokio::join!(timeout(patience, asks_quic(quic)), timeout(patience, asks_http(http)), store);
        if answering < all {
            return Err(Stuck::Store { all, stuck: all - answering });
        }
        if !matches!(quic_lives, Ok(Ok(()))) {
            return Err(Stuck::Endpoint(self.quic));
        }
        match (http, http_lives) {
            (Some(http), Err(_) | Ok(Err(_))) => Err(Stuck::Http(http)),
            _ => Ok(()),
        }
    }
}

/// A packet of a version that nobody speaks, to which every endpoint answers with those that it does (RFC 9000, 6.1);
/// it is as large as the first of a connection.
async fn asks_quic(at: SocketAddr) -> std::io::Result<()> {
    let from: SocketAddr = if at.is_ipv4() { (Ipv4Addr::LOCALHOST, 0).into() } else { (Ipv6Addr::LOCALHOST, 0).into() };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(at).await?;
    let mut packet = vec![0; 1200];
    packet[0] = 0xc0;
    // Reserved for exercising version negotiation.
    packet[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    packet[5] = 8;
    packet[6..14].copy_from_slice(b"watchdog");
    socket.send(&packet).await?;
    let mut answer = [0; 1500];
    loop {
        let len = socket.recv(&mut answer).await?;
        // Version 0, and the name that was given.
        if len > 15 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4] {
            return Ok(());
        }
    }
}

async fn asks_http(at: Option<SocketAddr>) -> std::io::Result<()> {
    let Some(at) = at else { return Ok(()) };
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: watchdog\r\nconnection: close\r\n\r\n").await?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if &start == b"HTTP/1.1 200" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}
