//! A client's UDP socket: it asks for little memory.
//!
//! quinn sets aside a buffer for 32 receives of as many packets as the kernel may hand over together,
//! three megabytes per endpoint. That is little for a relay, which has one endpoint, and much for a
//! client, which makes one with every attempt to dial. Here the kernel's packets are received into a
//! small buffer, and quinn is given them one by one.

use super::{FEW, QuietSocket};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

/// The most that the kernel hands over as one.
const LARGEST: usize = 64 << 10;

/// The kernel's UDP, with a buffer of its own.
#[derive(Debug)]
pub(crate) struct NarrowSocket {
    inner: Arc<QuietSocket>,
    kept: Mutex<Kept>,
}

/// What was received and not handed on yet.
#[derive(Debug)]
struct Kept {
    buffer: Box<[u8]>,
    metas: [RecvMeta; FEW],
    /// How many of them hold something.
    count: usize,
    /// Which is handed on, and from where.
    at: usize,
    from: usize,
}

impl NarrowSocket {
    /// Takes a bound socket. Must be called inside a tokio runtime.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let kept =
            Kept { buffer: vec![0; FEW * LARGEST].into(), metas: [RecvMeta::default(); FEW], count: 0, at: 0, from: 0 };
        Ok(Self { inner: Arc::new(QuietSocket::new(socket)?), kept: Mutex::new(kept) })
    }
}

impl Kept {
    fn receive(&mut self, socket: &QuietSocket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (self.count, self.at, self.from) = (0, 0, 0);
        let (first, second) = self.buffer.split_at_mut(LARGEST);
        let mut bufs = [IoSliceMut::new(first), IoSliceMut::new(second)];
        self.count = ready!(socket.poll_recv(cx, &mut bufs, &mut self.metas))?;
        Poll::Ready(Ok(()))
    }

    /// The next packet into `buf`. One that is longer is cut, as the kernel would.
    fn hand_on(&mut self, buf: &mut IoSliceMut<'_>) -> Option<RecvMeta> {
        while self.at < self.count {
            let meta = self.metas[self.at];
            if self.from < meta.len {
                let packet = &self.buffer[self.at * LARGEST..][self.from..meta.len];
                let packet = &packet[..packet.len().min(meta.stride.max(1))];
                self.from += packet.len();
                let len = packet.len().min(buf.len());
                buf[..len].copy_from_slice(&packet[..len]);
                return Some(RecvMeta { len, stride: len, ..meta });
            }
            (self.at, self.from) = (self.at + 1, 0);
        }
        None
    }
}

impl AsyncUdpSocket for NarrowSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // One task receives.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut count = 0;
            for (buf, meta) in bufs.iter_mut().zip(metas.iter_mut()) {
                let Some(handed) = kept.hand_on(buf) else { break };
                *meta = handed;
                count += 1;
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            ready!(kept.receive(&self.inner, cx))?;
        }
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
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test]
    async fn packets_that_come_together_are_handed_on_one_by_one() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("bound");
        let a = QuietSocket::new(bind()).expect("registered");
        let b = NarrowSocket::new(bind()).expect("registered");
        let destination = b.local_addr().expect("known");
        // 150 packets of 100 bytes, each of its own number; as few calls as the kernel allows.
        let segments = a.max_transmit_segments();
        let packets: Vec<[u8; 100]> = (0..150).map(|number| [number; 100]).collect();
        for group in packets.chunks(segments) {
            let contents = group.concat();
            a.try_send(&Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: Some(100),
                src_ip: None,
            })
            .expect("sent");
        }
        let mut seen = vec![];
        while seen.len() < packets.len() {
            let (mut buffers, mut metas) = ([[0; 1472]; 32], [RecvMeta::default(); 32]);
            let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let received = poll_fn(|cx| b.poll_recv(cx, &mut slices, &mut metas));
            let count = tokio::time::timeout(Duration::from_secs(5), received).await.expect("all come");
            for (buffer, meta) in buffers.iter().zip(&metas).take(count.expect("received")) {
                assert_eq!((meta.len, meta.stride, meta.addr), (100, 100, a.local_addr().expect("known")));
                seen.push(<[u8; 100]>::try_from(&buffer[..100]).expect("its length"));
            }
        }
        assert_eq!(seen, packets);
    }
}
