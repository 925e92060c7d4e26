//! A streamed answer as the body of a response: events go out as they come, with a sign of life where nothing does.

use crate::answer::{Piece, Source, Terms};
use crate::api::Forward;
use crate::refusal::Refusal;
use belay_protocol::dialect::sse::SseEvent;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, Outcome, ResponseHead};
use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// A streamed answer. Dropping it drops the request.
#[derive(Debug)]
pub struct Events<S> {
    /// Gone once the caller was told that it failed: whatever runs of it ends then, and not once the caller has
    /// taken its last bytes.
    source: Option<S>,
    id: RequestId,
    trace: RequestId,
    forward: Forward,
    /// Sends a sign of life if nothing has come for so long.
    keep_alive: Duration,
    heard: Instant,
    quiet: Pin<Box<Sleep>>,
    /// The event before: it may have told of an error already.
    last: Bytes,
    /// The number of the next event.
    next: u64,
    /// An event of it has come.
    has_begun: bool,
    /// Events carry their numbers; those up to this one are not sent again.
    numbered: Option<Option<u64>>,
    state: State,
    /// Ready when the server waits no longer.
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

#[derive(Debug)]
enum State {
    /// The caller was answered before the provider was.
    Headless,
    Flowing,
    /// The provider refuses after all; its words.
    Refused(BytesMut),
    Over,
}

impl<S: Source> Events<S> {
    /// `head`: the provider's, if it has come.
    pub(crate) fn new(source: S, forward: Forward, head: Option<&ResponseHead>, terms: Terms) -> Self {
        // A caller that was answered early gets a sign of life at once.
        let first = if head.is_some() { terms.keep_alive } else { Duration::ZERO };
        let mut events = Self {
            id: source.id(),
            trace: source.trace_id(),
            source: Some(source),
            forward,
            keep_alive: terms.keep_alive,
            heard: Instant::now(),
            quiet: Box::pin(sleep(first)),
            last: Bytes::new(),
            next: 0,
            has_begun: false,
            numbered: terms.numbered,
            state: State::Headless,
            end: Box::pin(terms.end.cancelled_owned()),
        };
        if let Some(head) = head {
            events.state = State::Flowing;
            events.next = head.first_event;
        }
        events
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if matches!(self.state, State::Over) {
                return Poll::Ready(None);
            }
            // Of one that others have read on: what lies between is not kept.
            if let (Some(last), State::Flowing) = (self.numbered, &self.state)
                && last.map_or(0, |last| last.saturating_add(1)) < self.next
                && !self.has_begun
            {
                return Poll::Ready(self.fail(&Refusal::gone()));
            }
            let Some(source) = &mut self.source else { return Poll::Ready(None) };
            let Poll::Ready(piece) = source.poll_next(cx) else {
                if self.end.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(self.fail(&Refusal::stopped()));
                }
                return self.poll_quiet(cx).map(Some);
            };
            if let Some(bytes) = self.take(piece) {
                self.heard = Instant::now();
                return Poll::Ready(Some(bytes));
            }
        }
    }

    /// Ready with a sign of life when nothing has come for long. The timer is not moved at every event,
    /// only looked at when it fires.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        while self.quiet.as_mut().poll(cx).is_ready() {
            let due = self.heard + self.keep_alive;
            let now = Instant::now();
            if due > now && !matches!(self.state, State::Headless) {
                self.quiet.as_mut().reset(due);
                continue;
            }
            self.heard = now;
            self.quiet.as_mut().reset(now + self.keep_alive);
            return Poll::Ready(Bytes::from_static(self.forward.keep_alive()));
        }
        Poll::Pending
    }

    /// What the caller is to see of a piece.
    fn take(&mut self, piece: Result<Option<Piece>, Refusal>) -> Option<Bytes> {
        match piece {
            Ok(Some(Piece::Event(event))) => {
                let number = self.next;
                self.next += 1;
                self.has_begun = true;
                self.last = event.clone();
                match self.numbered {
                    // It has a number, and nothing to tell.
                    _ if event.is_empty() => None,
                    None => Some(event),
                    Some(Some(last)) if number <= last => None,
                    Some(_) => Some([format!("id: {number}\n").as_bytes(), &event].concat().into()),
                }
            }
            Ok(Some(Piece::Head(head))) => {
                self.next = head.first_event;
                self.state = match head.stream {
                    true => State::Flowing,
                    false if head.content == Content::GONE => return self.fail(&Refusal::gone()),
                    false => State::Refused(BytesMut::new()),
                };
                None
            }
            Ok(Some(Piece::Chunk(chunk))) => {
                if let State::Refused(words) = &mut self.state {
                    words.put(chunk);
                }
                None
            }
            Ok(Some(Piece::Gone)) => self.fail(&Refusal::gone()),
            // Nothing that it asks for was ever there.
            Ok(Some(Piece::End(_))) if self.numbered.flatten().is_some_and(|last| last >= self.next) => {
                let why = format!(
                    "this answer has no event {}; its last is {}",
                    self.numbered.flatten().unwrap_or(0),
                    self.next.saturating_sub(1)
                );
                self.fail(&Refusal::bad_request(why))
            }
            Ok(Some(Piece::End(end))) => match std::mem::replace(&mut self.state, State::Over) {
                State::Refused(words) => Some(self.whole(&words)),
                _ if end.outcome == Outcome::COMPLETE || self.has_told_an_error() => None,
                _ => Some(self.error(&Refusal::incomplete(end.outcome, &end.message, end.cost))),
            },
            Ok(Some(Piece::Failed(failed))) => match std::mem::replace(&mut self.state, State::Over) {
                // In the provider's own words.
                State::Refused(words) => {
                    if let Some(source) = &mut self.source {
                        source.refused(0, &failed.message);
                    }
                    Some(self.whole(&words))
                }
                _ => self.fail(&Refusal::from(&failed)),
            },
            Ok(None) => {
                self.state = State::Over;
                None
            }
            Err(refusal) => self.fail(&refusal),
        }
    }

    fn fail(&mut self, refusal: &Refusal) -> Option<Bytes> {
        if let Some(mut source) = self.source.take() {
            source.refused(refusal.status.as_u16(), &refusal.words());
        }
        self.state = State::Over;
        Some(self.error(refusal))
    }

    fn error(&self, refusal: &Refusal) -> Bytes {
        refusal.clone().with_request(self.id).with_trace(self.trace).event(self.forward.dialect, self.next).into()
    }

    /// What the provider said in place of a stream, as an event of one.
    fn whole(&self, words: &[u8]) -> Bytes {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(words) else {
            let shown = String::from_utf8_lossy(&words[..words.len().min(500)]).into_owned();
            return self.error(&Refusal::new(StatusCode::BAD_GATEWAY, "provider_refused", shown));
        };
        match self.forward.dialect {
            Dialect::OPENAI_CHAT => format!("data: {value}\n\n"),
            _ => format!("event: error\ndata: {value}\n\n"),
        }
        .into()
    }

    /// The provider has told the caller itself.
    fn has_told_an_error(&self) -> bool {
        let event = SseEvent::parse(&self.last);
        let told = |pointer: &str| {
            let value = serde_json::from_slice::<serde_json::Value>(&event.data).ok();
            value.is_some_and(|value| value.pointer(pointer).is_some_and(|error| !error.is_null()))
        };
        event.name == b"error" || event.name == b"response.failed" || told("/error")
    }
}
