//! Sync: items and their revisions in the tenant's own file, and the bytes of what is large beside it.
//!
//! Sync, blob and feed streams come here. An operation on rows is one transaction on the tenant's thread; bytes go
//! through [`Blobs`]. What is checked of content is checked before anything of it can be seen.

mod check;
mod forget;
mod uploads;

use self::uploads::Uploads;
use crate::blobs::{BlobError, Blobs};
use crate::ops::metrics::SyncMetrics;
use crate::ops::reserve::Reserve;
use crate::store::executor::{Db, Store};
use crate::store::sync::feed::{self, Page};
use crate::store::sync::push::{Push, Pushed, Source, push};
use crate::store::sync::{self, Chunk, Refusal, Stored, lock, log, upload};
use crate::store::{Connection, StoreError};
use belay_protocol::id::{DeviceId, LockToken, RevisionId, TenantId};
use belay_protocol::item::{Digest, ItemKey, ItemKind, Part};
use belay_protocol::message::{Encoding, SyncKindStatus, SyncRevision};
use belay_transport::env::Clock;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

pub(crate) use self::uploads::Sending;

/// Why something was not done.
#[derive(Debug, Clone)]
pub enum SyncError {
    /// It is not acceptable, and what to do about it.
    Invalid(String, &'static str),
    /// What is stored stands against it.
    Refused(Refusal),
    /// The bytes could not be kept or read.
    Blob(BlobError),
    /// The tenant's file could not be read or written.
    Store(StoreError),
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BlobError> for SyncError {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

impl From<Refusal> for SyncError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn invalid(message: impl Into<String>, remedy: &'static str) -> SyncError {
    SyncError::Invalid(message.into(), remedy)
}

/// A part that is needed, and how many bytes of it are there already.
pub type Needed = (u32, u32);

/// What all tenants sync.
#[derive(Debug, Clone)]
pub struct Sync {
    store: Store,
    blobs: Blobs,
    /// Of the disk; `None`: nobody looks how full it is.
    reserve: Option<Arc<Reserve>>,
    clock: Arc<dyn Clock>,
    /// What a tenant's items may take, in bytes.
    quota: Arc<AtomicU64>,
    metrics: SyncMetrics,
    uploads: Uploads,
}

impl Sync {
    /// Items in that store, bytes in those blobs; a tenant's may take `quota` bytes.
    #[must_use]
    pub fn new(store: Store, blobs: Blobs, clock: Arc<dyn Clock>, quota: u64, metrics: SyncMetrics) -> Self {
        Self {
            store,
            blobs,
            reserve: None,
            clock,
            quota: Arc::new(AtomicU64::new(quota)),
            metrics,
            uploads: Uploads::default(),
        }
    }

    /// Takes nothing new while the disk is nearly full: what is left is for requests that run.
    #[must_use]
    pub(crate) fn beside(self, reserve: Arc<Reserve>) -> Self {
        Self { reserve: Some(reserve), ..self }
    }

    fn has_room(&self) -> Result<(), SyncError> {
        match &self.reserve {
            Some(reserve) if reserve.is_short() => Err(BlobError::Full.into()),
            _ => Ok(()),
        }
    }

    /// Another quota from now on.
    pub fn set_quota(&self, quota: u64) {
        self.quota.store(quota, Ordering::Relaxed);
    }

    fn quota(&self) -> u64 {
        self.quota.load(Ordering::Relaxed)
    }

    async fn run<T, F>(&self, tenant: &TenantId, command: F) -> Result<T, SyncError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        Ok(self.store.run(Db::Tenant(tenant.clone()), command).await?)
    }

    /// The wall clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Makes revisions, in that order; what becomes of each. They share a transaction, and stand for themselves.
    pub async fn push(&self, tenant: &TenantId, pushes: Vec<Push>) -> Vec<Result<Pushed, SyncError>> {
        let mut answers: Vec<Option<Result<Pushed, SyncError>>> = vec![];
        let mut good = vec![];
        for push in pushes {
            let checked = self.check(tenant, &push).await;
            answers.push(checked.err().map(Err));
            if let Some(None) = answers.last() {
                good.push(push);
            }
        }
        let (quota, count) = (self.quota(), good.len());
        let revisions: Vec<_> = good.iter().map(|push| push.revision).collect();
        let pushed = self.run(tenant, move |connection| {
            good.iter().map(|one| push(connection, one, quota)).collect::<Result<Vec<_>, _>>()
        });
        let told: Vec<Result<Pushed, SyncError>> = match pushed.await {
            Ok(pushed) => pushed.into_iter().map(|one| one.map_err(SyncError::from)).collect(),
            Err(error) => vec![Err(error); count],
        };
        let done = revisions.into_iter().zip(&told).filter(|(_, told)| told.is_ok());
        done.for_each(|(revision, _)| self.uploads.forget(tenant, revision));
        for told in &told {
            let became = match told {
                Ok(pushed) => pushed.outcome.name(),
                Err(_) => "refused",
            };
            self.metrics.pushes.get_or_create(&[("result", became)]).inc();
        }
        let mut told = told.into_iter();
        answers.into_iter().filter_map(|answer| answer.or_else(|| told.next())).collect()
    }

    /// What has changed after a cursor.
    pub async fn pull(&self, tenant: &TenantId, cursor: String, limit: u32) -> Result<Page, SyncError> {
        self.run(tenant, move |connection| feed::page(connection, &cursor, limit)).await
    }

    /// Follows the number of the last change, from the next commit on.
    #[must_use]
    pub fn watch(&self, tenant: &TenantId) -> watch::Receiver<u64> {
        self.store.watch(tenant)
    }

    /// A revision with its content. Errors: `Refused(NotFound)`.
    pub async fn revision(&self, tenant: &TenantId, name: RevisionId) -> Result<Stored, SyncError> {
        let found = self.run(tenant, move |connection| sync::revision(connection, name)).await?;
        found.ok_or(SyncError::Refused(Refusal::NotFound("revision")))
    }

    /// What an item was, the newest first. Errors: `Refused(NotFound)`.
    pub async fn log(&self, tenant: &TenantId, kind: ItemKind, key: ItemKey) -> Result<Vec<SyncRevision>, SyncError> {
        let found = self.run(tenant, move |connection| log::log(connection, kind, key.as_str())).await?;
        found.ok_or(SyncError::Refused(Refusal::NotFound("item")))
    }

    /// What there is of each kind, bytes used, bytes allowed, and where a reader that has everything stands.
    pub async fn status(&self, tenant: &TenantId) -> Result<(Vec<SyncKindStatus>, u64, u64, String), SyncError> {
        let quota = self.quota();
        self.run(tenant, move |connection| {
            Ok((log::status(connection)?, sync::used(connection)?, quota, feed::here(connection)?))
        })
        .await
    }

    /// Takes or renews a lock; its fence. Errors: `Refused(Locked)`.
    pub async fn lock(
        &self,
        tenant: &TenantId,
        key: ItemKey,
        token: LockToken,
        device: &DeviceId,
    ) -> Result<u64, SyncError> {
        let (now_ms, device) = (self.now_ms(), device.clone());
        Ok(self.run(tenant, move |connection| lock::lock(connection, &key, token, &device, now_ms)).await??)
    }

    /// Gives a lock back; whether it had expired. Errors: `Refused(NotFound)`.
    pub async fn unlock(&self, tenant: &TenantId, key: ItemKey, token: LockToken) -> Result<bool, SyncError> {
        let now_ms = self.now_ms();
        Ok(self.run(tenant, move |connection| lock::unlock(connection, &key, token, now_ms)).await??)
    }

    /// Announces content; which parts are needed. What was on its way for it on other streams ends: its sender is
    /// back.
    pub async fn begin(
        &self,
        tenant: &TenantId,
        revision: RevisionId,
        kind: ItemKind,
        parts: &[u8],
    ) -> Result<Vec<Needed>, SyncError> {
        self.has_room()?;
        let parts = check::announced(kind, parts)?;
        self.uploads.supersede(tenant, revision).await;
        let (quota, now_ms, wanted) = (self.quota(), self.now_ms(), parts.clone());
        let needed = self
            .run(tenant, move |connection| upload::begin(connection, revision, (kind, &wanted), quota, now_ms))
            .await??;
        let digests = needed.iter().map(|place| parts.all()[*place].digest).collect();
        let there = self.blobs.beginnings(&self.store.tenant_dir(tenant), digests).await?;
        let told = needed.into_iter().zip(there).map(|(place, there)| {
            let there = u32::try_from(there).unwrap_or(0).min(parts.all()[place].size);
            (u32::try_from(place).unwrap_or(u32::MAX), there)
        });
        Ok(told.collect())
    }

    /// Somebody sends parts of a revision, until he is told to stop.
    pub(crate) fn sending(&self, tenant: &TenantId, revision: RevisionId) -> Sending {
        self.uploads.sending(tenant, revision)
    }

    /// A part that comes next, and whether it is there already. Errors: `Refused(NotFound)`.
    pub async fn expected(
        &self,
        tenant: &TenantId,
        revision: RevisionId,
        place: u32,
    ) -> Result<(Part, bool), SyncError> {
        Ok(self.run(tenant, move |connection| upload::expected(connection, revision, place as usize)).await??)
    }

    /// The first bytes of a part whose sender was interrupted. Errors: `Refused(NotFound)`: there are fewer.
    pub async fn beginning(&self, tenant: &TenantId, digest: Digest, len: usize) -> Result<Bytes, SyncError> {
        let found = self.blobs.beginning(&self.store.tenant_dir(tenant), digest, len).await?;
        found.ok_or(SyncError::Refused(Refusal::NotFound("beginning of that part")))
    }

    /// Keeps what has come of a part whose sender is gone.
    pub async fn interrupted(&self, tenant: &TenantId, digest: Digest, bytes: Bytes) -> Result<(), SyncError> {
        Ok(self.blobs.keep_beginning(&self.store.tenant_dir(tenant), digest, bytes).await?)
    }

    /// Keeps a part. When this returns it is on disk, and known.
    pub async fn keep(
        &self,
        tenant: &TenantId,
        revision: RevisionId,
        part: Part,
        (encoding, bytes): (Encoding, Bytes),
        had_beginning: bool,
    ) -> Result<(), SyncError> {
        self.has_room()?;
        let dir = self.store.tenant_dir(tenant);
        let len = bytes.len() as u64;
        let kept = self.blobs.keep(&dir, part, encoding, bytes).await;
        if had_beginning {
            // Whether it fits or not, it has done its duty.
            self.blobs.forget_beginning(&dir, part.digest).await?;
        }
        let chunk = kept?;
        let (file, now_ms) = (chunk.file.clone(), self.now_ms());
        let stored = self.run(tenant, move |connection| upload::stored(connection, revision, &chunk, now_ms)).await?;
        if !matches!(stored, Ok(true)) {
            self.blobs.remove(&dir, vec![file]).await?;
        }
        stored?;
        self.metrics.bytes.get_or_create(&[("direction", "up")]).inc_by(len);
        Ok(())
    }

    /// A part as it is kept, and its bytes. Errors: `Refused(NotFound)`.
    pub async fn part(&self, tenant: &TenantId, digest: Digest) -> Result<(Chunk, Bytes), SyncError> {
        let dir = self.store.tenant_dir(tenant);
        let found = self.run(tenant, move |connection| sync::chunk(connection, digest)).await?;
        let chunk = found.ok_or(SyncError::Refused(Refusal::NotFound("part")))?;
        let bytes = self.blobs.read(&dir, &chunk).await?;
        self.metrics.bytes.get_or_create(&[("direction", "down")]).inc_by(bytes.len() as u64);
        Ok((chunk, bytes))
    }

    /// Ends the threads for bytes. Blocks.
    pub fn close(&self) {
        self.blobs.close();
    }
}
