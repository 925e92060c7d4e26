//! What a push and an announcement must be like, before anything of them is stored.

use super::{Source, Sync, SyncError, invalid};
use crate::store::sync::push::Push;
use crate::store::sync::{self, Refusal, upload};
use belay_protocol::adapter::{self, HEADER_REGION};
use belay_protocol::id::TenantId;
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKind, META_BYTES, Parts};

/// The parts of content that is announced.
pub(super) fn announced(kind: ItemKind, parts: &[u8]) -> Result<Parts, SyncError> {
    let parts = Parts::from_bytes(parts).map_err(|error| invalid(error.to_string(), "see PROTOCOL.md"))?;
    fits(kind, parts.size())?;
    if parts.size() <= INLINE_BYTES as u64 {
        return Err(invalid(format!("{} bytes are too few for parts", parts.size()), "send them in the push"));
    }
    Ok(parts)
}

fn fits(kind: ItemKind, size: u64) -> Result<(), SyncError> {
    let most = kind.most_bytes();
    match kind {
        ItemKind::SETTING | ItemKind::DOCUMENT | ItemKind::ADAPTER if size <= most => Ok(()),
        ItemKind::SETTING | ItemKind::DOCUMENT | ItemKind::ADAPTER => {
            Err(invalid(format!("a {kind} of {size} bytes; at most {most} are allowed"), "make it smaller"))
        }
        ItemKind::HISTORY => {
            Err(invalid("conversations change by their messages", "add messages over a session stream"))
        }
        other => {
            Err(invalid(format!("there are no items of kind {}", other.0), "see PROTOCOL.md, or use a newer relay"))
        }
    }
}

impl Sync {
    /// Errors: `Invalid`, and what stands against it before it is pushed.
    pub(super) async fn check(&self, tenant: &TenantId, push: &Push) -> Result<(), SyncError> {
        // There is always room to delete.
        if push.source != Source::None {
            self.has_room()?;
        }
        fits(push.kind, push.size)?;
        if push.meta.len() > META_BYTES || !push.meta.is_empty() && push.kind != ItemKind::ADAPTER {
            return Err(invalid("only adapters have meta, of 64 KiB at most", "leave it empty"));
        }
        match &push.source {
            Source::None if push.size != 0 => {
                return Err(invalid("a deletion has no content", "say that it has no bytes"));
            }
            Source::Inline(bytes) => {
                if bytes.len() > INLINE_BYTES || bytes.len() as u64 != push.size || Digest::of(bytes) != push.digest {
                    return Err(invalid(
                        "the content has another size or digest than the push says, or more than 32 KiB",
                        "correct the client; larger content is sent in parts",
                    ));
                }
                if push.kind == ItemKind::SETTING && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_err() {
                    return Err(invalid("a setting's content is a JSON value", "send one"));
                }
                if push.kind == ItemKind::ADAPTER {
                    adapter::check(bytes, push.size, &push.meta).map_err(unfit)?;
                }
            }
            Source::Upload if push.kind == ItemKind::ADAPTER => self.check_adapter(tenant, push).await?,
            Source::None | Source::Upload | Source::Earlier(_) => {}
        }
        Ok(())
    }

    /// Reads the beginning of an adapter's weights.
    async fn check_adapter(&self, tenant: &TenantId, push: &Push) -> Result<(), SyncError> {
        let revision = push.revision;
        let found = self.run(tenant, move |connection| {
            let Some(parts) = upload::parts(connection, revision, None)? else { return Ok(None) };
            let mut chunks = vec![];
            let mut covered = 0;
            for part in parts.all() {
                if covered >= HEADER_REGION {
                    break;
                }
                covered += u64::from(part.size);
                chunks.push(sync::chunk(connection, part.digest)?);
            }
            Ok(Some((parts.size(), chunks)))
        });
        // Pushed before: whoever asks again gets its answer.
        let Some((size, chunks)) = found.await? else { return Ok(()) };
        let dir = self.store.tenant_dir(tenant);
        let mut start = vec![];
        for chunk in chunks {
            let chunk = chunk.ok_or(SyncError::Refused(Refusal::Incomplete(1)))?;
            start.extend_from_slice(&self.blobs.plain(&dir, &chunk).await?);
        }
        adapter::check(&start, size, &push.meta).map_err(unfit)?;
        Ok(())
    }
}

fn unfit(error: adapter::AdapterError) -> SyncError {
    invalid(error.to_string(), "correct the adapter; it is not synced as it is")
}
