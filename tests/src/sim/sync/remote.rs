//! The relay, which can be killed, and the way of a device to it.

use super::{At, QUOTA, World, lock};
use crate::sim::disk::ForgetfulDisk;
use belay_client::ClientError;
use belay_client::sync::place::{Source, Staged};
use belay_client::sync::remote::{Answer, Progress, Remote, TransferError};
use belay_protocol::codec::Message;
use belay_protocol::id::{DeviceId, RevisionId, TenantId};
use belay_protocol::item::{Digest, ItemKind, Part, Parts};
use belay_protocol::message::{
    Encoding, Failed, FailureCode, PushOutcome, SyncChange, SyncContent, SyncGot, SyncPage, SyncPush, SyncPushed,
};
use belay_relay::blobs::Blobs;
use belay_relay::ops::metrics::SyncMetrics;
use belay_relay::store::executor::{Store, StoreConfig};
use belay_relay::store::schema::Durability;
use belay_relay::store::sync::Content as StoredContent;
use belay_relay::store::sync::push::{Push, Pushed, Source as PushSource};
use belay_relay::sync::{Sync, SyncError};
use belay_transport::env::Random;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The relay, which can be killed.
pub(super) struct SimRelay {
    pub(super) sync: Sync,
    pub(super) store: Store,
    pub(super) disk: Arc<ForgetfulDisk>,
    pub(super) clock: Arc<At>,
    pub(super) dir: PathBuf,
    pub(super) tenant: TenantId,
}

impl SimRelay {
    pub(super) fn start(dir: &Path, disk: Arc<ForgetfulDisk>, clock: Arc<At>, seed: u64) -> Self {
        let (durability, idle_close) = (Durability::None, Duration::from_secs(3600));
        let store = Store::start(&StoreConfig { dir: dir.to_owned(), threads: 0, durability, idle_close, max_open: 4 });
        let blobs = Blobs::new(disk.clone(), Random::from_seed(seed), true);
        let sync = Sync::new(store.clone(), blobs, clock.clone(), QUOTA, SyncMetrics::default());
        Self { sync, store, disk, clock, dir: dir.to_owned(), tenant: "acme".parse().unwrap() }
    }

    pub(super) fn restart(&mut self, seed: u64) {
        self.store.close();
        // What was acknowledged was synced.
        self.disk.crash();
        *self = Self::start(&self.dir, self.disk.clone(), self.clock.clone(), seed);
    }
}

/// The way of a device to the relay.
#[derive(Clone)]
pub(super) struct SimRemote {
    pub(super) world: Arc<World>,
    pub(super) device: DeviceId,
}

fn failed(error: &SyncError) -> Box<Failed> {
    let code = FailureCode::CONFLICT;
    let message = format!("{error:?}");
    Box::new(Failed { code, message, remedy: String::new(), request_id: None, retry_after_ms: None, missing: None })
}

impl SimRemote {
    fn lost(&self) -> ClientError {
        lock(&self.world.tally).losses += 1;
        ClientError::Lost("lost".into())
    }

    /// The request may not arrive, or the relay die before it does.
    fn way_there(&self) -> Result<(), ClientError> {
        self.world.step();
        if self.world.chance(60) {
            let seed = u64::from(self.world.below(u32::MAX));
            lock(&self.world.tally).restarts += 1;
            lock(&self.world.relay).restart(seed);
        }
        if self.world.chance(15) { Err(self.lost()) } else { Ok(()) }
    }

    /// The answer may not arrive.
    fn way_back(&self) -> Result<(), ClientError> {
        if self.world.chance(15) {
            return Err(self.lost());
        }
        self.world.step();
        Ok(())
    }

    async fn deliver(&self, device: &DeviceId, message: &SyncPush) -> Answer {
        let (sync, tenant) = self.world.sync();
        let source = match message.content {
            SyncContent::NONE => PushSource::None,
            SyncContent::INLINE => PushSource::Inline(message.inline.clone()),
            _ => PushSource::Upload,
        };
        let push = Push {
            revision: message.revision,
            parent: message.parent,
            kind: message.kind,
            key: message.key.clone(),
            source,
            modified_ms: message.modified_ms,
            size: message.size,
            digest: message.digest,
            meta: message.meta.clone(),
            device: device.clone(),
            at_ms: sync.now_ms(),
            push: Digest::of(&message.encode_body().unwrap()),
        };
        let answer = sync.push(&tenant, vec![push]).await.pop().unwrap();
        answer.map_err(|error| failed(&error)).map(|Pushed { outcome, head, number, copy }| {
            lock(&self.world.tally).conflicts += u64::from(outcome == PushOutcome::CONFLICT);
            SyncPushed { revision: message.revision, outcome, head, number, copy }
        })
    }
}

impl Remote for SimRemote {
    async fn pull(&self, cursor: &str) -> Result<(Vec<SyncChange>, SyncPage), ClientError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let limit = 1 + self.world.below(5);
        let page = sync.pull(&tenant, cursor.to_owned(), limit).await.unwrap();
        self.way_back()?;
        let changes = page.changes.len() as u64;
        let (cursor, has_more, resync) = (page.cursor, page.has_more, page.resync);
        Ok((page.changes, SyncPage { changes, cursor, has_more, resync }))
    }

    async fn push(&self, pushes: &[SyncPush]) -> Result<Vec<Answer>, ClientError> {
        let mut answers = vec![];
        for push in pushes {
            self.way_there()?;
            // Something that was sent long ago comes now, too.
            if self.world.chance(5) {
                let late = lock(&self.world.delivered).clone();
                if let Some((device, late)) = late.get(self.world.below(late.len().max(1) as u32) as usize) {
                    lock(&self.world.tally).losses += 1;
                    let _ = self.deliver(device, late).await;
                }
            }
            let answer = self.deliver(&self.device, push).await;
            lock(&self.world.delivered).push((self.device.clone(), push.clone()));
            if self.world.chance(5) {
                lock(&self.world.tally).losses += 1;
                assert_eq!(self.deliver(&self.device, push).await, answer, "the same again is answered the same");
            }
            answers.push(answer);
        }
        self.way_back()?;
        Ok(answers)
    }

    async fn content(&self, revision: RevisionId) -> Result<SyncGot, ClientError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let stored = match sync.revision(&tenant, revision).await {
            Ok(stored) => stored,
            Err(error) => return Err(ClientError::Failed(failed(&error))),
        };
        self.way_back()?;
        let (content, size) = (stored.content.code(), stored.size);
        let (inline, parts) = match stored.content {
            StoredContent::None => (vec![], vec![]),
            StoredContent::Inline(bytes) => (bytes, vec![]),
            StoredContent::Parts(parts) => (vec![], parts.to_bytes()),
        };
        Ok(SyncGot { content, size, inline, parts })
    }

    async fn upload(
        &self,
        revision: RevisionId,
        kind: ItemKind,
        parts: &Parts,
        source: &mut dyn Source,
        _: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let needed = sync.begin(&tenant, revision, kind, &parts.to_bytes()).await;
        let needed = needed.map_err(|error| ClientError::Failed(failed(&error)))?;
        for (place, _) in needed {
            self.way_there()?;
            let offset = parts.all()[..place as usize].iter().map(|part| u64::from(part.size)).sum();
            let part = parts.all()[place as usize];
            let bytes = source.read(offset, part.size).unwrap();
            let (sync, tenant) = self.world.sync();
            let (_, is_there) = sync.expected(&tenant, revision, place).await.unwrap();
            if !is_there {
                sync.keep(&tenant, revision, part, (Encoding::PLAIN, bytes), false).await.unwrap();
            }
            self.way_back()?;
        }
        Ok(())
    }

    async fn download(
        &self,
        parts: &[(u64, Part)],
        staged: &mut dyn Staged,
        _: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        for (offset, part) in parts {
            self.way_there()?;
            let (sync, tenant) = self.world.sync();
            let (_, bytes) = sync.part(&tenant, part.digest).await.unwrap();
            self.way_back()?;
            staged.write(*offset, &bytes).unwrap();
        }
        Ok(())
    }
}
