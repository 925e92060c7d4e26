//! Question and answer of a request: the question is kept with the hold, and both go into the session in the
//! transaction that settles it. Whoever settles, the request's own task, the sweeper or the recovery after a
//! death: the question is in the session, and what is known of the answer.

use super::{Addition, append, create, find_one, time, title::title_of, unsigned};
use crate::store::StoreError;
use crate::store::ledger::request::Stored;
use belay_certs::sha256;
use belay_protocol::id::{MessageId, RequestId, SessionId};
use belay_protocol::message::{End, SessionRole};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// What a request asks in a session.
#[derive(Debug, Clone)]
pub struct Question {
    /// In which one; it is made if it is not there.
    pub session: SessionId,
    /// What is asked.
    pub text: Arc<str>,
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

/// Puts question and answer into the session.
pub(crate) fn answer(
    connection: &Connection,
    request: &Stored,
    end: &End,
    answer: &str,
    now_ms: u64,
) -> Result<(), StoreError> {
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
        outcome: belay_protocol::message::Outcome::COMPLETE,
        model: String::new(),
        cost: belay_protocol::money::NanoUsd::ZERO,
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
    take(connection, request.row)?;
    Ok(())
}

fn take(connection: &Connection, request: i64) -> Result<Option<(i64, i64, String)>, StoreError> {
    let taken = connection
        .prepare_cached("DELETE FROM turn WHERE request = ?1 RETURNING session, asked_ms, text")?
        .query_row([request], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(taken)
}

/// A request's messages are the same wherever they are looked at.
pub(crate) fn message_id(request: RequestId, role: SessionRole) -> MessageId {
    let mut id = [0; 16];
    let hash = sha256(format!("message\n{request}\n{}", role.name()).as_bytes());
    id.copy_from_slice(&hash[..16]);
    MessageId(id)
}
