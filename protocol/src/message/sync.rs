//! The messages of sync, blob and feed streams.

use crate::bounded;
use crate::error::codes;
use crate::id::{DeviceId, LockToken, RevisionId};
use crate::item::{Digest, ItemKey, ItemKind};
use serde::{Deserialize, Serialize};

codes! {
    /// Where the content of a revision is.
    SyncContent(u16) {
        /// Nowhere: the item is deleted.
        NONE = 0, "none";
        /// In the message.
        INLINE = 1, "inline";
        /// In parts, which blob streams carry.
        PARTS = 2, "parts";
        /// It is that of an earlier revision of the item.
        EARLIER = 3, "earlier";
    }
}

codes! {
    /// What became of a push.
    PushOutcome(u16) {
        /// It is what the item is now.
        ACCEPTED = 1, "accepted";
        /// The item has this content already.
        SAME = 2, "same";
        /// The item had changed meanwhile; what was pushed is kept beside it.
        CONFLICT = 3, "conflict";
        /// It was a deletion, and the item had been edited meanwhile: the edit stays.
        KEPT = 4, "kept";
    }
}

codes! {
    /// Why a feed begins anew.
    Resync(u16) {
        /// It does not.
        NO = 0, "no";
        /// What happened after the cursor is forgotten.
        TOO_OLD = 1, "too_old";
        /// The cursor is of another epoch: the relay's state was restored from a backup.
        OTHER_EPOCH = 2, "other_epoch";
    }
}

codes! {
    /// How the bytes of a part are sent and kept.
    Encoding(u16) {
        /// As they are.
        PLAIN = 0, "plain";
        /// Compressed with zstd.
        ZSTD = 1, "zstd";
    }
}

codes! {
    /// What a revision is to its item.
    RevisionState(u16) {
        /// What the item is now.
        CURRENT = 1, "current";
        /// What it was.
        REPLACED = 2, "replaced";
        /// What somebody else wanted it to be at the same time.
        CONFLICT = 3, "conflict";
    }
}

/// Makes a revision of an item. The answer is [`SyncPushed`], or a failure in its place; a stream carries any number
/// of pushes, answered in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPush {
    /// Names the revision for ever: the same push again gets the same answer.
    pub revision: RevisionId,
    /// The revision that it was made from; `None`: there was no item.
    pub parent: Option<RevisionId>,
    /// What it is.
    pub kind: ItemKind,
    /// Which one.
    pub key: ItemKey,
    /// Where its content is. Parts are sent before, under the revision's name.
    pub content: SyncContent,
    /// When the device last changed it, by its own clock, milliseconds since 1970.
    pub modified_ms: u64,
    /// Bytes of content.
    pub size: u64,
    /// BLAKE3 of the content; of content in parts, of the list of parts.
    pub digest: Digest,
    /// The content, if it is in the message.
    #[serde(with = "bounded::bytes")]
    pub inline: Vec<u8>,
    /// What belongs to the content: of an adapter, its configuration.
    pub meta: String,
    /// The earlier revision whose content it has.
    pub earlier: Option<RevisionId>,
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPushed {
    /// Which one.
    pub revision: RevisionId,
    /// What became of it.
    pub outcome: PushOutcome,
    /// What the item is now.
    pub head: RevisionId,
    /// The change's number; 0: nothing has changed.
    pub number: u64,
    /// Where what was pushed is kept beside the item, if it is an item of its own.
    pub copy: Option<ItemKey>,
}

/// Asks for what has changed. The answer is any number of [`SyncChange`], each item once and in the order of their
/// last changes, then [`SyncPage`]. On a feed stream it never ends: further pages follow when something changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPull {
    /// Where the page before has ended; empty: the beginning.
    pub cursor: String,
    /// The most changes in a page; 0: as many as a page has.
    pub limit: u32,
}

/// What an item is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncChange {
    /// The number of its last change.
    pub number: u64,
    /// What it is.
    pub kind: ItemKind,
    /// Which one. Of history, the session's name, which need not be a key.
    pub key: String,
    /// Its revision.
    pub revision: RevisionId,
    /// Where its content is.
    pub content: SyncContent,
    /// The device that made it. Of history: not said.
    pub device: Option<DeviceId>,
    /// When the relay got it, milliseconds since 1970.
    pub at_ms: u64,
    /// When its device last changed it, by that device's clock.
    pub modified_ms: u64,
    /// Bytes of content; of history, the number of its last message.
    pub size: u64,
    /// BLAKE3 of the content; of content in parts, of the list of parts.
    pub digest: Digest,
    /// The content, if it is in the message.
    #[serde(with = "bounded::bytes")]
    pub inline: Vec<u8>,
    /// What belongs to the content.
    pub meta: String,
    /// It is a copy of what was pushed for this item while that had changed; empty: it is none.
    pub conflict_of: String,
}

/// The end of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPage {
    /// Changes that came before.
    pub changes: u64,
    /// Where the next page begins.
    pub cursor: String,
    /// There is more already.
    pub has_more: bool,
    /// The cursor that was given led nowhere: this page is the first of all.
    pub resync: Resync,
}

/// Asks for the parts of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncGet {
    /// Which one.
    pub revision: RevisionId,
}

/// The content of a revision, or its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncGot {
    /// Where its content is.
    pub content: SyncContent,
    /// Bytes of content.
    pub size: u64,
    /// The content, if it is in the message.
    #[serde(with = "bounded::bytes")]
    pub inline: Vec<u8>,
    /// The list of its parts: for each its hash and its size, a `u32`, little endian.
    #[serde(with = "bounded::bytes")]
    pub parts: Vec<u8>,
}

/// Asks what an item was. The answer is any number of [`SyncRevision`], the newest first, then [`SyncLogDone`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLog {
    /// What it is.
    pub kind: ItemKind,
    /// Which one.
    pub key: ItemKey,
}

/// What an item was, or would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRevision {
    /// Which one.
    pub revision: RevisionId,
    /// The one that it was made from.
    pub parent: Option<RevisionId>,
    /// What it is to the item.
    pub state: RevisionState,
    /// Where its content is.
    pub content: SyncContent,
    /// The device that made it.
    pub device: DeviceId,
    /// When the relay got it, milliseconds since 1970.
    pub at_ms: u64,
    /// When it was replaced.
    pub replaced_ms: Option<u64>,
    /// Bytes of content.
    pub size: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
}

/// The end of a log, so that one that was cut does not pass for a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLogDone {
    /// Revisions that came before.
    pub revisions: u64,
}

/// Asks what there is of each kind. The answer is a [`SyncKindStatus`] for each kind that has items, then
/// [`SyncStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatusRequest {
    /// Reserved, 0.
    pub reserved: u8,
}

/// What there is of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncKindStatus {
    /// Which kind.
    pub kind: ItemKind,
    /// Items that are not deleted.
    pub items: u64,
    /// Of these, copies of what was pushed while the item had changed.
    pub conflicts: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// When one of them last changed, milliseconds since 1970.
    pub changed_ms: u64,
}

/// What there is in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// Bytes that the tenant takes, with old revisions and what is on its way.
    pub used: u64,
    /// Bytes that it may take.
    pub quota: u64,
    /// Where a feed that has everything stands.
    pub cursor: String,
}

/// Asks for a lock for 30 seconds, or for another 30. Whoever has it is not kept from anything by it: it is for
/// programs that ask each other. The answer is [`SyncLocked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLock {
    /// What is locked.
    pub key: ItemKey,
    /// Made by who asks; the same one again renews the lock.
    pub token: LockToken,
}

/// The lock is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLocked {
    /// Rises with every holder of this lock: what comes with a lower one is too late.
    pub fence: u64,
    /// When it ends unless it is renewed, in milliseconds from now.
    pub expires_in_ms: u64,
}

/// Gives a lock back. The answer is [`SyncUnlocked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncUnlock {
    /// What is locked.
    pub key: ItemKey,
    /// The token that it was taken with.
    pub token: LockToken,
}

/// The lock is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncUnlocked {
    /// It had expired before.
    pub was_expired: bool,
}

/// Announces content in parts: room for it is set aside, and of the parts that are there already none goes until it is
/// pushed, or for a day. The answer is [`BlobNeeded`]; the same again says what is still needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobBegin {
    /// The revision that will have it.
    pub revision: RevisionId,
    /// Of what.
    pub kind: ItemKind,
    /// The list of parts: for each its hash and its size, a `u32`, little endian.
    #[serde(with = "bounded::bytes")]
    pub parts: Vec<u8>,
}

/// Which parts are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobNeeded {
    /// For each its place in the list, and how many bytes of it (plain) are there already; each a `u32`, little endian.
    #[serde(with = "bounded::bytes")]
    pub needed: Vec<u8>,
}

/// A part. Its bytes follow in body chunks, whose offsets count from 0. The answer is [`BlobStored`], or a failure in its
/// place; a stream carries any number of parts, answered in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobPut {
    /// The revision that was announced.
    pub revision: RevisionId,
    /// The part's place in the list.
    pub part: u32,
    /// Bytes of it that are left out, since they are there already. Plain parts only.
    pub offset: u32,
    /// How they are sent.
    pub encoding: Encoding,
    /// How many follow.
    pub len: u32,
}

/// The part is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStored {
    /// Its place in the list.
    pub part: u32,
}

/// Asks for a part. The answer is [`BlobPart`] and its bytes, or a failure in its place; a stream carries any number
/// of these, answered in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobGet {
    /// Which one.
    pub digest: Digest,
    /// From which of the bytes that are sent on.
    pub offset: u32,
}

/// A part. Its bytes follow in body chunks, whose offsets count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobPart {
    /// Bytes of the part.
    pub size: u32,
    /// How they are sent.
    pub encoding: Encoding,
    /// How many follow.
    pub len: u32,
}
