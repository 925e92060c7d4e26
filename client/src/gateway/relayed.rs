//! A request that runs in the tunnel, as the pieces of an answer, with an account of it for the page.

use super::recent::Running;
use crate::error::ClientError;
use crate::escalation::{Answer, Escalation};
use belay_http::answer::{Piece, Source};
use belay_http::refusal::Refusal;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Outcome};
use http::StatusCode;
use std::task::{Context, Poll, ready};
use tokio_util::sync::ReusableBoxFuture;

type Step = (Box<Escalation>, Result<Option<Answer>, ClientError>);

/// The next answer, with what gives it: nothing is allocated per event.
async fn step(mut escalation: Box<Escalation>) -> Step {
    let answer = escalation.next().await;
    (escalation, answer)
}

/// A running request.
#[derive(Debug)]
pub(super) struct Relayed {
    next: ReusableBoxFuture<'static, Step>,
    running: Running,
}

impl Relayed {
    pub(super) fn new(escalation: Escalation, running: Running) -> Self {
        Self { next: ReusableBoxFuture::new(step(Box::new(escalation))), running }
    }
}

impl Source for Relayed {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Refusal>> {
        loop {
            let (escalation, answer) = ready!(self.next.poll(cx));
            // Allocated only if the future has another size, which it never has.
            self.next.set(step(escalation));
            let running = &self.running;
            let piece = match answer.map_err(|error| Refusal::from(&error))? {
                Some(Answer::Event(event)) => {
                    running.live.count(event.len());
                    Piece::Event(event)
                }
                Some(Answer::Chunk(chunk)) => {
                    running.live.count(chunk.len());
                    Piece::Chunk(chunk)
                }
                Some(Answer::Head(head)) => {
                    running.head(&head);
                    Piece::Head(head)
                }
                Some(Answer::Interrupted { .. }) => {
                    running.interrupted();
                    continue;
                }
                Some(Answer::Resumed { missed, content, .. }) => {
                    running.resumed();
                    if missed == 0 && content != Content::GONE {
                        continue;
                    }
                    Piece::Gone
                }
                Some(Answer::End(end)) => {
                    running.end(&end, end.outcome == Outcome::COMPLETE);
                    Piece::End(end)
                }
                Some(Answer::Failed(failed)) => Piece::Failed(failed),
                None => return Poll::Ready(Ok(None)),
            };
            return Poll::Ready(Ok(Some(piece)));
        }
    }

    fn id(&self) -> RequestId {
        self.running.live.asked.id
    }

    fn trace_id(&self) -> RequestId {
        self.running.live.asked.trace
    }

    fn refused(&mut self, status: u16, why: &str) {
        self.running.failed(status, why);
    }
}

impl From<&ClientError> for Refusal {
    fn from(error: &ClientError) -> Self {
        let (status, code) = match error {
            ClientError::Failed(failed) => return Self::from(&**failed),
            ClientError::Closed(_) => (StatusCode::FORBIDDEN, "refused"),
            ClientError::Superseded => (StatusCode::CONFLICT, "superseded"),
            ClientError::Unreachable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "relay_unreachable"),
            ClientError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
            ClientError::Lost(_) => (StatusCode::BAD_GATEWAY, "lost"),
            _ => (StatusCode::BAD_GATEWAY, "internal"),
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        let mut refusal = Self::new(status, code, message);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            refusal.retry_after_ms = Some(1000);
        }
        refusal
    }
}
