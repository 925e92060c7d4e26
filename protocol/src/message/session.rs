//! The messages of session streams.

use crate::bounded;
use crate::error::codes;
use crate::id::{DeviceId, MessageId, RequestId, SessionId};
use crate::message::Outcome;
use crate::money::NanoUsd;
use serde::{Deserialize, Serialize};

/// Extensions of [`EscalateRequest`](crate::message::EscalateRequest).
pub mod escalate {
    /// The most tokens of a session's history that go with the request; a `u32`, little endian.
    pub const HISTORY_TOKENS: u16 = 1;
}

codes! {
    /// Who said something in a session.
    SessionRole(u16) {
        /// The asker.
        USER = 1, "user";
        /// The model.
        ASSISTANT = 2, "assistant";
    }
}

/// Asks for a session. The answer is [`Session`], then its messages, oldest first, each a [`SessionMessage`]
/// and its text in body chunks, then [`SessionsDone`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGet {
    /// Which one.
    pub session: SessionId,
    /// Only messages above this number: where an answer that was cut is gone on with.
    pub after: u64,
    /// Of these only the last so many; 0: all of them.
    pub last: u32,
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its name.
    pub session: SessionId,
    /// What people call it; empty: nothing was said in it yet.
    pub title: String,
    /// The model or alias that is asked where a request names none; empty: the relay's choice.
    pub model: String,
    /// When it was begun, milliseconds since 1970.
    pub created_ms: u64,
    /// When something was last said or changed in it, milliseconds since 1970.
    pub updated_ms: u64,
    /// Messages in it.
    pub messages: u64,
    /// What its answers have cost, in nano-USD.
    pub cost: NanoUsd,
    /// When it was deleted, milliseconds since 1970.
    pub deleted_ms: Option<u64>,
}

/// A piece of knowledge that goes with every request of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionKnowledge {
    /// Where it comes from.
    pub source: String,
    /// How well it fits, from 0 to 1.
    pub relevance: Option<f64>,
    /// The text itself.
    pub text: String,
}

/// What goes with every request of a session, beside what was said in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SessionContext {
    /// The pathos framing: how the asker wants to be met; empty: not said.
    pub framing: String,
    /// What the asker's computer knows.
    #[serde(with = "bounded::knowledge")]
    pub knowledge: Vec<SessionKnowledge>,
    /// What answers must respect.
    #[serde(with = "bounded::constraints")]
    pub constraints: Vec<String>,
}

/// A session as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// What lists show of it.
    pub row: SessionRow,
    /// What goes with its requests.
    pub context: SessionContext,
}

/// What was said, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMessage {
    /// Its place: numbers rise, and have gaps where a session was cleared.
    pub number: u64,
    /// Names it for ever.
    pub message_id: MessageId,
    /// Who said it.
    pub role: SessionRole,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Which device it came from.
    pub device: DeviceId,
    /// The request that it was said in; `None`: it was added by hand.
    pub request_id: Option<RequestId>,
    /// For an answer: `COMPLETE`, or why it was cut.
    pub outcome: Outcome,
    /// Provider and model of an answer, as `provider/model`; empty: not known.
    pub model: String,
    /// What the answer cost, in nano-USD.
    pub cost: NanoUsd,
    /// Bytes of text that follow.
    pub text_len: u32,
}

/// Adds a message to a session, which is made if it is not there. Its text follows in body chunks. The answer
/// is [`SessionAdded`], the same for ever for the same message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAdd {
    /// To which one.
    pub session: SessionId,
    /// Names the message for ever.
    pub message_id: MessageId,
    /// Who said it.
    pub role: SessionRole,
    /// What answered; empty: not known.
    pub model: String,
    /// Bytes of text that follow.
    pub text_len: u32,
}

/// The message is in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAdded {
    /// Its place.
    pub number: u64,
}

/// Changes a session, which is made if it is not there. What is not said stays. The answer is [`Session`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionUpdate {
    /// Which one.
    pub session: SessionId,
    /// A title; empty: that of its first message.
    pub title: Option<String>,
    /// A model or alias; empty: the relay's choice.
    pub model: Option<String>,
    /// A framing; empty: none.
    pub framing: Option<String>,
    /// `context.knowledge` takes the place of what there is.
    pub sets_knowledge: bool,
    /// `context.constraints` takes the place of what there is.
    pub sets_constraints: bool,
    /// New knowledge.
    #[serde(with = "bounded::knowledge")]
    pub knowledge: Vec<SessionKnowledge>,
    /// New constraints.
    #[serde(with = "bounded::constraints")]
    pub constraints: Vec<String>,
}

impl SessionUpdate {
    /// Changes nothing of it.
    #[must_use]
    pub fn nothing(session: SessionId) -> Self {
        Self {
            session,
            title: None,
            model: None,
            framing: None,
            sets_knowledge: false,
            sets_constraints: false,
            knowledge: vec![],
            constraints: vec![],
        }
    }
}

codes! {
    /// What is done with a whole session.
    SessionDeed(u16) {
        /// Delete it; for 30 days it can be restored.
        DELETE = 1, "delete";
        /// Take its deletion back.
        RESTORE = 2, "restore";
        /// Forget what was said in it, for ever, and keep it.
        CLEAR = 3, "clear";
    }
}

/// Does something with a whole session. The answer is [`Session`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionAct {
    /// With which one.
    pub session: SessionId,
    /// What.
    pub deed: SessionDeed,
}

/// Asks which sessions there are, those first in which something was said or changed last. The answer is any
/// number of [`SessionRow`], then [`SessionsDone`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionList {
    /// Those that were deleted, in place of those that were not.
    pub deleted: bool,
    /// Where the page before has ended; empty: the first page.
    pub cursor: String,
    /// The most rows; 0: as many as a page has.
    pub limit: u32,
}

/// Asks where something was said or what is called so: every word must be there, the last one may go on.
/// The answer is any number of [`SessionHit`], titles first, then what was said last; then [`SessionsDone`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSearch {
    /// Words.
    pub query: String,
    /// Where the page before has ended; empty: the first page.
    pub cursor: String,
    /// The most rows; 0: as many as a page has.
    pub limit: u32,
}

/// A session in which something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionHit {
    /// The session.
    pub row: SessionRow,
    /// The number of the message; 0: it is the title.
    pub message: u64,
    /// The words around, what was found between U+0002 and U+0003.
    pub snippet: String,
}

/// The end of a page, so that one that was cut does not pass for a whole one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsDone {
    /// Rows or messages that came before.
    pub rows: u64,
    /// Where the next page begins; empty: this is the last.
    pub cursor: String,
}
