//! Room for the bodies of all callers at once.

use belay_http::refusal::Refusal;
use belay_http::upload::Room;
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// For all bodies that are here, in KiB: half a GiB.
const ALL: usize = 512 << 10;
/// How long a body may take to come in all.
pub(super) const WITHIN: Duration = Duration::from_secs(120);

/// What bodies take together.
#[derive(Debug, Clone)]
pub(super) struct Bodies(Arc<Semaphore>);

impl Bodies {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ALL)))
    }

    /// For one that comes.
    pub(super) fn one(&self) -> BodyRoom {
        BodyRoom { all: Arc::clone(&self.0), held: None }
    }
}

/// What one body takes, for as long as this lives.
#[derive(Debug)]
pub(super) struct BodyRoom {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Room for BodyRoom {
    async fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(1024).saturating_sub(held)).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.all).try_acquire_many_owned(more) else {
            let message = "the gateway has no room for more request bodies";
            let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
            refusal.retry_after_ms = Some(1000);
            return Err(refusal.remedy("try again when others have been answered"));
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_share_what_there_is() {
        let bodies = Bodies::new();
        let (mut one, mut two) = (bodies.one(), bodies.one());
        one.grow(10).await.expect("room");
        one.grow(ALL / 2 * 1024).await.expect("room");
        two.grow(ALL / 2 * 1024).await.expect("room");
        let refused = two.grow(ALL / 2 * 1024 + 1).await.expect_err("full");
        assert_eq!((refused.status, refused.retry_after_ms), (StatusCode::SERVICE_UNAVAILABLE, Some(1000)));
        drop(one);
        two.grow(ALL * 1024).await.expect("room again");
    }
}
