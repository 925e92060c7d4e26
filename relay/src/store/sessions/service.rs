//! What can be done with the conversations of tenants: session streams come here. Each operation is one
//! transaction in the tenant's own file.

use super::find::{self, BadCursor, Hit, Page};
use super::forget::forget;
use super::{Addition, Change, Context, Deed, Message, Refusal, Stored, act, add, context, find_live, update};
use crate::ops::reserve::Reserve;
use crate::store::StoreError;
use crate::store::daily::daily;
use crate::store::executor::{Db, Store};
use belay_protocol::id::{SessionId, TenantId};
use belay_transport::env::Clock;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When what was deleted long ago is forgotten for the first time: so long after the start.
const FIRST_ROUND: Duration = Duration::from_secs(60);

/// The sessions of all tenants.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    clock: Arc<dyn Clock>,
    /// What a tenant's may take, in bytes.
    most: Arc<AtomicU64>,
    /// Of the disk; `None`: nobody looks how full it is.
    reserve: Option<Arc<Reserve>>,
}

impl Sessions {
    /// Those in that store; a tenant's may take `most` bytes.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, most: u64) -> Self {
        Self { store, clock, most: Arc::new(AtomicU64::new(most)), reserve: None }
    }

    /// Takes nothing new while the disk is nearly full: what is left is for requests that run.
    #[must_use]
    pub(crate) fn beside(self, reserve: Arc<Reserve>) -> Self {
        Self { reserve: Some(reserve), ..self }
    }

    fn has_room(&self) -> Result<(), StoreError> {
        match &self.reserve {
            Some(reserve) if reserve.is_short() => {
                let why = "the relay's disk is nearly full".to_owned();
                Err(StoreError::Failed { operation: "add to a session", why })
            }
            _ => Ok(()),
        }
    }

    /// Another bound from now on.
    pub fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    async fn run<T, F>(&self, tenant: &TenantId, command: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.store.run(Db::Tenant(tenant.clone()), command).await
    }

    /// The wall clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// A session with its context, and the number above which its messages are wanted: `after`, or what leaves
    /// the last `last`.
    pub async fn open(
        &self,
        tenant: &TenantId,
        name: &SessionId,
        (after, last): (u64, u32),
    ) -> Result<Result<(Stored, Context, u64), Refusal>, StoreError> {
        let name = name.clone();
        self.run(tenant, move |connection| {
            let stored = match find_live(connection, &name)? {
                Ok(stored) => stored,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let its_context = context(connection, &stored)?;
            let after = match last {
                0 => after,
                last => after.max(find::before_last(connection, stored.row, last)?),
            };
            Ok(Ok((stored, its_context, after)))
        })
        .await
    }

    /// A page of a session's messages, oldest first; empty: there are no more.
    pub async fn messages(&self, tenant: &TenantId, of: &Stored, after: u64) -> Result<Vec<Message>, StoreError> {
        let row = of.row;
        self.run(tenant, move |connection| find::messages(connection, row, after)).await
    }

    /// Adds a message.
    pub async fn add(
        &self,
        tenant: &TenantId,
        name: &SessionId,
        addition: Addition,
    ) -> Result<Result<u64, Refusal>, StoreError> {
        self.has_room()?;
        let (name, most) = (name.clone(), self.most());
        self.run(tenant, move |connection| add(connection, &name, &addition, most)).await
    }

    /// Changes title, model or context.
    pub async fn update(
        &self,
        tenant: &TenantId,
        name: &SessionId,
        change: Change,
    ) -> Result<Result<(Stored, Context), Refusal>, StoreError> {
        self.has_room()?;
        let (name, most, now_ms) = (name.clone(), self.most(), self.now_ms());
        self.run(tenant, move |connection| {
            Ok(match update(connection, &name, &change, (most, now_ms))? {
                Ok(stored) => {
                    let its_context = context(connection, &stored)?;
                    Ok((stored, its_context))
                }
                Err(refusal) => Err(refusal),
            })
        })
        .await
    }

    /// Deletes, restores or clears a session. What was deleted long ago is forgotten meanwhile.
    pub async fn act(
        &self,
        tenant: &TenantId,
        name: &SessionId,
        deed: Deed,
    ) -> Result<Result<(Stored, Context), Refusal>, StoreError> {
        let now_ms = self.now_ms();
        let mut left = None;
        loop {
            let name = name.clone();
            let done = self.run(tenant, move |connection| {
                Ok(match act(connection, &name, deed, now_ms)? {
                    Ok(stored) => {
                        let its_context = context(connection, &stored)?;
                        Ok((stored, its_context))
                    }
                    Err(refusal) => Err(refusal),
                })
            });
            let done = done.await?;
            // A long one goes in pieces; what others add meanwhile is not waited for.
            match &done {
                Ok((stored, _)) if deed == Deed::Clear && left.is_none_or(|left| stored.messages < left) => {
                    if stored.messages == 0 {
                        return Ok(done);
                    }
                    left = Some(stored.messages);
                }
                _ => return Ok(done),
            }
        }
    }

    /// A page of sessions.
    pub async fn list(
        &self,
        tenant: &TenantId,
        deleted: bool,
        cursor: String,
        limit: u32,
    ) -> Result<Result<Page<Stored>, BadCursor>, StoreError> {
        self.run(tenant, move |connection| find::list(connection, deleted, &cursor, limit)).await
    }

    /// A page of what was found.
    pub async fn search(
        &self,
        tenant: &TenantId,
        words: String,
        cursor: String,
        limit: u32,
    ) -> Result<Result<Page<Hit>, BadCursor>, StoreError> {
        self.store.read(tenant, move |connection| find::search(connection, &words, &cursor, limit)).await
    }

    /// Forgets what was deleted long ago.
    pub async fn forget(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let now_ms = self.now_ms();
        while self.run(tenant, move |connection| forget(connection, now_ms)).await? {}
        Ok(())
    }

    /// The same for all tenants, soon and then every day, until `stop`.
    pub async fn forget_daily(&self, stop: CancellationToken) {
        let each = |tenant: TenantId| async move { self.forget(&tenant).await };
        daily(&self.store, FIRST_ROUND, &stop, ("forget deleted sessions", each)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::central;
    use crate::store::daily::ROUND;
    use crate::store::executor::StoreConfig;
    use crate::store::schema::Durability;
    use crate::store::sessions::forget::KEPT_MS;
    use belay_protocol::id::MessageId;
    use belay_protocol::message::{Outcome, SessionRole};
    use belay_protocol::money::NanoUsd;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::time::sleep;

    #[derive(Debug)]
    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_deleted_goes_by_itself_once_its_time_is_over() {
        let dir = tempfile::tempdir().expect("made");
        let (threads, durability, idle_close) = (0, Durability::None, Duration::from_secs(60));
        let store = Store::start(&StoreConfig { dir: dir.path().into(), threads, durability, idle_close, max_open: 2 });
        let clock = Arc::new(At(AtomicU64::new(1_790_000_000_000)));
        let sessions = Sessions::new(store.clone(), clock.clone(), 1 << 20);
        let (tenant, name): (TenantId, SessionId) = ("acme".parse().expect("name"), "rome".parse().expect("name"));
        let (made, now_ms) = (tenant.clone(), clock.now_ms());
        let made = store.run(Db::Central, move |connection| central::create_tenant(connection, &made, now_ms));
        assert!(made.await.expect("stored"));
        let addition = Addition {
            message_id: MessageId([1; 16]),
            role: SessionRole::USER,
            at_ms: now_ms,
            device: "laptop".parse().expect("name"),
            request_id: None,
            outcome: Outcome::COMPLETE,
            model: String::new(),
            cost: NanoUsd::ZERO,
            text: "Where to?".into(),
        };
        sessions.add(&tenant, &name, addition).await.expect("stored").expect("added");
        sessions.act(&tenant, &name, Deed::Delete).await.expect("stored").expect("deleted");
        let (stop, forgetting) = (CancellationToken::new(), sessions.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { forgetting.forget_daily(stopped).await });
        let deleted =
            async || sessions.list(&tenant, true, String::new(), 0).await.expect("read").expect("a page").rows.len();
        sleep(FIRST_ROUND + ROUND * 3).await;
        assert_eq!(deleted().await, 1, "its time is not over");
        clock.0.fetch_add(KEPT_MS + 1, Ordering::Relaxed);
        sleep(ROUND).await;
        assert_eq!(deleted().await, 0);
        stop.cancel();
        task.await.expect("ends");
    }
}
