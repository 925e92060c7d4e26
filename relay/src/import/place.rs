//! Settings, documents and adapters of a user, put where a tenant's items are.
//!
//! What came last is known by its name there (`imported_item`): what did not change there since is left as it is here,
//! whatever became of it; what changed is pushed as made from what came last, so that a change of both gets a copy.

use super::ImportError;
use super::apply::Applier;
use super::items::{From, Item};
use super::names;
use super::report::{Left, Report, Tally};
use super::sessions::device;
use crate::store::executor::Db;
use crate::store::sync::import::{Imported, find, is_taken, note};
use crate::store::sync::push::{Push, Source, push};
use crate::store::{Connection, StoreError};
use crate::sync::SyncError;
use belay_certs::sha256;
use belay_protocol::cut;
use belay_protocol::id::{RevisionId, TenantId};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind, Parts};
use belay_protocol::message::{Encoding, PushOutcome};
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// What a push has led to: what became of it, and what the item is since.
type Told = Result<(PushOutcome, RevisionId), String>;

impl Applier {
    /// Puts all of them in their places.
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
        let mut prepared = vec![];
        for item in items {
            prepared.push(Prepared::of(item)?);
        }
        let names: Vec<_> =
            prepared.iter().map(|one| (one.item.source(), one.item.id.clone(), one.item.key.clone())).collect();
        let known = self.run(Db::Tenant(tenant.clone()), move |connection| known(connection, &names)).await?;
        let mut ready = vec![];
        for (mut one, known) in prepared.into_iter().zip(known) {
            let Some((key, before)) = known else {
                let why = format!("others are called {} too", one.item.key);
                leave(&one.item, user, why, report);
                continue;
            };
            one.item.key = key;
            let is_gone = one.item.content == From::Nowhere;
            let is_same = |before: &Imported| before.digest == one.digest && before.meta == one.item.meta;
            if before.as_ref().is_none_or(is_same) && (is_gone || before.is_some()) {
                let tally = tally(&one.item, report);
                *(if is_gone { &mut tally.deleted } else { &mut tally.known }) += 1;
                continue;
            }
            let made = one.push(before.map(|before| before.revision), self.target.now_ms)?;
            if made.source == Source::Upload {
                if self.dry_run {
                    tally(&one.item, report).new += 1;
                    continue;
                }
                if let Some(why) = self.upload(tenant, made.revision, &one).await? {
                    leave(&one.item, user, why, report);
                    continue;
                }
            }
            ready.push((one, made));
        }
        let (of, made): (Vec<Prepared>, Vec<Push>) = ready.into_iter().unzip();
        let mut notes = vec![];
        for (one, told) in of.into_iter().zip(self.push(tenant, made).await?) {
            match told {
                Ok((outcome, revision)) => {
                    let tally = tally(&one.item, report);
                    match outcome {
                        _ if one.item.content == From::Nowhere => tally.deleted += 1,
                        PushOutcome::ACCEPTED | PushOutcome::CONFLICT => tally.new += 1,
                        _ => tally.known += 1,
                    }
                    let source = one.item.source();
                    let Item { key, meta, .. } = one.item;
                    notes.push((source, Imported { key, digest: one.digest, meta, revision }));
                }
                Err(why) => leave(&one.item, user, why, report),
            }
        }
        let noted = self.run(Db::Tenant(tenant.clone()), move |connection| {
            notes.iter().try_for_each(|(source, item)| note(connection, source, item))
        });
        Ok(noted.await?)
    }

    async fn push(&self, tenant: &TenantId, made: Vec<Push>) -> Result<Vec<Told>, ImportError> {
        if let Some(state) = self.target.state.as_ref().filter(|_| !self.dry_run) {
            let revisions: Vec<RevisionId> = made.iter().map(|made| made.revision).collect();
            let mut told = vec![];
            for (pushed, revision) in state.sync.push(tenant, made).await.into_iter().zip(revisions) {
                told.push(match pushed {
                    // What was the same already was made by somebody else.
                    Ok(pushed) if pushed.outcome == PushOutcome::SAME => Ok((pushed.outcome, pushed.head)),
                    Ok(pushed) => Ok((pushed.outcome, revision)),
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
                let told = pushed.map(|pushed| (pushed.outcome, made.revision));
                Ok::<_, StoreError>(told.map_err(|refusal| refusal.to_string()))
            };
            made.iter().map(one).collect::<Result<Vec<_>, _>>()
        });
        Ok(tried.await?)
    }

    /// Keeps the parts of an item. Why that is refused, if it is.
    async fn upload(
        &self,
        tenant: &TenantId,
        revision: RevisionId,
        one: &Prepared,
    ) -> Result<Option<String>, ImportError> {
        let (Some(state), Some(parts)) = (self.target.state.as_ref(), one.parts.as_ref()) else { return Ok(None) };
        let needed = match state.sync.begin(tenant, revision, one.item.kind, &parts.to_bytes()).await {
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
            state.sync.keep(tenant, revision, *part, (Encoding::PLAIN, bytes), false).await?;
        }
        Ok(None)
    }
}

/// What each is called here, and what it was when it came last. One that could not be told from others has no name.
#[expect(clippy::type_complexity, reason = "an answer for each")]
fn known(
    connection: &Connection,
    names: &[(String, String, ItemKey)],
) -> Result<Vec<Option<(ItemKey, Option<Imported>)>>, StoreError> {
    let mut found = vec![];
    let mut taken: HashSet<(String, String)> = HashSet::new();
    let table = |source: &str| source.split('/').next().unwrap_or_default().to_owned();
    for (source, ..) in names {
        let before = find(connection, source)?;
        taken.extend(before.iter().map(|before| (table(source), before.key.to_string().to_lowercase())));
        found.push(before);
    }
    let mut named = vec![];
    for ((source, id, wanted), before) in names.iter().zip(found) {
        if let Some(before) = before {
            named.push(Some((before.key.clone(), Some(before))));
            continue;
        }
        let mut key = None;
        for candidate in [Some(wanted.clone()), names::other(wanted, id)].into_iter().flatten() {
            let place = (table(source), candidate.to_string().to_lowercase());
            if !taken.contains(&place) && !is_taken(connection, source, &candidate)? {
                taken.insert(place);
                key = Some((candidate, None));
                break;
            }
        }
        named.push(key);
    }
    Ok(named)
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

/// An item and what its content is.
struct Prepared {
    item: Item,
    digest: Digest,
    /// `None`: its content travels in the message.
    parts: Option<Parts>,
}

impl Prepared {
    fn of(item: Item) -> Result<Self, ImportError> {
        let size = item.content.size();
        if size <= INLINE_BYTES as u64 {
            let digest = Digest::of(&item.read(0, usize::try_from(size).unwrap_or(0))?);
            return Ok(Self { item, digest, parts: None });
        }
        let parts = match &item.content {
            From::Nowhere => cut::parts(item.kind, 0, &[][..]).map_err(|error| of_file(Path::new("-"), error))?,
            From::Here(bytes) => {
                cut::parts(item.kind, size, bytes.as_slice()).map_err(|error| of_file(Path::new("-"), error))?
            }
            From::File(path, _) => File::open(path)
                .and_then(|file| cut::parts(item.kind, size, BufReader::with_capacity(1 << 20, file)))
                .map_err(|error| of_file(path, error))?,
        };
        Ok(Self { item, digest: parts.digest(), parts: Some(parts) })
    }

    /// Its name is the same every time that it is made from the same.
    fn push(&self, parent: Option<RevisionId>, at_ms: u64) -> Result<Push, ImportError> {
        let (item, size) = (&self.item, self.item.content.size());
        let source = match (&self.parts, &item.content) {
            (_, From::Nowhere) => Source::None,
            (Some(_), _) => Source::Upload,
            (None, _) => Source::Inline(item.read(0, usize::try_from(size).unwrap_or(0))?.to_vec()),
        };
        let named = format!(
            "imported revision\n{}\n{}\n{}\n{size}\n{}\n{}\n{}",
            item.source(),
            item.key,
            self.digest,
            source == Source::None,
            parent.map(|parent| parent.to_string()).unwrap_or_default(),
            item.meta
        );
        let mut revision = [0; 16];
        revision.copy_from_slice(&sha256(named.as_bytes())[..16]);
        Ok(Push {
            revision: RevisionId(revision),
            parent,
            kind: item.kind,
            key: item.key.clone(),
            source,
            modified_ms: if item.modified_ms == 0 { at_ms } else { item.modified_ms },
            size,
            digest: self.digest,
            meta: item.meta.clone(),
            device: device(),
            at_ms,
            push: Digest::of(&revision),
        })
    }
}

fn of_file(path: &Path, error: std::io::Error) -> ImportError {
    ImportError::File { path: path.into(), error }
}

impl Item {
    /// What it was called there.
    fn source(&self) -> String {
        format!("{}/{}", self.table, self.id)
    }

    /// Bytes of its content.
    fn read(&self, begin: u64, len: usize) -> Result<Bytes, ImportError> {
        match &self.content {
            From::Nowhere => Ok(Bytes::new()),
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
