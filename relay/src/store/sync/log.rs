//! What an item was, and how much there is of each kind.

use super::{item, wrong};
use crate::store::StoreError;
use crate::store::sessions::unsigned;
use belay_protocol::id::{IdError, RevisionId};
use belay_protocol::item::{Digest, ItemKind};
use belay_protocol::message::{PushOutcome, RevisionState, SyncContent, SyncKindStatus, SyncRevision};
use rusqlite::{Connection, params};

/// The most revisions that are told of an item.
const MAX_REVISIONS: u32 = 1000;

/// The revisions of an item, the newest first, each with what it is to the item. `None`: there is no such item.
pub fn log(connection: &Connection, kind: ItemKind, key: &str) -> Result<Option<Vec<SyncRevision>>, StoreError> {
    let Some(item) = item(connection, kind, key)? else { return Ok(None) };
    // Not the content, nor the list of its parts: nobody is told of these here.
    let mut statement = connection.prepare_cached(
        "SELECT id, revision, parent, outcome, content, device, at_ms, replaced_ms, size, digest
         FROM sync_revision WHERE item = ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![item.row, MAX_REVISIONS], |row| {
        let (id, outcome): (i64, u16) = (row.get(0)?, row.get(3)?);
        let state = match item.head {
            Some(head) if head == id => RevisionState::CURRENT,
            _ if kind == ItemKind::SETTING && outcome == PushOutcome::CONFLICT.0 => RevisionState::CONFLICT,
            _ => RevisionState::REPLACED,
        };
        let device: String = row.get(5)?;
        Ok(SyncRevision {
            revision: RevisionId(row.get(1)?),
            parent: row.get::<_, Option<[u8; 16]>>(2)?.map(RevisionId),
            state,
            content: SyncContent(row.get(4)?),
            device: device.parse().map_err(|error: IdError| wrong(5, rusqlite::types::Type::Text, error))?,
            at_ms: unsigned(row.get(6)?),
            replaced_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
            size: unsigned(row.get(8)?),
            digest: Digest(row.get(9)?),
        })
    })?;
    Ok(Some(rows.collect::<Result<_, _>>()?))
}

/// What there is of each kind.
pub fn status(connection: &Connection) -> Result<Vec<SyncKindStatus>, StoreError> {
    let sql = "SELECT sync_item.kind, count(*), sum(conflict_of <> ''), ifnull(sum(sync_revision.size), 0),
                      max(changed_ms)
               FROM sync_item LEFT JOIN sync_revision ON sync_revision.id = sync_item.head
               WHERE deleted_ms IS NULL GROUP BY sync_item.kind ORDER BY sync_item.kind";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(SyncKindStatus {
            kind: ItemKind(row.get(0)?),
            items: unsigned(row.get(1)?),
            conflicts: unsigned(row.get(2)?),
            bytes: unsigned(row.get(3)?),
            changed_ms: unsigned(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
