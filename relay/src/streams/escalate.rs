//! Escalate streams: reads the request and its body, hands them to the escalator.

use super::{Intake, fail, failure, refuse};
use crate::escalate::{Caller, ClientStream, Escalator};
use crate::ops::memory::{BodyBudget, BodyPermit};
use belay_protocol::codec::Message;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{FrameType, raw};
use belay_protocol::id::RequestId;
use belay_protocol::message::{EscalateRequest, FailureCode, Resume};
use belay_protocol::stream::{FrameReader, StreamError};
use belay_transport::params::{PRIORITY_BULK, PRIORITY_TOKENS};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tracing::{Instrument, Span};

/// What a stream asks for.
enum Asked {
    Run(Box<EscalateRequest>, Bytes, BodyPermit),
    Resume(Resume),
}

/// Why no request came out of a stream.
pub(super) enum NoRequest {
    Stream(StreamError),
    TooLarge { id: RequestId, len: u32, max: u32 },
    NoMemory,
}

/// Serves one escalate stream to its end. `span` is the stream's; the request's own is below it.
pub async fn serve(escalator: &Escalator, budget: &BodyBudget, caller: &Caller, mut stream: ClientStream, span: &Span) {
    stream.writer.set_priority(PRIORITY_TOKENS);
    let intake = Intake::new(escalator.config().timeouts.request_body, escalator.draining.clone());
    let read = intake.within(read_request(escalator, budget, caller, &mut stream)).instrument(span.clone()).await;
    let (request, body, permit) = match read {
        Ok(Ok(Asked::Run(request, body, permit))) => (request, body, permit),
        Ok(Ok(Asked::Resume(resume))) => {
            let span = tracing::info_span!(parent: span, "resume", id = %resume.request_id, next = resume.next);
            return escalator.resume(caller, resume, stream).instrument(span).await;
        }
        Ok(Err(NoRequest::Stream(error))) => return refuse(&mut stream, &error).instrument(span.clone()).await,
        Ok(Err(NoRequest::TooLarge { id, len, max })) => {
            let message = format!("the request body has {len} bytes, at most {max} are allowed");
            let mut large = failure(FailureCode::LIMIT, message, "send a smaller request");
            large.request_id = Some(id);
            return fail(&mut stream, large, StreamCode::LIMIT).await;
        }
        Ok(Err(NoRequest::NoMemory)) => {
            let mut busy =
                failure(FailureCode::OVERLOADED, "the relay has no memory left for request bodies", "try again later");
            busy.retry_after_ms = Some(1000);
            return fail(&mut stream, busy, StreamCode::LIMIT).await;
        }
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    };
    if !request.stream {
        stream.writer.set_priority(PRIORITY_BULK);
    }
    let span = tracing::info_span!(parent: span, "request", id = %request.request_id, model = %shown(&request.model));
    escalator.run(caller, *request, (body, permit), stream, &span).await;
}

/// A model name as a log may show it: short and without control characters.
fn shown(model: &str) -> String {
    model.chars().filter(|c| !c.is_control()).take(64).collect()
}

async fn read_request(
    escalator: &Escalator,
    budget: &BodyBudget,
    caller: &Caller,
    stream: &mut ClientStream,
) -> Result<Asked, NoRequest> {
    let Some(first) = stream.reader.frame().await.map_err(NoRequest::Stream)? else {
        return Err(NoRequest::Stream(ProtocolError::Truncated(FrameType::EscalateRequest.name()).into()));
    };
    let broken = |error: ProtocolError| NoRequest::Stream(error.into());
    if first.kind == FrameType::Resume {
        return Ok(Asked::Resume(Resume::from_frame(&first).map_err(broken)?));
    }
    let request = EscalateRequest::from_frame(&first).map_err(broken)?;
    let max = escalator.config().limits.request_body;
    if request.body_len > max {
        return Err(NoRequest::TooLarge { id: request.request_id, len: request.body_len, max });
    }
    let until = Instant::now() + escalator.config().timeouts.request_body / 2;
    let mut permit = budget.body(&caller.tenant);
    let body = read_body(stream, request.body_len as usize, &mut permit, until).await?;
    Ok(Asked::Run(Box::new(request), body, permit))
}

/// The next piece of a body of `len` bytes, of which `at` have come.
pub(super) async fn next_piece(reader: &mut FrameReader, at: usize, len: usize) -> Result<Bytes, StreamError> {
    let kind = FrameType::BodyChunk;
    let malformed = |why: String| StreamError::from(ProtocolError::Malformed { kind: kind.name(), why });
    let Some(frame) = reader.frame().await? else {
        return Err(ProtocolError::Truncated("the request body").into());
    };
    if frame.kind != kind {
        return Err(ProtocolError::Unexpected { got: frame.kind.name(), expected: kind.name() }.into());
    }
    let (offset, piece) = raw::split(frame.kind, frame.body)?;
    if offset != at as u64 {
        return Err(malformed(format!("offset {offset}, expected {at}")));
    }
    if piece.is_empty() || at + piece.len() > len {
        return Err(malformed(format!("{} bytes at offset {offset} of a body of {len}", piece.len())));
    }
    Ok(piece)
}

/// Reads a body of `len` bytes. What has arrived is counted in `permit`; room is waited for until then.
pub(super) async fn read_body(
    stream: &mut ClientStream,
    len: usize,
    permit: &mut BodyPermit,
    until: Instant,
) -> Result<Bytes, NoRequest> {
    // Grows with what has arrived, never with what was announced.
    let mut body = BytesMut::new();
    while body.len() < len {
        let piece = next_piece(&mut stream.reader, body.len(), len).await.map_err(NoRequest::Stream)?;
        if !permit.grow(body.len() + piece.len(), until).await {
            return Err(NoRequest::NoMemory);
        }
        if piece.len() == len {
            return Ok(piece);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
