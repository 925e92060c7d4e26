//! What is asked, and how it stands on a stream.

use crate::error::ClientError;
use belay_protocol::id::{RequestId, SessionId};
use belay_protocol::message::escalate::HISTORY_TOKENS;
use belay_protocol::message::{Dialect, EscalateRequest, Extension, Operation};
use belay_protocol::money::NanoUsd;
use belay_protocol::stream::FrameWriter;
use belay_protocol::trace::TraceContext;
use bytes::Bytes;

/// Who can read an answer, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// A restarted client goes on where this one was: how far it was read is noted on disk.
    Noted,
    /// It ends with its reader: whoever drops it cancels it.
    Once,
    /// Whoever asks with the same id reads it from its beginning, for as long as the relay keeps it:
    /// nothing is acknowledged but what is more than the relay keeps, and dropping it cancels nothing.
    Again,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct EscalationRequest {
    /// Names the request for ever; a retry carries the same.
    pub request_id: RequestId,
    /// What is asked for.
    pub operation: Operation,
    /// The body's format.
    pub dialect: Dialect,
    /// A model alias or an exact model; empty means the session's own, or `auto`.
    pub model: String,
    /// The conversation that it goes on with; only where the body is belay's own prompt.
    pub session: Option<SessionId>,
    /// The most tokens of its history that go with the request; `None`: as the relay does.
    pub history_tokens: Option<u32>,
    /// Answer with events.
    pub stream: bool,
    /// The most output tokens wanted.
    pub max_output_tokens: Option<u32>,
    /// With too little money, a smaller cap is better than a refusal.
    pub may_reduce_output: bool,
    /// Never cost more than this.
    pub cost_cap: Option<NanoUsd>,
    /// End the request after this long, in milliseconds.
    pub deadline_ms: Option<u32>,
    /// Who can read the answer.
    pub reading: Reading,
    /// Headers for the provider.
    pub headers: Vec<(String, String)>,
    /// Where it stands in its caller's trace.
    pub trace: Option<TraceContext>,
    /// The body.
    pub body: Bytes,
}

impl EscalationRequest {
    /// A streamed request for an answer, with a body of that dialect.
    #[must_use]
    pub fn new(request_id: RequestId, dialect: Dialect, model: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            request_id,
            operation: match dialect {
                Dialect::ANTHROPIC => Operation::MESSAGES,
                Dialect::OPENAI_RESPONSES => Operation::RESPONSES,
                _ => Operation::CHAT,
            },
            dialect,
            model: model.into(),
            session: None,
            history_tokens: None,
            stream: true,
            max_output_tokens: None,
            may_reduce_output: false,
            cost_cap: None,
            deadline_ms: None,
            reading: Reading::Noted,
            headers: vec![],
            trace: None,
            body: body.into(),
        }
    }

    pub(super) fn message(&self) -> EscalateRequest {
        EscalateRequest {
            request_id: self.request_id,
            session_id: self.session.clone().map(String::from),
            operation: self.operation,
            dialect: self.dialect,
            model: self.model.clone(),
            stream: self.stream,
            max_output_tokens: self.max_output_tokens,
            may_reduce_output: self.may_reduce_output,
            cost_cap: self.cost_cap,
            deadline_ms: self.deadline_ms,
            headers: self.headers.iter().cloned().chain(self.trace.map(|trace| trace.header())).collect(),
            body_len: u32::try_from(self.body.len()).unwrap_or(u32::MAX),
            extensions: self
                .history_tokens
                .map(|tokens| Extension { kind: HISTORY_TOKENS, value: tokens.to_le_bytes().to_vec() })
                .into_iter()
                .collect(),
        }
    }
}

/// Queues a request with its body.
pub(super) fn queue_whole(writer: &mut FrameWriter, request: &EscalationRequest) -> Result<(), ClientError> {
    writer.queue(&request.message())?;
    Ok(writer.queue_chunks(request.body.clone())?)
}
