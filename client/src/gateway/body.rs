//! What the gateway answers with: an answer of the relay, a whole body of its own, or the feed.

use super::relayed::Relayed;
use belay_http::answer::Answered;
use bytes::Bytes;
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
    Answer(Answered<Relayed>),
    Feed(Box<Feed>),
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Answer(Answered::Whole(bytes.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Answer(answer) => Pin::new(answer).poll_frame(cx),
            Self::Feed(feed) => feed.poll(cx).map(|data| data.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Answer(answer) if answer.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answer(answer) => answer.size_hint(),
            Self::Feed(_) => SizeHint::default(),
        }
    }
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
