//! Items that a tenant's computers have in common, for callers that keep none themselves.

use super::Http;
use super::access::Admitted;
use super::content::{Content, upload};
use super::inside::{ask, rows};
use super::reply::{Asked, json};
use super::sessions::{AddMessage, add};
use super::shapes::Problems;
use super::sync_shapes::{
    ContentQuery, ItemRow, KindName, LockBody, LockedAnswer, PullAnswer, PullQuery, PushBody, PushItem, PushRow,
    PushesAnswer, SyncStatusAnswer, SyncStatusRow, UnlockBody, UnlockedAnswer,
};
use crate::store::central::keys::KeyScope;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use belay_certs::sha256;
use belay_http::refusal::Refusal;
use belay_protocol::id::{LockToken, RevisionId};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind};
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    SyncChange, SyncContent, SyncGet, SyncGot, SyncKindStatus, SyncLock, SyncLocked, SyncPage, SyncPull, SyncPush,
    SyncPushed, SyncStatus, SyncStatusRequest, SyncUnlock, SyncUnlocked,
};
use bytes::Bytes;
use data_encoding::BASE64;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde_json::Value;
use std::sync::Arc;

/// Items of one push, and changes of one page.
const MOST: usize = 256;
/// Pages of the feed that one pull looks through for items of its kind.
const PAGES: usize = 64;

/// Makes revisions of items: a setting, a document, an adapter; or adds messages to conversations. Each stands for
/// itself, and is answered in its place. A revision names the one that it was made from (`parent`): if the item has
/// changed meanwhile, nothing is overwritten, and what was pushed is kept beside it.
#[utoipa::path(post, path = "/v1/sync/{kind}/push", tag = "sync", request_body = PushBody,
    params(("kind" = KindName, Path)),
    responses((status = 200, body = PushesAnswer), Problems), security(("key" = [])))]
pub(super) async fn push(State(http): State<Arc<Http>>, Path(kind): Path<String>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, PushBody) = asked.posted(&http, KeyScope::Write).await?;
        let kind = kind_of(&kind)?;
        if body.items.len() > MOST {
            let message = format!("{} items at once, at most {MOST} are taken", body.items.len());
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "limit", message).remedy("push them in turn"));
        }
        let mut results = vec![];
        for item in body.items {
            let key = item.key.clone();
            let pushed = match kind {
                ItemKind::HISTORY => said(&http, &admitted, item).await,
                kind => one(&http, &admitted, kind, item).await,
            };
            match pushed {
                Ok(row) => results.push(row),
                Err(refusal) if refusal.status.is_server_error() => return Err(refusal),
                Err(refusal) => results.push(PushRow::refused(key, &refusal)),
            }
        }
        json(&PushesAnswer { results })
    }
    .await;
    asked.done(&http, answered).await
}

fn kind_of(name: &str) -> Result<ItemKind, Refusal> {
    match name {
        "settings" => Ok(ItemKind::SETTING),
        "knowledge" => Ok(ItemKind::DOCUMENT),
        "lora" => Ok(ItemKind::ADAPTER),
        "history" => Ok(ItemKind::HISTORY),
        other => {
            let message = format!("there is nothing to sync called {other:?}");
            Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message)
                .remedy("ask for settings, knowledge, lora or history"))
        }
    }
}

/// Messages of a conversation.
async fn said(http: &Http, admitted: &Admitted, item: PushItem) -> Result<PushRow, Refusal> {
    if item.messages.is_empty() {
        return Err(Refusal::bad_request("an item of history has messages, and nothing else"));
    }
    let mut number = 0;
    for message in item.messages {
        let message = AddMessage::of(item.key.clone(), message);
        number = add(http, admitted, message).await?.1;
    }
    Ok(PushRow::added(item.key, number))
}

async fn one(http: &Http, admitted: &Admitted, kind: ItemKind, item: PushItem) -> Result<PushRow, Refusal> {
    let key = item.key.parse::<ItemKey>().map_err(|error| Refusal::bad_request(error.to_string()))?;
    if !item.messages.is_empty() {
        return Err(Refusal::bad_request("messages belong to items of history"));
    }
    if item.revision.is_some() && item.modified_ms.is_none() {
        let why = "name modified_ms beside revision: what comes again under that name must be the same";
        return Err(Refusal::bad_request(why));
    }
    let revision = revision_of(http, admitted, &item);
    let parent = item.parent.as_deref().map(|parent| parent.parse::<RevisionId>());
    let parent = parent.transpose().map_err(|error| Refusal::bad_request(error.to_string()))?;
    let content = content_of(kind, &item)?;
    let meta = match item.meta {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(value) => value.to_string(),
    };
    let mut push = SyncPush {
        revision,
        parent,
        kind,
        key,
        content: SyncContent::NONE,
        modified_ms: item.modified_ms.unwrap_or_else(|| http.now_ms()),
        size: 0,
        digest: Digest::of(b""),
        inline: vec![],
        meta,
        earlier: None,
    };
    if let Some(content) = content {
        push.size = content.len() as u64;
        if content.len() <= INLINE_BYTES {
            (push.content, push.digest, push.inline) = (SyncContent::INLINE, Digest::of(&content), content.into());
        } else {
            let digest = upload(http, admitted, (revision, kind), content).await?;
            (push.content, push.digest) = (SyncContent::PARTS, digest);
        }
    }
    let key = push.key.to_string();
    let pushed: SyncPushed = ask(&http.shared, &admitted.caller, StreamKind::Sync, &push).await?;
    Ok(PushRow::of(key, pushed))
}

/// The revision that a caller's name for it stands for, for ever.
fn revision_of(http: &Http, admitted: &Admitted, item: &PushItem) -> RevisionId {
    let Some(name) = &item.revision else { return RevisionId(http.shared.escalator.env.random.bytes()) };
    if let Ok(id) = name.parse() {
        return id;
    }
    let named = format!("revision\n{}\n{}\n{name}", admitted.caller.device, item.key);
    let mut id = [0; 16];
    id.copy_from_slice(&sha256(named.as_bytes())[..16]);
    RevisionId(id)
}

/// The bytes that an item is to have. `None`: it is to be deleted.
fn content_of(kind: ItemKind, item: &PushItem) -> Result<Option<Bytes>, Refusal> {
    let given = [item.content.is_some(), item.content_base64.is_some(), item.value.is_some(), item.deleted];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(Refusal::bad_request("name one of content, content_base64, value and deleted"));
    }
    if item.value.is_some() && kind != ItemKind::SETTING {
        return Err(Refusal::bad_request("only settings have a value"));
    }
    if let Some(text) = &item.content {
        return Ok(Some(Bytes::from(text.clone())));
    }
    if let Some(text) = &item.content_base64 {
        let bytes = BASE64.decode(text.as_bytes());
        return bytes
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| Refusal::bad_request(format!("content_base64 is not base64: {error}")));
    }
    Ok(item.value.as_ref().map(|value| value.to_string().into()))
}

/// What has changed of a kind after a cursor, each item once, as it is now.
#[utoipa::path(get, path = "/v1/sync/{kind}/pull", tag = "sync", params(("kind" = KindName, Path), PullQuery),
    responses((status = 200, body = PullAnswer), Problems), security(("key" = [])))]
pub(super) async fn pull(State(http): State<Arc<Http>>, Path(kind): Path<String>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, PullQuery) = asked.queried(&http, KeyScope::Read).await?;
        let kind = kind_of(&kind)?;
        let most = match query.limit {
            0 => MOST,
            limit => (limit as usize).min(MOST),
        };
        let mut answer = PullAnswer { items: vec![], cursor: query.cursor, has_more: true, resync: "no".into() };
        // The feed is of all kinds: pages without one of this kind are passed over.
        for _ in 0..PAGES {
            let left = u32::try_from(most - answer.items.len()).unwrap_or(u32::MAX);
            let question = SyncPull { cursor: answer.cursor, limit: left };
            let (changes, page): (Vec<SyncChange>, SyncPage) =
                rows(&http.shared, &admitted.caller, StreamKind::Sync, &question).await?;
            let of_kind = changes.into_iter().filter(|change| change.kind == kind);
            if page.resync.0 != 0 {
                answer.items.clear();
                answer.resync = page.resync.name().into();
            }
            answer.items.extend(of_kind.map(ItemRow::of));
            (answer.cursor, answer.has_more) = (page.cursor, page.has_more);
            if !page.has_more || answer.items.len() >= most {
                break;
            }
        }
        json(&answer)
    }
    .await;
    asked.done(&http, answered).await
}

/// The content of a revision, byte for byte.
#[utoipa::path(get, path = "/v1/sync/content", tag = "sync", params(ContentQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), Problems),
    security(("key" = [])))]
pub(super) async fn content(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, ContentQuery) = asked.queried(&http, KeyScope::Read).await?;
        let revision = query
            .revision
            .parse()
            .map_err(|error: belay_protocol::id::IdError| Refusal::bad_request(error.to_string()))?;
        let got: SyncGot = ask(&http.shared, &admitted.caller, StreamKind::Sync, &SyncGet { revision }).await?;
        let size = got.size;
        let body = match got.content {
            SyncContent::NONE => {
                let message = "this revision is the deletion of its item";
                return Err(Refusal::new(StatusCode::GONE, "deleted", message));
            }
            SyncContent::PARTS => Body::new(Content::new(&http, &admitted, &got.parts)?),
            _ => Body::from(got.inline),
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
        Ok(response)
    }
    .await;
    asked.done(&http, answered).await
}

/// What there is of each kind, and how much room it takes.
#[utoipa::path(get, path = "/v1/sync/status", tag = "sync",
    responses((status = 200, body = SyncStatusAnswer), Problems), security(("key" = [])))]
pub(super) async fn status(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, super::money::Nothing {}) = asked.queried(&http, KeyScope::Read).await?;
        let question = SyncStatusRequest { reserved: 0 };
        let (kinds, all): (Vec<SyncKindStatus>, SyncStatus) =
            rows(&http.shared, &admitted.caller, StreamKind::Sync, &question).await?;
        let kinds = kinds.into_iter().map(SyncStatusRow::of).collect();
        json(&SyncStatusAnswer { kinds, used_bytes: all.used, quota_bytes: all.quota, cursor: all.cursor })
    }
    .await;
    asked.done(&http, answered).await
}

/// Takes a lock for 30 seconds, or renews it. It keeps nobody from anything: it is for programs that ask each other.
#[utoipa::path(post, path = "/v1/sync/lock", tag = "sync", request_body = LockBody,
    responses((status = 200, body = LockedAnswer), Problems), security(("key" = [])))]
pub(super) async fn lock(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, LockBody) = asked.posted(&http, KeyScope::Write).await?;
        let token = match &body.token {
            Some(token) => token_of(token)?,
            None => LockToken(http.shared.escalator.env.random.bytes()),
        };
        let question = SyncLock { key: locked(&body.key)?, token };
        let SyncLocked { fence, expires_in_ms } =
            ask(&http.shared, &admitted.caller, StreamKind::Sync, &question).await?;
        json(&LockedAnswer { token: token.to_string(), fence, expires_in_ms })
    }
    .await;
    asked.done(&http, answered).await
}

/// Gives a lock back.
#[utoipa::path(post, path = "/v1/sync/unlock", tag = "sync", request_body = UnlockBody,
    responses((status = 200, body = UnlockedAnswer), Problems), security(("key" = [])))]
pub(super) async fn unlock(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, UnlockBody) = asked.posted(&http, KeyScope::Write).await?;
        let question = SyncUnlock { key: locked(&body.key)?, token: token_of(&body.token)? };
        let SyncUnlocked { was_expired } = ask(&http.shared, &admitted.caller, StreamKind::Sync, &question).await?;
        json(&UnlockedAnswer { was_expired })
    }
    .await;
    asked.done(&http, answered).await
}

fn locked(key: &str) -> Result<ItemKey, Refusal> {
    key.parse().map_err(|error: belay_protocol::item::KeyError| Refusal::bad_request(error.to_string()))
}

fn token_of(text: &str) -> Result<LockToken, Refusal> {
    text.parse().map_err(|error: belay_protocol::id::IdError| Refusal::bad_request(error.to_string()))
}
