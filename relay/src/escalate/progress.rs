//! How far an answer has come, noted for whoever settles it should its task not live to do so.

use super::runner::Flight;
use crate::store::journal::Progress;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// Progress is noted at most this often: what a kill may cost in tokens that are not charged.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

impl Flight<'_> {
    /// How far the answer has come, as far as it is metered.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            events: self.log.next(),
            output_bytes: self.meter.output_bytes(),
            told_input: self.meter.told_input(),
            offer: u8::try_from(self.offers.number()).unwrap_or(u8::MAX),
        }
    }

    /// After the write: nobody waits for a note.
    pub(super) fn note_progress(&mut self) {
        if self.log.next() == self.held.guard.progress().events {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.progress_noted) >= PROGRESS_EVERY {
            self.progress_noted = now;
            self.meter.catch_up();
            let progress = self.progress();
            self.held.guard.note(progress);
            if let Err(error) = self.held.tenant.journal.append(self.held.guard.request_id, progress) {
                self.span.in_scope(|| debug!(%error, "cannot note the progress"));
            }
        }
    }
}
