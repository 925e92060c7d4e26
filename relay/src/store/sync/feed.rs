//! What has changed: each item once, in the order of the numbers of their last changes.

use super::{COLUMNS, Content, Stored};
use crate::store::StoreError;
use crate::store::sessions::unsigned;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKind};
use belay_protocol::message::{Resync, SyncChange, SyncContent};
use rusqlite::{Connection, OptionalExtension, Row};

/// The most changes of a page.
const MAX_PAGE: u32 = 1000;
/// A page ends once it has so many bytes.
const PAGE_BYTES: usize = 1 << 20;

/// Some changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What has changed.
    pub changes: Vec<SyncChange>,
    /// Where the next page begins.
    pub cursor: String,
    /// There is more already.
    pub has_more: bool,
    /// The cursor that was given led nowhere: this is the first page.
    pub resync: Resync,
}

/// Where a reader stands: in which life of which tenant's file, the number up to which it has read and that change's
/// nonce, and what was forgotten when it began to read from the beginning: that it need not know.
struct Cursor<'a> {
    epoch: &'a str,
    number: i64,
    nonce: i64,
    began: i64,
}

impl<'a> Cursor<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let epoch = parts.next()?;
        let mut number = || parts.next()?.parse().ok();
        let cursor = Self { epoch, number: number()?, nonce: number()?, began: number()? };
        parts.next().is_none().then_some(cursor)
    }

    fn text(&self) -> String {
        format!("{}-{}-{}-{}", self.epoch, self.number, self.nonce, self.began)
    }
}

/// The nonce of a change. `None`: it is not known any more.
fn nonce(connection: &Connection, number: i64) -> Result<Option<i64>, StoreError> {
    if number == 0 {
        return Ok(Some(0));
    }
    let sql = "SELECT nonce FROM sync_change WHERE number = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([number], |row| row.get(0)).optional()?)
}

/// The cursor of a reader that has everything.
pub fn here(connection: &Connection) -> Result<String, StoreError> {
    let (epoch, number, _) = position(connection)?;
    Ok(Cursor { epoch: &epoch, number, nonce: nonce(connection, number)?.unwrap_or(0), began: 0 }.text())
}

/// The epoch, number of the last change, highest number that is forgotten. The epoch is that of the tenant's book, and
/// what tells this file from those of other tenants and relays: a client may come from one of them.
fn position(connection: &Connection) -> Result<(String, i64, i64), StoreError> {
    let sql = "SELECT format('%x.%d', life, tenant.epoch), sync_counter.number, forgotten FROM tenant, sync_counter";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?)
}

/// The changes after a cursor. One that leads nowhere (too old, of another epoch, not one of ours) begins anew, which
/// the page says.
pub fn page(connection: &Connection, cursor: &str, limit: u32) -> Result<Page, StoreError> {
    let (epoch, last, forgotten) = position(connection)?;
    let (after, began, resync) = match Cursor::parse(cursor) {
        _ if cursor.is_empty() => (0, forgotten, Resync::NO),
        Some(Cursor { epoch: of, number, nonce: then, began }) if of == epoch && number <= last && began <= last => {
            match nonce(connection, number)? {
                Some(nonce) if nonce != then => (0, forgotten, Resync::OTHER_EPOCH),
                Some(_) if number.max(began) >= forgotten => (number, began, Resync::NO),
                _ => (0, forgotten, Resync::TOO_OLD),
            }
        }
        _ => (0, forgotten, Resync::OTHER_EPOCH),
    };
    let limit = if limit == 0 { MAX_PAGE } else { limit.min(MAX_PAGE) };
    let sql = format!(
        "SELECT {COLUMNS}, sync_item.kind, sync_item.key, sync_item.number, sync_item.changed_ms, sync_item.deleted_ms,
                sync_item.conflict_of, session.last_number
         FROM sync_item LEFT JOIN sync_revision ON sync_revision.id = sync_item.head
              LEFT JOIN session ON sync_item.kind = 4 AND session.name = sync_item.key
         WHERE sync_item.number > ?1 ORDER BY sync_item.number"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([after])?;
    let (mut changes, mut bytes, mut at, mut has_more) = (vec![], 0, after, false);
    while let Some(row) = rows.next()? {
        if changes.len() >= limit as usize || bytes >= PAGE_BYTES {
            has_more = true;
            break;
        }
        let change = read(row)?;
        at = i64::try_from(change.number).unwrap_or(i64::MAX);
        bytes += 200 + change.inline.len() + change.meta.len() + change.key.len();
        changes.push(change);
    }
    // Numbers of changes that others have followed are nobody's; a reader that has everything need not ask for them.
    let at = if has_more { at } else { last };
    let began = if at < began { began } else { 0 };
    let cursor = Cursor { epoch: &epoch, number: at, nonce: nonce(connection, at)?.unwrap_or(0), began }.text();
    Ok(Page { changes, cursor, has_more, resync })
}

fn read(row: &Row<'_>) -> rusqlite::Result<SyncChange> {
    let (kind, key, number) = (ItemKind(row.get(17)?), row.get(18)?, unsigned(row.get(19)?));
    let deleted = row.get::<_, Option<i64>>(21)?.is_some();
    if kind == ItemKind::HISTORY {
        return history(row, key, number, deleted);
    }
    let stored = Stored::read(row)?;
    let content = stored.content.code();
    let inline = if let Content::Inline(bytes) = stored.content { bytes } else { vec![] };
    Ok(SyncChange {
        number,
        kind,
        key,
        revision: stored.revision,
        content,
        device: Some(stored.device),
        at_ms: stored.at_ms,
        modified_ms: stored.modified_ms,
        size: stored.size,
        digest: stored.digest,
        inline,
        meta: stored.meta,
        conflict_of: row.get(22)?,
    })
}

/// A conversation has no revisions: what it is follows from its messages.
fn history(row: &Row<'_>, key: String, number: u64, deleted: bool) -> rusqlite::Result<SyncChange> {
    let (changed_ms, last): (i64, Option<i64>) = (row.get(20)?, row.get(23)?);
    let mut revision = [0; 16];
    revision[8..].copy_from_slice(&number.to_be_bytes());
    let gone = deleted || last.is_none();
    Ok(SyncChange {
        number,
        kind: ItemKind::HISTORY,
        key,
        revision: RevisionId(revision),
        content: if gone { SyncContent::NONE } else { SyncContent::PARTS },
        device: None,
        at_ms: unsigned(changed_ms),
        modified_ms: unsigned(changed_ms),
        size: unsigned(last.unwrap_or(0)),
        digest: Digest([0; 32]),
        inline: vec![],
        meta: String::new(),
        conflict_of: String::new(),
    })
}
