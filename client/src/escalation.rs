//! One LLM request as a stream of answers.

use crate::error::ClientError;
use crate::tunnel::Tunnel;
use belay_protocol::codec::Message;
use belay_protocol::dialect::answer;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{FrameType, MAX_CHUNK, frame, raw};
use belay_protocol::id::RequestId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Ack, Cancel, Content, Dialect, End, EscalateRequest, Failed, Operation, ResponseHead};
use belay_protocol::money::NanoUsd;
use belay_protocol::stream::{FrameReader, FrameWriter};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// So many bytes of answer are acknowledged together.
const ACK_EVERY: usize = 512 << 10;

/// What is asked.
#[derive(Debug, Clone)]
pub struct EscalationRequest {
    /// Names the request for ever; a retry carries the same.
    pub request_id: RequestId,
    /// The body's format.
    pub dialect: Dialect,
    /// A model alias or an exact model; empty means `auto`.
    pub model: String,
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
    /// Headers for the provider.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl EscalationRequest {
    /// A streamed request with a body of that dialect.
    #[must_use]
    pub fn new(request_id: RequestId, dialect: Dialect, model: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            request_id,
            dialect,
            model: model.into(),
            stream: true,
            max_output_tokens: None,
            may_reduce_output: false,
            cost_cap: None,
            deadline_ms: None,
            headers: vec![],
            body: body.into(),
        }
    }

    fn message(&self) -> EscalateRequest {
        let operation = if self.dialect == Dialect::ANTHROPIC { Operation::MESSAGES } else { Operation::CHAT };
        EscalateRequest {
            request_id: self.request_id,
            session_id: None,
            operation,
            dialect: self.dialect,
            model: self.model.clone(),
            stream: self.stream,
            max_output_tokens: self.max_output_tokens,
            may_reduce_output: self.may_reduce_output,
            cost_cap: self.cost_cap,
            deadline_ms: self.deadline_ms,
            headers: self.headers.clone(),
            body_len: u32::try_from(self.body.len()).unwrap_or(u32::MAX),
            extensions: vec![],
        }
    }
}

/// What comes back, in order: `Head`, then events or chunks, then `End`; or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The provider has answered.
    Head(ResponseHead),
    /// One server-sent event, exactly as the provider sent it.
    Event(Bytes),
    /// A piece of an answer that is not streamed.
    Chunk(Bytes),
    /// Over and settled; the last answer.
    End(End),
    /// Failed with nothing charged; the last answer.
    Failed(Failed),
}

/// A running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Escalation {
    tunnel: Arc<Tunnel>,
    writer: FrameWriter,
    reader: FrameReader,
    dialect: Dialect,
    next: u64,
    unacknowledged: usize,
    over: bool,
}

impl Escalation {
    /// Sends the request and its body.
    pub async fn begin(tunnel: Arc<Tunnel>, request: EscalationRequest) -> Result<Self, ClientError> {
        let (mut writer, reader) = tunnel.stream(StreamKind::Escalate).await?;
        writer.queue(&request.message())?;
        let mut prefixes = raw::PrefixPool::default();
        let mut offset = 0;
        let mut body = request.body;
        while !body.is_empty() {
            let chunk = body.split_to(body.len().min(MAX_CHUNK));
            writer.queue_raw(prefixes.prefix(FrameType::BodyChunk, offset, chunk.len())?);
            offset += chunk.len() as u64;
            writer.queue_raw(chunk);
        }
        let mut escalation =
            Self { tunnel, writer, reader, dialect: request.dialect, next: 0, unacknowledged: 0, over: false };
        // A relay that refuses a body in the middle stops the stream and says why on the other half.
        match escalation.writer.flush().await {
            Ok(()) | Err(belay_protocol::stream::StreamError::Peer(_)) => Ok(escalation),
            Err(error) => Err(lost(&escalation.tunnel, error.into())),
        }
    }

    /// The next answer; `None` after `End` or `Failed`. Dropping the future loses nothing.
    ///
    /// Errors: `Lost` if the tunnel goes before the end, `Closed` if the relay closed it.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        if self.over {
            return Ok(None);
        }
        let frame = match self.reader.frame().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(ProtocolError::Truncated("the answer").into()),
            Err(error) => return Err(lost(&self.tunnel, error.into())),
        };
        let answer = match frame.kind {
            FrameType::ResponseHead => {
                let head = ResponseHead::from_frame(&frame)?;
                self.dialect = head.dialect;
                self.next = head.first_event;
                Answer::Head(head)
            }
            FrameType::Event | FrameType::AnswerChunk => {
                let (number, payload) = raw::split(frame.kind, frame.body)?;
                self.count(number, payload.len()).await?;
                if frame.kind == FrameType::Event { Answer::Event(payload) } else { Answer::Chunk(payload) }
            }
            FrameType::End => {
                let end = End::from_frame(&frame)?;
                self.finish(true).await;
                Answer::End(end)
            }
            FrameType::Failed => {
                let failed = Failed::from_frame(&frame)?;
                self.finish(false).await;
                Answer::Failed(failed)
            }
            kind => return Err(ProtocolError::Unexpected { got: kind.name(), expected: "an answer" }.into()),
        };
        Ok(Some(answer))
    }

    /// Asks the relay to stop; `End` still comes, with what was produced until then.
    pub async fn cancel(&mut self, reason: &str) -> Result<(), ClientError> {
        let sent = self.writer.send(&Cancel { reason: reason.into() }).await;
        sent.map_err(|error| lost(&self.tunnel, error.into()))
    }

    /// The text that an answer adds.
    #[must_use]
    pub fn text(&self, answer: &Answer) -> String {
        match answer {
            Answer::Event(event) => answer::event_text(self.dialect, event),
            _ => String::new(),
        }
    }

    /// Reads to the end and gathers everything.
    pub async fn collect(mut self) -> Result<Collected, ClientError> {
        let mut collected = Collected::default();
        let mut body = BytesMut::new();
        while let Some(answer) = self.next().await? {
            collected.text += &self.text(&answer);
            match answer {
                Answer::Head(head) => collected.head = Some(head),
                Answer::Event(event) => collected.events.push(event),
                Answer::Chunk(chunk) => body.put(chunk),
                Answer::End(end) => collected.end = Some(end),
                Answer::Failed(failed) => collected.failed = Some(failed),
            }
        }
        collected.body = body.freeze();
        if collected.head.as_ref().is_some_and(|head| !head.stream && head.content == Content::LIVE) {
            collected.text = answer::body_text(self.dialect, &collected.body);
        }
        Ok(collected)
    }

    /// Checks that no event is missing or doubled, and acknowledges now and then.
    async fn count(&mut self, number: u64, len: usize) -> Result<(), ClientError> {
        if number != self.next {
            let why = format!("number {number}, expected {}", self.next);
            return Err(ProtocolError::Malformed { kind: FrameType::Event.name(), why }.into());
        }
        self.next += 1;
        self.unacknowledged += len;
        if self.unacknowledged >= ACK_EVERY {
            self.unacknowledged = 0;
            let sent = self.writer.send(&Ack { next: self.next, end: false }).await;
            // A relay that has finished meanwhile no longer listens; what it sent is still to come.
            if let Err(error) = sent
                && self.tunnel.connection().close_reason().is_some()
            {
                return Err(lost(&self.tunnel, error.into()));
            }
        }
        Ok(())
    }

    async fn finish(&mut self, settled: bool) {
        self.over = true;
        // The relay may have ended its side already; then nobody needs the acknowledgement.
        if settled {
            let _ = self.writer.send(&Ack { next: self.next, end: true }).await;
        }
        self.writer.finish();
        self.reader.stop(StreamCode::NO_ERROR);
    }
}

fn lost(tunnel: &Tunnel, error: ClientError) -> ClientError {
    match error {
        ClientError::Lost(why) => tunnel.lost(why),
        other => other,
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// The head, if the provider answered.
    pub head: Option<ResponseHead>,
    /// The events of a streamed answer.
    pub events: Vec<Bytes>,
    /// The body of an answer that was not streamed, or of the provider's own refusal.
    pub body: Bytes,
    /// The text in either.
    pub text: String,
    /// How it ended, if it was settled.
    pub end: Option<End>,
    /// Why it failed, if nothing was charged.
    pub failed: Option<Failed>,
}

/// A frame with a raw body, for tests that speak the protocol by hand.
#[doc(hidden)]
pub fn raw_frame(kind: FrameType, number: u64, payload: &[u8]) -> Result<Bytes, ProtocolError> {
    let mut body = BytesMut::with_capacity(8 + payload.len());
    body.put_u64_le(number);
    body.put_slice(payload);
    frame(kind, &body)
}
