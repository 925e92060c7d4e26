//! The stream trait: what a bidirectional stream of a tunnel can do, whatever carries it.
//!
//! Handlers are written on these traits and not on quinn's types, since a second transport (the
//! same frames over TLS on TCP) stands beside QUIC. They are poll-based so that one task can wait
//! for a write, a read and a provider at once without cancelling any of them halfway.

use crate::codec::Message;
use crate::error::{ProtocolError, StreamCode};
use crate::frame::{Frame, FrameDecoder, FrameType, MAX_CHUNK, raw};
use crate::kind::StreamKind;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use thiserror::Error;

/// Why a stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The peer reset its sending side, or told us to stop ours, with this code.
    #[error("the peer ended the stream ({0})")]
    Peer(StreamCode),
    /// The tunnel is gone.
    #[error("the tunnel was lost: {0}")]
    Lost(String),
    /// The bytes on it made no sense.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl StreamError {
    /// The other side is away and may come back; otherwise it wants no more.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Peer(StreamCode::DETACHED))
    }
}

/// The sending half. Dropping it without `finish` resets the stream.
pub trait SendHalf: Send + Sync + std::fmt::Debug {
    /// Writes from the front of `chunks`, leaving there what did not fit. Ready with `Ok(())` after
    /// at least one byte was taken; call again while chunks are left.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut VecDeque<Bytes>) -> Poll<Result<(), StreamError>>;
    /// Ready when the peer no longer wants this half (it stopped it), or the tunnel is gone.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;
    /// Says that all was sent.
    fn finish(&mut self);
    /// Abandons this half with a code.
    fn reset(&mut self, code: StreamCode);
    /// Streams with a higher priority are sent first.
    fn set_priority(&mut self, priority: i32);
}

/// The receiving half. Dropping it tells the peer to stop.
pub trait RecvHalf: Send + Sync + std::fmt::Debug {
    /// The next bytes in order, `None` at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>>;
    /// Tells the peer to stop sending.
    fn stop(&mut self, code: StreamCode);
}

/// Writes the preface and frames.
#[derive(Debug)]
pub struct FrameWriter {
    half: Box<dyn SendHalf>,
    /// Bytes accepted and not written yet. Bounded by the callers: they stop adding while
    /// `poll_flush` is pending.
    queue: VecDeque<Bytes>,
    /// Bytes in it.
    queued: usize,
}

impl FrameWriter {
    /// Wraps a sending half.
    #[must_use]
    pub fn new(half: Box<dyn SendHalf>) -> Self {
        Self { half, queue: VecDeque::new(), queued: 0 }
    }

    /// Queues the preface; it leaves with the first frame.
    pub fn preface(&mut self, kind: StreamKind) {
        self.queue_raw(Bytes::copy_from_slice(&[kind.to_wire()]));
    }

    /// Queues a message. Errors: `Unencodable`, `FrameTooLarge`.
    pub fn queue<M: Message>(&mut self, message: &M) -> Result<(), ProtocolError> {
        self.queue_raw(message.to_frame()?);
        Ok(())
    }

    /// Queues bytes that are a frame, or a part of one, already.
    pub fn queue_raw(&mut self, bytes: Bytes) {
        if bytes.has_remaining() {
            self.queued += bytes.len();
            self.queue.push_back(bytes);
        }
    }

    /// Queues bytes of any length in body chunks, each after its offset.
    pub fn queue_chunks(&mut self, bytes: Bytes) -> Result<(), ProtocolError> {
        self.queue_chunks_of(MAX_CHUNK, bytes)
    }

    /// The same in chunks of at most so many bytes: what has come of one counts only once all of it has.
    pub fn queue_chunks_of(&mut self, most: usize, mut bytes: Bytes) -> Result<(), ProtocolError> {
        let (mut prefixes, mut offset) = (raw::PrefixPool::default(), 0);
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(most));
            self.queue_raw(prefixes.prefix(FrameType::BodyChunk, offset, chunk.len())?);
            offset += chunk.len() as u64;
            self.queue_raw(chunk);
        }
        Ok(())
    }

    /// True if nothing waits to be written.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Writes what is queued, all that fits at once.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.queue.is_empty() {
            match self.half.poll_write(cx, &mut self.queue) {
                Poll::Ready(Ok(())) => {}
                other => {
                    self.queued = self.queue.iter().map(Bytes::len).sum();
                    return other;
                }
            }
        }
        self.queued = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes what is queued.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Queues a message and writes all that is queued.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), StreamError> {
        self.queue(message)?;
        self.flush().await
    }

    /// Ready when the peer stopped this half or the tunnel is gone.
    pub fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.half.poll_stopped(cx)
    }

    /// Says that all was sent. What is queued must have been flushed.
    pub fn finish(&mut self) {
        self.half.finish();
    }

    /// Abandons the stream with a code.
    pub fn reset(&mut self, code: StreamCode) {
        self.queue.clear();
        self.queued = 0;
        self.half.reset(code);
    }

    /// Streams with a higher priority are sent first.
    pub fn set_priority(&mut self, priority: i32) {
        self.half.set_priority(priority);
    }
}

/// Reads the preface and frames.
#[derive(Debug)]
pub struct FrameReader {
    half: Box<dyn RecvHalf>,
    decoder: FrameDecoder,
    ended: bool,
}

impl FrameReader {
    /// Wraps a receiving half.
    #[must_use]
    pub fn new(half: Box<dyn RecvHalf>) -> Self {
        Self { half, decoder: FrameDecoder::new(), ended: false }
    }

    /// Reads the preface byte. Errors: `UnknownStreamKind`, `Truncated`, those of the stream.
    pub async fn preface(&mut self) -> Result<StreamKind, StreamError> {
        loop {
            let chunk = poll_fn(|cx| self.half.poll_read(cx)).await?;
            let Some(mut chunk) = chunk else {
                return Err(ProtocolError::Truncated("preface").into());
            };
            if chunk.has_remaining() {
                let kind = StreamKind::from_wire(chunk.get_u8())?;
                self.decoder.push(chunk);
                return Ok(kind);
            }
        }
    }

    /// The next bytes as they come, for who carries frames without reading them; `None` at the end. Not to
    /// be called after a frame was read.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, StreamError> {
        match self.decoder.take_unread() {
            unread if !unread.is_empty() => Ok(Some(unread)),
            _ => poll_fn(|cx| self.half.poll_read(cx)).await,
        }
    }

    /// The next frame; `None` if the peer ended the stream between two frames.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match self.half.poll_read(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(Some(chunk))) => self.decoder.push(chunk),
                Poll::Ready(Ok(None)) if self.decoder.is_at_boundary() => self.ended = true,
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(ProtocolError::Truncated("a frame").into())),
            }
        }
    }

    /// The next frame; `None` if the peer ended the stream between two frames.
    pub async fn frame(&mut self) -> Result<Option<Frame>, StreamError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The next frame as a message of that type. Errors: `Unexpected` for another type,
    /// `Truncated` at the end.
    pub async fn expect<M: Message>(&mut self) -> Result<M, StreamError> {
        match self.frame().await? {
            Some(frame) => Ok(M::from_frame(&frame)?),
            None => Err(ProtocolError::Truncated(M::TYPE.name()).into()),
        }
    }

    /// Takes frames of these types alone; see [`FrameDecoder::take_only`].
    pub fn take_only(&mut self, types: &'static [FrameType]) {
        self.decoder.take_only(types);
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self, code: StreamCode) {
        self.half.stop(code);
    }
}
