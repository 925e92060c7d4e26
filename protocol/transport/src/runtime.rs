//! quinn's runtime on tokio, with timers that move lazily and sockets that wake nobody for nothing.
//!
//! A connection moves its one timer at every packet: forward when something was acknowledged, back
//! when something was sent. Moving a tokio timer back takes the timer wheel's lock and wakes the
//! driver, which costs a token more than its encryption. So a timer here is only moved when the new
//! deadline is earlier than what is armed; when it fires too early it is armed again.

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::time::{Sleep, sleep_until};

/// Tokio's clock, tasks and sockets, and lazy timers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LazyTimers;

impl Runtime for LazyTimers {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(LazyTimer { armed: Box::pin(sleep_until(deadline.into())), deadline: deadline.into() })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    #[cfg(unix)]
    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(crate::socket::QuietSocket::new(socket)?))
    }

    #[cfg(not(unix))]
    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct LazyTimer {
    /// Fires at the deadline or before it, never after.
    armed: Pin<Box<Sleep>>,
    deadline: tokio::time::Instant,
}

impl AsyncTimer for LazyTimer {
    fn reset(mut self: Pin<&mut Self>, deadline: Instant) {
        self.deadline = deadline.into();
        // One that has fired must be armed anew in any case.
        if self.deadline < self.armed.deadline() || self.armed.is_elapsed() {
            let deadline = self.deadline;
            Sleep::reset(self.armed.as_mut(), deadline);
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Future::poll(self.armed.as_mut(), cx));
            if self.armed.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            let deadline = self.deadline;
            Sleep::reset(self.armed.as_mut(), deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    /// Moves a timer as a connection does and tells when it fires.
    async fn fires_after(moves: &[u64]) -> u64 {
        let start = tokio::time::Instant::now();
        let at = |ms: u64| (start + Duration::from_millis(ms)).into_std();
        let mut timer = LazyTimers.new_timer(at(moves[0]));
        for ms in &moves[1..] {
            // It has been polled in between, as it is by a connection.
            assert!(poll_fn(|cx| Poll::Ready(timer.as_mut().poll(cx).is_pending())).await);
            timer.as_mut().reset(at(*ms));
        }
        poll_fn(|cx| timer.as_mut().poll(cx)).await;
        u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_fires_at_the_last_deadline_that_it_was_given() {
        for moves in [&[50][..], &[50, 500], &[500, 50], &[50, 500, 90, 700], &[900, 40, 800, 30, 31]] {
            let last = *moves.last().unwrap_or(&0);
            assert_eq!(fires_after(moves).await, last, "{moves:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_has_fired_can_be_used_again() {
        let start = tokio::time::Instant::now();
        let mut timer = LazyTimers.new_timer((start + Duration::from_millis(10)).into_std());
        poll_fn(|cx| timer.as_mut().poll(cx)).await;
        timer.as_mut().reset((start + Duration::from_millis(30)).into_std());
        poll_fn(|cx| timer.as_mut().poll(cx)).await;
        assert_eq!(start.elapsed().as_millis(), 30);
    }
}
