//! A UDP socket that is not told when it can be written to, unless it could not.
//!
//! The kernel announces room in a UDP socket's send buffer every time a packet has left it. A socket
//! that is registered for that, as tokio's are, wakes its reactor once per packet sent, for nothing:
//! a third of what a token costs the relay. This one is registered for reading only; a send that
//! finds no room registers a second descriptor for writing, until there is room again.

mod narrow;

pub(crate) use narrow::NarrowSocket;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's UDP, registered for reading.
#[derive(Debug)]
pub(crate) struct QuietSocket {
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The last send found no room.
    full: AtomicBool,
    /// How many datagrams are asked for at once. Asking for the most that quinn has buffers for
    /// costs a lone one the laying out of them all.
    batch: AtomicUsize,
}

/// Datagrams asked for at once while they come alone.
const FEW: usize = 2;

impl QuietSocket {
    /// Takes a bound socket. Must be called inside a tokio runtime.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            io: register(socket, Interest::READABLE)?,
            state,
            full: AtomicBool::new(false),
            batch: AtomicUsize::new(FEW),
        })
    }
}

/// Registers a socket with the reactor for one kind of event.
#[expect(
    deprecated,
    reason = "its successor is unsafe to call; what it guards against cannot happen to a std socket, which owns its one descriptor"
)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WhenWritable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.io.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.io.poll_read_ready(cx))?;
            let batch = self.batch.load(Ordering::Relaxed).min(bufs.len());
            let bufs = &mut bufs[..batch];
            let Ok(received) = ready.try_io(|io| self.state.recv(io.get_ref().into(), bufs, meta)) else {
                continue;
            };
            // Fewer than asked for: the socket is empty, and what comes next is announced. Asking
            // again, only to hear so, would be one call more for every packet.
            // (Elsewhere than on Linux a receive may bring one at a time.)
            if cfg!(target_os = "linux") && received.as_ref().is_ok_and(|count| *count < batch) {
                ready.clear_ready();
                self.batch.store(FEW, Ordering::Relaxed);
            } else {
                self.batch.store(batch * 4, Ordering::Relaxed);
            }
            return Poll::Ready(received);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Waits for room, for one connection.
#[derive(Debug)]
struct WhenWritable {
    socket: Arc<QuietSocket>,
    /// A second descriptor of the socket, registered for writing; only while there is no room.
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for WhenWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            if !self.socket.full.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let second = self.socket.io.get_ref().try_clone()?;
            self.waiting = Some(register(second, Interest::WRITABLE)?);
        }
        if let Some(waiting) = &self.waiting {
            drop(ready!(waiting.poll_write_ready(cx))?);
        }
        self.waiting = None;
        self.socket.full.store(false, Ordering::Release);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    fn transmit(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None }
    }

    fn socket() -> Arc<QuietSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        Arc::new(QuietSocket::new(socket).expect("registered"))
    }

    #[tokio::test]
    async fn packets_pass_both_ways() {
        let (a, b) = (socket(), socket());
        let mut poller = Arc::clone(&a).create_io_poller();
        poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.expect("nothing is in the way");
        a.try_send(&transmit(b.local_addr().expect("known"), b"hello")).expect("sent");
        let (mut buffer, mut meta) = ([0; 100], [RecvMeta::default()]);
        let received = poll_fn(|cx| b.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await;
        assert_eq!((received.expect("received"), &buffer[..meta[0].len]), (1, &b"hello"[..]));
        assert_eq!(meta[0].addr, a.local_addr().expect("known"));
    }

    #[tokio::test]
    async fn nothing_is_missed_however_many_come_at_once() {
        let (a, b) = (socket(), socket());
        let to = b.local_addr().expect("known");
        let mut seen = 0;
        for burst in (1..=9).chain(1..=9) {
            for _ in 0..burst {
                a.try_send(&transmit(to, b"x")).expect("sent");
            }
            // Few at a time: some bursts end with a batch that is full, some with one that is not.
            let mut left = burst;
            while left > 0 {
                let (mut buffers, mut meta) = ([[0; 100]; 3], [RecvMeta::default(); 3]);
                let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
                let received = poll_fn(|cx| b.poll_recv(cx, &mut slices, &mut meta));
                let count = tokio::time::timeout(Duration::from_secs(5), received).await.expect("announced");
                let datagrams = |meta: &RecvMeta| meta.len / meta.stride;
                let count: usize = meta[..count.expect("received")].iter().map(datagrams).sum();
                left -= count;
                seen += count;
            }
        }
        assert_eq!(seen, 90);
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for_until_there_is_room() {
        let a = socket();
        let mut poller = Arc::clone(&a).create_io_poller();
        // As a send that found no room leaves it.
        a.full.store(true, Ordering::Release);
        poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.expect("there is room");
        assert!(!a.full.load(Ordering::Acquire));
        let again = poll_fn(|cx| Poll::Ready(poller.as_mut().poll_writable(cx).is_ready())).await;
        assert!(again, "and nobody waits any more");
    }
}
