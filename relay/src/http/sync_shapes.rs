//! What stands in requests and answers about items.

use belay_http::refusal::Refusal;
use belay_protocol::item::ItemKind;
use belay_protocol::message::{SyncChange, SyncContent, SyncKindStatus, SyncPushed};
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// What is synced.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its description is used")]
pub(super) enum KindName {
    Settings,
    Knowledge,
    Lora,
    History,
}

/// What an item is called in paths.
fn name_of(kind: ItemKind) -> &'static str {
    match kind {
        ItemKind::SETTING => "settings",
        ItemKind::DOCUMENT => "knowledge",
        ItemKind::ADAPTER => "lora",
        _ => "history",
    }
}

/// Revisions to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"items": [{"key": "notes/plan.md", "content": "the plan"}]}))]
pub(super) struct PushBody {
    pub(super) items: Vec<PushItem>,
}

/// A revision of an item: one of `content`, `content_base64`, `value` and `deleted`; of history, `messages`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushItem {
    /// Of a document its relative path, of an adapter its name, of a setting its key, of history the conversation.
    pub(super) key: String,
    /// Names the revision for ever: pushed again, it is answered again. 32 hexadecimal digits, or any text.
    #[serde(default)]
    pub(super) revision: Option<String>,
    /// The revision that it was made from; absent: there was no item.
    #[serde(default)]
    pub(super) parent: Option<String>,
    #[serde(default)]
    pub(super) content: Option<String>,
    #[serde(default)]
    pub(super) content_base64: Option<String>,
    /// Of a setting: any JSON.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub(super) value: Option<Value>,
    #[serde(default)]
    pub(super) deleted: bool,
    /// When it was last changed, by the caller's clock, milliseconds since 1970; needed where `revision` is named.
    #[serde(default)]
    pub(super) modified_ms: Option<u64>,
    /// Of an adapter: its `adapter_config.json`, as text or as an object.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub(super) meta: Option<Value>,
    #[serde(default)]
    pub(super) messages: Vec<PushedMessage>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PushedMessage {
    /// Names it: pushed again, it is there once.
    #[serde(default)]
    pub(super) message_id: Option<String>,
    /// `user` or `assistant`.
    pub(super) role: String,
    pub(super) content: String,
    #[serde(default)]
    pub(super) model: Option<String>,
}

/// What became of the items, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PushesAnswer {
    pub(super) results: Vec<PushRow>,
}

/// What became of an item.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct PushRow {
    key: String,
    revision: Option<String>,
    /// `accepted`, `same`, `conflict` (what was pushed is kept beside the item), `kept` (a deletion that came after
    /// an edit), or `refused`.
    outcome: String,
    /// What the item is now.
    head: Option<String>,
    /// The change's number; of history, that of the last message.
    number: Option<u64>,
    /// Where what was pushed is kept beside the item, if it is an item of its own.
    copy: Option<String>,
    /// Why it was refused, for people.
    error: Option<String>,
    /// And for programs.
    code: Option<String>,
}

impl PushRow {
    pub(super) fn of(key: String, pushed: SyncPushed) -> Self {
        Self {
            key,
            revision: Some(pushed.revision.to_string()),
            outcome: pushed.outcome.name().into(),
            head: Some(pushed.head.to_string()),
            number: Some(pushed.number),
            copy: pushed.copy.map(|copy| copy.to_string()),
            ..Self::default()
        }
    }

    pub(super) fn added(key: String, number: u64) -> Self {
        Self { key, outcome: "accepted".into(), number: Some(number), ..Self::default() }
    }

    pub(super) fn refused(key: String, refusal: &Refusal) -> Self {
        let (error, code) = (Some(refusal.words()), Some(refusal.code.to_owned()));
        Self { key, outcome: "refused".into(), error, code, ..Self::default() }
    }
}

/// Which changes are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct PullQuery {
    /// Where the page before ended.
    pub(super) cursor: String,
    /// At most so many; 0: as many as a page has.
    pub(super) limit: u32,
}

/// A page of changes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PullAnswer {
    pub(super) items: Vec<ItemRow>,
    /// Where the next page begins.
    pub(super) cursor: String,
    /// There is more already.
    pub(super) has_more: bool,
    /// `no`; or `too_old` or `other_epoch`: the cursor led nowhere, and this page is the first of all.
    pub(super) resync: String,
}

/// What an item is now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ItemRow {
    key: String,
    revision: String,
    deleted: bool,
    /// Its content, if it is small and text.
    content: Option<String>,
    /// Its content, if it is small and no text.
    content_base64: Option<String>,
    /// Of a setting, its value.
    #[schema(value_type = Option<Object>)]
    value: Option<Value>,
    /// The content is larger: ask `/v1/sync/content` for the revision.
    is_large: bool,
    /// Bytes of content; of history, the number of the last message.
    size: u64,
    digest: String,
    device: Option<String>,
    at_ms: u64,
    modified_ms: u64,
    meta: Option<String>,
    /// It is a copy of what was pushed for this item while that had changed.
    conflict_of: Option<String>,
    /// The number of its last change.
    number: u64,
}

impl ItemRow {
    pub(super) fn of(change: SyncChange) -> Self {
        let is_inline = change.content == SyncContent::INLINE;
        let value = (is_inline && change.kind == ItemKind::SETTING)
            .then(|| serde_json::from_slice(&change.inline).ok())
            .flatten();
        let (mut content, mut content_base64) = (None, None);
        if is_inline && value.is_none() {
            match String::from_utf8(change.inline) {
                Ok(text) => content = Some(text),
                Err(error) => content_base64 = Some(BASE64.encode(error.as_bytes())),
            }
        }
        Self {
            key: change.key,
            revision: change.revision.to_string(),
            deleted: change.content == SyncContent::NONE && change.kind != ItemKind::HISTORY,
            content,
            content_base64,
            value,
            is_large: change.content == SyncContent::PARTS,
            size: change.size,
            digest: HEXLOWER.encode(&change.digest.0),
            device: change.device.map(|device| device.to_string()),
            at_ms: change.at_ms,
            modified_ms: change.modified_ms,
            meta: Some(change.meta).filter(|meta| !meta.is_empty()),
            conflict_of: Some(change.conflict_of).filter(|of| !of.is_empty()),
            number: change.number,
        }
    }
}

/// Which content is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ContentQuery {
    /// The revision that has it.
    pub(super) revision: String,
}

/// What there is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SyncStatusAnswer {
    pub(super) kinds: Vec<SyncStatusRow>,
    /// With old revisions and what is on its way.
    pub(super) used_bytes: u64,
    pub(super) quota_bytes: u64,
    /// Where a reader that has everything stands.
    pub(super) cursor: String,
}

/// What there is of a kind.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SyncStatusRow {
    kind: String,
    items: u64,
    /// Of these, copies of what was pushed while the item had changed.
    conflicts: u64,
    bytes: u64,
    changed_ms: u64,
}

impl SyncStatusRow {
    pub(super) fn of(status: SyncKindStatus) -> Self {
        let SyncKindStatus { kind, items, conflicts, bytes, changed_ms } = status;
        Self { kind: name_of(kind).into(), items, conflicts, bytes, changed_ms }
    }
}

/// A lock to be taken or renewed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LockBody {
    pub(super) key: String,
    /// Of a lock that is renewed; absent: a new one.
    #[serde(default)]
    pub(super) token: Option<String>,
}

/// The lock is there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LockedAnswer {
    /// Renews it, and gives it back.
    pub(super) token: String,
    /// Rises with every holder: what comes with a lower one is too late.
    pub(super) fence: u64,
    pub(super) expires_in_ms: u64,
}

/// A lock to be given back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnlockBody {
    pub(super) key: String,
    pub(super) token: String,
}

/// The lock is free.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UnlockedAnswer {
    /// It had expired before.
    pub(super) was_expired: bool,
}
