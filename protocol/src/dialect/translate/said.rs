//! What an answer says, piece by piece, and writing it in a caller's dialect.

use super::order::Order;
use super::{anthropic, chat, error, responses};
use crate::message::Dialect;
use bytes::Bytes;
use serde_json::Value;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Delta {
    /// It begins; the provider's name of it.
    Begin(String),
    Text(String),
    /// Reasoning that the provider shows.
    Thought(String),
    /// A tool is called; its arguments follow, under the same key.
    Call {
        key: u64,
        id: String,
        name: String,
    },
    Arguments {
        key: u64,
        more: String,
    },
    /// No more of them follow. Not every provider says so.
    CallEnd {
        key: u64,
    },
    Stop(Stop),
    Usage(Usage),
    /// Nothing, but the provider is there.
    Ping,
    Done,
    /// The provider failed.
    Error {
        kind: String,
        message: String,
    },
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stop {
    #[default]
    End,
    Length,
    Calls,
    /// One of the caller's stop sequences.
    Sequence,
    /// The provider will not say more.
    Refusal,
}

/// Input is what was neither read from nor written to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub(super) input: u64,
    pub(super) cache_read: u64,
    pub(super) cache_write: u64,
    pub(super) output: u64,
    pub(super) reasoning: u64,
}

impl Usage {
    pub(super) fn all_input(&self) -> u64 {
        self.input.saturating_add(self.cache_read).saturating_add(self.cache_write)
    }
}

/// A block of an answer, put together.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    Text(String),
    Thought(String),
    Call { id: String, name: String, arguments: String },
}

/// What is known of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) id: String,
    pub(super) blocks: Vec<Block>,
    pub(super) stop: Stop,
    pub(super) usage: Option<Usage>,
}

impl Said {
    /// Adds a piece. True if it begins a new block.
    pub(super) fn add(&mut self, delta: &Delta) -> bool {
        let before = self.blocks.len();
        match (delta, self.blocks.last_mut()) {
            (Delta::Text(more), Some(Block::Text(text))) | (Delta::Thought(more), Some(Block::Thought(text))) => {
                text.push_str(more);
            }
            (Delta::Arguments { more, .. }, Some(Block::Call { arguments, .. })) => arguments.push_str(more),
            (Delta::Text(text), _) => self.blocks.push(Block::Text(text.clone())),
            (Delta::Thought(text), _) => self.blocks.push(Block::Thought(text.clone())),
            (Delta::Call { id, name, .. }, _) => {
                self.blocks.push(Block::Call { id: id.clone(), name: name.clone(), arguments: String::new() });
            }
            (Delta::Begin(id), _) => self.id.clone_from(id),
            (Delta::Stop(stop), _) => self.stop = *stop,
            (Delta::Usage(usage), _) => self.usage = Some(*usage),
            _ => {}
        }
        self.blocks.len() > before
    }
}

/// Writes an answer.
#[derive(Debug)]
pub(super) struct Writer {
    caller: Dialect,
    pub(super) model: String,
    pub(super) created_s: u64,
    pub(super) wants_usage: bool,
    pub(super) said: Said,
    order: Order,
    /// Events written, for those who number them.
    pub(super) sequence: u64,
    pub(super) begun: bool,
    /// The last block is still open.
    pub(super) open: bool,
    pub(super) over: bool,
}

impl Writer {
    pub(super) fn new(caller: Dialect, model: &str, created_s: u64, wants_usage: bool) -> Self {
        Self {
            caller,
            model: model.to_owned(),
            created_s,
            wants_usage,
            said: Said::default(),
            order: Order::default(),
            sequence: 0,
            begun: false,
            open: false,
            over: false,
        }
    }

    /// The events of some pieces.
    pub(super) fn events(&mut self, deltas: Vec<Delta>) -> Vec<Bytes> {
        let mut out = vec![];
        for delta in self.ordered(deltas) {
            if self.over {
                break;
            }
            match (self.caller, &delta) {
                (caller, Delta::Error { kind, message }) => {
                    self.over = true;
                    out.push(self.error(caller, kind, message));
                }
                (Dialect::ANTHROPIC, delta) => anthropic::write_event(self, delta, &mut out),
                (Dialect::OPENAI_RESPONSES, delta) => responses::write_event(self, delta, &mut out),
                (_, delta) => chat::write_event(self, delta, &mut out),
            }
        }
        out
    }

    fn ordered(&mut self, deltas: Vec<Delta>) -> Vec<Delta> {
        let mut ordered = Vec::with_capacity(deltas.len());
        deltas.into_iter().for_each(|delta| self.order.take(delta, &mut ordered));
        ordered
    }

    fn error(&mut self, caller: Dialect, kind: &str, message: &str) -> Bytes {
        let mut value = error(caller, kind, message);
        match caller {
            Dialect::ANTHROPIC => named("error", &value),
            Dialect::OPENAI_RESPONSES => {
                value["type"] = "error".into();
                value["message"] = message.into();
                value["code"] = kind.into();
                value["param"] = Value::Null;
                value["sequence_number"] = self.sequence.into();
                named("error", &value)
            }
            _ => plain(&value),
        }
    }

    /// All of an answer at once.
    pub(super) fn whole(&mut self, deltas: Vec<Delta>) -> Value {
        for delta in self.ordered(deltas) {
            self.said.add(&delta);
        }
        match self.caller {
            Dialect::ANTHROPIC => anthropic::write_whole(self),
            Dialect::OPENAI_RESPONSES => responses::write_whole(self),
            _ => chat::write_whole(self),
        }
    }
}

/// An event without a name.
pub(super) fn plain(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// An event with a name.
pub(super) fn named(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
