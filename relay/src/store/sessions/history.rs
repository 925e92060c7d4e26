//! What of a session goes with its next request.

use super::{Context, context, find_one, unsigned};
use crate::store::StoreError;
use belay_protocol::dialect::prompt::{Role, Turn};
use belay_protocol::id::SessionId;
use belay_protocol::message::SessionRole;
use rusqlite::{Connection, params};

/// Bytes of a text that count as a token here. Few enough that a provider hardly counts more.
const BYTES_PER_TOKEN: u64 = 3;
/// Tokens that a message takes beside its text.
const PER_MESSAGE: u64 = 4;

/// A session as the next request finds it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// What goes with every request.
    pub context: Context,
    /// The session's own model; empty: none.
    pub model: String,
    /// What was said last, oldest first, as far as there was room.
    pub turns: Vec<Turn>,
    /// Messages before these that were left out.
    pub left_out: u64,
}

/// What a text counts as here, in tokens.
#[must_use]
pub fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(BYTES_PER_TOKEN) + PER_MESSAGE
}

impl History {
    /// Leaves out the oldest messages until at most so many tokens are left.
    pub fn shorten(&mut self, room: u64) {
        let mut total: u64 = self.turns.iter().map(|turn| tokens(&turn.content)).sum();
        let mut first = 0;
        while first < self.turns.len() && (total > room || self.turns[first].role == Role::Assistant) {
            total -= tokens(&self.turns[first].content);
            first += 1;
        }
        self.turns.drain(..first);
        self.left_out += first as u64;
    }
}

/// A session's history, the last `room` tokens of it. One that is not there, or was deleted, has none.
pub fn history(connection: &Connection, name: &SessionId, room: u64) -> Result<History, StoreError> {
    let stored = match find_one(connection, name)? {
        Some(stored) if stored.deleted_ms.is_none() => stored,
        _ => return Ok(History::default()),
    };
    let mut history = History { context: context(connection, &stored)?, ..History::default() };
    let sql = "SELECT role, text, number FROM message WHERE session = ?1 ORDER BY number DESC";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([stored.row])?;
    let mut total = 0;
    while let Some(row) = rows.next()? {
        let role = if SessionRole(row.get(0)?) == SessionRole::USER { Role::User } else { Role::Assistant };
        let content = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        // Answers that were cut before their first word; providers refuse blank ones.
        if content.trim().is_empty() {
            continue;
        }
        total += tokens(content);
        if total > room {
            history.left_out = before(connection, stored.row, row.get(2)?)?;
            break;
        }
        history.turns.push(Turn { role, content: content.to_owned() });
    }
    history.turns.reverse();
    history.model = stored.model;
    // A conversation begins with a question.
    history.shorten(room);
    Ok(history)
}

/// Messages up to that number, but for those without a word.
fn before(connection: &Connection, session: i64, number: i64) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM message WHERE session = ?1 AND number <= ?2 AND octet_length(text) > 0";
    let count: i64 = connection.prepare_cached(sql)?.query_row(params![session, number], |row| row.get(0))?;
    Ok(unsigned(count))
}
