//! What goes with every request of a session, and how it is changed.

use super::title::title_of;
use super::{Refusal, Stored, by_row, corrupt, find_live, for_writing, has_room, touch};
use crate::store::StoreError;
use belay_protocol::dialect::prompt::Knowledge;
use belay_protocol::id::SessionId;
use belay_protocol::message::SessionRole;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

/// The most bytes of a session's context.
pub const MAX_CONTEXT: u64 = 512 << 10;

/// What goes with every request of a session.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Context {
    /// How the asker wants to be met; empty: not said.
    pub framing: String,
    /// What the asker's computer knows.
    pub knowledge: Vec<Knowledge>,
    /// What answers must respect.
    pub constraints: Vec<String>,
}

/// A change; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Change {
    /// Empty: that of its first message.
    pub title: Option<String>,
    /// Empty: the relay's choice.
    pub model: Option<String>,
    /// Empty: none.
    pub framing: Option<String>,
    /// In place of what there is.
    pub knowledge: Option<Vec<Knowledge>>,
    /// In place of what there is.
    pub constraints: Option<Vec<String>>,
}

fn json<T: Serialize>(list: &T) -> Result<String, StoreError> {
    serde_json::to_string(list)
        .map_err(|error| StoreError::Failed { operation: "encode a context", why: error.to_string() })
}

/// What goes with requests of a session.
pub fn context(connection: &Connection, stored: &Stored) -> Result<Context, StoreError> {
    let sql = "SELECT framing, knowledge, constraints FROM session WHERE id = ?1";
    let (framing, knowledge, constraints): (String, String, String) =
        connection.prepare_cached(sql)?.query_row([stored.row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(Context {
        framing,
        knowledge: serde_json::from_str(&knowledge).map_err(|error| corrupt("a session's knowledge", &error))?,
        constraints: serde_json::from_str(&constraints).map_err(|error| corrupt("a session's constraints", &error))?,
    })
}

impl Context {
    /// What it takes, in bytes, about.
    pub(crate) fn bytes(&self) -> u64 {
        let knowledge: usize = self.knowledge.iter().map(|piece| piece.source.len() + piece.text.len() + 40).sum();
        let constraints: usize = self.constraints.iter().map(|constraint| constraint.len() + 4).sum();
        (self.framing.len() + knowledge + constraints) as u64
    }

    /// As it would be after a change.
    fn changed(mut self, change: &Change) -> Self {
        self.framing = change.framing.clone().unwrap_or(self.framing);
        self.knowledge = change.knowledge.clone().unwrap_or(self.knowledge);
        self.constraints = change.constraints.clone().unwrap_or(self.constraints);
        self
    }
}

/// Changes title, model or context. The session is made if it is not there; `most` is what the tenant's
/// sessions may take, in bytes.
pub fn update(
    connection: &Connection,
    name: &SessionId,
    change: &Change,
    (most, now_ms): (u64, u64),
) -> Result<Result<Stored, Refusal>, StoreError> {
    let (before, is_new) = match find_live(connection, name)? {
        Ok(stored) => (context(connection, &stored)?, false),
        Err(Refusal::NotFound) => (Context::default(), true),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (had, has) = (before.bytes(), before.changed(change).bytes());
    if has > MAX_CONTEXT {
        return Ok(Err(Refusal::TooLarge(has)));
    }
    if (is_new || has > had) && !has_room(connection, most)? {
        return Ok(Err(Refusal::Full));
    }
    let row = match for_writing(connection, name, now_ms)? {
        Ok(row) => row,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let set = |column: &str, value: Option<&str>| -> Result<(), StoreError> {
        if let Some(value) = value {
            let sql = format!("UPDATE session SET {column} = ?2 WHERE id = ?1");
            connection.prepare_cached(&sql)?.execute(params![row, value])?;
        }
        Ok(())
    };
    set("model", change.model.as_deref())?;
    set("framing", change.framing.as_deref())?;
    set("knowledge", change.knowledge.as_ref().map(json).transpose()?.as_deref())?;
    set("constraints", change.constraints.as_ref().map(json).transpose()?.as_deref())?;
    if let Some(title) = &change.title {
        let titled = !title.is_empty();
        let title = if titled { title.clone() } else { first_title(connection, row)? };
        connection
            .prepare_cached("UPDATE session SET title = ?2, titled = ?3 WHERE id = ?1")?
            .execute(params![row, title, titled])?;
    }
    touch(connection, row, now_ms)?;
    Ok(Ok(by_row(connection, row)?))
}

/// What its first message would have it called.
fn first_title(connection: &Connection, row: i64) -> Result<String, StoreError> {
    let sql = "SELECT text FROM message WHERE session = ?1 AND role = ?2 ORDER BY number LIMIT 1";
    let user = SessionRole::USER.0;
    let first: Option<String> =
        connection.prepare_cached(sql)?.query_row(params![row, user], |row| row.get(0)).optional()?;
    Ok(first.map(|text| title_of(&text)).unwrap_or_default())
}
