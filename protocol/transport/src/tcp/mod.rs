//! The second transport: HTTP/2 streams over TLS 1.3 on TCP, for networks that let no UDP through.
//!
//! A stream of the tunnel is an HTTP/2 stream: the client opens it with `POST /`, the relay answers
//! 200 at once, and the DATA of both directions is what a QUIC stream would carry. Both directions
//! of an HTTP/2 stream are reset together, and nobody is told to stop sending; a half that is no
//! longer read is left unread. Codes travel in RST_STREAM and GOAWAY, above [`STREAM_CODES`] and
//! [`CLOSE_CODES`].
//!
//! A task per connection drives it; what it shares with the handles is in `shared`.

mod driver;
mod shared;
mod socket;
mod stream;

use crate::connection::{Ended, Stream, Traffic};
use crate::params::{
    CLIENT_CONNECTION_WINDOW, INITIAL_RTT, RELAY_CONNECTION_WINDOW, STREAM_WINDOW, STREAMS_BEFORE_HELLO,
};
use belay_protocol::error::CloseCode;
use belay_protocol::{ALPN, RELAY_SERVER_NAME};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Uri, Version};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use shared::Shared;
use socket::{Counted, Socket};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A stream's code in RST_STREAM is this and the code.
pub const STREAM_CODES: u32 = 0x0be1_0000;
/// A connection's code in GOAWAY is this and the code.
pub const CLOSE_CODES: u32 = 0x0be2_0000;

/// Bytes of a stream that wait for the socket: without priorities, what one stream has queued is in
/// the way of all others.
const SEND_BUFFER: usize = 32 << 10;
/// A request for a stream has no headers of its own.
const HEADERS: u32 = 2 << 10;
/// What small DATA frames that a client has not read may cost it. h2's default would close a
/// connection whose readers are slow for its many small tokens.
const CLIENT_FRAME_BUDGET: usize = 8 * CLIENT_CONNECTION_WINDOW as usize;

/// A connection over TCP. Clones are the same connection; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct TcpConnection(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    peer: Peer,
    side: Side,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Peer {
    remote: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
    /// Another program of this computer.
    is_local: bool,
}

#[derive(Debug)]
enum Side {
    /// One stream is opened at a time: h2 wakes only one that waits for room. With what every one is
    /// asked for.
    Client(AsyncMutex<SendRequest<Bytes>>, Uri),
    Relay(Mutex<mpsc::Receiver<Stream>>),
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(CloseCode::DONE, "dropped");
    }
}

impl TcpConnection {
    /// The client's handshakes: TLS, then HTTP/2. Errors: those of the socket and of TLS.
    pub async fn connect(socket: TcpStream, tls: Arc<ClientConfig>) -> io::Result<Self> {
        let remote = socket.peer_addr()?;
        let shared = Arc::new(Shared::new());
        let name = ServerName::try_from(RELAY_SERVER_NAME).map_err(io::Error::other)?;
        let plain: Socket = Arc::new(socket);
        let counted = Counted::new(Arc::clone(&plain), Arc::clone(&shared));
        let socket = TlsConnector::from(tls).connect(name, counted).await?;
        check_protocol(socket.get_ref().1.alpn_protocol())?;
        let certificate = first(socket.get_ref().1.peer_certificates());
        Self::client(socket, plain, shared, Peer { remote, certificate, is_local: false }).await
    }

    /// The client's handshake with another program of this computer, which has let it in: HTTP/2 without TLS.
    pub async fn connect_local(socket: TcpStream) -> io::Result<Self> {
        let peer = Peer { remote: socket.peer_addr()?, certificate: None, is_local: true };
        let shared = Arc::new(Shared::new());
        let plain: Socket = Arc::new(socket);
        let counted = Counted::new(Arc::clone(&plain), Arc::clone(&shared));
        Self::client(counted, plain, shared, peer).await
    }

    async fn client<T>(io: T, plain: Socket, shared: Arc<Shared>, peer: Peer) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (opener, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .data_frame_budget(CLIENT_FRAME_BUDGET)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(driver::client(connection, plain, Arc::clone(&shared)));
        let uri = Uri::builder().scheme("https").authority(RELAY_SERVER_NAME).path_and_query("/").build();
        let side = Side::Client(AsyncMutex::new(opener), uri.map_err(io::Error::other)?);
        Ok(Self(Arc::new(Handle { peer, side, shared })))
    }

    /// The relay's handshakes. `streams` is how many the client may have at once, once they
    /// are granted ([`crate::connection::Connection::grant_streams`]). Errors: those of the socket and
    /// of TLS.
    pub async fn serve(socket: TcpStream, tls: Arc<ServerConfig>, streams: u32) -> io::Result<Self> {
        let remote = socket.peer_addr()?;
        let shared = Arc::new(Shared::new());
        let plain: Socket = Arc::new(socket);
        let counted = Counted::new(Arc::clone(&plain), Arc::clone(&shared));
        let socket = TlsAcceptor::from(tls).accept(counted).await?;
        check_protocol(socket.get_ref().1.alpn_protocol())?;
        let certificate = first(socket.get_ref().1.peer_certificates());
        let peer = Peer { remote, certificate, is_local: false };
        Self::relay(socket, plain, shared, peer, streams).await
    }

    /// The same for another program of this computer, which was let in: HTTP/2 without TLS.
    pub async fn serve_local(socket: TcpStream, streams: u32) -> io::Result<Self> {
        let peer = Peer { remote: socket.peer_addr()?, certificate: None, is_local: true };
        let shared = Arc::new(Shared::new());
        let plain: Socket = Arc::new(socket);
        let counted = Counted::new(Arc::clone(&plain), Arc::clone(&shared));
        Self::relay(counted, plain, shared, peer, streams).await
    }

    async fn relay<T>(io: T, plain: Socket, shared: Arc<Shared>, peer: Peer, streams: u32) -> io::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(RELAY_CONNECTION_WINDOW)
            .max_concurrent_streams(streams)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        // Room for all that there can be: whoever takes them may be slow for a moment.
        let (accepted, streams) = mpsc::channel(streams.max(STREAMS_BEFORE_HELLO) as usize);
        tokio::spawn(driver::relay(connection, plain, Arc::clone(&shared), accepted));
        Ok(Self(Arc::new(Handle { peer, side: Side::Relay(Mutex::new(streams)), shared })))
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.0.peer.remote
    }

    pub(crate) fn is_local(&self) -> bool {
        self.0.peer.is_local
    }

    pub(crate) fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.0.peer.certificate.clone()
    }

    pub(crate) async fn open(&self) -> Result<Stream, Ended> {
        let Side::Client(opener, uri) = &self.0.side else {
            return Err(Ended { code: None, why: "only a client opens streams".into() });
        };
        let over = |error: h2::Error| self.ended().unwrap_or_else(|| driver::ended(&error));
        let mut opener = opener.lock().await;
        // h2 would queue what is above the peer's limit; a stream that waits there holds up whoever
        // writes to it. So it is never reached: some of it is left for streams that are just ending.
        let most = opener.current_max_send_streams();
        tokio::select! {
            biased;
            ended = self.0.shared.closed() => return Err(ended),
            () = self.0.shared.streams_end((most - most / 8).max(1) - 1) => {}
        }
        poll_fn(|cx| opener.poll_ready(cx)).await.map_err(over)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.clone();
        let (response, send) = opener.send_request(request, false).map_err(over)?;
        Ok(stream::client(response, send, &self.0.shared))
    }

    pub(crate) async fn accept(&self) -> Result<Stream, Ended> {
        let next = match &self.0.side {
            Side::Client(..) => None,
            Side::Relay(streams) => {
                poll_fn(|cx| streams.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(cx)).await
            }
        };
        match next {
            Some(stream) => Ok(stream),
            None => Err(self.closed().await),
        }
    }

    pub(crate) fn grant_streams(&self) {
        self.0.shared.grant();
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.0.shared.rtt().unwrap_or(INITIAL_RTT)
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.0.shared.traffic()
    }

    pub(crate) fn ask_for_sign(&self) {
        self.0.shared.ping.notify_one();
    }

    /// Waits until no more than `most` streams are held by anybody.
    pub async fn streams_end(&self, most: usize) {
        self.0.shared.streams_end(most).await;
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.0.shared.close(code, reason);
    }

    pub(crate) async fn closed(&self) -> Ended {
        self.0.shared.closed().await
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.0.shared.ended()
    }
}

/// TLS lets a peer through that names no protocol at all.
fn check_protocol(agreed: Option<&[u8]>) -> io::Result<()> {
    if agreed == Some(ALPN) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the peer does not speak belay/1"))
}

fn first(chain: Option<&[CertificateDer<'static>]>) -> Option<CertificateDer<'static>> {
    chain.and_then(<[_]>::first).cloned()
}
