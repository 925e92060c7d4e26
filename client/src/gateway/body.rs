//! What the gateway answers with: a whole body, an answer's events as they come, or the feed.

use super::api::Forward;
use super::recent::Running;
use super::refusal::Refusal;
use crate::error::ClientError;
use crate::escalation::{Answer, Escalation};
use belay_protocol::dialect::sse::SseEvent;
use belay_protocol::message::{Content, Dialect, Outcome};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture, WaitForCancellationFutureOwned};

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    Whole(Option<Bytes>),
    Events(Box<Events>),
    Feed(Box<Feed>),
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(whole) => whole.take().filter(|bytes| !bytes.is_empty()),
            Self::Events(events) => ready!(events.poll(cx)),
            Self::Feed(feed) => ready!(feed.poll(cx)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => SizeHint::with_exact(whole.as_ref().map_or(0, Bytes::len) as u64),
            _ => SizeHint::default(),
        }
    }
}

type Step = (Box<Escalation>, Result<Option<Answer>, ClientError>);

/// The next answer, with what gives it: nothing is allocated per event.
async fn step(mut escalation: Box<Escalation>) -> Step {
    let answer = escalation.next().await;
    (escalation, answer)
}

/// A streamed answer. Dropping it drops the request.
#[derive(Debug)]
pub(super) struct Events {
    next: ReusableBoxFuture<'static, Step>,
    forward: Forward,
    running: Running,
    /// Sends a sign of life if nothing has come for so long.
    keep_alive: Duration,
    heard: Instant,
    quiet: Pin<Box<Sleep>>,
    /// The event before: it may have told of an error already.
    last: Bytes,
    state: State,
    /// Ready when the gateway waits no longer.
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

impl Events {
    /// `has_head`: the provider's head has come. `end`: cancelled when the gateway waits no longer.
    pub(super) fn new(
        escalation: Box<Escalation>,
        forward: Forward,
        running: Running,
        keep_alive: Duration,
        has_head: bool,
        end: CancellationToken,
    ) -> Self {
        // A caller that was answered early gets a sign of life at once.
        let first = if has_head { keep_alive } else { Duration::ZERO };
        Self {
            next: ReusableBoxFuture::new(step(escalation)),
            forward,
            running,
            keep_alive,
            heard: Instant::now(),
            quiet: Box::pin(sleep(first)),
            last: Bytes::new(),
            end: Box::pin(end.cancelled_owned()),
            state: if has_head { State::Flowing } else { State::Headless },
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if matches!(self.state, State::Over) {
                return Poll::Ready(None);
            }
            let Poll::Ready((escalation, answer)) = self.next.poll(cx) else {
                if self.end.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(self.fail(&Refusal::from(&ClientError::Stopped)));
                }
                return self.poll_quiet(cx).map(Some);
            };
            // Allocated only if the future has another size, which it never has.
            self.next.set(step(escalation));
            if let Some(bytes) = self.take(answer) {
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

    /// What the caller is to see of an answer.
    fn take(&mut self, answer: Result<Option<Answer>, ClientError>) -> Option<Bytes> {
        match answer {
            Ok(Some(Answer::Event(event))) => {
                self.running.live.count(event.len());
                self.last = event.clone();
                Some(event)
            }
            Ok(Some(Answer::Head(head))) => {
                self.running.head(&head);
                self.state = match head.stream {
                    true => State::Flowing,
                    false if head.content == Content::GONE => return self.fail(&gone()),
                    false => State::Refused(BytesMut::new()),
                };
                None
            }
            Ok(Some(Answer::Chunk(chunk))) => {
                if let State::Refused(words) = &mut self.state {
                    words.put(chunk);
                }
                None
            }
            Ok(Some(Answer::Interrupted { .. })) => {
                self.running.interrupted();
                None
            }
            Ok(Some(Answer::Resumed { missed, content, .. })) => {
                self.running.resumed();
                if missed > 0 || content == Content::GONE {
                    return self.fail(&gone());
                }
                None
            }
            Ok(Some(Answer::End(end))) => {
                let complete = end.outcome == Outcome::COMPLETE;
                self.running.end(&end, complete);
                let state = std::mem::replace(&mut self.state, State::Over);
                match state {
                    State::Refused(words) => Some(self.whole(&words)),
                    _ if complete || self.has_told_an_error() => None,
                    _ => Some(self.error(&Refusal::incomplete(end.outcome, &end.message, end.cost))),
                }
            }
            Ok(Some(Answer::Failed(failed))) => match std::mem::replace(&mut self.state, State::Over) {
                // In the provider's own words.
                State::Refused(words) => {
                    self.running.failed(0, &failed.message);
                    Some(self.whole(&words))
                }
                _ => self.fail(&Refusal::from(&failed)),
            },
            Ok(None) => {
                self.state = State::Over;
                None
            }
            Err(error) => self.fail(&Refusal::from(&error)),
        }
    }

    fn fail(&mut self, refusal: &Refusal) -> Option<Bytes> {
        self.running.failed(refusal.status.as_u16(), &refusal.message);
        self.state = State::Over;
        // Whatever runs of it ends now, not once the caller has taken its last bytes.
        self.next.set(std::future::pending());
        Some(self.error(refusal))
    }

    fn error(&self, refusal: &Refusal) -> Bytes {
        let refusal = refusal.clone().with_request(self.running.live.asked.id);
        refusal.event(self.forward.dialect, self.running.live.events()).into()
    }

    /// What the provider said in place of a stream, as an event of one.
    fn whole(&self, words: &[u8]) -> Bytes {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(words) else {
            let shown = String::from_utf8_lossy(&words[..words.len().min(500)]).into_owned();
            return self.error(&Refusal::new(http::StatusCode::BAD_GATEWAY, "provider_refused", shown));
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

/// The content is not kept any more.
pub(super) fn gone() -> Refusal {
    Refusal::content_gone("this request was answered before, and its content is no longer kept; it is not run twice")
}

/// Changes of all requests, for as long as somebody reads them.
#[derive(Debug)]
pub(super) struct Feed {
    first: Option<Bytes>,
    next: ReusableBoxFuture<'static, (broadcast::Receiver<Bytes>, Result<Bytes, RecvError>)>,
    beat: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// How often a feed without news says that it is there.
const BEAT: Duration = Duration::from_secs(15);

async fn news(mut receiver: broadcast::Receiver<Bytes>) -> (broadcast::Receiver<Bytes>, Result<Bytes, RecvError>) {
    let news = receiver.recv().await;
    (receiver, news)
}

impl Feed {
    /// `first` is told at once; it ends with the gateway.
    pub(super) fn new(first: Bytes, receiver: broadcast::Receiver<Bytes>, stop: CancellationToken) -> Self {
        Self {
            first: Some(first),
            next: ReusableBoxFuture::new(news(receiver)),
            beat: Box::pin(sleep(BEAT)),
            stop: Box::pin(stop.cancelled_owned()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if let Poll::Ready((receiver, news_now)) = self.next.poll(cx) {
            self.next.set(news(receiver));
            return Poll::Ready(match news_now {
                Ok(event) => Some(event),
                // It reads the whole list again.
                Err(RecvError::Lagged(_)) => Some(Bytes::from_static(b"event: missed\ndata: {}\n\n")),
                Err(RecvError::Closed) => None,
            });
        }
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        ready!(self.beat.as_mut().poll(cx));
        self.beat.as_mut().reset(Instant::now() + BEAT);
        Poll::Ready(Some(Bytes::from_static(b": alive\n\n")))
    }
}
