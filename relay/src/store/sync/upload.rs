//! Content on its way: what was announced, what of it is on disk, what room is set aside for it.

use super::{Chunk, Refusal, chunk, missing, room};
use crate::store::StoreError;
use crate::store::sessions::time;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{ItemKind, Part, Parts};
use rusqlite::{Connection, OptionalExtension, params};

/// The most contents that a tenant has on their way at once.
const MAX_UPLOADS: i64 = 200;
/// What a part takes in lists.
const LINE_BYTES: u64 = 150;

/// Announces the content of a revision; the places of the parts that are needed. The same again says what is needed
/// still.
pub fn begin(
    connection: &Connection,
    revision: RevisionId,
    (kind, wanted): (ItemKind, &Parts),
    quota: u64,
    now_ms: u64,
) -> Result<Result<Vec<usize>, Refusal>, StoreError> {
    match parts(connection, revision, None)? {
        Some(known) if known == *wanted => {
            touch(connection, revision, now_ms)?;
            return Ok(Ok(missing(connection, wanted)?));
        }
        Some(_) => return Ok(Err(Refusal::Conflict)),
        None => {}
    }
    if let Some(stored) = super::revision(connection, revision)? {
        // It was pushed; whoever asks has not heard of it.
        let same = matches!(&stored.content, super::Content::Parts(parts) if parts == wanted);
        return Ok(if same { Ok(vec![]) } else { Err(Refusal::Conflict) });
    }
    let count: i64 = connection.prepare_cached("SELECT count(*) FROM blob_upload")?.query_row([], |row| row.get(0))?;
    if count >= MAX_UPLOADS {
        return Ok(Err(Refusal::TooMany("contents on their way", MAX_UPLOADS as u64)));
    }
    let needed = missing(connection, wanted)?;
    // The list and the pins take room, too, until it is pushed.
    let list = wanted.all().len() as u64 * LINE_BYTES;
    let reserved: u64 = list + needed.iter().map(|place| u64::from(wanted.all()[*place].size)).sum::<u64>();
    if let Err(refusal) = room(connection, reserved, quota)? {
        return Ok(Err(refusal));
    }
    connection
        .prepare_cached(
            "INSERT INTO blob_upload (revision, kind, parts, reserved, touched_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![revision.0, kind.0, wanted.to_bytes(), time(reserved), time(now_ms)])?;
    let upload = connection.last_insert_rowid();
    let mut pin = connection.prepare_cached("INSERT OR IGNORE INTO blob_pin (hash, upload) VALUES (?1, ?2)")?;
    for part in wanted.all() {
        pin.execute(params![part.digest.0, upload])?;
    }
    Ok(Ok(needed))
}

/// The parts that were announced for a revision of an item of that kind; `None`: of any.
pub fn parts(
    connection: &Connection,
    revision: RevisionId,
    kind: Option<ItemKind>,
) -> Result<Option<Parts>, StoreError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT parts FROM blob_upload WHERE revision = ?1 AND (?2 IS NULL OR kind = ?2)")?
        .query_row(params![revision.0, kind.map(|kind| kind.0)], |row| row.get(0))
        .optional()?;
    bytes
        .map(|bytes| {
            Parts::from_bytes(&bytes)
                .map_err(|error| StoreError::Corrupt { what: "announced content", why: error.to_string() })
        })
        .transpose()
}

/// A part that is about to come, and whether it is there already.
pub fn expected(
    connection: &Connection,
    revision: RevisionId,
    place: usize,
) -> Result<Result<(Part, bool), Refusal>, StoreError> {
    // Of a list that may be long, one line.
    let line: Option<Vec<u8>> = connection
        .prepare_cached("SELECT substr(parts, ?2 * 36 + 1, 36) FROM blob_upload WHERE revision = ?1")?
        .query_row(params![revision.0, i64::try_from(place).unwrap_or(i64::MAX / 64)], |row| row.get(0))
        .optional()?;
    let part = line.and_then(|line| Parts::from_bytes(&line).ok()).and_then(|parts| parts.all().first().copied());
    let Some(part) = part else { return Ok(Err(Refusal::NotFound("announced part of that revision"))) };
    Ok(Ok((part, chunk(connection, part.digest)?.is_some_and(|chunk| chunk.part == part))))
}

/// A part is on disk. False: another file has it already, and this one is not needed. Errors: `NotFound`: nobody waits for
/// it any more.
pub fn stored(
    connection: &Connection,
    revision: RevisionId,
    new: &Chunk,
    now_ms: u64,
) -> Result<Result<bool, Refusal>, StoreError> {
    let upload: Option<(i64, i64)> = connection
        .prepare_cached("SELECT id, reserved FROM blob_upload WHERE revision = ?1")?
        .query_row([revision.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((upload, reserved)) = upload else {
        return Ok(Err(Refusal::NotFound("announced part of that revision")));
    };
    let added = connection
        .prepare_cached(
            "INSERT INTO blob_chunk (hash, size, encoding, file, idle_ms) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (hash) DO NOTHING",
        )?
        .execute(params![new.part.digest.0, new.part.size, new.encoding.0, new.file, time(now_ms)])?;
    // Two streams may have brought the same.
    let left = if added > 0 { (reserved - i64::from(new.part.size)).max(0) } else { reserved };
    connection
        .prepare_cached("UPDATE blob_upload SET reserved = ?2, touched_ms = ?3 WHERE id = ?1")?
        .execute(params![upload, left, time(now_ms)])?;
    Ok(Ok(added > 0))
}

fn touch(connection: &Connection, revision: RevisionId, now_ms: u64) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE blob_upload SET touched_ms = ?2 WHERE revision = ?1")?
        .execute(params![revision.0, time(now_ms)])?;
    Ok(())
}

/// The content of a revision has a revision: it is on its way no more.
pub(super) fn done(connection: &Connection, revision: RevisionId) -> Result<(), StoreError> {
    connection.prepare_cached("DELETE FROM blob_upload WHERE revision = ?1")?.execute([revision.0])?;
    Ok(())
}
