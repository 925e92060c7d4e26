//! A request as a span, for whoever collects them: what the caller waited for, and what came between.
//!
//! The words of GenAI are used where the provider is called, which is at the relay: told twice, they would be counted
//! twice by whatever adds up tokens.

use super::{Answer, EscalationRequest};
use crate::error::ClientError;
use belay_protocol::message::{FailureCode, Outcome};
use belay_traces::{Span, SpanKind, Traces};

/// The span of a request, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Traced(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    span: Span,
    has_begun: bool,
}

impl Traced {
    /// The request goes on below it.
    pub(crate) fn begin(traces: Option<&Traces>, request: &mut EscalationRequest, relay: &[String]) -> Self {
        let Some(traces) = traces else { return Self(None) };
        let place = (request.trace, request.request_id.0);
        let Some(mut span) = traces.begin(place, "escalate", SpanKind::Client) else { return Self(None) };
        span.set("belay.request_id", request.request_id.to_string());
        span.set("belay.operation", request.operation.name());
        span.set("belay.model", request.model.clone());
        span.set("belay.stream", request.stream);
        span.set("server.address", relay.join(", "));
        request.trace = Some(span.context());
        Self(Some(Box::new(Open { span, has_begun: false })))
    }

    /// What came back. Costs a token no more than the look whether there is a span.
    pub(super) fn saw(&mut self, answer: &Result<Option<Answer>, ClientError>) {
        let Some(open) = &mut self.0 else { return };
        match answer {
            Ok(Some(Answer::Event(_) | Answer::Chunk(_))) => {
                if !std::mem::replace(&mut open.has_begun, true) {
                    open.span.event("first token");
                }
            }
            Ok(Some(Answer::Head(head))) => {
                open.span.event("head");
                open.span.set("http.response.status_code", i64::from(head.status));
                open.span.set("belay.provider", head.provider.clone());
            }
            Ok(Some(Answer::Interrupted { .. })) => open.span.event("interrupted"),
            Ok(Some(Answer::Resumed { .. })) => open.span.event("resumed"),
            Ok(Some(Answer::End(end))) => {
                open.span.set("belay.outcome", end.outcome.name());
                open.span.set("belay.cost_nano_usd", end.cost.0);
                open.span.set("belay.events", i64::try_from(end.events).unwrap_or(i64::MAX));
                // Who has had enough has made no error.
                if !matches!(end.outcome, Outcome::COMPLETE | Outcome::CANCELLED) {
                    open.span.failed(end.outcome.name());
                }
                self.0 = None;
            }
            Ok(Some(Answer::Failed(failed))) => {
                if failed.code != FailureCode::CANCELLED {
                    open.span.failed(failed.code.name());
                }
                self.0 = None;
            }
            Ok(None) => {}
            Err(error) => self.broke(error),
        }
    }

    /// Nothing more comes.
    pub(crate) fn broke(&mut self, error: &ClientError) {
        if let Some(mut open) = self.0.take() {
            open.span.failed(error.name());
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // One that is over is gone.
        if let Some(open) = &mut self.0 {
            open.span.event("left by its reader");
        }
    }
}
