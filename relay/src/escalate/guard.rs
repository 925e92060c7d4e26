//! The obligation that every hold carries, and its lease.

use super::sweeper::{How, Lost, Unresolved};
use crate::store::journal::Progress;
use crate::store::ledger::settle::Settlement;
use belay_protocol::id::{RequestId, TenantId};

/// The obligation to settle or void a hold. Dropped without either, it tells the sweeper. A hold has a
/// lease, too, which its task renews: the sweeper settles for a task that stands still.
pub(crate) struct HoldGuard {
    pub(super) tenant: TenantId,
    pub(crate) request_id: RequestId,
    pub(crate) input_bytes: u64,
    /// When it was, or is being, made.
    made_ms: u64,
    progress: Progress,
    unresolved: Unresolved,
    stage: Stage,
}

/// What is known of a hold.
enum Stage {
    /// Its transaction is on the way; nobody knows how it ended.
    Queued,
    /// It is there, with the number of its lease.
    Held { lease: u64 },
    /// There is none, or no more.
    Resolved,
}

impl HoldGuard {
    /// For a hold that is being made.
    pub(super) fn queued(
        tenant: &TenantId,
        request_id: RequestId,
        input_bytes: u64,
        made_ms: u64,
        unresolved: Unresolved,
    ) -> Self {
        let (tenant, progress, stage) = (tenant.clone(), Progress::default(), Stage::Queued);
        Self { tenant, request_id, input_bytes, made_ms, progress, unresolved, stage }
    }

    /// The hold is there: its lease begins.
    pub(super) fn held(&mut self) {
        let how = How::Held { input_bytes: self.input_bytes, progress: self.progress };
        let lost = Lost { tenant: self.tenant.clone(), request_id: self.request_id, how };
        self.stage = Stage::Held { lease: self.unresolved.lease(lost) };
    }

    /// It is to be given back, whatever becomes of its task: its provider was not called, or has refused it.
    pub(super) fn voiding(&mut self) {
        if let Stage::Held { lease } = self.stage {
            self.unresolved.voiding(lease, self.made_ms);
        }
    }

    /// How far the answer has come: on that it is settled should nobody do better. Renews the lease.
    pub(super) fn note(&mut self, progress: Progress) {
        self.progress = progress;
        if let Stage::Held { lease } = self.stage {
            self.unresolved.renew(lease, progress);
        }
    }

    /// All that is known of its end: should the store fail for long, it is settled so later.
    pub(super) fn settling(&mut self, settlement: &Settlement) {
        if let Stage::Held { lease } = self.stage {
            self.unresolved.settling(lease, settlement);
        }
    }

    /// What was noted last.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The hold is resolved.
    pub(crate) fn disarm(&mut self) {
        if let Stage::Held { lease } = std::mem::replace(&mut self.stage, Stage::Resolved) {
            self.unresolved.end(lease);
        }
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let lost = match self.stage {
            Stage::Queued => {
                let how = How::Void { made_ms: self.made_ms };
                Some(Lost { tenant: self.tenant.clone(), request_id: self.request_id, how })
            }
            // Unless the sweeper has it already.
            Stage::Held { lease } => self.unresolved.end(lease),
            Stage::Resolved => None,
        };
        if let Some(lost) = lost {
            self.unresolved.push(lost);
        }
    }
}
