//! From what a request's answer is made of to an HTTP response.

use crate::api::Forward;
use crate::events::Events;
use crate::refusal::Refusal;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, End, Failed, FailureCode, Outcome, ResponseHead};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// What an answer is made of, in order: `Head`, events or chunks, `End`; or `Failed`.
#[derive(Debug)]
pub enum Piece {
    /// The provider has answered.
    Head(ResponseHead),
    /// A server-sent event, as the provider sent it.
    Event(Bytes),
    /// A piece of an answer that is not streamed.
    Chunk(Bytes),
    /// Something of the answer is no longer kept.
    Gone,
    /// Over and settled.
    End(End),
    /// Failed with nothing charged.
    Failed(Failed),
}

/// Where the pieces of a request's answer come from. Dropping it drops the request, unless its caller may come back.
pub trait Source: Send + 'static {
    /// The next piece; `None` after the last. Errors: nothing more comes, and why.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Refusal>>;
    /// The request.
    fn id(&self) -> RequestId;
    /// What those who collect spans know it by.
    fn trace_id(&self) -> RequestId;
    /// The caller was refused, with that status and in those words, for whoever keeps an account.
    fn refused(&mut self, status: u16, why: &str);
}

/// How an answer is given.
#[derive(Debug)]
pub struct Terms {
    /// After so long without a word, a caller that streams gets a sign of life.
    pub keep_alive: Duration,
    /// Cancelled when the server waits no longer.
    pub end: CancellationToken,
    /// Events carry their numbers; those up to this one are not sent again.
    pub numbered: Option<Option<u64>>,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Answered<S> {
    /// All of it.
    Whole(Bytes),
    /// Events as they come.
    Events(Box<Events<S>>),
}

impl<S: Source> http_body::Body for Answered<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(whole) => Some(std::mem::take(whole)).filter(|bytes| !bytes.is_empty()),
            Self::Events(events) => ready!(events.poll(cx)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(whole) if whole.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Waits for the answer's beginning, or for all of one that is not streamed (`stream`: whether the caller wants
/// it so). Errors: there is none, and why.
pub async fn respond<S: Source>(
    mut source: S,
    forward: Forward,
    stream: bool,
    terms: Terms,
) -> Result<Response<Answered<S>>, Refusal> {
    let mut patience = pin!(sleep(terms.keep_alive));
    let mut whole = Whole::default();
    loop {
        let next = tokio::select! {
            biased;
            next = poll_fn(|cx| source.poll_next(cx)) => next,
            // Its caller hears something before it gives up; whatever comes is an event then.
            () = &mut patience, if stream && whole.head.is_none() => {
                return Ok(early(Events::new(source, forward, None, terms)));
            }
        };
        let next = match next {
            Ok(next) => next,
            Err(refusal) => return Err(told(&mut source, refusal)),
        };
        match next {
            Some(Piece::Head(head)) if head.stream => {
                let response = head_of(&head, None);
                let events = Events::new(source, forward, Some(&head), terms);
                return Ok(response.map(|()| Answered::Events(Box::new(events))));
            }
            Some(Piece::Head(head)) => whole.head = Some(head),
            Some(Piece::Chunk(chunk)) => whole.body.put(chunk),
            // Of an answer that began as a stream: its head has gone out above.
            Some(Piece::Event(_)) => {}
            Some(Piece::Gone) => whole.is_gone = true,
            Some(Piece::End(end)) => {
                return whole.settled(&end).map_err(|refusal| refusal.with_trace(source.trace_id()));
            }
            Some(Piece::Failed(failure)) => {
                let refusal = Refusal::from(&failure);
                return match whole.head {
                    // In its own words, if it has any.
                    Some(head) if failure.code == FailureCode::PROVIDER_REFUSED => {
                        source.refused(head.status, &refusal.words());
                        Ok(head_of(&head, None).map(|()| Answered::Whole(whole.body.freeze())))
                    }
                    _ => Err(told(&mut source, refusal)),
                };
            }
            None => return Err(told(&mut source, Refusal::stopped())),
        }
    }
}

/// An answer that is not streamed.
#[derive(Debug, Default)]
struct Whole {
    head: Option<ResponseHead>,
    body: BytesMut,
    is_gone: bool,
}

impl Whole {
    fn settled<S>(self, end: &End) -> Result<Response<Answered<S>>, Refusal> {
        let is_gone = self.is_gone || self.head.as_ref().is_some_and(|head| head.content == Content::GONE);
        match self.head {
            _ if is_gone => Err(Refusal::gone().with_request(end.request_id)),
            Some(head) if end.outcome == Outcome::COMPLETE => {
                Ok(head_of(&head, Some(end)).map(|()| Answered::Whole(self.body.freeze())))
            }
            _ => Err(Refusal::incomplete(end.outcome, &end.message, end.cost).with_request(end.request_id)),
        }
    }
}

fn told<S: Source>(source: &mut S, refusal: Refusal) -> Refusal {
    source.refused(refusal.status.as_u16(), &refusal.words());
    refusal.with_request(source.id()).with_trace(source.trace_id())
}

/// The provider's status and headers, and what the relay says of the request.
#[must_use]
pub fn head_of(head: &ResponseHead, end: Option<&End>) -> Response<()> {
    let mut response = Response::new(());
    // Where a provider wants to send its caller elsewhere, nobody can go.
    let status = StatusCode::from_u16(head.status).ok().filter(|status| !status.is_redirection());
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    for (name, value) in &head.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let mut say = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    say("belay-request-id", head.request_id.to_string());
    say("belay-provider", head.provider.clone());
    say("belay-model", head.model.clone());
    if let Some(end) = end {
        say("belay-cost", end.cost.to_string());
        say("belay-balance", end.balance.to_string());
    }
    if head.stream {
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    }
    response
}

/// The head of a stream whose provider has not answered yet.
fn early<S: Source>(events: Events<S>) -> Response<Answered<S>> {
    let id = events.id();
    let mut response = Response::new(Answered::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(HeaderName::from_static("belay-request-id"), id);
    }
    response
}
