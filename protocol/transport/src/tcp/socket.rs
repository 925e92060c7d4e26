//! A TCP socket that counts what it carries, below TLS.

use super::shared::Shared;
use crate::params::IDLE_TIMEOUT;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes that the kernel keeps unsent: what is in it is in the way of a heartbeat.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "ios"))]
const UNSENT: u32 = 32 << 10;

/// What a peer still sends after the end is read for so long at most: closing a socket with something
/// unread resets the connection, and takes back what was written last.
const LINGER: Duration = Duration::from_secs(1);

/// The socket; whoever drives the connection keeps it beyond the connection's end.
pub(super) type Socket = Arc<TcpStream>;

#[derive(Debug)]
pub(super) struct Counted {
    socket: Socket,
    shared: Arc<Shared>,
}

impl Counted {
    pub(super) fn new(socket: Socket, shared: Arc<Shared>) -> Self {
        // Each of these makes it better and none is needed.
        let _ = socket.set_nodelay(true);
        let options = socket2::SockRef::from(&*socket);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = options.set_tcp_user_timeout(Some(IDLE_TIMEOUT));
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "ios"))]
        let _ = options.set_tcp_notsent_lowat(UNSENT);
        Self { socket, shared }
    }

    /// Writes once there is room, and counts.
    fn write(&self, cx: &mut Context<'_>, write: impl Fn() -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.shared.found_full();
                    return Poll::Pending;
                }
            }
            match write() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(bytes) => {
                    self.shared.sent(bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(bytes) => {
                    buf.advance(bytes);
                    if bytes > 0 {
                        self.shared.received(bytes);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, || self.socket.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, || self.socket.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut_down(&self.socket))
    }
}

/// Says that nothing more will be written.
fn shut_down(socket: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(Shutdown::Write) {
        // The peer was first.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// Lets the peer take what was written last: reads and drops what it still sends, until it has ended too.
pub(super) async fn linger(socket: &TcpStream) {
    if shut_down(socket).is_err() {
        return;
    }
    let ended = async {
        let mut scratch = [0; 4096];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut scratch) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    };
    let _ = timeout(LINGER, ended).await;
}
