//! What is done for every tenant once a day.

use super::central;
use super::executor::{Db, Store};
use belay_protocol::id::TenantId;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Between two rounds.
pub(crate) const ROUND: Duration = Duration::from_secs(24 * 60 * 60);

/// Does something for all tenants, one after the other: so long after the start, and then every day, until `stop`.
pub(crate) async fn daily<F, E: Debug>(
    store: &Store,
    first: Duration,
    stop: &CancellationToken,
    (what, each): (&'static str, impl Fn(TenantId) -> F),
) where
    F: Future<Output = Result<(), E>>,
{
    let mut next = first;
    while stop.run_until_cancelled(sleep(next)).await.is_some() {
        next = ROUND;
        match store.run(Db::Central, central::tenants).await {
            Ok(all) => {
                for tenant in all {
                    if stop.is_cancelled() {
                        return;
                    }
                    if let Err(error) = each(tenant.id.clone()).await {
                        warn!(tenant = %tenant.id, ?error, what, "a daily task failed");
                    }
                }
            }
            Err(error) => warn!(%error, "cannot list the tenants"),
        }
    }
}
