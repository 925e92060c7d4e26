//! Tunnels for many streams at once. One carries 128 at the most; a gateway that has more dials another
//! beside it, as another instance of the device, and closes it once it has been idle for a while.

use crate::client::Client;
use belay_http::refusal::Refusal;
use http::StatusCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Requests of a tunnel at the same time; some streams are left for other things.
const PLACES: usize = 120;
/// Tunnels at the most: of a device's four instances one is left for `belay` commands.
const MOST: usize = 3;
/// A tunnel beside the first one that was idle for so long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// The tunnels of a gateway.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Mutex<Vec<Lane>>,
    /// All places of all tunnels that there may be.
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct Lane {
    client: Arc<Client>,
    /// Who runs in it; as many as there are references beside this one.
    users: Arc<()>,
    idle_since: Option<Instant>,
}

/// A place in a tunnel, for as long as a request runs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) client: Arc<Client>,
    _user: Arc<()>,
    _place: OwnedSemaphorePermit,
}

impl Lanes {
    pub(super) fn new(first: Arc<Client>) -> Self {
        let first = Lane { client: first, users: Arc::default(), idle_since: None };
        Self { lanes: Mutex::new(vec![first]), places: Arc::new(Semaphore::new(PLACES * MOST)) }
    }

    /// A place in the first tunnel that has one. Errors: none has one for so long.
    pub(super) async fn place(&self, within: Duration) -> Result<Place, Refusal> {
        let place = timeout(within, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let message = format!("{} requests run at once, and no place has become free", PLACES * MOST);
            let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
            refusal.retry_after_ms = Some(1000);
            return Err(refusal);
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let free = lanes.iter().position(|lane| lane.running() < PLACES);
        let at = free.unwrap_or_else(|| {
            // There is a permit for it, so there are fewer than there may be.
            let another = Arc::new(lanes[0].client.another());
            lanes.push(Lane { client: another, users: Arc::default(), idle_since: None });
            lanes.len() - 1
        });
        let lane = &mut lanes[at];
        lane.idle_since = None;
        Ok(Place { client: Arc::clone(&lane.client), _user: Arc::clone(&lane.users), _place: place })
    }

    /// Takes out the tunnels that were idle for long, for the caller to close.
    pub(super) fn idle(&self) -> Vec<Arc<Client>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut closed = vec![];
        let mut at = 1;
        while at < lanes.len() {
            let lane = &mut lanes[at];
            if lane.running() > 0 {
                lane.idle_since = None;
            } else if now.duration_since(*lane.idle_since.get_or_insert(now)) >= IDLE {
                closed.push(lanes.remove(at).client);
                continue;
            }
            at += 1;
        }
        closed
    }

    /// All tunnels but the first, which is not the gateway's own.
    pub(super) fn others(&self) -> Vec<Arc<Client>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.drain(1..).map(|lane| lane.client).collect()
    }

    /// How many tunnels there are.
    pub(super) fn count(&self) -> usize {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Lane {
    fn running(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }
}
