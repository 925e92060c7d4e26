//! The in-memory network: hosts with sockets, links with delay, jitter and loss, and paths that can
//! be taken away.

use belay_transport::env::{Net, Random, Side};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// How a host is connected to the rest.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// One way.
    pub delay: Duration,
    /// A random part of this is added.
    pub jitter: Duration,
    /// Packets lost, of 10,000.
    pub loss: u64,
    /// Packets that arrive twice, of 10,000.
    pub duplicate: u64,
    /// Nothing passes while this is false.
    pub up: bool,
}

impl Default for Path {
    fn default() -> Self {
        Self { delay: Duration::from_millis(15), jitter: Duration::from_millis(5), loss: 0, duplicate: 0, up: true }
    }
}

/// A network.
#[derive(Debug, Clone)]
pub struct SimNet {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    random: Random,
    sockets: BTreeMap<SocketAddr, Arc<SimSocket>>,
    paths: BTreeMap<IpAddr, Path>,
    next_port: u16,
    packets: u64,
    sequence: u64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("packets", &self.packets).finish_non_exhaustive()
    }
}

impl SimNet {
    /// An empty network whose chances come from `random`.
    #[must_use]
    pub fn new(random: Random) -> Self {
        let shared = Shared {
            random,
            sockets: BTreeMap::new(),
            paths: BTreeMap::new(),
            next_port: 20_000,
            packets: 0,
            sequence: 0,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A host whose sockets have this address.
    #[must_use]
    pub fn host(&self, address: Ipv4Addr) -> SimHost {
        self.shared.lock().unwrap().paths.insert(address.into(), Path::default());
        SimHost { net: self.clone(), address: address.into() }
    }

    /// Packets sent so far.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.shared.lock().unwrap().packets
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, ecn: Option<EcnCodepoint>, contents: &[u8]) {
        let mut shared = self.shared.lock().unwrap();
        shared.packets += 1;
        shared.sequence += 1;
        let mut delay = Duration::ZERO;
        let mut copies = 1;
        for end in [from.ip(), to.ip()] {
            let path = shared.paths.get(&end).copied().unwrap_or_default();
            if !path.up || shared.random.below(10_000) < path.loss {
                return;
            }
            delay += (path.delay + shared.random.part_of(path.jitter)) / 2;
            // A path without duplication draws nothing, so that older seeds keep their histories.
            copies += u32::from(path.duplicate > 0 && shared.random.below(10_000) < path.duplicate);
        }
        let Some(socket) = shared.sockets.get(&to).cloned() else { return };
        for copy in 0..copies {
            shared.sequence += u64::from(copy > 0);
            let due = Instant::now() + delay * (copy + 1);
            socket.deliver(Packet { due, sequence: shared.sequence, from, ecn, contents: contents.to_vec() });
        }
    }
}

/// A host: opens sockets, and its path can be changed.
#[derive(Debug, Clone)]
pub struct SimHost {
    net: SimNet,
    address: IpAddr,
}

impl SimHost {
    /// Changes how the host is connected.
    pub fn change(&self, change: impl FnOnce(&mut Path)) {
        change(self.net.shared.lock().unwrap().paths.entry(self.address).or_default());
    }
}

impl Net for SimHost {
    fn bind_udp(&self, local: SocketAddr, _side: Side) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let mut shared = self.net.shared.lock().unwrap();
        let port = match local.port() {
            0 => {
                shared.next_port = shared.next_port.checked_add(1).unwrap_or(20_000);
                shared.next_port
            }
            port => port,
        };
        let address = SocketAddr::new(self.address, port);
        // A socket that nobody holds any more gives its address back.
        shared.sockets.retain(|_, socket| Arc::strong_count(socket) > 1);
        if shared.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let inbox = Inbox { packets: BinaryHeap::new(), waker: None, timer: None };
        let socket = Arc::new(SimSocket { net: self.net.clone(), address, inbox: Mutex::new(inbox) });
        shared.sockets.insert(address, Arc::clone(&socket));
        Ok(socket)
    }
}

#[derive(PartialEq, Eq)]
struct Packet {
    due: Instant,
    sequence: u64,
    from: SocketAddr,
    ecn: Option<EcnCodepoint>,
    contents: Vec<u8>,
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

struct Inbox {
    packets: BinaryHeap<Reverse<Packet>>,
    waker: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
}

struct SimSocket {
    net: SimNet,
    address: SocketAddr,
    inbox: Mutex<Inbox>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", self.address)
    }
}

impl SimSocket {
    fn deliver(&self, packet: Packet) {
        let mut inbox = self.inbox.lock().unwrap();
        inbox.packets.push(Reverse(packet));
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            self.net.send(self.address, transmit.destination, transmit.ecn, datagram);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        loop {
            let Some(Reverse(next)) = inbox.packets.peek() else {
                inbox.timer = None;
                inbox.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            let due = next.due;
            if due <= Instant::now() {
                break;
            }
            let timer = inbox.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                inbox.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let mut count = 0;
        while count < bufs.len() && inbox.packets.peek().is_some_and(|Reverse(packet)| packet.due <= Instant::now()) {
            let Some(Reverse(packet)) = inbox.packets.pop() else { break };
            let len = packet.contents.len().min(bufs[count].len());
            bufs[count][..len].copy_from_slice(&packet.contents[..len]);
            meta[count] = RecvMeta { addr: packet.from, len, stride: len, ecn: packet.ecn, ..RecvMeta::default() };
            count += 1;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
