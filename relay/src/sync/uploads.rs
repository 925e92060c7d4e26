//! Who sends parts at the moment. A device that comes back announces its content anew: what it had been sending over a
//! tunnel that is lost, and that the relay still waits for, ends first, so that nothing of it is sent twice.

use belay_protocol::id::{RevisionId, TenantId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::warn;

/// How long a sender that was told to stop may take to put away what it has.
const PUT_AWAY: Duration = Duration::from_secs(10);
/// Above so many, those that nobody sends for are forgotten.
const MANY: usize = 256;

#[derive(Debug, Default)]
struct Live {
    stop: CancellationToken,
    senders: TaskTracker,
}

type LiveByName = HashMap<(TenantId, RevisionId), Arc<Live>>;

/// Contents that are on their way.
#[derive(Debug, Clone, Default)]
pub(super) struct Uploads(Arc<Mutex<LiveByName>>);

/// A stream that sends parts.
#[derive(Debug)]
pub(crate) struct Sending {
    /// Cancelled when the same device begins anew.
    pub(crate) stop: CancellationToken,
    _token: TaskTrackerToken,
}

impl Uploads {
    /// Ends those that send for a revision, and waits until they have put away what they have.
    pub(super) async fn supersede(&self, tenant: &TenantId, revision: RevisionId) {
        let old = {
            let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if live.len() >= MANY {
                live.retain(|_, live| !live.senders.is_empty());
            }
            live.insert((tenant.clone(), revision), Arc::default())
        };
        if let Some(old) = old {
            old.stop.cancel();
            old.senders.close();
            if timeout(PUT_AWAY, old.senders.wait()).await.is_err() {
                warn!(%tenant, %revision, "a sender of parts does not stop");
            }
        }
    }

    pub(super) fn sending(&self, tenant: &TenantId, revision: RevisionId) -> Sending {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = live.entry((tenant.clone(), revision)).or_default();
        Sending { stop: live.stop.clone(), _token: live.senders.token() }
    }

    /// Its content is there.
    pub(super) fn forget(&self, tenant: &TenantId, revision: RevisionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(tenant.clone(), revision));
    }
}
