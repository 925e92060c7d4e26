//! Items of a deployment that came before: what they are called here, and what they were when they came last. So what was
//! changed there since is told from what was changed here.

use crate::store::StoreError;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{Digest, ItemKey};
use rusqlite::{Connection, OptionalExtension, params};

/// An item as it came last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What it is called here.
    pub key: ItemKey,
    /// Of its content.
    pub digest: Digest,
    /// What belongs to it.
    pub meta: String,
    /// The revision that it was made.
    pub revision: RevisionId,
}

/// What came under that name of the other deployment.
pub fn find(connection: &Connection, source: &str) -> Result<Option<Imported>, StoreError> {
    let found: Option<(String, [u8; 32], String, [u8; 16])> = connection
        .prepare_cached("SELECT key, digest, meta, revision FROM imported_item WHERE source = ?1")?
        .query_row([source], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((key, digest, meta, revision)) = found else { return Ok(None) };
    let key = key.parse().map_err(|error: belay_protocol::item::KeyError| StoreError::Corrupt {
        what: "an imported item",
        why: error.to_string(),
    })?;
    Ok(Some(Imported { key, digest: Digest(digest), meta, revision: RevisionId(revision) }))
}

/// Notes what came.
pub fn note(connection: &Connection, source: &str, item: &Imported) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO imported_item (source, key, digest, meta, revision) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET key = excluded.key, digest = excluded.digest, meta = excluded.meta,
                 revision = excluded.revision",
        )?
        .execute(params![source, item.key.as_str(), item.digest.0, item.meta, item.revision.0])?;
    Ok(())
}

/// True if another item of the same table came over under that key.
pub fn is_taken(connection: &Connection, source: &str, key: &ItemKey) -> Result<bool, StoreError> {
    let table = source.split('/').next().unwrap_or_default();
    let sql = "SELECT EXISTS (SELECT 1 FROM imported_item
                              WHERE key = ?1 COLLATE NOCASE AND source <> ?2 AND source >= ?3 AND source < ?4)";
    let (from, until) = (format!("{table}/"), format!("{table}0"));
    Ok(connection.prepare_cached(sql)?.query_row(params![key.as_str(), source, from, until], |row| row.get(0))?)
}
