//! Who reads an answer: a client's stream, and what it says meanwhile.

use super::ClientStream;
use super::log::EventLog;
use belay_protocol::codec::Message;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::message::{Ack, Cancel, Content, ResponseHead};
use belay_protocol::stream::StreamError;
use bytes::Bytes;
use std::task::{Context, Poll, ready};
use tracing::warn;

/// A client's stream on which an answer is read.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) stream: ClientStream,
    /// False once the client has said that it will send nothing more: then what was written counts
    /// as read.
    pub(super) talks: bool,
    /// All was written.
    finished: bool,
}

/// What a client says while it is answered.
pub(super) enum Heard {
    /// It has everything below this number and, if so, `End`.
    Acknowledged(Ack),
    Cancelled(String),
    /// It will send nothing more.
    Silence,
}

impl Reader {
    pub(super) fn new(stream: ClientStream) -> Self {
        Self { stream, talks: true, finished: false }
    }

    /// Another reader has come.
    pub(super) fn supersede(mut self) {
        self.stream.writer.reset(StreamCode::SUPERSEDED);
        self.stream.reader.stop(StreamCode::SUPERSEDED);
    }

    /// It takes nothing any more, or does not say that it has everything.
    pub(super) fn give_up(mut self) {
        if self.finished {
            return self.stream.reader.stop(StreamCode::NO_ERROR);
        }
        self.stream.writer.reset(StreamCode::TIMEOUT);
        self.stream.reader.stop(StreamCode::TIMEOUT);
    }

    /// Queues the head, its content marked as replayed from number `first` on.
    pub(super) fn replay_head(&mut self, head: &ResponseHead, first: u64) {
        let head = ResponseHead { content: Content::REPLAYED, first_event: first, ..head.clone() };
        match head.to_frame() {
            Ok(frame) => self.stream.writer.queue_raw(frame),
            // It was encodable before, with a number that was shorter.
            Err(error) => warn!(%error, "cannot repeat a head"),
        }
    }

    /// Queues the head and all events that the log still has.
    pub(super) fn replay(&mut self, head: &ResponseHead, log: &EventLog) {
        self.replay_head(head, log.first());
        log.frames().for_each(|part| self.stream.writer.queue_raw(part.clone()));
    }

    /// What the client says; pending for ever once it talks no more.
    pub(super) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Result<Heard, StreamError>> {
        if !self.talks {
            return Poll::Pending;
        }
        match ready!(self.stream.reader.poll_frame(cx))? {
            Some(frame) => Poll::Ready(heard(&frame).map_err(StreamError::from)),
            None => {
                self.talks = false;
                Poll::Ready(Ok(Heard::Silence))
            }
        }
    }

    /// Writes what is queued, ends the stream, and waits until all of it has arrived or the client has
    /// said that it has read it. Ready with an error if the client is away before. `log` forgets what
    /// is acknowledged.
    pub(super) fn poll_end(
        &mut self,
        mut log: Option<&mut EventLog>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ended, StreamError>> {
        while let Poll::Ready(heard) = self.poll_heard(cx) {
            match heard {
                Ok(Heard::Acknowledged(ack)) if ack.end => return Poll::Ready(Ok(Ended::Read)),
                Ok(Heard::Acknowledged(ack)) => {
                    if let Some(log) = &mut log {
                        log.acknowledge(ack.next);
                    }
                }
                // There is nothing to cancel any more.
                Ok(Heard::Cancelled(_) | Heard::Silence) => {}
                Err(error) if error.is_away() => return Poll::Ready(Err(error)),
                // It has reset its side, or makes no sense: it is not listened to any more.
                Err(_) => self.talks = false,
            }
        }
        match ready!(self.stream.writer.poll_flush(cx)) {
            Ok(()) => {}
            Err(error) if error.is_away() => return Poll::Ready(Err(error)),
            Err(_) => return Poll::Ready(Ok(Ended::Read)),
        }
        if !self.finished {
            self.finished = true;
            self.stream.writer.finish();
        }
        match ready!(self.stream.writer.poll_stopped(cx)) {
            error if error.is_away() => Poll::Ready(Err(error)),
            // One that says nothing more cannot say that it has read it.
            _ => Poll::Ready(Ok(if self.talks { Ended::Arrived } else { Ended::Read })),
        }
    }

    /// Waits for the word that everything was read. False if the client is away instead.
    pub(super) fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match ready!(self.poll_heard(cx)) {
                Ok(Heard::Acknowledged(ack)) if !ack.end => {}
                Ok(Heard::Cancelled(_)) => {}
                Err(error) if error.is_away() => return Poll::Ready(false),
                // It says so, has nothing more to say, or wants no more.
                Ok(Heard::Acknowledged(_) | Heard::Silence) | Err(_) => return Poll::Ready(true),
            }
        }
    }
}

/// How far an answer has come that was written to its end.
pub(super) enum Ended {
    /// The client has read it, or wants no more.
    Read,
    /// It has arrived at the client.
    Arrived,
}

fn heard(frame: &Frame) -> Result<Heard, ProtocolError> {
    match frame.kind {
        FrameType::Ack => Ok(Heard::Acknowledged(Ack::from_frame(frame)?)),
        FrameType::Cancel => {
            let why: String = Cancel::from_frame(frame)?.reason.chars().take(200).collect();
            Ok(Heard::Cancelled(if why.is_empty() { "cancelled by the caller".into() } else { why }))
        }
        kind => Err(ProtocolError::Unexpected { got: kind.name(), expected: "Ack or Cancel" }),
    }
}

/// Pieces of bytes, to be queued one after the other.
pub(super) fn queue_all(reader: &mut Reader, pieces: impl IntoIterator<Item = Bytes>) {
    pieces.into_iter().for_each(|piece| reader.stream.writer.queue_raw(piece));
}
