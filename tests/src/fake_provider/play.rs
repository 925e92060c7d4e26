//! Plays a script as the body of an answer.
//!
//! The script runs as a future inside the body itself: hyper polls the body, the body polls the
//! script. No task and no channel stands between a token's time of sending and the socket.

use super::RunningGuard;
use super::dialect::Writer;
use crate::clock;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::task::yield_now;
use tokio::time::{Duration, Instant, sleep, sleep_until};

/// The script says that the connection is to be dropped here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the script drops the connection here")
    }
}

impl std::error::Error for Cut {}

/// What ends a script early.
#[derive(Debug)]
enum Stop {
    /// The connection is dropped.
    Cut,
    /// The body ends in order.
    End,
}

type Driver = Pin<Box<dyn Future<Output = Result<(), Stop>> + Send>>;

/// A body that plays a script.
pub(super) struct Playing {
    driver: Driver,
    slot: Slot,
    result: Option<Result<(), Stop>>,
    /// What is left of the `Content-Length` of an answer that is not streamed.
    left: Option<u64>,
    guard: Option<RunningGuard>,
}

impl Playing {
    /// A stream of events.
    pub(super) fn stream(writer: Writer, guard: RunningGuard) -> Self {
        let slot = Slot::default();
        let stage = Stage { writer, slot: slot.clone(), events: 0, guard: guard.counter() };
        Self { driver: Box::pin(stage.stream()), slot, result: None, left: None, guard: Some(guard) }
    }

    /// One body.
    pub(super) fn whole(writer: Writer, body: String, guard: RunningGuard) -> Self {
        let slot = Slot::default();
        let stage = Stage { writer, slot: slot.clone(), events: 0, guard: guard.counter() };
        let left = Some(body.len() as u64);
        Self { driver: Box::pin(stage.whole(body.into())), slot, result: None, left, guard: Some(guard) }
    }
}

impl Playing {
    fn finish(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.finish();
        }
    }
}

impl Body for Playing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.slot.take() {
                this.left = this.left.map(|left| left.saturating_sub(bytes.len() as u64));
                // hyper does not ask again after the last byte of a known length.
                if this.left == Some(0) {
                    this.finish();
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(result) = &this.result {
                let cut = matches!(result, Err(Stop::Cut));
                this.finish();
                return Poll::Ready(cut.then_some(Err(Cut)));
            }
            match this.driver.as_mut().poll(cx) {
                Poll::Ready(result) => this.result = Some(result),
                Poll::Pending if this.slot.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Room for one piece on its way from the script to hyper. Both run in one task: the lock is never
/// waited for, and whoever empties the slot polls the script next, so no waker is needed.
#[derive(Debug, Clone, Default)]
struct Slot(Arc<Mutex<Option<Bytes>>>);

impl Slot {
    fn take(&self) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Hands a piece over and waits until hyper has it.
    async fn put(&self, bytes: Bytes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        poll_fn(|_| if self.is_empty() { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// The script at work.
struct Stage {
    writer: Writer,
    slot: Slot,
    events: u64,
    guard: super::EventCounter,
}

impl Stage {
    async fn stream(mut self) -> Result<(), Stop> {
        let script = self.writer.script.clone();
        if !script.events.is_empty() {
            for (number, event) in (0..).zip(script.events) {
                if number > 0 && script.pace_ms > 0 {
                    sleep(Duration::from_millis(script.pace_ms)).await;
                }
                self.event(event).await?;
            }
            return self.interfere().await;
        }
        for event in self.writer.opening() {
            self.event(event).await?;
        }
        let cap = self.writer.asked.cap.filter(|_| !script.ignore_cap).unwrap_or(u64::MAX);
        let tokens = if script.endless { u64::MAX } else { script.tokens.min(cap) };
        if script.first_token_ms > 0 {
            sleep(script.first_token()).await;
        }
        let start = Instant::now();
        for number in 0..tokens {
            if number > 0 && script.pace_ms > 0 {
                sleep_until(start + multiple(script.pace(), number)).await;
            }
            if script.ping_every > 0 && number % script.ping_every == 0 && self.writer.api == super::Api::Anthropic {
                self.event(Writer::ping()).await?;
            }
            let text = if script.stamp { clock::stamp() } else { script.token(number) };
            self.event(self.writer.token(&text)).await?;
        }
        for event in self.writer.closing(tokens, script.tokens > tokens) {
            self.event(event).await?;
        }
        self.interfere().await
    }

    async fn whole(mut self, body: Bytes) -> Result<(), Stop> {
        let script = &self.writer.script;
        if script.cut_after.is_some() || script.hang_after.is_some() {
            let (half, hangs) = (body.slice(..body.len() / 2), script.hang_after.is_some());
            self.pieces(half).await;
            flush().await;
            return if hangs { pending().await } else { Err(Stop::Cut) };
        }
        self.events += 1;
        self.guard.event();
        self.pieces(body).await;
        Ok(())
    }

    /// Sends one event, unless the script has something else to do at this place.
    async fn event(&mut self, event: String) -> Result<(), Stop> {
        self.interfere().await?;
        self.events += 1;
        self.guard.event();
        self.pieces(event.into()).await;
        Ok(())
    }

    async fn interfere(&mut self) -> Result<(), Stop> {
        let (script, here) = (&self.writer.script, Some(self.events));
        if script.hang_after == here {
            pending::<()>().await;
        }
        if script.cut_after == here {
            // What was said before is on its way first.
            flush().await;
            return Err(Stop::Cut);
        }
        if script.stop_after == here {
            return Err(Stop::End);
        }
        if script.error_after == here {
            self.pieces(self.writer.error().into()).await;
            return Err(Stop::End);
        }
        if script.garbage_after == here {
            self.pieces(garbage()).await;
            return Err(Stop::End);
        }
        Ok(())
    }

    /// Hands bytes to hyper in as many pieces as the script wants.
    async fn pieces(&self, bytes: Bytes) {
        let script = &self.writer.script;
        if let Some(ms) = script.drip_ms {
            for at in 0..bytes.len() {
                self.slot.put(bytes.slice(at..=at)).await;
                flush().await;
                sleep(Duration::from_millis(ms)).await;
            }
            return;
        }
        let mut rest = bytes;
        for left in (2..=script.split).rev() {
            if rest.len() < 2 {
                break;
            }
            // Around the fair share, but never at the same place: every cut is hit sooner or later.
            let share = rest.len() / left + mix(self.events ^ (left as u64) << 32) as usize % 7;
            let piece = rest.split_to(share.clamp(1, rest.len() - 1));
            self.slot.put(piece).await;
            flush().await;
        }
        self.slot.put(rest).await;
    }
}

/// Lets hyper write to the socket what it has: it does so when the body has nothing to say.
async fn flush() {
    yield_now().await;
}

/// `n × duration`, for any `n`.
fn multiple(duration: Duration, n: u64) -> Duration {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).saturating_mul(n).min(1 << 50))
}

/// Neither events nor text, though with line ends and colons in it.
fn garbage() -> Bytes {
    let noise = (0..512_u64).flat_map(|n| mix(n).to_le_bytes());
    b"data: {\"choices\":[{\"del\n\n\0\xff\xfe: ::\r\r\n".iter().copied().chain(noise).chain(*b"\n\n").collect()
}

/// `SplitMix64`'s finaliser: numbers without a pattern, the same every time.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
