//! Question and answer of a request: the question is kept with the hold, and both go into the session in the
//! transaction that settles it. Whoever settles, the request's own task, the sweeper or the recovery after a
//! death: the question is in the session, and what is known of the answer.

use super::{Addition, Refusal, append, create, find_one, has_room, time, title::title_of, unsigned};
use crate::store::StoreError;
use crate::store::ledger::request::Stored;
use belay_certs::sha256;
use belay_protocol::id::{MessageId, RequestId, SessionId};
use belay_protocol::message::{End, Outcome, SessionRole};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use tracing::error;

/// The bit of a message's id that those of requests have.
pub(crate) const OF_REQUESTS: u8 = 0x80;

/// What a request asks in a session.
#[derive(Debug, Clone)]
pub struct Question {
    /// In which one; it is made if it is not there.
    pub session: SessionId,
    /// What is asked.
    pub text: Arc<str>,
    /// What the tenant's sessions may take, in bytes.
    pub most: u64,
}

/// Whether the question may be asked there. Errors: why not.
pub(crate) fn check(connection: &Connection, question: &Question) -> Result<Result<(), Refusal>, StoreError> {
    if find_one(connection, &question.session)?.is_some_and(|stored| stored.deleted_ms.is_some()) {
        return Ok(Err(Refusal::Deleted));
    }
    Ok(if has_room(connection, question.most)? { Ok(()) } else { Err(Refusal::Full) })
}

/// Keeps a request's question until it ends. In the transaction that sets its money aside.
pub(crate) fn ask(
    connection: &Connection,
    request_id: RequestId,
    question: &Question,
    now_ms: u64,
) -> Result<(), StoreError> {
    let session = match find_one(connection, &question.session)? {
        Some(stored) => stored.row,
        None => create(connection, &question.session, now_ms)?,
    };
    let request: i64 = connection
        .prepare_cached("UPDATE request SET session = ?2 WHERE request_id = ?1 RETURNING id")?
        .query_row(params![request_id.0, session], |row| row.get(0))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO turn (request, session, asked_ms, text) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![request, session, time(now_ms), question.text.as_ref()])?;
    // Lists show what it is about while its first answer runs.
    connection
        .prepare_cached("UPDATE session SET title = ?2 WHERE id = ?1 AND title = '' AND NOT titled")?
        .execute(params![session, title_of(&question.text)])?;
    Ok(())
}

/// Puts question and answer into the session. Money does not depend on it: where that fails, it is said in
/// the log, and the request is settled all the same.
pub(crate) fn answer(
    connection: &Connection,
    request: &Stored,
    end: &End,
    answer: &str,
    now_ms: u64,
) -> Result<(), StoreError> {
    connection.execute_batch("SAVEPOINT turn")?;
    if let Err(error) = put(connection, request, end, answer, now_ms) {
        error!(request = %request.request_id, %error, "an answer could not be kept in its session");
        connection.execute_batch("ROLLBACK TO turn")?;
    }
    connection.execute_batch("RELEASE turn")?;
    Ok(())
}

fn put(connection: &Connection, request: &Stored, end: &End, answer: &str, now_ms: u64) -> Result<(), StoreError> {
    let Some((session, asked_ms, text)) = take(connection, request.row)? else { return Ok(()) };
    let device = request.device.parse().map_err(|error: belay_protocol::id::IdError| StoreError::Corrupt {
        what: "a device",
        why: error.to_string(),
    })?;
    let question = Addition {
        message_id: message_id(request.request_id, SessionRole::USER),
        role: SessionRole::USER,
        at_ms: unsigned(asked_ms),
        device,
        request_id: Some(request.request_id),
        outcome: Outcome::COMPLETE,
        model: String::new(),
        cost: NanoUsd::ZERO,
        text,
    };
    append(connection, session, &question)?;
    let answer = Addition {
        message_id: message_id(request.request_id, SessionRole::ASSISTANT),
        role: SessionRole::ASSISTANT,
        at_ms: now_ms,
        outcome: end.outcome,
        model: format!("{}/{}", end.provider, end.model),
        cost: end.cost,
        text: answer.to_owned(),
        ..question
    };
    append(connection, session, &answer)?;
    Ok(())
}

/// Forgets what a request has asked: it never ran.
pub(crate) fn forget(connection: &Connection, request: &Stored) -> Result<(), StoreError> {
    let Some((session, ..)) = take(connection, request.row)? else { return Ok(()) };
    // Its question has not been asked.
    connection
        .prepare_cached("UPDATE session SET title = '' WHERE id = ?1 AND messages = 0 AND NOT titled")?
        .execute([session])?;
    Ok(())
}

/// What an answer has cost in the end, where that was corrected.
pub(crate) fn correct(connection: &Connection, request: &Stored, difference: NanoUsd) -> Result<(), StoreError> {
    let id = message_id(request.request_id, SessionRole::ASSISTANT);
    let session: Option<i64> = connection
        .prepare_cached("UPDATE message SET cost_nano = cost_nano + ?2 WHERE message_id = ?1 RETURNING session")?
        .query_row(params![id.0, difference.0], |row| row.get(0))
        .optional()?;
    if let Some(session) = session {
        connection
            .prepare_cached("UPDATE session SET cost_nano = cost_nano + ?2 WHERE id = ?1")?
            .execute(params![session, difference.0])?;
    }
    Ok(())
}

fn take(connection: &Connection, request: i64) -> Result<Option<(i64, i64, String)>, StoreError> {
    let taken = connection
        .prepare_cached("DELETE FROM turn WHERE request = ?1 RETURNING session, asked_ms, text")?
        .query_row([request], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(taken)
}

/// A request's messages are the same wherever they are looked at. Their first bit is set; that of messages
/// which are added by hand is not, so that nobody takes them before.
pub(crate) fn message_id(request: RequestId, role: SessionRole) -> MessageId {
    let mut id = [0; 16];
    let hash = sha256(format!("message\n{request}\n{}", role.name()).as_bytes());
    id.copy_from_slice(&hash[..16]);
    id[0] |= OF_REQUESTS;
    MessageId(id)
}
