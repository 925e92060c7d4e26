//! The obligation that every hold carries.

use super::sweeper::{How, Lost, Unresolved};
use crate::store::journal::Progress;
use belay_protocol::id::{RequestId, TenantId};

/// The obligation to settle or void a hold. Dropped without either, it tells the sweeper.
pub(crate) struct HoldGuard {
    pub(super) tenant: TenantId,
    pub(crate) request_id: RequestId,
    pub(crate) input_bytes: u64,
    pub(crate) progress: Progress,
    pub(super) unresolved: Unresolved,
    pub(super) stage: Stage,
}

/// What is known of a hold.
pub(super) enum Stage {
    /// Its transaction is on the way; nobody knows how it ended.
    Queued {
        made_ms: u64,
    },
    Held,
    /// There is none, or no more.
    Resolved,
}

impl HoldGuard {
    /// The hold is resolved.
    pub(crate) fn disarm(&mut self) {
        self.stage = Stage::Resolved;
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let how = match self.stage {
            Stage::Queued { made_ms } => How::Unknown { made_ms },
            Stage::Held => How::Held { input_bytes: self.input_bytes, progress: self.progress },
            Stage::Resolved => return,
        };
        self.unresolved.push(Lost { tenant: self.tenant.clone(), request_id: self.request_id, how });
    }
}
