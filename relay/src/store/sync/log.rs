//! What an item was, and how much there is of each kind.

use super::{COLUMNS, Stored, item};
use crate::store::StoreError;
use crate::store::sessions::unsigned;
use belay_protocol::item::ItemKind;
use belay_protocol::message::{PushOutcome, RevisionState, SyncKindStatus};
use rusqlite::{Connection, params};

/// The most revisions that are told of an item.
const MAX_REVISIONS: u32 = 1000;

/// The revisions of an item, the newest first, each with what it is to the item. `None`: there is no such item.
pub fn log(
    connection: &Connection,
    kind: ItemKind,
    key: &str,
) -> Result<Option<Vec<(Stored, RevisionState)>>, StoreError> {
    let Some(item) = item(connection, kind, key)? else { return Ok(None) };
    let sql = format!("SELECT {COLUMNS} FROM sync_revision WHERE item = ?1 ORDER BY id DESC LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![item.row, MAX_REVISIONS], Stored::read)?;
    let mut log = vec![];
    for stored in rows {
        let stored = stored?;
        let state = match item.head {
            Some(head) if head == stored.row => RevisionState::CURRENT,
            _ if kind == ItemKind::SETTING && stored.outcome == PushOutcome::CONFLICT.0 => RevisionState::CONFLICT,
            _ => RevisionState::REPLACED,
        };
        log.push((stored, state));
    }
    Ok(Some(log))
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
