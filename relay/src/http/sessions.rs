//! Conversations.

use super::Http;
use super::access::Admitted;
use super::conversation::{PAGE_BYTES, PAGE_MESSAGES, conversation, pairs};
use super::inside::{answer, ask, open, rows};
use super::reply::{Asked, counted, json};
use super::session_shapes::{ContextBody, KnowledgeBody};
use super::shapes::Problems;
use super::sync_shapes::PushedMessage;
use crate::store::central::keys::KeyScope;
use crate::store::sessions::turn::OF_REQUESTS;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_certs::sha256;
use belay_http::refusal::Refusal;
use belay_protocol::id::{MessageId, SessionId};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Session, SessionAct, SessionAdd, SessionAdded, SessionDeed, SessionGet, SessionHit, SessionList, SessionRole,
    SessionRow, SessionSearch, SessionUpdate, SessionsDone,
};
use belay_protocol::transcript;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// A page of conversations.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionsAnswer {
    #[schema(value_type = Vec<Object>)]
    sessions: Vec<Value>,
    /// Where the next page begins; absent on the last.
    cursor: Option<String>,
}

/// Which conversations are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Words: every one must be in the title or in what was said. Without them, all conversations.
    query: String,
    /// Those that were deleted, in place of those that were not.
    deleted: bool,
    /// Where the page before ended.
    cursor: String,
    /// At most so many.
    limit: u32,
}

fn page_of(rows: Vec<Value>, done: SessionsDone) -> Result<Response, Refusal> {
    let cursor = Some(done.cursor).filter(|cursor| !cursor.is_empty());
    json(&SessionsAnswer { sessions: rows, cursor })
}

/// The conversations, those first in which something was said last; with `query`, those in which it was found.
#[utoipa::path(get, path = "/v1/sessions/list", tag = "sessions", params(ListQuery),
    responses((status = 200, body = SessionsAnswer), Problems), security(("key" = [])))]
pub(super) async fn list(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, ListQuery) = asked.queried(&http, KeyScope::Read).await?;
        let ListQuery { query, deleted, cursor, limit } = query;
        let (shared, caller) = (&http.shared, &admitted.caller);
        if query.is_empty() {
            let question = SessionList { deleted, cursor, limit };
            let (found, done) = rows::<_, SessionRow, _>(shared, caller, StreamKind::Session, &question).await?;
            return page_of(found.iter().map(transcript::row_json).collect(), done);
        }
        if deleted {
            return Err(Refusal::bad_request("what was deleted is not searched; leave query or deleted out"));
        }
        let question = SessionSearch { query, cursor, limit };
        let (found, done) = rows::<_, SessionHit, _>(shared, caller, StreamKind::Session, &question).await?;
        let hit = |hit: &SessionHit| {
            let mut value = transcript::row_json(&hit.row);
            value["message"] = hit.message.into();
            value["snippet"] = hit.snippet.replace(['\u{2}', '\u{3}'], "").into();
            value
        };
        page_of(found.iter().map(hit).collect(), done)
    }
    .await;
    asked.done(&http, answered).await
}

/// Which conversation is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GetQuery {
    /// Its name.
    #[serde(alias = "session_id")]
    session: String,
    /// Only messages above this number: `next` of the page before.
    #[serde(default)]
    after: u64,
    /// Of these only the last so many; 0: all of them.
    #[serde(default)]
    last: u32,
}

/// A conversation, with its context and its messages, oldest first.
#[utoipa::path(get, path = "/v1/sessions/get", tag = "sessions", params(GetQuery),
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn get(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, GetQuery) = asked.queried(&http, KeyScope::Read).await?;
        let question = SessionGet { session: named(query.session)?, after: query.after, last: query.last };
        let bounds = Some((PAGE_MESSAGES, PAGE_BYTES));
        let (session, said, is_last) = conversation(&http, &admitted, &question, bounds).await?;
        let mut value = transcript::json(&session, pairs(&said));
        value["next"] = said.last().map(|(message, _)| message.number).filter(|_| !is_last).into();
        counted(&http, json(&value)?)
    }
    .await;
    asked.done(&http, answered).await
}

pub(super) fn named(text: String) -> Result<SessionId, Refusal> {
    SessionId::try_from(text).map_err(|error| Refusal::bad_request(error.to_string()))
}

/// A message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"session": "work", "role": "user", "content": "hello", "message_id": "m-1"}))]
pub(super) struct AddMessage {
    /// The conversation; it is begun if it is not there.
    #[serde(alias = "session_id")]
    session: String,
    /// `user` or `assistant`.
    role: String,
    content: String,
    /// Names the message: added again, it is there once.
    #[serde(default)]
    message_id: Option<String>,
    /// What answered.
    #[serde(default)]
    model: Option<String>,
}

impl AddMessage {
    pub(super) fn of(session: String, message: PushedMessage) -> Self {
        let PushedMessage { message_id, role, content, model } = message;
        Self { session, role, content, message_id, model }
    }
}

/// The message is there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AddedMessage {
    session: String,
    message_id: String,
    /// Its place.
    number: u64,
}

/// Adds a message to a conversation.
#[utoipa::path(post, path = "/v1/sessions/add-message", tag = "sessions", request_body = AddMessage,
    responses((status = 200, body = AddedMessage), Problems), security(("key" = [])))]
pub(super) async fn add_message(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, AddMessage) = asked.posted(&http, KeyScope::Write).await?;
        let (session, message_id) = (body.session.clone(), body.message_id.clone());
        let (id, number) = add(&http, &admitted, body).await?;
        json(&AddedMessage { session, message_id: message_id.unwrap_or_else(|| id.to_string()), number })
    }
    .await;
    asked.done(&http, answered).await
}

/// Adds a message; its id and its place.
pub(super) async fn add(http: &Http, admitted: &Admitted, body: AddMessage) -> Result<(MessageId, u64), Refusal> {
    let role = SessionRole::from_name(&body.role)
        .ok_or_else(|| Refusal::bad_request(format!("role is {:?}; it must be user or assistant", body.role)))?;
    let session = named(body.session)?;
    let mut id = match &body.message_id {
        None => http.shared.escalator.env.random.bytes(),
        Some(name) => {
            let named = format!("message\n{}\n{session}\n{name}", admitted.caller.device);
            let mut id = [0; 16];
            id.copy_from_slice(&sha256(named.as_bytes())[..16]);
            id
        }
    };
    id[0] &= !OF_REQUESTS;
    let text = Bytes::from(body.content);
    let message_id = MessageId(id);
    let text_len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let question = SessionAdd { session, message_id, role, model: body.model.unwrap_or_default(), text_len };
    let mut side = open(&http.shared, &admitted.caller, StreamKind::Session);
    side.writer.queue(&question).map_err(|error| Refusal::bad_request(error.to_string()))?;
    side.writer.queue_chunks(text).map_err(|error| Refusal::bad_request(error.to_string()))?;
    // What is refused in the middle of the text is told on the other half.
    let _ = side.writer.flush().await;
    side.writer.finish();
    let added: SessionAdded = answer(&mut side.reader).await?;
    Ok((message_id, added.number))
}

/// What goes with every request of a conversation. What is not named stays; an empty text or list takes away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateContext {
    /// The conversation; it is begun if it is not there.
    #[serde(alias = "session_id")]
    session: String,
    #[serde(default)]
    title: Option<String>,
    /// The model that is asked where a request names none.
    #[serde(default, alias = "model")]
    model_preference: Option<String>,
    #[serde(default)]
    context: ContextBody,
}

/// Changes what goes with every request of a conversation.
#[utoipa::path(post, path = "/v1/sessions/update-context", tag = "sessions", request_body = UpdateContext,
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn update_context(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, UpdateContext) = asked.posted(&http, KeyScope::Write).await?;
        let context = body.context;
        let (sets_knowledge, sets_constraints) = (context.knowledge.is_some(), context.constraints.is_some());
        let question = SessionUpdate {
            title: body.title,
            model: body.model_preference,
            framing: context.framing,
            sets_knowledge,
            sets_constraints,
            knowledge: context.knowledge.unwrap_or_default().into_iter().map(KnowledgeBody::into).collect(),
            constraints: context.constraints.unwrap_or_default(),
            ..SessionUpdate::nothing(named(body.session)?)
        };
        shown(&http, &admitted, &question).await
    }
    .await;
    asked.done(&http, answered).await
}

async fn shown<Q: belay_protocol::codec::Message>(
    http: &Http,
    admitted: &Admitted,
    question: &Q,
) -> Result<Response, Refusal> {
    let session: Session = ask(&http.shared, &admitted.caller, StreamKind::Session, question).await?;
    json(&transcript::json(&session, []))
}

/// A new title.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rename {
    #[serde(alias = "session_id")]
    session: String,
    /// Empty: that of its first message.
    title: String,
}

/// Gives a conversation another title.
#[utoipa::path(post, path = "/v1/sessions/rename", tag = "sessions", request_body = Rename,
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn rename(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, Rename) = asked.posted(&http, KeyScope::Write).await?;
        // What is not there is not begun by a title.
        let session = named(body.session)?;
        let look = SessionGet { session: session.clone(), after: u64::MAX >> 1, last: 1 };
        conversation(&http, &admitted, &look, Some((1, 0))).await?;
        let question = SessionUpdate { title: Some(body.title), ..SessionUpdate::nothing(session) };
        shown(&http, &admitted, &question).await
    }
    .await;
    asked.done(&http, answered).await
}

/// Which conversation is meant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    #[serde(alias = "session_id")]
    session: String,
}

async fn act(http: &Http, request: Request, deed: SessionDeed) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, Which) = asked.posted(http, KeyScope::Write).await?;
        shown(http, &admitted, &SessionAct { session: named(body.session)?, deed }).await
    }
    .await;
    asked.done(http, answered).await
}

/// Deletes a conversation; for 30 days it can be restored.
#[utoipa::path(post, path = "/v1/sessions/delete", tag = "sessions", request_body = Which,
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn delete(State(http): State<Arc<Http>>, request: Request) -> Response {
    act(&http, request, SessionDeed::DELETE).await
}

/// Takes the deletion of a conversation back.
#[utoipa::path(post, path = "/v1/sessions/restore", tag = "sessions", request_body = Which,
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn restore(State(http): State<Arc<Http>>, request: Request) -> Response {
    act(&http, request, SessionDeed::RESTORE).await
}

/// Forgets what was said in a conversation, for ever, and keeps it.
#[utoipa::path(post, path = "/v1/sessions/clear", tag = "sessions", request_body = Which,
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
pub(super) async fn clear(State(http): State<Arc<Http>>, request: Request) -> Response {
    act(&http, request, SessionDeed::CLEAR).await
}
