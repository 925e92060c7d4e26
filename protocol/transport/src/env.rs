//! Clock, randomness and sockets, passed in from the first day so that whole histories of client
//! and relay can run in one thread under virtual time.

use crate::params::{CLIENT_SOCKET_BUFFER, RELAY_SOCKET_BUFFER};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};

/// TCP connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// The wall clock.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A wall clock that advances with tokio's clock, paused or not.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock {
    start: tokio::time::Instant,
    start_ms: u64,
}

impl TokioClock {
    /// A clock that shows `start_ms` now.
    #[must_use]
    pub fn starting_at(start_ms: u64) -> Self {
        Self { start: tokio::time::Instant::now(), start_ms }
    }
}

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A source of randomness that several tasks share.
#[derive(Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

impl Random {
    /// Seeded by the operating system.
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_os_rng())))
    }

    /// Repeatable.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        // A poisoned generator is as random as before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut out);
        out
    }

    /// A number from 0 up to, not including, `bound`; 0 for a bound of 0.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(u64::from_le_bytes(self.bytes())) * u128::from(bound);
        // The high half of the product: below `bound`, so it fits.
        (wide >> 64) as u64
    }

    /// A random part of `most`.
    #[must_use]
    pub fn part_of(&self, most: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX).saturating_add(1)))
    }
}

/// A TCP connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Whose socket it is: how much memory it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Serves all tunnels.
    Relay,
    /// Serves one.
    Client,
}

/// Opens sockets.
pub trait Net: Send + Sync + fmt::Debug {
    /// A socket bound to `local`.
    fn bind_udp(&self, local: SocketAddr, side: Side) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Listens on `local` over TCP. Errors: `Unsupported` where there is no TCP.
    fn listen_tcp(&self, local: SocketAddr) -> io::Result<TcpListener> {
        let _ = local;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Connects to `remote` over TCP. Errors: `Unsupported` where there is no TCP.
    fn connect_tcp(&self, remote: SocketAddr) -> Connecting {
        let _ = remote;
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    /// The machine's own address on the way to `remote`, if it is known. Another one than before
    /// means another network.
    fn local_ip(&self, remote: SocketAddr) -> Option<IpAddr> {
        let _ = remote;
        None
    }
}

/// What the kernel gave the relay's last socket, see [`receive_buffer`].
static RECEIVE_BUFFER: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the kernel keeps for this process' relay until it reads them, with its own overhead, as the socket that was
/// opened last has them. 0: none was.
#[must_use]
pub fn receive_buffer() -> usize {
    RECEIVE_BUFFER.load(Ordering::Relaxed)
}

/// Remembers what a relay's socket was given.
pub(crate) fn note_receive_buffer(socket: SockRef<'_>) {
    RECEIVE_BUFFER.store(socket.recv_buffer_size().unwrap_or(0), Ordering::Relaxed);
}

/// The kernel's sockets.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelNet;

impl Net for KernelNet {
    fn bind_udp(&self, local: SocketAddr, side: Side) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() && local.ip().is_unspecified() {
            // One socket for both families; where the system does not allow it, IPv6 alone.
            let _ = socket.set_only_v6(false);
        }
        let buffer = match side {
            Side::Relay => RELAY_SOCKET_BUFFER,
            Side::Client => CLIENT_SOCKET_BUFFER,
        };
        // The kernel may grant less; `doctor` tells what it gave.
        let _ = socket.set_recv_buffer_size(buffer);
        let _ = socket.set_send_buffer_size(buffer);
        socket.bind(&local.into())?;
        if side == Side::Relay {
            note_receive_buffer(SockRef::from(&socket));
        }
        match side {
            #[cfg(unix)]
            Side::Client => Ok(Arc::new(crate::socket::NarrowSocket::new(socket.into())?)),
            _ => quinn::Runtime::wrap_udp_socket(&crate::runtime::LazyTimers, socket.into()),
        }
    }

    fn listen_tcp(&self, local: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
        if local.is_ipv6() && local.ip().is_unspecified() {
            let _ = socket.set_only_v6(false);
        }
        // A restarted relay does not wait for what its predecessor's connections leave behind.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    }

    fn connect_tcp(&self, remote: SocketAddr) -> Connecting {
        Box::pin(TcpStream::connect(remote))
    }

    fn local_ip(&self, remote: SocketAddr) -> Option<IpAddr> {
        let unspecified: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Connecting a UDP socket sends nothing: it only asks the routing table.
        let socket = std::net::UdpSocket::bind((unspecified, 0)).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}

/// Everything that comes from outside the program.
#[derive(Debug, Clone)]
pub struct Env {
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Random,
    /// Sockets.
    pub net: Arc<dyn Net>,
}

impl Env {
    /// The real world.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), random: Random::from_os(), net: Arc::new(KernelNet) }
    }
}
