//! What carries an answer: a stream, or the wait for one.

use belay_protocol::frame::Frame;
use belay_protocol::stream::{FrameReader, FrameWriter, StreamError};
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What carries the answer at the moment.
#[derive(Debug)]
pub(super) enum Line {
    Open(Open),
    Broken(Broken),
    Over,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) writer: FrameWriter,
    pub(super) reader: FrameReader,
    /// Since when the answer is interrupted, until the relay's first word on this stream.
    pub(super) resuming: Option<Interruption>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Interruption {
    pub(super) since: Instant,
    /// The caller knows.
    pub(super) told: bool,
}

#[derive(Debug)]
pub(super) struct Broken {
    pub(super) interruption: Interruption,
    /// No attempt before this.
    pub(super) not_before: Instant,
    pub(super) why: String,
}

impl Open {
    /// The next frame; what is queued is written meanwhile.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        if !self.writer.is_flushed() {
            match self.writer.poll_flush(cx) {
                // A relay that has finished no longer listens; what it sent is still to come.
                Poll::Ready(Ok(()) | Err(StreamError::Peer(_))) | Poll::Pending => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        self.reader.poll_frame(cx)
    }
}
