//! A bad network between clients and a relay: a seeded UDP proxy in user space.
//!
//! Clients send to [`Link::address`]; each client address gets a socket of its own towards the
//! relay, so that the relay sees as many addresses as there are. Per way there are delay, jitter,
//! rate with a bounded queue, loss, duplication and reordering ([`Direction`]), which can be changed
//! while it runs; [`Link::blackhole`] and [`Link::change_address`] are the accidents of real life.
//!
//! One task owns the timetable: it reads all sockets, puts packets into a heap by their time of
//! arrival, and sends those that are due. What chance decides for the n-th packet of a way follows
//! from the seed alone; the seed is shown by `Debug`, and on stderr when a test panics. ECN marks
//! are lost on the way. Sending never waits: what the kernel does not take at once is dropped, as
//! on a real line.

mod rules;
mod tally;

pub use rules::{Direction, Fate, Way};
pub use tally::{Stats, Tally};

use bytes::Bytes;
use rules::Lane;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// The largest UDP payload.
const MAX_PACKET: usize = 65_535;
/// Packets under way at once, for a line without a rate; more are dropped.
const MAX_UNDER_WAY: usize = 65_536;

/// A running link. Dropping it closes its sockets.
pub struct Link {
    address: SocketAddr,
    seed: u64,
    state: Arc<Mutex<State>>,
    stats: watch::Receiver<Stats>,
    task: JoinHandle<()>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Link")
            .field("seed", &self.seed)
            .field("up", &state.ways[0].rules)
            .field("down", &state.ways[1].rules)
            .field("stats", &state.stats)
            .finish_non_exhaustive()
    }
}

/// A seed: the number in `BELAY_LINK_SEED`, else a new one.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("BELAY_LINK_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| RandomState::new().hash_one(0))
}

impl Link {
    /// A link to the relay at `relay`, the same in both ways. Needs a tokio runtime. Errors: no
    /// socket.
    pub fn start(relay: SocketAddr, seed: u64, rules: Direction) -> io::Result<Self> {
        let front = Socket::bind(Ipv4Addr::LOCALHOST.into())?;
        let address = front.sender.local_addr()?;
        let (sender, stats) = watch::channel(Stats::default());
        let way = |rules| OneWay { rules, lane: Lane::default(), blackhole: false, packets: 0 };
        let state = Arc::new(Mutex::new(State {
            seed,
            relay,
            ways: [way(rules.clone()), way(rules)],
            peers: vec![],
            by_address: HashMap::new(),
            source: Ipv4Addr::LOCALHOST.into(),
            heap: BinaryHeap::new(),
            order: 0,
            stats: Stats::default(),
            waker: None,
        }));
        let task = tokio::spawn(run(front, Arc::clone(&state), sender));
        Ok(Self { address, seed, state, stats, task })
    }

    /// Where clients send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Decides the fates.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Changes one way, for packets that come from now on.
    pub fn set(&self, way: Way, rules: Direction) {
        self.change(|state| state.ways[way as usize].rules = rules);
    }

    /// Changes both ways.
    pub fn set_both(&self, rules: Direction) {
        self.set(Way::Up, rules.clone());
        self.set(Way::Down, rules);
    }

    /// Swallows everything, what is under way included, or no longer.
    pub fn blackhole(&self, on: bool) {
        self.blackhole_way(Way::Up, on);
        self.blackhole_way(Way::Down, on);
    }

    /// The same for one way: a path that works in one direction only.
    pub fn blackhole_way(&self, way: Way, on: bool) {
        self.change(|state| state.ways[way as usize].blackhole = on);
    }

    /// From now on the relay sees every client at a new port; the old ports are closed, as with a
    /// NAT that forgot. Needs a tokio runtime. Errors: no socket.
    pub fn change_address(&self) -> io::Result<()> {
        self.change(State::rebind)
    }

    /// The same with another address, such as 127.0.0.2, for the clients to come as well.
    pub fn change_address_to(&self, source: IpAddr) -> io::Result<()> {
        self.change(|state| {
            state.source = source;
            state.rebind()
        })
    }

    /// The addresses at which the relay sees the clients, in the order in which they came.
    #[must_use]
    pub fn upstream_addresses(&self) -> Vec<SocketAddr> {
        let state = lock(&self.state);
        state.peers.iter().filter_map(|peer| peer.upstream.sender.local_addr().ok()).collect()
    }

    /// What has become of the packets so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        lock(&self.state).stats
    }

    /// Waits until the figures are as wanted and returns them. Panics after `deadline`, saying
    /// `what` was waited for and what the link is.
    pub async fn wait_until(&self, what: &str, deadline: Duration, wanted: impl FnMut(&Stats) -> bool) -> Stats {
        let mut stats = self.stats.clone();
        match timeout(deadline, stats.wait_for(wanted)).await {
            // The task that has the sender ends with `self`.
            Ok(stats) => *stats.expect("the link is there"),
            Err(_) => panic!("{what}: not within {deadline:?}; {self:?}"),
        }
    }

    fn change<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let done = what(&mut state);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        done
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        if std::thread::panicking() {
            eprintln!("{self:?}\nrepeat with BELAY_LINK_SEED={}", self.seed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket, twice: tokio's way to wait for packets, and the kernel's own to send them. tokio would
/// refuse to send on a new socket until its driver has looked at it.
struct Socket {
    receiver: UdpSocket,
    sender: std::net::UdpSocket,
}

impl Socket {
    fn bind(address: IpAddr) -> io::Result<Self> {
        let sender = std::net::UdpSocket::bind((address, 0))?;
        sender.set_nonblocking(true)?;
        Ok(Self { receiver: UdpSocket::from_std(sender.try_clone()?)?, sender })
    }
}

/// A client address and the socket that stands for it towards the relay.
struct Peer {
    client: SocketAddr,
    upstream: Socket,
}

struct OneWay {
    rules: Direction,
    lane: Lane,
    blackhole: bool,
    packets: u64,
}

/// Everything but the front socket; the lock is held for as long as a poll takes.
struct State {
    seed: u64,
    relay: SocketAddr,
    ways: [OneWay; 2],
    peers: Vec<Peer>,
    by_address: HashMap<SocketAddr, usize>,
    source: IpAddr,
    /// Bounded by [`MAX_UNDER_WAY`].
    heap: BinaryHeap<Reverse<Packet>>,
    order: u64,
    stats: Stats,
    /// Of the task.
    waker: Option<Waker>,
}

/// A packet under way, ordered by its time of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    order: u64,
    up: bool,
    peer: usize,
    bytes: Bytes,
}

async fn run(front: Socket, state: Arc<Mutex<State>>, published: watch::Sender<Stats>) {
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut buffer = vec![0; MAX_PACKET];
    poll_fn(|cx| {
        let mut state = lock(&state);
        state.waker = Some(cx.waker().clone());
        state.receive(cx, &front, &mut buffer);
        state.deliver(cx, &front, timer.as_mut());
        let stats = state.stats;
        drop(state);
        published.send_if_modified(|last| std::mem::replace(last, stats) != stats);
        Poll::<()>::Pending
    })
    .await;
}

impl State {
    /// Takes all that has come.
    fn receive(&mut self, cx: &mut Context<'_>, front: &Socket, buffer: &mut [u8]) {
        loop {
            let mut read = ReadBuf::new(buffer);
            match front.receiver.poll_recv_from(cx, &mut read) {
                Poll::Ready(Ok(from)) => {
                    // No socket is left: the client meets a dead line.
                    let Ok(peer) = self.peer(from) else { continue };
                    self.admit(Way::Up, peer, read.filled());
                }
                Poll::Ready(Err(_)) => {}
                Poll::Pending => break,
            }
        }
        for peer in 0..self.peers.len() {
            loop {
                let mut read = ReadBuf::new(buffer);
                match self.peers[peer].upstream.receiver.poll_recv_from(cx, &mut read) {
                    Poll::Ready(Ok(from)) if from == self.relay => self.admit(Way::Down, peer, read.filled()),
                    Poll::Ready(_) => {}
                    Poll::Pending => break,
                }
            }
        }
    }

    fn peer(&mut self, client: SocketAddr) -> io::Result<usize> {
        if let Some(&peer) = self.by_address.get(&client) {
            return Ok(peer);
        }
        self.peers.push(Peer { client, upstream: Socket::bind(self.source)? });
        self.stats.clients = self.peers.len();
        self.by_address.insert(client, self.peers.len() - 1);
        Ok(self.peers.len() - 1)
    }

    fn rebind(&mut self) -> io::Result<()> {
        for peer in 0..self.peers.len() {
            self.peers[peer].upstream = Socket::bind(self.source)?;
        }
        Ok(())
    }

    fn tally(&mut self, way: Way) -> &mut Tally {
        match way {
            Way::Up => &mut self.stats.up,
            Way::Down => &mut self.stats.down,
        }
    }

    /// Decides what becomes of a packet that has come.
    fn admit(&mut self, way: Way, peer: usize, bytes: &[u8]) {
        let full = self.heap.len() >= MAX_UNDER_WAY;
        let one = &mut self.ways[way as usize];
        let fate = one.rules.fate(self.seed, way, one.packets);
        let blackhole = one.blackhole || bytes.len() > one.rules.largest || one.packets >= one.rules.first;
        one.packets += 1;
        let mut dues = [None, None];
        if !blackhole && !fate.lost && !full {
            let now = Instant::now();
            dues[0] = one.lane.arrival(&one.rules, fate, bytes.len(), now);
            if fate.duplicated {
                dues[1] = one.lane.arrival(&one.rules, fate, bytes.len(), now);
            }
        }
        let tally = self.tally(way);
        tally.came += 1;
        match dues {
            _ if blackhole => tally.blackholed += 1,
            _ if fate.lost => tally.lost += 1,
            [None, None] => tally.overflowed += 1,
            _ => {
                tally.duplicated += u64::from(dues[1].is_some());
                tally.overtaken += u64::from(fate.overtaken);
            }
        }
        let bytes = Bytes::copy_from_slice(bytes);
        for due in dues.into_iter().flatten() {
            self.order += 1;
            let up = way == Way::Up;
            self.heap.push(Reverse(Packet { due, order: self.order, up, peer, bytes: bytes.clone() }));
        }
    }

    /// Sends what is due and sets the timer for the next.
    fn deliver(&mut self, cx: &mut Context<'_>, front: &Socket, mut timer: Pin<&mut Sleep>) {
        loop {
            let now = Instant::now();
            while self.heap.peek().is_some_and(|Reverse(packet)| packet.due <= now) {
                if let Some(Reverse(packet)) = self.heap.pop() {
                    self.hand_on(front, &packet);
                }
            }
            let Some(Reverse(next)) = self.heap.peek() else { return };
            if timer.deadline() != next.due {
                timer.as_mut().reset(next.due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }

    fn hand_on(&mut self, front: &Socket, packet: &Packet) {
        let way = if packet.up { Way::Up } else { Way::Down };
        if self.ways[way as usize].blackhole {
            self.tally(way).blackholed += 1;
            return;
        }
        let peer = &self.peers[packet.peer];
        let sent = match way {
            Way::Up => peer.upstream.sender.send_to(&packet.bytes, self.relay),
            Way::Down => front.sender.send_to(&packet.bytes, peer.client),
        };
        let tally = self.tally(way);
        if sent.is_ok() {
            tally.arrived += 1;
            tally.bytes += packet.bytes.len() as u64;
        } else {
            tally.overflowed += 1;
        }
    }
}

#[cfg(test)]
mod tests;
