//! A provider that counts: event `n` of an answer says `n`, so that a reader can tell whether one is
//! missing, doubled or out of order.

use belay_protocol::message::Dialect;
use belay_relay::Overrides;
use belay_relay::providers::{Answer, AnswerBody, Call, CallFuture, Provider, ProviderError, Providers};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Answers every call with so many events, one every so often, and then with usage.
#[derive(Debug, Clone, Copy)]
pub struct Counting {
    /// Events of content.
    pub events: u64,
    /// Time between two.
    pub pace: Duration,
}

impl Counting {
    /// Instead of the demo provider.
    #[must_use]
    pub fn overrides(self) -> Overrides {
        let provider: Arc<dyn Provider> = Arc::new(self);
        Overrides { providers: Providers::from([("demo".to_owned(), provider)]), ..Overrides::default() }
    }
}

/// The text of an event: `{number}` of so many.
#[must_use]
pub fn number(event: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(event).ok()?;
    let (_, after) = text.split_once("\"content\":\"")?;
    after.split_once(' ')?.0.parse().ok()
}

impl Provider for Counting {
    fn dialect(&self) -> Dialect {
        Dialect::OPENAI_CHAT
    }

    fn call(&self, _call: Call) -> CallFuture {
        let counting = *self;
        Box::pin(async move {
            let headers = vec![("content-type".into(), "text/event-stream".into())];
            let start = Instant::now();
            let body = Box::new(Body { counting, start, next: 0, wait: Box::pin(sleep_until(start)) });
            Ok(Answer { status: 200, headers, body })
        })
    }
}

struct Body {
    counting: Counting,
    start: Instant,
    next: u64,
    wait: Pin<Box<Sleep>>,
}

impl AnswerBody for Body {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>> {
        let (number, events) = (self.next, self.counting.events);
        if number < events {
            ready!(self.wait.as_mut().poll(cx));
            let pace = self.counting.pace * u32::try_from(number + 1).unwrap_or(u32::MAX);
            self.wait.as_mut().reset(self.start + pace);
        }
        self.next += 1;
        let text = match number {
            number if number < events => {
                format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{number} \"}}}}]}}\n\n")
            }
            number if number == events => {
                format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":7,\"completion_tokens\":{events}}}}}\n\n")
            }
            number if number == events + 1 => "data: [DONE]\n\n".to_owned(),
            _ => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(Bytes::from(text))))
    }
}
