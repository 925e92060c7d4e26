//! A provider inside the process whose answers a test holds in its hand.

use belay_protocol::message::Dialect;
use belay_relay::providers::{Answer, AnswerBody, Call, CallFuture, Provider, ProviderError};
use belay_tests::relay::PATIENCE;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

/// Answers every call with the same events.
#[derive(Debug)]
pub(crate) struct Scripted {
    events: Vec<Bytes>,
    /// Repeats the events at this pace for ever.
    endless: Option<Duration>,
    /// Calls up to this number are answered at once.
    open_until: watch::Sender<usize>,
    calls: watch::Sender<usize>,
    left: watch::Sender<usize>,
}

impl Scripted {
    /// Answers with these `data` lines, then ends.
    pub(crate) fn events(data: &[&str]) -> Arc<Self> {
        Self::new(data, None)
    }

    /// Sends content for ever; without a pace, as fast as it is read.
    pub(crate) fn endless(pace: Duration) -> Arc<Self> {
        Self::new(&[r#"{"choices":[{"index":0,"delta":{"content":"word "}}]}"#], Some(pace))
    }

    fn new(data: &[&str], endless: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            events: data.iter().map(|data| Bytes::from(format!("data: {data}\n\n"))).collect(),
            endless,
            open_until: watch::Sender::new(usize::MAX),
            calls: watch::Sender::new(0),
            left: watch::Sender::new(0),
        })
    }

    /// Answers wait from now on.
    pub(crate) fn pause(&self) {
        self.pause_after(0);
    }

    /// Answers wait after so many calls in all.
    pub(crate) fn pause_after(&self, calls: usize) {
        self.open_until.send_replace(calls);
    }

    /// Answers go on.
    pub(crate) fn resume(&self) {
        self.open_until.send_replace(usize::MAX);
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Waits for so many calls.
    pub(crate) async fn called(&self, count: usize) {
        let mut calls = self.calls.subscribe();
        tokio::time::timeout(PATIENCE, calls.wait_for(|calls| *calls >= count)).await.expect("called in time").unwrap();
    }

    /// Waits until so many answers were dropped, read or not.
    pub(crate) async fn left(&self, count: usize) {
        let mut left = self.left.subscribe();
        tokio::time::timeout(PATIENCE, left.wait_for(|left| *left >= count)).await.expect("left in time").unwrap();
    }
}

impl Provider for Scripted {
    fn dialect(&self) -> Dialect {
        Dialect::OPENAI_CHAT
    }

    fn call(&self, _call: Call) -> CallFuture {
        let (calls, left) = (self.calls.clone(), self.left.clone());
        let mut open_until = self.open_until.subscribe();
        let (events, endless) = (self.events.clone(), self.endless);
        Box::pin(async move {
            // A call that is never polled was never made.
            let mut number = 0;
            calls.send_modify(|calls| {
                *calls += 1;
                number = *calls;
            });
            let again = endless.map(|pace| (events.clone(), pace));
            let body = Body { events: events.into(), again, wait: None, left };
            open_until
                .wait_for(|open| number <= *open)
                .await
                .map_err(|error| ProviderError::Broken(error.to_string()))?;
            let headers = vec![("content-type".into(), "text/event-stream".into())];
            Ok(Answer { status: 200, headers, body: Box::new(body) })
        })
    }
}

struct Body {
    events: VecDeque<Bytes>,
    again: Option<(Vec<Bytes>, Duration)>,
    wait: Option<Pin<Box<Sleep>>>,
    left: watch::Sender<usize>,
}

impl AnswerBody for Body {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>> {
        if let Some(wait) = &mut self.wait {
            if wait.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.wait = None;
        }
        let event = self.events.pop_front();
        if let Some((events, pace)) = &self.again {
            self.events.extend(events.iter().cloned());
            self.wait = (!pace.is_zero()).then(|| Box::pin(sleep(*pace)));
        }
        Poll::Ready(event.map(Ok))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.left.send_modify(|left| *left += 1);
    }
}
