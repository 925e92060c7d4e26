//! What a tenant's computers have in common: settings, documents, adapters, and which conversations have changed.
//!
//! An item is known by its kind and key, and is what its newest revision says. A revision is named by whoever makes it,
//! and says which one it was made from ([`push`]): one that was made from the item as it is becomes what it is; one
//! that was made from what it was before is kept beside it. Every change gets the tenant's next number; [`feed`] is
//! each item once, in the order of its last change. Content above 32 KiB is in parts, which [`upload`] knows by their
//! hashes; their bytes are files (`crate::blobs`). [`forget`] lets go what nobody needs any more.

pub mod feed;
pub mod forget;
pub mod import;
pub mod lock;
pub mod log;
pub mod push;
pub mod upload;

use super::StoreError;
use super::sessions::{time, unsigned};
use belay_protocol::id::{DeviceId, RevisionId};
use belay_protocol::item::{Digest, ItemKey, ItemKind, Part, Parts};
use belay_protocol::message::{Encoding, SyncContent};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::HashSet;
use thiserror::Error;

/// Why something was not done. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is no such item, revision, upload or part.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The name of a revision means another push.
    #[error("this revision's name stands for something else")]
    Conflict,
    /// Its content is not what it says.
    #[error("the content that was announced has another size or digest")]
    Mismatch,
    /// Parts of the content have not arrived.
    #[error("{0} parts of the content are not here")]
    Incomplete(usize),
    /// It would take so many bytes of so many.
    #[error("this would take {wanted} of {quota} bytes that the tenant may have")]
    Full {
        /// With it.
        wanted: u64,
        /// The quota.
        quota: u64,
    },
    /// There are as many of these as there may be.
    #[error("{1} {0} are there already")]
    TooMany(&'static str, u64),
    /// Somebody else has the lock, for so many milliseconds.
    #[error("somebody else has this lock")]
    Locked(u64),
}

/// Where content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nowhere: the item is deleted.
    None,
    /// In the row.
    Inline(Vec<u8>),
    /// In parts.
    Parts(Parts),
}

impl Content {
    /// As the protocol says it.
    #[must_use]
    pub fn code(&self) -> SyncContent {
        match self {
            Self::None => SyncContent::NONE,
            Self::Inline(_) => SyncContent::INLINE,
            Self::Parts(_) => SyncContent::PARTS,
        }
    }
}

/// A revision as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub(crate) row: i64,
    pub(crate) item: i64,
    /// Its name.
    pub revision: RevisionId,
    pub(crate) push: Digest,
    /// The one that it was made from.
    pub parent: Option<RevisionId>,
    pub(crate) number: u64,
    pub(crate) outcome: u16,
    /// What it is.
    pub content: Content,
    /// Who made it.
    pub device: DeviceId,
    /// When it came, milliseconds since 1970.
    pub at_ms: u64,
    /// When it was made, by its device's clock.
    pub modified_ms: u64,
    /// Bytes of content.
    pub size: u64,
    /// BLAKE3 of the content, or of the list of its parts.
    pub digest: Digest,
    /// What belongs to the content.
    pub meta: String,
    /// Since when it is not what the item is.
    pub replaced_ms: Option<u64>,
}

/// An item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) row: i64,
    /// The row of its newest revision.
    pub(crate) head: Option<i64>,
    pub(crate) number: u64,
    pub(crate) deleted: bool,
}

const COLUMNS: &str = "sync_revision.id, sync_revision.item, sync_revision.revision, sync_revision.push, \
    sync_revision.parent, sync_revision.number, sync_revision.outcome, sync_revision.content, sync_revision.device, \
    sync_revision.at_ms, sync_revision.modified_ms, sync_revision.size, sync_revision.digest, sync_revision.inline, \
    sync_revision.parts, sync_revision.meta, sync_revision.replaced_ms";

fn wrong(column: usize, kind: Type, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, why.into())
}

impl Stored {
    /// Reads [`COLUMNS`].
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let content = match row.get::<_, u16>(7)? {
            1 => Content::Inline(row.get(13)?),
            2 => {
                let bytes: Vec<u8> = row.get(14)?;
                Content::Parts(Parts::from_bytes(&bytes).map_err(|error| wrong(14, Type::Blob, error))?)
            }
            _ => Content::None,
        };
        let device: String = row.get(8)?;
        Ok(Self {
            row: row.get(0)?,
            item: row.get(1)?,
            revision: RevisionId(row.get(2)?),
            push: Digest(row.get(3)?),
            parent: row.get::<_, Option<[u8; 16]>>(4)?.map(RevisionId),
            number: unsigned(row.get(5)?),
            outcome: row.get(6)?,
            content,
            device: device.parse().map_err(|error: belay_protocol::id::IdError| wrong(8, Type::Text, error))?,
            at_ms: unsigned(row.get(9)?),
            modified_ms: unsigned(row.get(10)?),
            size: unsigned(row.get(11)?),
            digest: Digest(row.get(12)?),
            meta: row.get(15)?,
            replaced_ms: row.get::<_, Option<i64>>(16)?.map(unsigned),
        })
    }
}

/// The revision of that name.
pub fn revision(connection: &Connection, name: RevisionId) -> Result<Option<Stored>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM sync_revision WHERE revision = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([name.0], Stored::read).optional()?)
}

fn by_row(connection: &Connection, row: i64) -> Result<Stored, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM sync_revision WHERE id = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([row], Stored::read)?)
}

pub(crate) fn item(connection: &Connection, kind: ItemKind, key: &str) -> Result<Option<Item>, StoreError> {
    let read = |row: &Row<'_>| {
        Ok(Item {
            row: row.get(0)?,
            head: row.get(1)?,
            number: unsigned(row.get(2)?),
            deleted: row.get::<_, Option<i64>>(3)?.is_some(),
        })
    };
    Ok(connection
        .prepare_cached("SELECT id, head, number, deleted_ms FROM sync_item WHERE kind = ?1 AND key = ?2")?
        .query_row(params![kind.0, key], read)
        .optional()?)
}

/// What an item is at the moment; also that it is deleted. `None`: there is none of that name.
pub fn head(connection: &Connection, kind: ItemKind, key: &str) -> Result<Option<Stored>, StoreError> {
    let found = item(connection, kind, key)?;
    found.and_then(|item| item.head).map(|row| by_row(connection, row)).transpose()
}

fn item_key(connection: &Connection, row: i64) -> Result<ItemKey, StoreError> {
    let key: String =
        connection.prepare_cached("SELECT key FROM sync_item WHERE id = ?1")?.query_row([row], |row| row.get(0))?;
    key.parse().map_err(|error: belay_protocol::item::KeyError| StoreError::Corrupt {
        what: "an item",
        why: error.to_string(),
    })
}

/// The number of the next change.
fn next_number(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection
        .prepare_cached("UPDATE sync_counter SET number = number + 1 RETURNING number")?
        .query_row([], |row| row.get(0))?)
}

/// The number of the last change.
pub fn last_number(connection: &Connection) -> Result<u64, StoreError> {
    Ok(connection.prepare_cached("SELECT number FROM sync_counter")?.query_row([], |row| row.get(0).map(unsigned))?)
}

/// What a tenant's items take, with what is on its way, in bytes.
pub fn used(connection: &Connection) -> Result<u64, StoreError> {
    let sql = "SELECT bytes + (SELECT ifnull(sum(reserved), 0) FROM blob_upload) FROM sync_size";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0).map(unsigned))?)
}

/// Whether there is room for so many bytes more.
fn room(connection: &Connection, more: u64, quota: u64) -> Result<Result<(), Refusal>, StoreError> {
    let wanted = used(connection)?.saturating_add(more);
    Ok(if wanted <= quota { Ok(()) } else { Err(Refusal::Full { wanted, quota }) })
}

/// A piece of content that is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// What it is.
    pub part: Part,
    /// How its bytes are kept.
    pub encoding: Encoding,
    /// In which file.
    pub file: String,
}

/// The piece of that hash.
pub fn chunk(connection: &Connection, digest: Digest) -> Result<Option<Chunk>, StoreError> {
    let read = |row: &Row<'_>| {
        let part = Part { digest, size: row.get(0)? };
        Ok(Chunk { part, encoding: Encoding(row.get(1)?), file: row.get(2)? })
    };
    Ok(connection
        .prepare_cached("SELECT size, encoding, file FROM blob_chunk WHERE hash = ?1")?
        .query_row([digest.0], read)
        .optional()?)
}

/// Adds `by` to the references of each piece.
fn refer(connection: &Connection, parts: &Parts, by: i64, now_ms: u64) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "UPDATE blob_chunk SET refs = refs + ?2, idle_ms = CASE WHEN refs + ?2 > 0 THEN NULL ELSE ?3 END
         WHERE hash = ?1",
    )?;
    for part in parts.all() {
        statement.execute(params![part.digest.0, by, time(now_ms)])?;
    }
    Ok(())
}

/// Of these, in which places there are pieces that are not on disk; of several that are the same, the first.
fn missing(connection: &Connection, parts: &Parts) -> Result<Vec<usize>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM blob_chunk WHERE hash = ?1 AND size = ?2")?;
    let (mut missing, mut seen) = (vec![], HashSet::new());
    for (place, part) in parts.all().iter().enumerate() {
        if seen.insert(part.digest) && !statement.exists(params![part.digest.0, part.size])? {
            missing.push(place);
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests;
