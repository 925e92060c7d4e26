//! Asking the relay's own stream handlers, as a tunnel's streams do.
//!
//! A request over HTTP that reads or writes state becomes a stream of the kind that a client would open, through
//! a pipe and not a tunnel: so that every rule stands in one place, whichever way a caller comes.

use crate::connection::{self, Shared};
use crate::escalate::{Caller, ClientStream};
use belay_http::answer::{Piece, Source};
use belay_http::refusal::Refusal;
use belay_protocol::codec::Message;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{Frame, FrameType, raw};
use belay_protocol::id::RequestId;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{End, Failed, FailureCode, ResponseHead};
use belay_protocol::pipe::{Side, pipe};
use belay_protocol::stream::{FrameReader, StreamError};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// So many bytes may wait in each direction of a pipe; as much as a stream's window.
const ROOM: usize = 256 << 10;

impl From<Side> for ClientStream {
    fn from(side: Side) -> Self {
        Self { writer: side.writer, reader: side.reader }
    }
}

/// Opens a stream to the handlers of that kind.
pub(super) fn open(shared: &Arc<Shared>, caller: &Caller, kind: StreamKind) -> Side {
    let (mut ours, theirs) = pipe(ROOM);
    ours.writer.preface(kind);
    let (task, caller) = (Arc::clone(shared), caller.clone());
    let span =
        tracing::info_span!("http", tenant = %caller.tenant, device = %caller.device, kind = tracing::field::Empty);
    shared.streams.spawn(async move {
        tokio::select! {
            // As a tunnel's streams end with it.
            biased;
            () = caller.revoked.cancelled() => {}
            () = connection::serve_stream(&task, Some(&caller), theirs.into(), span) => {}
        }
    });
    ours
}

/// Two ends of a pipe for a request that is served by its own task.
pub(super) fn ends() -> (Side, ClientStream) {
    let (ours, theirs) = pipe(ROOM);
    (ours, theirs.into())
}

/// Asks one question that has one answer.
pub(super) async fn ask<Q: Message, A: Message>(
    shared: &Arc<Shared>,
    caller: &Caller,
    kind: StreamKind,
    question: &Q,
) -> Result<A, Refusal> {
    let mut side = asked(shared, caller, kind, question).await?;
    answer(&mut side.reader).await
}

/// Asks one question that has rows for an answer, and a last word.
pub(super) async fn rows<Q: Message, R: Message, D: Message>(
    shared: &Arc<Shared>,
    caller: &Caller,
    kind: StreamKind,
    question: &Q,
) -> Result<(Vec<R>, D), Refusal> {
    let mut side = asked(shared, caller, kind, question).await?;
    let mut rows = vec![];
    loop {
        let frame = next(&mut side.reader).await?;
        if frame.kind == D::TYPE {
            return Ok((rows, read(&frame)?));
        }
        rows.push(read(&frame)?);
    }
}

/// The first `most` rows of an answer, and whether these are all. What comes after them is not taken.
pub(super) async fn some_rows<Q: Message, R: Message, D: Message>(
    shared: &Arc<Shared>,
    caller: &Caller,
    kind: StreamKind,
    question: &Q,
    most: usize,
) -> Result<(Vec<R>, bool), Refusal> {
    let mut side = asked(shared, caller, kind, question).await?;
    let mut rows = vec![];
    loop {
        let frame = next(&mut side.reader).await?;
        if frame.kind == D::TYPE {
            return Ok((rows, true));
        }
        if rows.len() == most {
            return Ok((rows, false));
        }
        rows.push(read(&frame)?);
    }
}

async fn asked<Q: Message>(
    shared: &Arc<Shared>,
    caller: &Caller,
    kind: StreamKind,
    question: &Q,
) -> Result<Side, Refusal> {
    let mut side = open(shared, caller, kind);
    // What cannot be asked is too long for its frame: that is the caller's doing.
    side.writer.queue(question).map_err(|error| Refusal::bad_request(error.to_string()))?;
    side.writer.flush().await.map_err(|error| broken(&error))?;
    side.writer.finish();
    Ok(side)
}

pub(super) fn read<M: Message>(frame: &Frame) -> Result<M, Refusal> {
    M::from_frame(frame).map_err(|error| broken(&error.into()))
}

/// The next frame as a message of that type.
pub(super) async fn answer<A: Message>(reader: &mut FrameReader) -> Result<A, Refusal> {
    let frame = next(reader).await?;
    read(&frame)
}

/// The next frame, unless it is a failure.
pub(super) async fn next(reader: &mut FrameReader) -> Result<Frame, Refusal> {
    let frame = reader.frame().await.map_err(|error| broken(&error))?;
    let frame = frame.ok_or_else(|| broken(&ProtocolError::Truncated("an answer").into()))?;
    if frame.kind == FrameType::Failed {
        let failed = Failed::from_frame(&frame).map_err(|error| broken(&error.into()))?;
        return Err(Refusal::from(&failed));
    }
    Ok(frame)
}

/// The bytes of so many chunks as have that many together.
pub(super) async fn chunks(reader: &mut FrameReader, len: usize) -> Result<Bytes, Refusal> {
    let mut all = BytesMut::with_capacity(len);
    while all.len() < len {
        let frame = next(reader).await?;
        let (_, piece) = raw::split(frame.kind, frame.body).map_err(|error| broken(&error.into()))?;
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// A pipe does not break: its other end is the relay's own task.
pub(super) fn broken(error: &StreamError) -> Refusal {
    let message = format!("the relay could not answer: {error}");
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, FailureCode::INTERNAL.name(), message);
    refusal.retry_after_ms = Some(1000);
    refusal
}

/// An LLM request that runs in a task of the relay.
#[derive(Debug)]
pub(super) struct Piped {
    side: Side,
    id: RequestId,
    trace: RequestId,
    /// The number of the next event.
    next: u64,
    /// Its caller may come back.
    keeps: bool,
    /// Bytes that have come.
    read: usize,
    over: bool,
}

/// So much of an answer is kept for who comes back: half of what the relay keeps unread.
const KEPT: usize = 4 << 20;

impl Piped {
    /// `keeps`: what is read is kept for whoever asks again; otherwise its caller says nothing more.
    pub(super) fn new(mut side: Side, (id, trace): (RequestId, RequestId), keeps: bool) -> Self {
        if !keeps {
            side.writer.finish();
        }
        Self { side, id, trace, next: 0, keeps, read: 0, over: false }
    }

    fn take(&mut self, frame: Frame) -> Result<Piece, ProtocolError> {
        Ok(match frame.kind {
            FrameType::Event | FrameType::AnswerChunk => {
                let (number, payload) = raw::split(frame.kind, frame.body)?;
                let missed = number > self.next;
                self.next = number + 1;
                self.read += payload.len();
                match frame.kind {
                    _ if missed => Piece::Gone,
                    FrameType::Event => Piece::Event(payload),
                    _ => Piece::Chunk(payload),
                }
            }
            FrameType::ResponseHead => {
                let head = ResponseHead::from_frame(&frame)?;
                self.next = head.first_event;
                Piece::Head(head)
            }
            FrameType::End => {
                self.over = true;
                Piece::End(End::from_frame(&frame)?)
            }
            FrameType::Failed => {
                self.over = true;
                Piece::Failed(Failed::from_frame(&frame)?)
            }
            kind => return Err(ProtocolError::Unexpected { got: kind.name(), expected: "an answer" }),
        })
    }
}

impl Source for Piped {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Refusal>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        let frame = match ready!(self.side.reader.poll_frame(cx)) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Poll::Ready(Err(broken(&ProtocolError::Truncated("the answer").into()))),
            Err(StreamError::Peer(StreamCode::SUPERSEDED)) => {
                let message = "another reader of this request has taken over";
                return Poll::Ready(Err(Refusal::new(StatusCode::CONFLICT, "superseded", message)));
            }
            Err(error) => return Poll::Ready(Err(broken(&error))),
        };
        if self.keeps && self.read > KEPT {
            // Too long to be kept: from here on what was taken is read.
            self.keeps = false;
            self.side.writer.finish();
        }
        Poll::Ready(self.take(frame).map(Some).map_err(|error| broken(&error.into())))
    }

    fn id(&self) -> RequestId {
        self.id
    }

    fn trace_id(&self) -> RequestId {
        self.trace
    }

    fn refused(&mut self, status: u16, why: &str) {
        tracing::info!(id = %self.id, status, "refused: {why}");
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if self.keeps {
            self.side.reader.stop(StreamCode::DETACHED);
            self.side.writer.reset(StreamCode::DETACHED);
        }
    }
}
