//! Sockets that whoever started the program has opened: they outlive it, and what comes while it is away waits in them.

use crate::env::{Connecting, Net, Side, note_receive_buffer};
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;

/// A socket, where it is bound, and whether it was asked for.
#[derive(Debug)]
struct Given<S> {
    socket: S,
    local: SocketAddr,
    taken: bool,
}

/// Opens sockets, but for those that are there.
#[derive(Debug)]
pub struct InheritedNet {
    udp: Mutex<Vec<Given<UdpSocket>>>,
    tcp: Mutex<Vec<Given<std::net::TcpListener>>>,
    others: Arc<dyn Net>,
}

impl InheritedNet {
    /// Those sockets; all others are opened by `others`. Errors: a socket has no address.
    pub fn new(udp: Vec<UdpSocket>, tcp: Vec<std::net::TcpListener>, others: Arc<dyn Net>) -> io::Result<Self> {
        let udp = udp.into_iter().map(|socket| given(socket.local_addr(), socket)).collect::<Result<_, _>>()?;
        let tcp = tcp.into_iter().map(|socket| given(socket.local_addr(), socket)).collect::<Result<_, _>>()?;
        Ok(Self { udp: Mutex::new(udp), tcp: Mutex::new(tcp), others })
    }

    /// Those that nobody has asked for, by protocol and address.
    #[must_use]
    pub fn unused(&self) -> Vec<(&'static str, SocketAddr)> {
        let udp = self.udp.lock().unwrap_or_else(PoisonError::into_inner);
        let tcp = self.tcp.lock().unwrap_or_else(PoisonError::into_inner);
        let udp = udp.iter().filter(|given| !given.taken).map(|given| ("UDP", given.local));
        udp.chain(tcp.iter().filter(|given| !given.taken).map(|given| ("TCP", given.local))).collect()
    }
}

fn given<S>(local: io::Result<SocketAddr>, socket: S) -> io::Result<Given<S>> {
    Ok(Given { socket, local: local?, taken: false })
}

/// Whether a socket is the one that is asked for: of two that stand for every address, one that has both families is
/// as good as one that has the wanted one.
fn fits(given: SocketAddr, wanted: SocketAddr) -> bool {
    let covers = given.is_ipv6() || given.is_ipv4() == wanted.is_ipv4();
    let is_anywhere = given.ip().is_unspecified() && wanted.ip().is_unspecified() && covers;
    given.port() == wanted.port() && (given.ip() == wanted.ip() || is_anywhere)
}

/// Another handle to the socket that fits; the first stays, for when the other one fails.
fn take<S>(
    all: &Mutex<Vec<Given<S>>>,
    wanted: SocketAddr,
    again: impl Fn(&S) -> io::Result<S>,
) -> io::Result<Option<S>> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(given) = all.iter_mut().find(|given| fits(given.local, wanted)) else { return Ok(None) };
    given.taken = true;
    again(&given.socket).map(Some)
}

impl Net for InheritedNet {
    fn bind_udp(&self, local: SocketAddr, side: Side) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        match take(&self.udp, local, UdpSocket::try_clone)? {
            Some(socket) => {
                note_receive_buffer(SockRef::from(&socket));
                quinn::Runtime::wrap_udp_socket(&crate::runtime::LazyTimers, socket)
            }
            None => self.others.bind_udp(local, side),
        }
    }

    fn listen_tcp(&self, local: SocketAddr) -> io::Result<TcpListener> {
        match take(&self.tcp, local, std::net::TcpListener::try_clone)? {
            Some(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)
            }
            None => self.others.listen_tcp(local),
        }
    }

    fn connect_tcp(&self, remote: SocketAddr) -> Connecting {
        self.others.connect_tcp(remote)
    }

    fn local_ip(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.others.local_ip(remote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::KernelNet;

    #[tokio::test]
    async fn what_is_there_is_used_again_and_again_and_the_rest_is_opened() {
        let (udp, tcp) = (
            UdpSocket::bind("127.0.0.1:0").expect("bound"),
            std::net::TcpListener::bind("127.0.0.1:0").expect("bound"),
        );
        let (at_udp, at_tcp) = (udp.local_addr().expect("bound"), tcp.local_addr().expect("bound"));
        let net = InheritedNet::new(vec![udp], vec![tcp], Arc::new(KernelNet)).expect("addresses");
        assert_eq!(net.unused(), [("UDP", at_udp), ("TCP", at_tcp)]);
        for _ in 0..2 {
            let socket = net.bind_udp(at_udp, Side::Relay).expect("taken");
            assert_eq!(socket.local_addr().expect("bound"), at_udp);
            assert_eq!(net.listen_tcp(at_tcp).expect("taken").local_addr().expect("bound"), at_tcp);
        }
        assert_eq!(net.unused(), []);
        let other = net.bind_udp("127.0.0.1:0".parse().expect("an address"), Side::Relay).expect("opened");
        assert_ne!(other.local_addr().expect("bound"), at_udp);
        // Without this, the port would be in use.
        assert!(KernelNet.bind_udp(at_udp, Side::Relay).is_err());
    }

    #[test]
    fn a_socket_for_every_address_is_one_for_each_family_that_it_has() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (given, wanted, expected) in [
            ("1.2.3.4:5", "1.2.3.4:5", true),
            ("1.2.3.4:5", "1.2.3.4:6", false),
            ("[::]:5", "0.0.0.0:5", true),
            ("[::]:5", "[::]:5", true),
            ("0.0.0.0:5", "[::]:5", false),
            ("0.0.0.0:5", "127.0.0.1:5", false),
        ] {
            assert_eq!(fits(at(given), at(wanted)), expected, "{given} {wanted}");
        }
    }
}
