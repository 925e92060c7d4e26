//! A tenant's conversations.
//!
//! A session is a row with its context and its messages, numbered as they come: whoever writes first gets the
//! lower number, so that all devices see one order. `turn` puts question and answer of a request there in
//! the transaction that settles it, [`history`] takes what goes with the next request, [`find`] lists and
//! searches. Deleted sessions stay for 30 days.

mod context;
pub mod find;
pub mod forget;
pub mod history;
pub mod service;
mod title;
pub(crate) mod turn;

pub use self::context::{Change, Context, MAX_CONTEXT, context, update};
use self::title::title_of;
use super::StoreError;
use belay_protocol::id::{DeviceId, MessageId, RequestId, SessionId};
use belay_protocol::message::{Outcome, SessionRole};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A session as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub(crate) row: i64,
    /// Its name.
    pub name: SessionId,
    /// What people call it.
    pub title: String,
    /// The model that is asked where a request names none.
    pub model: String,
    /// When it was begun, milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last written to.
    pub updated_ms: u64,
    /// Messages in it.
    pub messages: u64,
    /// What its answers have cost.
    pub cost: NanoUsd,
    /// When it was deleted.
    pub deleted_ms: Option<u64>,
}

/// What is done with a whole session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// It can be restored for 30 days.
    Delete,
    /// Takes its deletion back.
    Restore,
    /// Forgets what was said.
    Clear,
}

/// A message to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// Names it for ever.
    pub message_id: MessageId,
    /// Who said it.
    pub role: SessionRole,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Where.
    pub device: DeviceId,
    /// In which request.
    pub request_id: Option<RequestId>,
    /// How an answer ended.
    pub outcome: Outcome,
    /// What answered.
    pub model: String,
    /// What it cost.
    pub cost: NanoUsd,
    /// What was said.
    pub text: String,
}

/// A message as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its place.
    pub number: u64,
    /// What was added.
    pub added: Addition,
}

/// Why something was not done. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such session.
    NotFound,
    /// It was deleted, and can be restored.
    Deleted,
    /// A message with that id is somewhere else, or says something else.
    Conflict,
    /// Its context would have so many bytes.
    TooLarge(u64),
    /// The tenant's sessions have no room left.
    Full,
}

pub(crate) fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The longest text that a session keeps, in bytes.
pub const MAX_TEXT: usize = 4 << 20;

/// Whether there is room for more, of `most` bytes that a tenant's sessions may take.
fn has_room(connection: &Connection, most: u64) -> Result<bool, StoreError> {
    let taken: i64 = connection.prepare_cached("SELECT bytes FROM session_size")?.query_row([], |row| row.get(0))?;
    Ok(unsigned(taken) < most)
}

/// The columns of [`Stored`], in its order.
const COLUMNS: &str = "session.id, session.name, session.title, session.model, session.created_ms, \
    session.updated_ms, session.messages, session.cost_nano, session.deleted_ms";

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Result<Self, StoreError>> {
        let name: String = row.get(1)?;
        let name = name.parse().map_err(|error: belay_protocol::id::IdError| corrupt("a session", &error));
        let fields = Self {
            row: row.get(0)?,
            name: match name {
                Ok(name) => name,
                Err(error) => return Ok(Err(error)),
            },
            title: row.get(2)?,
            model: row.get(3)?,
            created_ms: unsigned(row.get(4)?),
            updated_ms: unsigned(row.get(5)?),
            messages: unsigned(row.get(6)?),
            cost: NanoUsd(row.get(7)?),
            deleted_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
        };
        Ok(Ok(fields))
    }
}

fn corrupt(what: &'static str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what, why: why.to_string() }
}

/// The session of that name, deleted or not.
pub fn find_one(connection: &Connection, name: &SessionId) -> Result<Option<Stored>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM session WHERE name = ?1");
    connection.prepare_cached(&sql)?.query_row([name.as_str()], Stored::read).optional()?.transpose()
}

/// One that is there and was not deleted.
pub fn find_live(connection: &Connection, name: &SessionId) -> Result<Result<Stored, Refusal>, StoreError> {
    Ok(match find_one(connection, name)? {
        None => Err(Refusal::NotFound),
        Some(stored) if stored.deleted_ms.is_some() => Err(Refusal::Deleted),
        Some(stored) => Ok(stored),
    })
}

/// One that is written to: it is made if it is not there.
fn for_writing(connection: &Connection, name: &SessionId, now_ms: u64) -> Result<Result<i64, Refusal>, StoreError> {
    match find_live(connection, name)? {
        Ok(stored) => Ok(Ok(stored.row)),
        Err(Refusal::NotFound) => Ok(Ok(create(connection, name, now_ms)?)),
        Err(refusal) => Ok(Err(refusal)),
    }
}

fn create(connection: &Connection, name: &SessionId, now_ms: u64) -> Result<i64, StoreError> {
    connection
        .prepare_cached("INSERT INTO session (name, created_ms, updated_ms) VALUES (?1, ?2, ?2)")?
        .execute(params![name.as_str(), time(now_ms)])?;
    Ok(connection.last_insert_rowid())
}

fn by_row(connection: &Connection, row: i64) -> Result<Stored, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM session WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row([row], Stored::read)?
}

fn touch(connection: &Connection, row: i64, now_ms: u64) -> Result<(), StoreError> {
    // A clock that goes back does not: what was written last comes first in lists.
    connection
        .prepare_cached("UPDATE session SET updated_ms = max(updated_ms, ?2) WHERE id = ?1")?
        .execute(params![row, time(now_ms)])?;
    Ok(())
}

/// Adds a message. The session is made if it is not there; `most` is what the tenant's sessions may take, in
/// bytes. The same message again gets the same number.
pub fn add(
    connection: &Connection,
    name: &SessionId,
    addition: &Addition,
    most: u64,
) -> Result<Result<u64, Refusal>, StoreError> {
    if let Some(known) = known(connection, name, addition)? {
        return Ok(known);
    }
    if !has_room(connection, most)? {
        return Ok(Err(Refusal::Full));
    }
    match for_writing(connection, name, addition.at_ms)? {
        Ok(row) => Ok(Ok(append(connection, row, addition)?)),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// What became of a message that was added before; also if it was cleared since.
fn known(
    connection: &Connection,
    name: &SessionId,
    addition: &Addition,
) -> Result<Option<Result<u64, Refusal>>, StoreError> {
    let sql = "SELECT session.name, message.number, message.role = ?2 AND message.text = ?3 FROM message
                   JOIN session ON session.id = message.session WHERE message_id = ?1
               UNION ALL
               SELECT session.name, cleared.number, TRUE FROM cleared
                   JOIN session ON session.id = cleared.session WHERE message_id = ?1";
    let found: Option<(String, i64, bool)> = connection
        .prepare_cached(sql)?
        .query_row(params![addition.message_id.0, addition.role.0, addition.text], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(found.map(
        |(session, number, same)| {
            if same && session == name.as_str() { Ok(unsigned(number)) } else { Err(Refusal::Conflict) }
        },
    ))
}

/// Puts a message at the end.
fn append(connection: &Connection, row: i64, addition: &Addition) -> Result<u64, StoreError> {
    let (number, titled): (i64, bool) = connection
        .prepare_cached(
            "UPDATE session SET last_number = last_number + 1, messages = messages + 1,
                 cost_nano = cost_nano + ?2, updated_ms = max(updated_ms, ?3)
             WHERE id = ?1 RETURNING last_number, title <> '' OR titled",
        )?
        .query_row(params![row, addition.cost.0, time(addition.at_ms)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if !titled && addition.role == SessionRole::USER {
        connection
            .prepare_cached("UPDATE session SET title = ?2 WHERE id = ?1")?
            .execute(params![row, title_of(&addition.text)])?;
    }
    connection
        .prepare_cached(
            "INSERT INTO message (session, number, message_id, role, at_ms, device, request_id, outcome, model,
                                  cost_nano, text)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            row,
            number,
            addition.message_id.0,
            addition.role.0,
            time(addition.at_ms),
            addition.device.as_str(),
            addition.request_id.map(|id| id.0),
            addition.outcome.0,
            addition.model,
            addition.cost.0,
            addition.text,
        ])?;
    Ok(unsigned(number))
}

/// Messages that are cleared in one command: others of its thread wait meanwhile.
const CLEARED_AT_ONCE: u32 = 2_000;

/// Deletes, restores or clears a session. Doing it again changes nothing; a long one is not cleared before it has been done
/// until it has no messages left.
pub fn act(
    connection: &Connection,
    name: &SessionId,
    deed: Deed,
    now_ms: u64,
) -> Result<Result<Stored, Refusal>, StoreError> {
    let Some(stored) = find_one(connection, name)? else { return Ok(Err(Refusal::NotFound)) };
    match (deed, stored.deleted_ms) {
        // Its messages may be going already.
        (Deed::Restore, Some(deleted_ms)) if forget::is_over(deleted_ms, now_ms) => {
            return Ok(Err(Refusal::NotFound));
        }
        (Deed::Clear, Some(_)) => return Ok(Err(Refusal::Deleted)),
        (Deed::Delete, Some(_)) | (Deed::Restore, None) => {}
        (Deed::Delete, None) => {
            connection
                .prepare_cached("UPDATE session SET deleted_ms = ?2 WHERE id = ?1")?
                .execute(params![stored.row, time(now_ms)])?;
        }
        (Deed::Restore, Some(_)) => {
            connection.prepare_cached("UPDATE session SET deleted_ms = NULL WHERE id = ?1")?.execute([stored.row])?;
        }
        (Deed::Clear, None) => {
            connection
                .prepare_cached(
                    "INSERT OR IGNORE INTO cleared (message_id, session, number, at_ms)
                     SELECT message_id, session, number, ?2 FROM message WHERE session = ?1 ORDER BY number LIMIT ?3",
                )?
                .execute(params![stored.row, time(now_ms), CLEARED_AT_ONCE])?;
            let gone = connection
                .prepare_cached(
                    "DELETE FROM message WHERE id IN
                     (SELECT id FROM message WHERE session = ?1 ORDER BY number LIMIT ?2)",
                )?
                .execute(params![stored.row, CLEARED_AT_ONCE])?;
            let is_last = gone < CLEARED_AT_ONCE as usize;
            connection
                .prepare_cached(
                    "UPDATE session SET messages = iif(?3, 0, max(messages - ?2, 1)), cost_nano = iif(?3, 0, cost_nano)
                     WHERE id = ?1",
                )?
                .execute(params![stored.row, CLEARED_AT_ONCE, is_last])?;
            touch(connection, stored.row, now_ms)?;
        }
    }
    Ok(Ok(by_row(connection, stored.row)?))
}

#[cfg(test)]
mod tests;
