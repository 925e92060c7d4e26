//! What the relay is told of what was read: acknowledgements, the end, and that a reader may come back.

use super::line::Line;
use super::{ACK_EVERY_BYTES, ACK_EVERY_EVENTS, Escalation, KEPT_BYTES};
use crate::error::ClientError;
use belay_protocol::error::StreamCode;
use belay_protocol::message::Ack;
use std::task::{Context, Waker};
use tracing::warn;

impl Escalation {
    /// Everything that was returned has been read: notes it, and tells the relay now and then.
    pub(super) fn acknowledge(&mut self) -> Result<(), ClientError> {
        if let Some(record) = &mut self.record
            && let Err(error) = record.note(self.next)
        {
            // The answer goes on; a restarted client would read a part of it again.
            warn!(%error, "cannot note how far an answer was read");
            self.record = None;
        }
        if self.keeps && self.unacknowledged < KEPT_BYTES {
            return Ok(());
        }
        // Too long to be kept: from here on it is read once.
        self.keeps = false;
        if let Line::Open(open) = &mut self.line
            && (self.next - self.acknowledged >= ACK_EVERY_EVENTS || self.unacknowledged >= ACK_EVERY_BYTES)
        {
            self.acknowledged = self.next;
            self.unacknowledged = 0;
            // It leaves while the next frame is waited for.
            open.writer.queue(&Ack { next: self.next, end: false })?;
        }
        Ok(())
    }

    /// The event from which on another stream reads: asking for one acknowledges those before it, so what
    /// is to be kept is read over.
    pub(super) fn wanted(&self) -> u64 {
        if self.keeps { self.acknowledged } else { self.next }
    }

    /// The last answer has come.
    pub(super) fn finish(&mut self, settled: bool) {
        if settled && self.keeps {
            self.detach();
        } else if let Line::Open(open) = &mut self.line {
            // The relay may have ended its side already; then nobody needs the acknowledgement.
            if settled && open.writer.queue(&Ack { next: self.next, end: true }).is_ok() {
                // It is small: it fits, or the tunnel is in no state to take anything.
                let _ = open.writer.poll_flush(&mut Context::from_waker(Waker::noop()));
            }
            open.writer.finish();
            open.reader.stop(StreamCode::NO_ERROR);
        }
        if let Some(record) = self.record.take() {
            record.forget();
        }
        self.over();
    }

    /// Leaves the answer to those who ask for it again.
    pub(super) fn detach(&mut self) {
        if let Line::Open(open) = &mut self.line {
            open.reader.stop(StreamCode::DETACHED);
            open.writer.reset(StreamCode::DETACHED);
        }
    }
}
