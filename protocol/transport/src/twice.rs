//! Tokens that come one at a time over a line that loses packets are sent twice.
//!
//! A lost packet is noticed by what arrives after it. Where the next one leaves only with the next
//! token, that is late: a round trip after it, and all tokens behind wait in line. So the relay's
//! socket keeps the last small datagram to such an address, and sends it once more, unchanged, right
//! before the next one. If the first copy was lost, the token is a pace late instead of a round trip
//! and more; if not, the receiver's QUIC drops the second, as it drops any duplicate.
//!
//! Which addresses these are, the connections say ([`Losses`]): those whose line has lost packets
//! lately. Datagrams that follow each other closely are never repeated: their losses are noticed soon
//! enough, and a full line must not be filled further.

use crate::connection::Connection;
use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// A larger datagram than this is no lone token.
const LARGEST: usize = 512;
/// A datagram that leaves sooner than this after the last one shows its loss by itself.
const APART: Duration = Duration::from_millis(5);
/// What is older than this has been sent again by QUIC.
const STALE: Duration = Duration::from_millis(150);
/// A line that has lost packets is taken for one that does for so long. Packets that were sent twice
/// are hardly ever lost, so that it shows little meanwhile.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Lines that are remembered at the same time; those that come on top are not helped.
const MOST: usize = 4096;

/// The addresses to which lone datagrams are sent twice.
#[derive(Debug, Default)]
pub struct LossyLines {
    /// How many there are, to be read before every datagram.
    count: AtomicUsize,
    lines: Mutex<HashMap<SocketAddr, Line>>,
}

#[derive(Debug)]
struct Line {
    until: Instant,
    sent: Instant,
    last: Option<Sent>,
}

/// A datagram as it left.
#[derive(Debug)]
struct Sent {
    contents: Bytes,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
}

impl LossyLines {
    /// The line to that address has lost packets.
    fn remember(&self, address: SocketAddr) {
        let now = Instant::now();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| line.until > now);
        if lines.len() < MOST || lines.contains_key(&address) {
            let line = lines.entry(address).or_insert(Line { until: now, sent: now, last: None });
            line.until = now + REMEMBERED;
        }
        self.count.store(lines.len(), Ordering::Relaxed);
    }

    /// Takes note of a datagram that is about to leave; what has to leave before it.
    fn before(&self, transmit: &Transmit<'_>) -> Option<Sent> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if lines.get(&transmit.destination)?.until <= now {
            lines.remove(&transmit.destination);
            self.count.store(lines.len(), Ordering::Relaxed);
            return None;
        }
        let line = lines.get_mut(&transmit.destination)?;
        let since = now.duration_since(std::mem::replace(&mut line.sent, now));
        let lone = transmit.segment_size.is_none() && transmit.contents.len() <= LARGEST;
        let copy = lone.then(|| Sent {
            contents: Bytes::copy_from_slice(transmit.contents),
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
        });
        std::mem::replace(&mut line.last, copy).filter(|_| (APART..STALE).contains(&since))
    }
}

/// Watches what one connection loses.
#[derive(Debug, Default)]
pub struct Losses {
    lost: u64,
}

impl Losses {
    /// Has the lines learn what the connection's has lost since the last look.
    pub fn look(&mut self, connection: &Connection, lines: &LossyLines) {
        let Connection::Quic(quic) = connection else { return };
        let lost = quic.stats().path.lost_packets;
        if lost > self.lost {
            lines.remember(quic.remote_address());
        }
        // A new path counts from zero.
        self.lost = lost;
    }
}

/// A socket that sends lone datagrams to lossy lines twice.
#[derive(Debug)]
pub struct TwiceSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    lines: Arc<LossyLines>,
}

impl TwiceSocket {
    /// Puts itself before `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn AsyncUdpSocket>, lines: Arc<LossyLines>) -> Self {
        Self { inner, lines }
    }
}

impl AsyncUdpSocket for TwiceSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(copy) = self.lines.before(transmit) {
            let again = Transmit {
                destination: transmit.destination,
                ecn: copy.ecn,
                contents: &copy.contents,
                segment_size: None,
                src_ip: copy.src_ip,
            };
            // Where there is no room, it is not needed that badly.
            let _ = self.inner.try_send(&again);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn to(address: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: address, ecn: None, contents, segment_size: None, src_ip: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_datagram_to_a_lossy_line_leaves_again_with_the_next() {
        let lines = LossyLines::default();
        let [lossy, other] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let again = |address, contents| lines.before(&to(address, contents)).map(|copy| copy.contents);
        assert_eq!((again(lossy, b"a"), again(lossy, b"b")), (None, None), "nothing is known of it");
        lines.remember(lossy);
        assert_eq!((again(lossy, b"a"), again(other, b"a")), (None, None));
        advance(Duration::from_millis(20)).await;
        assert_eq!((again(lossy, b"b"), again(other, b"b")), (Some(Bytes::from_static(b"a")), None));
        assert_eq!(again(lossy, b"c"), None, "close behind: not a lone one");
        advance(Duration::from_millis(20)).await;
        assert_eq!(again(lossy, &[0; LARGEST + 1]), Some(Bytes::from_static(b"c")));
        advance(Duration::from_millis(20)).await;
        assert_eq!(again(lossy, b"d"), None, "a large one is not repeated");
        advance(STALE).await;
        assert_eq!(again(lossy, b"e"), None, "too late to be of use");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_forgotten_and_bounded() {
        let lines = LossyLines::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for port in 0..5000 {
            lines.remember(address(port));
        }
        assert_eq!(lines.count.load(Ordering::Relaxed), MOST);
        advance(REMEMBERED).await;
        lines.remember(address(1));
        assert_eq!(lines.count.load(Ordering::Relaxed), 1);
    }
}
