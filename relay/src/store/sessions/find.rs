//! Lists of sessions and of their messages, and the search.

use super::{Addition, COLUMNS, Message, Stored, corrupt, time, unsigned};
use crate::store::StoreError;
use belay_protocol::id::{MessageId, RequestId};
use belay_protocol::message::{Outcome, SessionRole};
use belay_protocol::money::NanoUsd;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

/// Rows of a page at the most.
pub const PAGE: u32 = 200;
/// A page of messages ends after so much text, in bytes.
const PAGE_BYTES: usize = 256 << 10;
/// Of a longer text, in bytes, not the place is shown but the beginning: marking takes time by the text.
const MARKED: u32 = 16 << 10;
/// Characters before what was found, and in all.
const BEFORE: usize = 40;
const SHOWN: usize = 160;

/// A page, and where the next one begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// What is on it.
    pub rows: Vec<T>,
    /// Empty: it is the last.
    pub next: String,
}

/// Where something was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The session.
    pub session: Stored,
    /// The message's number; 0: the title.
    pub message: u64,
    /// The words around it, what was found between U+0002 and U+0003.
    pub snippet: String,
}

/// A cursor that no page has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCursor;

/// Two numbers as a cursor.
fn cursor_text((a, b): (i64, i64)) -> String {
    format!("{a}.{b}")
}

fn read_cursor(text: &str) -> Result<Option<(i64, i64)>, BadCursor> {
    if text.is_empty() {
        return Ok(None);
    }
    let (a, b) = text.split_once('.').ok_or(BadCursor)?;
    Ok(Some((a.parse().map_err(|_| BadCursor)?, b.parse().map_err(|_| BadCursor)?)))
}

/// So many as are wanted, and one more to see whether there are more.
fn limits(wanted: u32) -> (usize, i64) {
    let limit = if wanted == 0 { PAGE } else { wanted.min(PAGE) };
    (limit as usize, i64::from(limit) + 1)
}

/// A page of the sessions, those that were written to (or deleted) last first.
pub fn list(
    connection: &Connection,
    deleted: bool,
    cursor: &str,
    wanted: u32,
) -> Result<Result<Page<Stored>, BadCursor>, StoreError> {
    let (at, (limit, fetched)) = (read_cursor(cursor), limits(wanted));
    let Ok(at) = at else { return Ok(Err(BadCursor)) };
    let (column, is) = if deleted { ("deleted_ms", "NOT NULL") } else { ("updated_ms", "NULL") };
    let sql = format!(
        "SELECT {COLUMNS} FROM session WHERE deleted_ms IS {is} AND ({column}, id) < (?1, ?2)
         ORDER BY {column} DESC, id DESC LIMIT ?3"
    );
    let (ms, id) = at.unwrap_or((i64::MAX, i64::MAX));
    let mut statement = connection.prepare_cached(&sql)?;
    let found = statement.query_map(params![ms, id, fetched], Stored::read)?;
    let mut rows = found.collect::<Result<Result<Vec<_>, _>, _>>()??;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more);
    let place = |stored: &Stored| (time(stored.deleted_ms.unwrap_or(stored.updated_ms)), stored.row);
    Ok(Ok(Page { next: last.map(|stored| cursor_text(place(stored))).unwrap_or_default(), rows }))
}

/// Messages of a session above a number, oldest first: as many as a page has.
pub fn messages(connection: &Connection, session: i64, after: u64) -> Result<Vec<Message>, StoreError> {
    let sql = "SELECT number, message_id, role, at_ms, device, request_id, outcome, model, cost_nano, text
               FROM message WHERE session = ?1 AND number > ?2 ORDER BY number LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![session, time(after), PAGE])?;
    let (mut found, mut bytes) = (vec![], 0);
    while let Some(row) = rows.next()? {
        let message = read_message(row)?;
        bytes += message.added.text.len();
        found.push(message);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(found)
}

/// The number above which a session has its last `count` messages.
pub fn before_last(connection: &Connection, session: i64, count: u32) -> Result<u64, StoreError> {
    let sql = "SELECT number FROM message WHERE session = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![session, count])?;
    Ok(rows.next()?.map(|row| row.get(0)).transpose()?.map_or(0, unsigned))
}

fn read_message(row: &Row<'_>) -> Result<Message, StoreError> {
    let device: String = row.get(4)?;
    let added = Addition {
        message_id: MessageId(row.get(1)?),
        role: SessionRole(row.get(2)?),
        at_ms: unsigned(row.get(3)?),
        device: device.parse().map_err(|error: belay_protocol::id::IdError| corrupt("a message", &error))?,
        request_id: row.get::<_, Option<[u8; 16]>>(5)?.map(RequestId),
        outcome: Outcome(row.get(6)?),
        model: row.get(7)?,
        cost: NanoUsd(row.get(8)?),
        text: row.get(9)?,
    };
    Ok(Message { number: unsigned(row.get(0)?), added })
}

/// What a person's words are to FTS5: each a string of its own, the last one a beginning. `None`: there is no
/// word in it.
fn query_of(words: &str) -> Option<String> {
    let has_letter = |word: &&str| word.chars().any(char::is_alphanumeric);
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    let found: Vec<&str> = words.split(is_gap).filter(has_letter).take(MOST_WORDS).collect();
    let quoted: Vec<String> = found.iter().map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
    // What begins with a single letter is half of everything.
    let last_is_long = found.last().is_some_and(|word| word.chars().filter(|c| c.is_alphanumeric()).count() > 1);
    let last_is_open = last_is_long && !words.ends_with(is_gap);
    let text = quoted.join(" ");
    (!quoted.is_empty()).then(|| if last_is_open { format!("{text}*") } else { text })
}

/// Words of a search that are looked at.
const MOST_WORDS: usize = 32;

/// Where titles are searched, in cursors; and where messages are.
const TITLES: i64 = 0;
const MESSAGES: i64 = 1;

/// A page of what was found: titles, then messages, the newest first. Sessions that were deleted are left
/// out.
pub fn search(
    connection: &Connection,
    words: &str,
    cursor: &str,
    wanted: u32,
) -> Result<Result<Page<Hit>, BadCursor>, StoreError> {
    let (limit, _) = limits(wanted);
    let (mut part, mut below) = match read_cursor(cursor) {
        Ok(None) => (TITLES, i64::MAX),
        Ok(Some((part @ (TITLES | MESSAGES), below))) => (part, below),
        _ => return Ok(Err(BadCursor)),
    };
    let Some(query) = query_of(words) else { return Ok(Ok(Page { rows: vec![], next: String::new() })) };
    let mut rows: Vec<Hit> = vec![];
    loop {
        let room = limit - rows.len();
        let mut found = hits(connection, part, &query, below, room + 1)?;
        let more = found.len() > room;
        found.truncate(room);
        let last = found.last().map(|(at, _)| *at);
        rows.extend(found.into_iter().map(|(_, hit)| hit));
        match (more, last) {
            (true, last) => {
                let at = last.unwrap_or(below);
                return Ok(Ok(Page { rows, next: cursor_text((part, at)) }));
            }
            (false, _) if part == TITLES => (part, below) = (MESSAGES, i64::MAX),
            (false, _) => return Ok(Ok(Page { rows, next: String::new() })),
        }
    }
}

/// The characters around the first mark.
fn snippet(text: &str) -> String {
    let at = text.find('\u{2}').unwrap_or(0);
    let begin = text[..at].char_indices().rev().take(BEFORE).last().map_or(at, |(begin, _)| begin);
    let mut shown: String = text[begin..].chars().take(SHOWN).collect();
    if begin > 0 {
        shown.insert(0, '…');
    }
    if begin + shown.len() < text.len() {
        // A mark that is open where it is cut is closed.
        if shown.rfind('\u{2}') > shown.rfind('\u{3}') {
            shown.push('\u{3}');
        }
        shown.push('…');
    }
    shown
}

fn hits(
    connection: &Connection,
    part: i64,
    query: &str,
    below: i64,
    count: usize,
) -> Result<Vec<(i64, Hit)>, StoreError> {
    // FTS5's own snippets take time by the square of what is found in a text.
    let marked = |table: &str, text: &str| {
        format!(
            "CASE WHEN octet_length({text}) <= {MARKED} THEN highlight({table}, 0, char(2), char(3))
                  ELSE substr({text}, 1, {SHOWN}) END"
        )
    };
    let sql = if part == TITLES {
        format!(
            "SELECT {COLUMNS}, session_fts.rowid, 0, {} FROM session_fts JOIN session ON session.id = session_fts.rowid
             WHERE session_fts MATCH ?1 AND session_fts.rowid < ?2 AND session.deleted_ms IS NULL
             ORDER BY session_fts.rowid DESC LIMIT ?3",
            marked("session_fts", "session.title")
        )
    } else {
        format!(
            "SELECT {COLUMNS}, message_fts.rowid, message.number, {} FROM message_fts
                 JOIN message ON message.id = message_fts.rowid JOIN session ON session.id = message.session
             WHERE message_fts MATCH ?1 AND message_fts.rowid < ?2 AND session.deleted_ms IS NULL
             ORDER BY message_fts.rowid DESC LIMIT ?3",
            marked("message_fts", "message.text")
        )
    };
    let mut statement = connection.prepare_cached(&sql)?;
    let values: [Value; 3] = [query.to_owned().into(), below.into(), i64::try_from(count).unwrap_or(i64::MAX).into()];
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = vec![];
    while let Some(row) = rows.next()? {
        let text = row.get_ref(11)?.as_str().map_err(rusqlite::Error::from)?;
        let hit = Hit { session: Stored::read(row)??, message: unsigned(row.get(10)?), snippet: snippet(text) };
        found.push((row.get(9)?, hit));
    }
    Ok(found)
}
