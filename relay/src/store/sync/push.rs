//! A revision of an item: accepted, or kept beside it.

use super::{Content, Item, Refusal, Stored, by_row, item, item_key, missing, next_number, refer, revision, room};
use crate::store::StoreError;
use crate::store::sessions::{time, unsigned};
use belay_protocol::calendar;
use belay_protocol::id::{DeviceId, RevisionId};
use belay_protocol::item::{Digest, ItemKey, ItemKind};
use belay_protocol::message::PushOutcome;
use rusqlite::{Connection, params};

/// What a revision takes beside its content.
const ROW_BYTES: u64 = 500;

/// Copies beside an item that are told apart by numbers alone.
const MOST_COUNTED: u32 = 20;

/// Where the content of a push is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The item is deleted.
    None,
    /// Here.
    Inline(Vec<u8>),
    /// In the parts that were announced under the revision's name.
    Upload,
    /// In that revision of the item.
    Earlier(RevisionId),
}

/// A revision to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Its name.
    pub revision: RevisionId,
    /// The one that it was made from.
    pub parent: Option<RevisionId>,
    /// What it is.
    pub kind: ItemKind,
    /// Which one.
    pub key: ItemKey,
    /// Its content.
    pub source: Source,
    /// When its device last changed it.
    pub modified_ms: u64,
    /// Bytes of content.
    pub size: u64,
    /// Of the content.
    pub digest: Digest,
    /// What belongs to it.
    pub meta: String,
    /// Who pushes.
    pub device: DeviceId,
    /// When.
    pub at_ms: u64,
    /// Of the whole push, without who and when.
    pub push: Digest,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// What.
    pub outcome: PushOutcome,
    /// What the item is now.
    pub head: RevisionId,
    /// The number of the change; 0: none.
    pub number: u64,
    /// Where it is kept beside the item.
    pub copy: Option<ItemKey>,
}

/// Makes a revision. The same again gets the same answer. `quota` is what the tenant's items may take.
pub fn push(connection: &Connection, push: &Push, quota: u64) -> Result<Result<Pushed, Refusal>, StoreError> {
    if let Some(known) = revision(connection, push.revision)? {
        return if known.push == push.push {
            told_before(connection, push, &known).map(Ok)
        } else {
            Ok(Err(Refusal::Conflict))
        };
    }
    let found = item(connection, push.kind, push.key.as_str())?;
    let head = found.as_ref().and_then(|item| item.head).map(|row| by_row(connection, row)).transpose()?;
    let new = match content(connection, push, found.as_ref())? {
        Ok(new) => new,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let head_name = head.as_ref().map(|head| head.revision);
    if is_same(push, &new, head.as_ref()) {
        let head = head_name.unwrap_or(push.revision);
        // Whatever was announced for it is of no use.
        super::upload::done(connection, push.revision)?;
        return Ok(Ok(Pushed { outcome: PushOutcome::SAME, head, number: 0, copy: None }));
    }
    let is_newest = push.parent == head_name;
    let is_deleted = head.as_ref().is_none_or(|head| head.content == Content::None);
    if new.content == Content::None && !is_newest {
        // An edit beats a deletion.
        let head = head_name.unwrap_or(push.revision);
        return Ok(Ok(Pushed { outcome: PushOutcome::KEPT, head, number: 0, copy: None }));
    }
    // There is always room to delete.
    if new.content != Content::None
        && let Err(refusal) = room(connection, ROW_BYTES + new.inline_bytes() + push.meta.len() as u64, quota)?
    {
        return Ok(Err(refusal));
    }
    if is_newest || is_deleted {
        let number = accept(connection, push, &new, found.as_ref(), &push.key, "")?;
        return Ok(Ok(Pushed { outcome: PushOutcome::ACCEPTED, head: push.revision, number, copy: None }));
    }
    let head = head_name.unwrap_or(push.revision);
    let (number, copy) = set_aside(connection, push, &new, found.as_ref())?;
    Ok(Ok(Pushed { outcome: PushOutcome::CONFLICT, head, number, copy }))
}

/// Content of a new revision, as it is stored.
struct New {
    content: Content,
    size: u64,
    digest: Digest,
    meta: String,
}

impl New {
    fn inline_bytes(&self) -> u64 {
        match &self.content {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Parts(parts) => parts.to_bytes().len() as u64,
            Content::None => 0,
        }
    }
}

fn content(connection: &Connection, push: &Push, item: Option<&Item>) -> Result<Result<New, Refusal>, StoreError> {
    let here = |content| New { content, size: push.size, digest: push.digest, meta: push.meta.clone() };
    Ok(match &push.source {
        Source::None => Ok(here(Content::None)),
        Source::Inline(bytes) => Ok(here(Content::Inline(bytes.clone()))),
        Source::Upload => {
            let Some(parts) = super::upload::parts(connection, push.revision, Some(push.kind))? else {
                return Ok(Err(Refusal::NotFound("announced content of that revision")));
            };
            if parts.size() != push.size || parts.digest() != push.digest {
                return Ok(Err(Refusal::Mismatch));
            }
            match missing(connection, &parts)?.len() {
                0 => Ok(here(Content::Parts(parts))),
                missing => Err(Refusal::Incomplete(missing)),
            }
        }
        Source::Earlier(name) => match revision(connection, *name)? {
            Some(earlier) if belongs(&earlier, item) && earlier.content != Content::None => {
                Ok(New { content: earlier.content, size: earlier.size, digest: earlier.digest, meta: earlier.meta })
            }
            _ => Err(Refusal::NotFound("earlier revision of that item with content")),
        },
    })
}

fn belongs(revision: &Stored, item: Option<&Item>) -> bool {
    item.is_some_and(|item| item.row == revision.item)
}

fn is_same(push: &Push, new: &New, head: Option<&Stored>) -> bool {
    match head {
        None => new.content == Content::None,
        Some(head) if new.content == Content::None => head.content == Content::None,
        Some(head) => {
            head.content != Content::None
                && head.digest == new.digest
                && head.size == new.size
                && head.meta == new.meta
                && push.kind != ItemKind::HISTORY
        }
    }
}

/// Makes the revision what the item is.
fn accept(
    connection: &Connection,
    push: &Push,
    new: &New,
    found: Option<&Item>,
    key: &ItemKey,
    conflict_of: &str,
) -> Result<u64, StoreError> {
    let number = next_number(connection)?;
    let row = match found {
        Some(item) => item.row,
        None => {
            connection
                .prepare_cached(
                    "INSERT INTO sync_item (kind, key, number, changed_ms, conflict_of) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![push.kind.0, key.as_str(), number, time(push.at_ms), conflict_of])?;
            connection.last_insert_rowid()
        }
    };
    let outcome = if conflict_of.is_empty() { PushOutcome::ACCEPTED } else { PushOutcome::CONFLICT };
    let revision = insert(connection, push, new, row, number, outcome)?;
    if let Some(head) = found.and_then(|item| item.head) {
        connection
            .prepare_cached("UPDATE sync_revision SET replaced_ms = ?2 WHERE id = ?1")?
            .execute(params![head, time(push.at_ms)])?;
    }
    let deleted_ms = (new.content == Content::None).then_some(time(push.at_ms));
    connection
        .prepare_cached("UPDATE sync_item SET head = ?2, number = ?3, changed_ms = ?4, deleted_ms = ?5 WHERE id = ?1")?
        .execute(params![row, revision, number, time(push.at_ms), deleted_ms])?;
    Ok(unsigned(number))
}

fn insert(
    connection: &Connection,
    push: &Push,
    new: &New,
    item: i64,
    number: i64,
    outcome: PushOutcome,
) -> Result<i64, StoreError> {
    let (inline, parts) = match &new.content {
        Content::None => (None, None),
        Content::Inline(bytes) => (Some(bytes.as_slice()), None),
        Content::Parts(parts) => (None, Some(parts.to_bytes())),
    };
    connection
        .prepare_cached(
            "INSERT INTO sync_revision (revision, push, item, parent, number, outcome, content, device, at_ms,
                                        modified_ms, size, digest, inline, parts, meta)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            push.revision.0,
            push.push.0,
            item,
            push.parent.map(|parent| parent.0),
            number,
            outcome.0,
            new.content.code().0,
            push.device.as_str(),
            time(push.at_ms),
            time(push.modified_ms),
            time(new.size),
            new.digest.0,
            inline,
            parts,
            new.meta,
        ])?;
    let row = connection.last_insert_rowid();
    if let Content::Parts(parts) = &new.content {
        refer(connection, parts, 1, push.at_ms)?;
        super::upload::done(connection, push.revision)?;
    }
    Ok(row)
}

/// Keeps what was pushed for an item that had changed meanwhile: documents and adapters as an item of their own, a
/// setting among the item's revisions.
fn set_aside(
    connection: &Connection,
    push: &Push,
    new: &New,
    found: Option<&Item>,
) -> Result<(u64, Option<ItemKey>), StoreError> {
    if push.kind == ItemKind::SETTING {
        let row = found.map_or(0, |item| item.row);
        // Told to all, so that whoever shows the item's log shows it anew.
        let number = next_number(connection)?;
        let revision = insert(connection, push, new, row, number, PushOutcome::CONFLICT)?;
        connection
            .prepare_cached("UPDATE sync_revision SET replaced_ms = ?2 WHERE id = ?1")?
            .execute(params![revision, time(push.at_ms)])?;
        connection.prepare_cached("UPDATE sync_item SET number = ?2 WHERE id = ?1")?.execute(params![row, number])?;
        return Ok((unsigned(number), None));
    }
    let label = format!("{} {}", push.device, calendar::day_text(calendar::day(push.at_ms)));
    let mut count = 1;
    let copy = loop {
        // Who has so many of one day is not looked at for one more of them each time.
        let label = if count <= MOST_COUNTED { label.clone() } else { format!("{label} {}", push.revision) };
        let copy = push.key.beside(&label, count);
        if item(connection, push.kind, copy.as_str())?.is_none() {
            break copy;
        }
        count += 1;
    };
    let number = accept(connection, push, new, None, &copy, push.key.as_str())?;
    Ok((number, Some(copy)))
}

/// What was answered when this push came for the first time.
fn told_before(connection: &Connection, push: &Push, known: &Stored) -> Result<Pushed, StoreError> {
    let outcome = PushOutcome(known.outcome);
    let asked = item(connection, push.kind, push.key.as_str())?;
    let head = asked.as_ref().and_then(|item| item.head).map(|row| by_row(connection, row)).transpose()?;
    let head = head.map_or(push.revision, |head| head.revision);
    let aside = asked.is_none_or(|item| item.row != known.item);
    let copy = aside.then(|| item_key(connection, known.item)).transpose()?;
    Ok(Pushed { outcome, head, number: known.number, copy })
}
