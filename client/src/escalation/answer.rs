//! What comes back.

use super::Escalation;
use crate::error::ClientError;
use belay_protocol::dialect::answer;
use belay_protocol::message::{Content, End, Failed, ResponseHead};
use bytes::{BufMut, Bytes, BytesMut};
use std::time::Duration;

/// What comes back, in order: `Head`, then events or chunks, then `End`; or `Failed`. In between,
/// `Interrupted` and `Resumed` tell of a lost connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The provider has answered.
    Head(ResponseHead),
    /// One server-sent event, exactly as the provider sent it.
    Event(Bytes),
    /// A piece of an answer that is not streamed.
    Chunk(Bytes),
    /// The connection is lost; the answer goes on by itself as soon as there is another.
    Interrupted {
        /// What happened, for people.
        why: String,
    },
    /// It goes on, with nothing twice, and nothing missing unless `missed` says so; if the content is
    /// `GONE`, only `End` follows.
    Resumed {
        /// How long it was interrupted.
        after: Duration,
        /// Where the rest comes from.
        content: Content,
        /// Events that another reader of the same request has read meanwhile.
        missed: u64,
    },
    /// Over and settled; the last answer.
    End(End),
    /// Failed with nothing charged; the last answer.
    Failed(Failed),
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// The head, if the provider answered.
    pub head: Option<ResponseHead>,
    /// The events of a streamed answer.
    pub events: Vec<Bytes>,
    /// The body of an answer that was not streamed, or of the provider's own refusal.
    pub body: Bytes,
    /// The text in either.
    pub text: String,
    /// How often it was interrupted and went on.
    pub resumed: u32,
    /// How it ended, if it was settled.
    pub end: Option<End>,
    /// Why it failed, if nothing was charged.
    pub failed: Option<Failed>,
}

impl Collected {
    /// Reads an answer to its end and gathers everything.
    pub(super) async fn of(mut escalation: Escalation) -> Result<Self, ClientError> {
        let mut collected = Self::default();
        let mut body = BytesMut::new();
        while let Some(answer) = escalation.next().await? {
            collected.text += &escalation.text(&answer);
            match answer {
                Answer::Head(head) => collected.head = Some(head),
                Answer::Event(event) => collected.events.push(event),
                Answer::Chunk(chunk) => body.put(chunk),
                Answer::Interrupted { .. } => {}
                Answer::Resumed { .. } => collected.resumed += 1,
                Answer::End(end) => collected.end = Some(end),
                Answer::Failed(failed) => collected.failed = Some(failed),
            }
        }
        collected.body = body.freeze();
        if collected.head.as_ref().is_some_and(|head| !head.stream && head.content != Content::GONE) {
            collected.text = answer::body_text(escalation.dialect, &collected.body);
        }
        Ok(collected)
    }
}
