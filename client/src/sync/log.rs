//! What the relay knows of items beside what they are: what they were, how much there is, who holds a lock.

use super::remote::{Answer, Remote, Tunnelled};
use crate::client::Client;
use crate::error::ClientError;
use belay_protocol::codec::Message;
use belay_protocol::frame::FrameType;
use belay_protocol::id::{LockToken, RevisionId};
use belay_protocol::item::{Digest, ItemKey, ItemKind};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Failed, SyncChange, SyncContent, SyncKindStatus, SyncLock, SyncLocked, SyncLog, SyncLogDone, SyncPage, SyncPull,
    SyncPush, SyncRevision, SyncStatus, SyncStatusRequest, SyncUnlock, SyncUnlocked,
};
use std::time::Duration;
use tokio::time::Instant;

impl Client {
    /// What an item was, the newest first.
    pub async fn sync_log(
        &self,
        kind: ItemKind,
        key: &ItemKey,
        within: Duration,
    ) -> Result<Vec<SyncRevision>, ClientError> {
        let request = SyncLog { kind, key: key.clone() };
        let (rows, _) = self.list::<_, _, SyncLogDone>(StreamKind::Sync, &request, within).await?;
        Ok(rows)
    }

    /// Makes an earlier revision what the item is, in place of `head`.
    pub async fn sync_restore(
        &self,
        (kind, key): (ItemKind, &ItemKey),
        earlier: RevisionId,
        head: Option<RevisionId>,
        within: Duration,
    ) -> Result<Answer, ClientError> {
        let push = SyncPush {
            revision: RevisionId(self.request_id().0),
            parent: head,
            kind,
            key: key.clone(),
            content: SyncContent::EARLIER,
            modified_ms: self.now_ms(),
            size: 0,
            digest: Digest([0; 32]),
            inline: vec![],
            meta: String::new(),
            earlier: Some(earlier),
        };
        let mut answers = Tunnelled { client: self, within }.push(&[push]).await?;
        answers.pop().ok_or_else(|| ClientError::Lost("no answer".into()))
    }

    /// What there is of each kind, and in all.
    pub async fn sync_status(&self, within: Duration) -> Result<(Vec<SyncKindStatus>, SyncStatus), ClientError> {
        let request = SyncStatusRequest { reserved: 0 };
        let (kinds, status) = self.list(StreamKind::Sync, &request, within).await?;
        Ok((kinds, status.ok_or_else(|| ClientError::Lost("the relay ended the list before its end".into()))?))
    }

    /// Takes a lock for 30 seconds, or renews it.
    pub async fn sync_lock(
        &self,
        key: &ItemKey,
        token: LockToken,
        within: Duration,
    ) -> Result<SyncLocked, ClientError> {
        self.call(StreamKind::Sync, &SyncLock { key: key.clone(), token }, within).await
    }

    /// Gives a lock back.
    pub async fn sync_unlock(
        &self,
        key: &ItemKey,
        token: LockToken,
        within: Duration,
    ) -> Result<SyncUnlocked, ClientError> {
        self.call(StreamKind::Sync, &SyncUnlock { key: key.clone(), token }, within).await
    }

    /// A new name for who holds a lock.
    #[must_use]
    pub fn lock_token(&self) -> LockToken {
        LockToken(self.request_id().0)
    }

    /// Follows changes after a cursor over one tunnel: `each` gets every page, and says whether it wants more. Ends
    /// with the tunnel; `cursor` is where to go on.
    pub async fn sync_feed(
        &self,
        cursor: &mut String,
        within: Duration,
        mut each: impl FnMut(Vec<SyncChange>, &SyncPage) -> bool,
    ) -> Result<(), ClientError> {
        let tunnel = self.tunnel_until(Instant::now() + within).await?;
        let mut reader = tunnel.ask(StreamKind::Feed, &SyncPull { cursor: cursor.clone(), limit: 0 }).await?;
        let mut changes = vec![];
        loop {
            // It waits for as long as nothing changes; a dead tunnel ends it.
            let frame = reader.frame().await?;
            let frame = frame.ok_or_else(|| tunnel.lost("the relay ended the feed".into()))?;
            match frame.kind {
                FrameType::SyncPage => {
                    let page = SyncPage::from_frame(&frame)?;
                    cursor.clone_from(&page.cursor);
                    if !each(std::mem::take(&mut changes), &page) {
                        return Ok(());
                    }
                }
                FrameType::Failed => return Err(Failed::from_frame(&frame)?.into()),
                _ => changes.push(SyncChange::from_frame(&frame)?),
            }
        }
    }
}
