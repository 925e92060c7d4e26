//! Session streams: what was said, what goes with requests, lists, the search.

use super::answer::{NoAnswer, end, taken};
use super::{Intake, fail, failure, refuse};
use crate::escalate::session::refused;
use crate::escalate::{Caller, ClientStream};
use crate::ops::memory::{BodyBudget, Memory};
use crate::store::sessions::find::{Hit, Page};
use crate::store::sessions::service::Sessions;
use crate::store::sessions::turn::OF_REQUESTS;
use crate::store::sessions::{Addition, Change, Context, Deed, MAX_TEXT, Message as Said, Refusal, Stored};
use crate::streams::escalate::{NoRequest, read_body};
use belay_protocol::codec::Message;
use belay_protocol::dialect::prompt::Knowledge;
use belay_protocol::error::{ProtocolError, StreamCode};
use belay_protocol::frame::{Frame, FrameType};
use belay_protocol::id::SessionId;
use belay_protocol::message::{
    FailureCode, Outcome, Session, SessionAct, SessionAdd, SessionAdded, SessionContext, SessionDeed, SessionGet,
    SessionHit, SessionKnowledge, SessionList, SessionMessage, SessionRole, SessionRow, SessionSearch, SessionUpdate,
    SessionsDone,
};
use belay_protocol::money::NanoUsd;
use belay_protocol::stream::FrameWriter;
use belay_transport::params::PRIORITY_BULK;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What an answer takes in memory, about: a page of rows, or a page of messages.
const ANSWER: usize = 512 << 10;
/// How long a message's text may take to arrive.
const TEXT: Duration = Duration::from_secs(30);
/// The longest title or model, and the longest framing, in bytes.
const MAX_LINE: usize = 512;
const MAX_FRAMING: usize = 64 << 10;

/// What a stream asks for.
enum Asked {
    Get(SessionGet),
    Add(SessionAdd),
    Update(SessionUpdate),
    Act(SessionAct),
    List(SessionList),
    Search(SessionSearch),
}

impl Asked {
    fn read(frame: Option<Frame>) -> Result<Self, ProtocolError> {
        let frame = frame.ok_or(ProtocolError::Truncated(FrameType::SessionGet.name()))?;
        match frame.kind {
            FrameType::SessionAdd => SessionAdd::from_frame(&frame).map(Self::Add),
            FrameType::SessionUpdate => SessionUpdate::from_frame(&frame).map(Self::Update),
            FrameType::SessionAct => SessionAct::from_frame(&frame).map(Self::Act),
            FrameType::SessionList => SessionList::from_frame(&frame).map(Self::List),
            FrameType::SessionSearch => SessionSearch::from_frame(&frame).map(Self::Search),
            _ => SessionGet::from_frame(&frame).map(Self::Get),
        }
    }
}

fn invalid(message: impl Into<String>, remedy: &str) -> NoAnswer {
    NoAnswer::because(FailureCode::INVALID_REQUEST, message, remedy)
}

/// Serves one session stream. `intake` bounds the request's arrival.
pub async fn serve(
    sessions: &Sessions,
    (memory, budget): (&Arc<Memory>, &BodyBudget),
    caller: &Caller,
    intake: &Intake,
    mut stream: ClientStream,
) {
    let asked = match intake.within(stream.reader.frame()).await {
        Ok(read) => read.and_then(|frame| Ok(Asked::read(frame)?)),
        Err((failure, code)) => return fail(&mut stream, failure, code).await,
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return refuse(&mut stream, &error).await,
    };
    stream.writer.set_priority(PRIORITY_BULK);
    let Some(_charge) = memory.charge(ANSWER) else {
        let mut busy = failure(FailureCode::OVERLOADED, "the relay has no memory left for answers", "try again later");
        busy.retry_after_ms = Some(1000);
        return fail(&mut stream, busy, StreamCode::LIMIT).await;
    };
    let answered = answer(sessions, budget, caller, asked, &mut stream).await;
    end(&mut stream, answered).await;
}

async fn answer(
    sessions: &Sessions,
    budget: &BodyBudget,
    caller: &Caller,
    asked: Asked,
    stream: &mut ClientStream,
) -> Result<(), NoAnswer> {
    let tenant = &caller.tenant;
    match asked {
        Asked::Get(request) => get(sessions, caller, &request, &mut stream.writer).await?,
        Asked::Add(request) => {
            let number = add(sessions, budget, caller, &request, stream).await?;
            stream.writer.queue(&SessionAdded { number })?;
        }
        Asked::Update(request) => {
            let name = request.session.clone();
            let change = change(request)?;
            let changed = found(&name, sessions.update(tenant, &name, change).await?)?;
            stream.writer.queue(&shown(changed))?;
        }
        Asked::Act(SessionAct { session, deed }) => {
            let deed = match deed {
                SessionDeed::DELETE => Deed::Delete,
                SessionDeed::RESTORE => Deed::Restore,
                SessionDeed::CLEAR => Deed::Clear,
                other => {
                    return Err(invalid(
                        format!("nothing is done by {}", other.0),
                        "see PROTOCOL.md, or use a newer relay",
                    ));
                }
            };
            let done = found(&session, sessions.act(tenant, &session, deed).await?)?;
            stream.writer.queue(&shown(done))?;
        }
        Asked::List(SessionList { deleted, cursor, limit }) => {
            let page = page(sessions.list(tenant, deleted, cursor, limit).await?)?;
            for stored in &page.rows {
                stream.writer.queue(&row(stored))?;
            }
            stream.writer.queue(&done(page.rows.len(), page.next))?;
        }
        Asked::Search(SessionSearch { query, cursor, limit }) => {
            let page = page(sessions.search(tenant, query, cursor, limit).await?)?;
            for hit in &page.rows {
                stream.writer.queue(&shown_hit(hit))?;
            }
            stream.writer.queue(&done(page.rows.len(), page.next))?;
        }
    }
    Ok(())
}

fn found<T>(session: &SessionId, result: Result<T, Refusal>) -> Result<T, NoAnswer> {
    result.map_err(|refusal| {
        let (code, message, remedy) = refused(session, &refusal);
        NoAnswer::because(code, message, remedy)
    })
}

fn page<T>(result: Result<Page<T>, crate::store::sessions::find::BadCursor>) -> Result<Page<T>, NoAnswer> {
    result.map_err(|_| invalid("no page has ended at this cursor", "begin without one"))
}

/// Sends a session and its messages, page by page: the next is read once the client has taken the one
/// before.
async fn get(
    sessions: &Sessions,
    caller: &Caller,
    request: &SessionGet,
    writer: &mut FrameWriter,
) -> Result<(), NoAnswer> {
    let opened = sessions.open(&caller.tenant, &request.session, (request.after, request.last)).await?;
    let (stored, context, mut after) = found(&request.session, opened)?;
    writer.queue(&shown((stored.clone(), context)))?;
    let mut rows = 0;
    loop {
        let page = sessions.messages(&caller.tenant, &stored, after).await?;
        let Some(last) = page.last() else { break };
        after = last.number;
        rows += page.len();
        for message in page {
            queue_message(writer, message)?;
            taken(writer).await?;
        }
    }
    writer.queue(&done(rows, String::new()))?;
    Ok(())
}

fn queue_message(writer: &mut FrameWriter, said: Said) -> Result<(), ProtocolError> {
    let (message, text) = message(said);
    writer.queue(&message)?;
    writer.queue_chunks(Bytes::from(text))
}

/// A message as the protocol says it, and its text.
pub(crate) fn message(Said { number, added }: Said) -> (SessionMessage, String) {
    let message = SessionMessage {
        number,
        message_id: added.message_id,
        role: added.role,
        at_ms: added.at_ms,
        device: added.device,
        request_id: added.request_id,
        outcome: added.outcome,
        model: added.model,
        cost: added.cost,
        text_len: u32::try_from(added.text.len()).unwrap_or(u32::MAX),
    };
    (message, added.text)
}

/// Reads a message's text and adds it.
async fn add(
    sessions: &Sessions,
    budget: &BodyBudget,
    caller: &Caller,
    request: &SessionAdd,
    stream: &mut ClientStream,
) -> Result<u64, NoAnswer> {
    if !matches!(request.role, SessionRole::USER | SessionRole::ASSISTANT) {
        return Err(invalid(format!("nobody speaks as {}", request.role.0), "use user or assistant"));
    }
    fits("model", &request.model, MAX_LINE)?;
    if request.message_id.0[0] & OF_REQUESTS != 0 {
        return Err(invalid("ids of messages with their first bit set are those of requests", "leave that bit 0"));
    }
    if request.text_len as usize > MAX_TEXT {
        let message = format!("the text has {} bytes, at most {MAX_TEXT} are allowed", request.text_len);
        return Err(NoAnswer::because(FailureCode::LIMIT, message, "add it in pieces"));
    }
    let mut permit = budget.body(&caller.tenant);
    let until = Instant::now() + TEXT;
    let read = timeout(TEXT, read_body(stream, request.text_len as usize, &mut permit, until)).await;
    let text = match read {
        Err(_) => {
            return Err(NoAnswer::because(
                FailureCode::TIMED_OUT,
                "the text did not arrive in time",
                "send it at once",
            ));
        }
        Ok(Err(NoRequest::Stream(error))) => return Err(error.into()),
        Ok(Err(_)) => {
            return Err(NoAnswer::because(FailureCode::OVERLOADED, "the relay has no memory left", "try again later"));
        }
        Ok(Ok(text)) => text,
    };
    let text = String::from_utf8(text.into()).map_err(|_| invalid("the text is not UTF-8", "send it as UTF-8"))?;
    let addition = Addition {
        message_id: request.message_id,
        role: request.role,
        at_ms: sessions.now_ms(),
        device: caller.device.clone(),
        request_id: None,
        outcome: Outcome::COMPLETE,
        model: request.model.clone(),
        cost: NanoUsd::ZERO,
        text,
    };
    found(&request.session, sessions.add(&caller.tenant, &request.session, addition).await?)
}

fn fits(what: &str, text: &str, most: usize) -> Result<(), NoAnswer> {
    if text.len() <= most {
        return Ok(());
    }
    let message = format!("the {what} has {} bytes, at most {most} are allowed", text.len());
    Err(NoAnswer::because(FailureCode::LIMIT, message, "shorten it"))
}

/// What is to be changed. Errors: a field is too long, or means nothing.
fn change(request: SessionUpdate) -> Result<Change, NoAnswer> {
    let fields = [
        ("title", &request.title, MAX_LINE),
        ("model", &request.model, MAX_LINE),
        ("framing", &request.framing, MAX_FRAMING),
    ];
    for (what, text, most) in fields {
        fits(what, text.as_deref().unwrap_or_default(), most)?;
    }
    if request.title.as_ref().is_some_and(|title| title.chars().any(char::is_control)) {
        return Err(invalid("the title has control characters", "leave them out"));
    }
    if request.knowledge.iter().any(|item| item.relevance.is_some_and(|relevance| !(0.0..=1.0).contains(&relevance))) {
        return Err(invalid("a piece of knowledge has a relevance outside 0 to 1", "use a number from 0 to 1"));
    }
    let SessionUpdate { title, model, framing, sets_knowledge, sets_constraints, knowledge, constraints, .. } = request;
    let knowledge = knowledge
        .into_iter()
        .map(|SessionKnowledge { source, relevance, text }| Knowledge { source, relevance, text })
        .collect();
    Ok(Change {
        title: title.map(|title| title.trim().to_owned()),
        model,
        framing,
        knowledge: sets_knowledge.then_some(knowledge),
        constraints: sets_constraints.then_some(constraints),
    })
}

fn row(stored: &Stored) -> SessionRow {
    SessionRow {
        session: stored.name.clone(),
        title: stored.title.clone(),
        model: stored.model.clone(),
        created_ms: stored.created_ms,
        updated_ms: stored.updated_ms,
        messages: stored.messages,
        cost: stored.cost,
        deleted_ms: stored.deleted_ms,
    }
}

pub(crate) fn shown((stored, context): (Stored, Context)) -> Session {
    let knowledge = context.knowledge.into_iter();
    Session {
        row: row(&stored),
        context: SessionContext {
            framing: context.framing,
            knowledge: knowledge
                .map(|Knowledge { source, relevance, text }| SessionKnowledge { source, relevance, text })
                .collect(),
            constraints: context.constraints,
        },
    }
}

fn shown_hit(hit: &Hit) -> SessionHit {
    SessionHit { row: row(&hit.session), message: hit.message, snippet: hit.snippet.clone() }
}

fn done(rows: usize, cursor: String) -> SessionsDone {
    SessionsDone { rows: rows as u64, cursor }
}
