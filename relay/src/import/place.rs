//! Settings, documents and adapters of a user, put where a tenant's items are.

use super::ImportError;
use super::apply::Applier;
use super::items::{From, Item};
use super::report::{Left, Report, Tally};
use super::sessions::device;
use crate::store::StoreError;
use crate::store::executor::Db;
use crate::store::sync::push::{Push, Source, push};
use crate::store::sync::{head, revision};
use crate::sync::SyncError;
use belay_certs::sha256;
use belay_protocol::cut;
use belay_protocol::id::{RevisionId, TenantId};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind, Parts};
use belay_protocol::message::{Encoding, PushOutcome};
use bytes::Bytes;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

impl Applier {
    pub(super) async fn items(
        &self,
        tenant: &TenantId,
        user: &str,
        items: Vec<Item>,
        report: &mut Report,
    ) -> Result<(), ImportError> {
        if items.is_empty() {
            return Ok(());
        }
        let now_ms = self.target.now_ms;
        let mut prepared = vec![];
        for item in items {
            prepared.push(Prepared::of(item)?);
        }
        let names: Vec<_> = prepared.iter().map(|one| (one.revision, one.item.kind, one.item.key.clone())).collect();
        let found = self
            .run(Db::Tenant(tenant.clone()), move |connection| {
                let one = |(name, kind, key): &(RevisionId, ItemKind, ItemKey)| {
                    let known = revision(connection, *name)?.is_some();
                    // Of what was changed here since, a copy is kept beside.
                    let from_there = head(connection, *kind, key.as_str())?.filter(|head| head.device == device());
                    Ok::<_, StoreError>((known, from_there.map(|head| head.revision)))
                };
                names.iter().map(one).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        let mut pushes = vec![];
        for (one, (known, parent)) in prepared.into_iter().zip(found) {
            if known {
                tally(&one.item, report).known += 1;
                continue;
            }
            let made = one.push(parent, now_ms)?;
            if made.source == Source::Upload {
                if self.dry_run {
                    tally(&one.item, report).new += 1;
                    continue;
                }
                if let Some(why) = self.upload(tenant, &one).await? {
                    leave(&one.item, user, why, report);
                    continue;
                }
            }
            pushes.push((one, made));
        }
        let (of, made): (Vec<Prepared>, Vec<Push>) = pushes.into_iter().unzip();
        for (one, pushed) in of.iter().zip(self.push(tenant, made).await?) {
            match pushed {
                Ok(PushOutcome::ACCEPTED | PushOutcome::CONFLICT) => tally(&one.item, report).new += 1,
                Ok(_) => tally(&one.item, report).known += 1,
                Err(why) => leave(&one.item, user, why, report),
            }
        }
        Ok(())
    }

    async fn push(&self, tenant: &TenantId, made: Vec<Push>) -> Result<Vec<Result<PushOutcome, String>>, ImportError> {
        if let Some(state) = self.target.state.as_ref().filter(|_| !self.dry_run) {
            let mut told = vec![];
            for pushed in state.sync.push(tenant, made).await {
                told.push(match pushed {
                    Ok(pushed) => Ok(pushed.outcome),
                    Err(SyncError::Invalid(why, _)) => Err(why),
                    Err(SyncError::Refused(refusal)) => Err(refusal.to_string()),
                    Err(error) => return Err(error.into()),
                });
            }
            return Ok(told);
        }
        let quota = self.target.quota;
        let tried = self.run(Db::Tenant(tenant.clone()), move |connection| {
            let one = |made: &Push| {
                let pushed = push(connection, made, quota)?;
                Ok::<_, StoreError>(pushed.map(|pushed| pushed.outcome).map_err(|refusal| refusal.to_string()))
            };
            made.iter().map(one).collect::<Result<Vec<_>, _>>()
        });
        Ok(tried.await?)
    }

    /// Keeps the parts of an item. Why that is refused, if it is.
    async fn upload(&self, tenant: &TenantId, one: &Prepared) -> Result<Option<String>, ImportError> {
        let (Some(state), Some(parts)) = (self.target.state.as_ref(), one.parts.as_ref()) else { return Ok(None) };
        let needed = match state.sync.begin(tenant, one.revision, one.item.kind, &parts.to_bytes()).await {
            Ok(needed) => needed,
            Err(SyncError::Refused(refusal)) => return Ok(Some(refusal.to_string())),
            Err(SyncError::Invalid(why, _)) => return Ok(Some(why)),
            Err(error) => return Err(error.into()),
        };
        let mut begins = vec![0];
        for part in parts.all() {
            begins.push(begins.last().copied().unwrap_or(0) + u64::from(part.size));
        }
        for (place, _) in needed {
            let (Some(part), Some(begin)) = (parts.all().get(place as usize), begins.get(place as usize)) else {
                continue;
            };
            let bytes = one.item.read(*begin, part.size as usize)?;
            state.sync.keep(tenant, one.revision, *part, (Encoding::PLAIN, bytes), false).await?;
        }
        Ok(None)
    }
}

fn tally<'a>(item: &Item, report: &'a mut Report) -> &'a mut Tally {
    match item.kind {
        ItemKind::SETTING => &mut report.settings,
        ItemKind::ADAPTER => &mut report.adapters,
        _ => &mut report.documents,
    }
}

fn leave(item: &Item, user: &str, why: String, report: &mut Report) {
    tally(item, report).left_out += 1;
    report.leave(Left { table: item.table, user: user.into(), id: item.id.clone(), why });
}

/// An item with the name of its revision, which is the same every time that it is the same.
struct Prepared {
    item: Item,
    revision: RevisionId,
    digest: Digest,
    /// `None`: its content travels in the message.
    parts: Option<Parts>,
}

impl Prepared {
    fn of(item: Item) -> Result<Self, ImportError> {
        let size = item.content.size();
        let (digest, parts) = if size <= INLINE_BYTES as u64 {
            (Digest::of(&item.read(0, INLINE_BYTES.min(usize::try_from(size).unwrap_or(0)))?), None)
        } else {
            let parts = match &item.content {
                From::Here(bytes) => {
                    cut::parts(item.kind, size, bytes.as_slice()).map_err(|error| of_file(Path::new("-"), error))?
                }
                From::File(path, _) => File::open(path)
                    .and_then(|file| cut::parts(item.kind, size, BufReader::with_capacity(1 << 20, file)))
                    .map_err(|error| of_file(path, error))?,
            };
            (parts.digest(), Some(parts))
        };
        let named = format!(
            "imported revision\n{}\n{}\n{digest}\n{size}\n{}\n{}",
            item.kind.0, item.key, item.modified_ms, item.meta
        );
        let mut revision = [0; 16];
        revision.copy_from_slice(&sha256(named.as_bytes())[..16]);
        Ok(Self { item, revision: RevisionId(revision), digest, parts })
    }

    fn push(&self, parent: Option<RevisionId>, at_ms: u64) -> Result<Push, ImportError> {
        let size = self.item.content.size();
        let source = match &self.parts {
            Some(_) => Source::Upload,
            None => Source::Inline(self.item.read(0, usize::try_from(size).unwrap_or(0))?.to_vec()),
        };
        Ok(Push {
            revision: self.revision,
            parent,
            kind: self.item.kind,
            key: self.item.key.clone(),
            source,
            modified_ms: if self.item.modified_ms == 0 { at_ms } else { self.item.modified_ms },
            size,
            digest: self.digest,
            meta: self.item.meta.clone(),
            device: device(),
            at_ms,
            push: Digest::of(&self.revision.0),
        })
    }
}

fn of_file(path: &Path, error: std::io::Error) -> ImportError {
    ImportError::File { path: path.into(), error }
}

impl Item {
    /// Bytes of its content.
    fn read(&self, begin: u64, len: usize) -> Result<Bytes, ImportError> {
        match &self.content {
            From::Here(bytes) => {
                let begin = usize::try_from(begin).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Bytes::copy_from_slice(&bytes[begin..(begin + len).min(bytes.len())]))
            }
            From::File(path, _) => {
                let read = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(begin))?;
                    let mut bytes = vec![0; len];
                    file.read_exact(&mut bytes)?;
                    Ok(bytes.into())
                };
                read().map_err(|error| of_file(path, error))
            }
        }
    }
}
