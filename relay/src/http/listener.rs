//! The socket for HTTP: who may connect, for how long, and over which version.

use super::front::{Front, Peer};
use super::{Http, HttpStartError};
use crate::admission::{Place, Strangers};
use belay_http::patient::Patient;
use belay_transport::env::Env;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Bytes of a request's head at the most.
const HEAD_BYTES: usize = 64 << 10;
/// Requests at once in a connection over HTTP/2.
const STREAMS: u32 = 128;
/// Requests that were reset before they were looked at; above it, the connection ends.
const RESETS: usize = 32;
/// What a connection over HTTP/2 may have on its way, and one request of it.
const CONNECTION_WINDOW: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 256 << 10;
/// After a failure to accept a connection, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long the last answers may take once the relay ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What listens for callers over HTTP.
pub(crate) struct HttpListener {
    http: Arc<Http>,
    front: Front,
    listener: TcpListener,
    /// Connections, by address and in all.
    places: Arc<Strangers>,
    tasks: TaskTracker,
}

impl fmt::Debug for HttpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpListener({:?})", self.listener)
    }
}

/// What HTTP/2 runs its requests on.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

impl HttpListener {
    /// Opens the socket. Errors: the address cannot be bound, or the certificate cannot be used.
    pub(crate) fn bind(http: Arc<Http>, env: &Env) -> Result<Self, HttpStartError> {
        let config = http.config();
        let listener = env.net.listen_tcp(config.listen)?;
        let places = Strangers::new(config.connections_per_address, config.connections);
        let front = Front::new(Arc::clone(&http), http.tls().is_some());
        Ok(Self { http, front, listener, places, tasks: TaskTracker::new() })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until `stop`; then running answers are given up, and those that wait for them told so.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, remote)) => {
                    failing = false;
                    // Whoever is above its share hears nothing: an answer would cost a handshake. A proxy stands for many.
                    let of_proxy = self.http.config().trusted_proxies.contains(&remote.ip().to_canonical());
                    match self.places.enter(remote.ip()) {
                        None if !of_proxy => {}
                        place => self.take(socket, remote, place, stop.clone()),
                    }
                }
                Err(error) => {
                    // Once for all that follow.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "cannot accept connections over HTTP");
                    }
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        self.http.end.cancel();
        self.tasks.close();
        if timeout(FAREWELL * 2, self.tasks.wait()).await.is_err() {
            warn!("some callers over HTTP did not take their last answer");
        }
    }

    fn take(&self, socket: TcpStream, remote: SocketAddr, place: Option<Place>, stop: CancellationToken) {
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%error, "cannot send small pieces at once");
        }
        let (config, front, tls) = (self.http.config(), self.front.clone(), self.http.tls());
        let handshake = self.http.shared.escalator.config().timeouts.handshake;
        let executor = Tracked(self.tasks.clone());
        self.tasks.spawn(async move {
            let socket = Patient::new(socket, config.patience);
            let front = front.of(Peer(remote));
            let ended = match tls {
                None => serve_http1(socket, front, config.idle, stop).await,
                Some(tls) => match timeout(handshake, tls.accept(socket)).await {
                    Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        serve_http2(stream, front, config.idle, stop, executor).await
                    }
                    Ok(Ok(stream)) => serve_http1(stream, front, config.idle, stop).await,
                    Ok(Err(error)) => {
                        debug!(%remote, %error, "handshake failed");
                        Ok(())
                    }
                    Err(_) => Ok(()),
                },
            };
            if let Err(error) = ended {
                debug!(%remote, %error, "a caller's connection ended");
            }
            drop(place);
        });
    }
}

async fn serve_http1<S>(
    socket: S,
    front: super::front::Connection,
    idle: Duration,
    stop: CancellationToken,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), front.service());
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
}

async fn serve_http2<S>(
    socket: S,
    front: super::front::Connection,
    idle: Duration,
    stop: CancellationToken,
    executor: Tracked,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .keep_alive_interval(idle / 2)
        .keep_alive_timeout(idle / 2)
        .serve_connection(TokioIo::new(socket), front.service());
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        // One that answers pings and asks for nothing takes a place all the same.
        () = front.idle_for(idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
}
