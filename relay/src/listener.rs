//! The sockets: QUIC, and TCP on the same port; admission by address, and a task per connection.
//!
//! The accept arms only decide and hand off; they never wait for a handshake.

use crate::admission::{Admission, Strangers, Verdict};
use crate::connection::{self, Shared};
use belay_protocol::error::CloseCode;
use belay_transport::connection::Path;
use belay_transport::env::{Env, Side};
use belay_transport::params::{self, EndpointKeys};
use belay_transport::runtime::LazyTimers;
use belay_transport::twice::TwiceSocket;
use quinn::{Endpoint, ServerConfig, VarInt};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// Where the kernel chooses a port for UDP, it may be taken for TCP; so often another one is tried.
const TRIES_FOR_A_PORT: u32 = 16;
/// Of all handshakes at once, one address may have this part over TCP.
const TCP_PART: usize = 32;
/// No TCP connection is accepted for so long after one could not be: file descriptors may be short.
const BREATH: Duration = Duration::from_millis(100);

/// What the listener needs.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) env: Env,
    pub(crate) server: ServerConfig,
    /// The same certificates, for TCP; absent: no TCP.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) keys: EndpointKeys,
    pub(crate) shared: Arc<Shared>,
    pub(crate) connections: TaskTracker,
    pub(crate) gate: Gate,
}

/// The sockets of a relay.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) quic: Endpoint,
    pub(crate) tcp: Option<TcpListener>,
    pub(crate) local: SocketAddr,
}

/// Who may begin a handshake, over both transports together.
#[derive(Debug)]
pub(crate) struct Gate {
    pending: Arc<Semaphore>,
    most: usize,
    admission: Mutex<Admission>,
    /// Handshakes over TCP by address: each takes a socket.
    over_tcp: Arc<Strangers>,
}

impl Gate {
    pub(crate) fn new(most: usize, per_second: u32) -> Self {
        let admission = Mutex::new(Admission::new(per_second));
        let over_tcp = Strangers::new((most / TCP_PART).max(8), most);
        Self { pending: Arc::new(Semaphore::new(most)), most, admission, over_tcp }
    }

    /// What becomes of it, and its place among the pending handshakes if there is room. Half of the
    /// room is for those that are `preferred`.
    fn judge(&self, remote: SocketAddr, validated: bool, preferred: bool) -> (Verdict, Option<OwnedSemaphorePermit>) {
        let has_room = preferred || self.pending.available_permits() > self.most / 2;
        let permit = Arc::clone(&self.pending).try_acquire_owned().ok().filter(|_| has_room);
        let mut admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        (admission.judge(remote.ip(), validated, Instant::now()), permit)
    }
}

/// Why the sockets could not be opened, and which.
pub(crate) type BindError = (&'static str, io::Error);

impl Listener {
    /// Opens both sockets. Errors: an address that cannot be bound.
    pub(crate) fn bind(&self, address: SocketAddr) -> Result<Sockets, BindError> {
        let mut tries = TRIES_FOR_A_PORT;
        loop {
            let quic = self.bind_quic(address).map_err(|error| ("UDP", error))?;
            let local = quic.local_addr().map_err(|error| ("UDP", error))?;
            tries -= 1;
            match self.bind_tcp(local) {
                Ok(tcp) => return Ok(Sockets { quic, tcp, local }),
                Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                Err(error) => return Err(("TCP", error)),
            }
        }
    }

    fn bind_quic(&self, address: SocketAddr) -> io::Result<Endpoint> {
        let socket = self.env.net.bind_udp(address, Side::Relay)?;
        let socket = Arc::new(TwiceSocket::new(socket, Arc::clone(&self.shared.lossy_lines)));
        let config = params::endpoint(&self.env.random, Some(&self.keys));
        Endpoint::new_with_abstract_socket(config, Some(self.server.clone()), socket, Arc::new(LazyTimers))
    }

    fn bind_tcp(&self, address: SocketAddr) -> io::Result<Option<TcpListener>> {
        if self.tls.is_none() {
            return Ok(None);
        }
        match self.env.net.listen_tcp(address) {
            Ok(listener) => Ok(Some(listener)),
            // A simulation's network has UDP alone.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Accepts connections until the relay stops. An endpoint whose socket failed is replaced.
    pub(crate) async fn serve(&self, sockets: Sockets) {
        let Sockets { quic, tcp, local } = sockets;
        let tcp = async {
            if let (Some(listener), Some(tls)) = (tcp, &self.tls) {
                self.accept_tcp(&listener, tls).await;
            }
        };
        tokio::join!(self.serve_quic(quic, local), tcp);
    }

    async fn serve_quic(&self, mut endpoint: Endpoint, address: SocketAddr) {
        let stop = self.shared.stop.clone();
        loop {
            self.accept_quic(&endpoint).await;
            if stop.is_cancelled() {
                break;
            }
            error!("the QUIC socket failed; opening it anew");
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = sleep(Duration::from_millis(200)) => {}
                }
                match self.bind_quic(address) {
                    Ok(new) => {
                        endpoint = new;
                        info!(%address, "the QUIC socket is open again");
                        break;
                    }
                    Err(error) => warn!(%error, %address, "cannot open the QUIC socket"),
                }
            }
        }
        endpoint.close(VarInt::from_u32(CloseCode::GOING_AWAY.0), b"going away");
        endpoint.wait_idle().await;
    }

    /// Counts a handshake that does not begin.
    fn refused(&self, path: Path, became: &'static str) {
        self.shared.escalator.metrics.handshake(path.name(), became);
    }

    async fn accept_quic(&self, endpoint: &Endpoint) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let validated = incoming.remote_address_validated();
            // Senders of forged addresses never finish: those that have proven theirs come first.
            match self.gate.judge(incoming.remote_address(), validated, validated) {
                (Verdict::Accept, Some(permit)) => {
                    let shared = Arc::clone(&self.shared);
                    self.connections.spawn(async move {
                        connection::serve_quic(shared, incoming, permit).await;
                    });
                }
                // Under pressure an address must first prove itself.
                (Verdict::Accept | Verdict::Retry, _) if !validated => {
                    self.refused(Path::Quic, "retry");
                    if let Err(error) = incoming.retry() {
                        error.into_incoming().ignore();
                    }
                }
                (Verdict::Accept, None) => {
                    self.refused(Path::Quic, "full");
                    incoming.refuse();
                }
                _ => {
                    self.refused(Path::Quic, "ignored");
                    incoming.ignore();
                }
            }
        }
    }

    /// TCP has proven an address by itself; one that is over its limit is closed again.
    async fn accept_tcp(&self, listener: &TcpListener, tls: &Arc<rustls::ServerConfig>) {
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, remote)) => {
                    failing = false;
                    self.admit_tcp(socket, remote, tls);
                }
                Err(error) => {
                    // Once for all that follow.
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "cannot accept TCP connections");
                    }
                    sleep(BREATH).await;
                }
            }
        }
    }

    /// Not preferred: where the relay is slow to answer because all come at once, those whose UDP works
    /// try TCP as well.
    fn admit_tcp(&self, socket: TcpStream, remote: SocketAddr, tls: &Arc<rustls::ServerConfig>) {
        let Some(place) = self.gate.over_tcp.enter(remote.ip()) else { return self.refused(Path::Tcp, "full") };
        let permit = match self.gate.judge(remote, true, false) {
            (Verdict::Accept, Some(permit)) => permit,
            (Verdict::Accept, None) => return self.refused(Path::Tcp, "full"),
            _ => return self.refused(Path::Tcp, "ignored"),
        };
        let (shared, tls) = (Arc::clone(&self.shared), Arc::clone(tls));
        self.connections.spawn(async move {
            connection::serve_tcp(shared, socket, remote, tls, (permit, place)).await;
        });
    }
}
