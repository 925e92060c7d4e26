//! One connection between a client and its relay, whatever carries it: QUIC, or TCP where UDP does
//! not get through. Both carry the same frames on streams that behave the same.

use crate::quic;
use crate::tcp::TcpConnection;
use belay_protocol::error::CloseCode;
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// QUIC over UDP.
    Quic,
    /// HTTP/2 streams over TLS on TCP.
    Tcp,
}

impl Path {
    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The code with which the peer closed it, if it did.
    pub code: Option<CloseCode>,
    /// For people.
    pub why: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What a relay means that takes a client's certificate for none in its TLS handshake, whose other half has proved who the
/// relay is: in the protocol's words, since it will say the same the next time.
pub(crate) fn certificate_alert(alert: AlertDescription) -> Option<CloseCode> {
    match alert {
        AlertDescription::CertificateExpired => Some(CloseCode::EXPIRED),
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => Some(CloseCode::UNKNOWN_DEVICE),
        _ => None,
    }
}

impl From<&quinn::ConnectionError> for Ended {
    fn from(error: &quinn::ConnectionError) -> Self {
        let code = quic::close_code(error).or_else(|| quic::certificate_refused(error));
        Self { code, why: quic::lost_why(error) }
    }
}

impl From<Ended> for StreamError {
    fn from(ended: Ended) -> Self {
        Self::Lost(ended.why)
    }
}

/// A bidirectional stream.
#[derive(Debug)]
pub struct Stream {
    /// Its number among the streams of its connection, for logs.
    pub id: u64,
    /// What is sent.
    pub writer: FrameWriter,
    /// What is received.
    pub reader: FrameReader,
}

/// What a connection has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rises with everything that arrives, acknowledgements of the transport included: UDP
    /// datagrams, or reads of the TCP socket.
    pub arrivals: u64,
    /// Bytes received, as UDP or TCP payload.
    pub bytes_received: u64,
    /// Bytes sent, as UDP or TCP payload.
    pub bytes_sent: u64,
}

impl Traffic {
    /// What came on top of `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            arrivals: self.arrivals - before.arrivals,
            bytes_received: self.bytes_received - before.bytes_received,
            bytes_sent: self.bytes_sent - before.bytes_sent,
        }
    }
}

/// A connection after its handshake. Clones are the same connection.
#[derive(Debug, Clone)]
pub enum Connection {
    /// Over UDP.
    Quic(quinn::Connection),
    /// Over TCP.
    Tcp(TcpConnection),
}

impl Connection {
    /// What carries it.
    #[must_use]
    pub fn path(&self) -> Path {
        match self {
            Self::Quic(_) => Path::Quic,
            Self::Tcp(_) => Path::Tcp,
        }
    }

    /// True if the peer is another program of this computer.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Tcp(tcp) if tcp.is_local())
    }

    /// Where the peer is at the moment.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(quic) => quic.remote_address(),
            Self::Tcp(tcp) => tcp.remote_address(),
        }
    }

    /// The certificate that the peer showed.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        match self {
            Self::Quic(quic) => {
                let chain = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
                chain.first().cloned()
            }
            Self::Tcp(tcp) => tcp.peer_certificate(),
        }
    }

    /// Opens a stream; waits while the peer allows no more of them. Errors: the connection is over.
    pub async fn open(&self) -> Result<Stream, Ended> {
        match self {
            Self::Quic(quic) => match quic.open_bi().await {
                Ok((send, recv)) => Ok(quic_stream(send, recv)),
                Err(error) => Err((&error).into()),
            },
            Self::Tcp(tcp) => tcp.open().await,
        }
    }

    /// The next stream that the peer opens. Dropping the future loses none. Errors: the connection
    /// is over.
    pub async fn accept(&self) -> Result<Stream, Ended> {
        match self {
            Self::Quic(quic) => match quic.accept_bi().await {
                Ok((send, recv)) => Ok(quic_stream(send, recv)),
                Err(error) => Err((&error).into()),
            },
            Self::Tcp(tcp) => tcp.accept().await,
        }
    }

    /// Lets the peer have `most` streams at once, from now on.
    pub fn grant_streams(&self, most: u32) {
        match self {
            Self::Quic(quic) => quic.set_max_concurrent_bi_streams(quinn::VarInt::from_u32(most)),
            Self::Tcp(tcp) => tcp.grant_streams(),
        }
    }

    /// The round trip, as the transport measures it.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        match self {
            Self::Quic(quic) => quic.rtt(),
            Self::Tcp(tcp) => tcp.rtt(),
        }
    }

    /// What it has carried so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Quic(quic) => {
                let stats = quic.stats();
                Traffic {
                    arrivals: stats.udp_rx.datagrams,
                    bytes_received: stats.udp_rx.bytes,
                    bytes_sent: stats.udp_tx.bytes,
                }
            }
            Self::Tcp(tcp) => tcp.traffic(),
        }
    }

    /// Makes a living peer's transport answer, so that something arrives. Over QUIC any frame does,
    /// and this does nothing; TCP's acknowledgements cannot be seen.
    pub fn ask_for_sign(&self) {
        if let Self::Tcp(tcp) = self {
            tcp.ask_for_sign();
        }
    }

    /// Closes with a code and words for people. What was written to streams and finished before
    /// still goes out over TCP, as far as the peer takes it at once; over QUIC it may be lost.
    ///
    /// A client cannot tell the code over TCP: the relay sees that the connection has ended.
    pub fn close(&self, code: CloseCode, reason: &str) {
        match self {
            Self::Quic(quic) => quic::close(quic, code, reason),
            Self::Tcp(tcp) => tcp.close(code, reason),
        }
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) -> Ended {
        match self {
            Self::Quic(quic) => (&quic.closed().await).into(),
            Self::Tcp(tcp) => tcp.closed().await,
        }
    }

    /// Why it is over, if it is.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        match self {
            Self::Quic(quic) => quic.close_reason().as_ref().map(Ended::from),
            Self::Tcp(tcp) => tcp.ended(),
        }
    }
}

fn quic_stream(send: quinn::SendStream, recv: quinn::RecvStream) -> Stream {
    let id = send.id().index();
    let (writer, reader) = quic::frames(send, recv);
    Stream { id, writer, reader }
}
