//! Between the APIs: a caller of one reaches a model of another.
//!
//! A request is read into what it means ([`Asked`]) and written anew in the provider's dialect; an
//! answer is read into what it says, piece by piece (`Delta`), and written in the caller's. What one
//! side can say and the other cannot is an error that names it ([`Untranslatable`]), never left out in
//! silence; docs/GATEWAY.md has the table.

mod anthropic;
mod asked;
mod chat;
mod fields;
mod order;
mod responses;
mod said;

pub use asked::Asked;
use said::{Delta, Writer};

use super::sse::SseEvent;
use crate::message::Dialect;
use bytes::Bytes;
use serde_json::{Value, json};
use thiserror::Error;

/// What a request asks for that the other API does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Untranslatable {
    /// Not what the caller's own API would accept.
    #[error("{field} must be {expected}")]
    Malformed {
        /// Where.
        field: String,
        /// What must be there.
        expected: &'static str,
    },
    /// The other API has nothing of the kind.
    #[error("{field} cannot be carried over to a model of the {to} API{}", if .why.is_empty() { String::new() } else { format!(": {}", .why) })]
    Field {
        /// Where.
        field: String,
        /// The dialect of the model.
        to: Dialect,
        /// What of it.
        why: &'static str,
    },
    /// There is no way from the one to the other.
    #[error("bodies of dialect {from} are not carried over to models of dialect {to}")]
    Pair {
        /// The caller's.
        from: Dialect,
        /// The provider's.
        to: Dialect,
    },
}

/// Reads a request of one dialect for a model of another. Errors: all of [`Untranslatable`].
pub fn request(from: Dialect, to: Dialect, body: &[u8]) -> Result<Asked, Untranslatable> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| Untranslatable::Malformed { field: "the body".into(), expected: "a JSON object" })?;
    match (from, to) {
        (Dialect::OPENAI_CHAT, Dialect::ANTHROPIC) => chat::read(&value, to),
        (Dialect::ANTHROPIC, Dialect::OPENAI_CHAT) => anthropic::read(&value, to),
        (Dialect::OPENAI_RESPONSES, Dialect::ANTHROPIC | Dialect::OPENAI_CHAT) => responses::read(&value, to),
        _ => Err(Untranslatable::Pair { from, to }),
    }
}

/// What is to be sent beside what was asked.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// The provider's name of the model.
    pub model: &'a str,
    /// The output cap that was paid for. `None`: the caller's own.
    pub cap: Option<u32>,
    /// The name of the cap's field (OpenAI Chat).
    pub cap_field: &'a str,
}

/// Writes a request in a provider's dialect.
#[must_use]
pub fn write(asked: &Asked, to: Dialect, sending: &Sending<'_>) -> Bytes {
    let value = match to {
        Dialect::ANTHROPIC => anthropic::write(asked, sending),
        _ => chat::write(asked, sending),
    };
    value.to_string().into()
}

/// A body of the Responses API that was sent where one of Chat Completions belongs, as some editors do.
#[must_use]
pub fn is_responses_body(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Shape<'a> {
        #[serde(borrow)]
        messages: Option<&'a serde_json::value::RawValue>,
        #[serde(borrow)]
        input: Option<&'a serde_json::value::RawValue>,
    }
    // Most bodies have nothing of that name, and are not read for it.
    if memchr::memmem::find(body, b"\"input\"").is_none() {
        return false;
    }
    serde_json::from_slice::<Shape<'_>>(body).is_ok_and(|shape| shape.messages.is_none() && shape.input.is_some())
}

/// The same as a body of Chat Completions. Errors: all of [`Untranslatable`].
pub fn responses_as_chat(model: &str, body: &[u8]) -> Result<Bytes, Untranslatable> {
    let asked = request(Dialect::OPENAI_RESPONSES, Dialect::OPENAI_CHAT, body)?;
    let sending = Sending { model, cap: None, cap_field: "max_completion_tokens" };
    Ok(write(&asked, Dialect::OPENAI_CHAT, &sending))
}

/// Carries an answer over from a provider's dialect into its caller's.
#[derive(Debug)]
pub struct Answers {
    provider: Dialect,
    caller: Dialect,
    reader: Reader,
    writer: Writer,
}

#[derive(Debug)]
enum Reader {
    Anthropic(anthropic::Reader),
    Chat(chat::Reader),
}

impl Reader {
    fn event(&mut self, data: &Value) -> Vec<Delta> {
        match self {
            Self::Anthropic(reader) => reader.event(data),
            Self::Chat(reader) => reader.event(data),
        }
    }
}

impl Answers {
    /// `model` is shown to the caller; `created_s` is the time, in seconds since 1970; `wants_usage`: a chat
    /// caller has asked for usage in its stream.
    #[must_use]
    pub fn new(provider: Dialect, caller: Dialect, model: &str, created_s: u64, wants_usage: bool) -> Self {
        let reader = match provider {
            Dialect::ANTHROPIC => Reader::Anthropic(anthropic::Reader::default()),
            _ => Reader::Chat(chat::Reader::default()),
        };
        Self { provider, caller, reader, writer: Writer::new(caller, model, created_s, wants_usage) }
    }

    /// The caller's events for one of the provider's; often one, sometimes none or several.
    pub fn event(&mut self, event: &[u8]) -> Vec<Bytes> {
        let event = SseEvent::parse(event);
        if &*event.data == b"[DONE]" {
            return self.end();
        }
        if event.data.is_empty() {
            return vec![];
        }
        let deltas = match read_json(&event.data) {
            Ok(data) => self.reader.event(&data),
            Err(error) => {
                let message = format!("the provider sent an event that is no JSON: {error}");
                vec![Delta::Error { kind: "api_error".into(), message }]
            }
        };
        self.writer.events(deltas)
    }

    /// The last events of a stream, unless they have come: some providers end without a closing one.
    pub fn end(&mut self) -> Vec<Bytes> {
        self.writer.events(vec![Delta::Done])
    }

    /// The caller's form of a whole answer. Errors: the provider's makes no sense, or is its word of failure.
    pub fn whole(&mut self, body: &[u8]) -> Result<Bytes, String> {
        let value = read_json(body).map_err(|error| format!("the answer is no JSON: {error}"))?;
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            let words = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            return Err(format!("the provider failed: {words}"));
        }
        let deltas = match self.provider {
            Dialect::ANTHROPIC => anthropic::whole(&value),
            _ => chat::whole(&value),
        };
        Ok(self.writer.whole(deltas.map_err(str::to_owned)?).to_string().into())
    }

    /// The caller's form of a provider's refusal.
    #[must_use]
    pub fn refusal(&self, status: u16, body: &[u8]) -> Bytes {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = value.pointer("/error/message").and_then(Value::as_str);
        let message =
            text.map_or_else(|| String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned(), str::to_owned);
        let message =
            if message.trim().is_empty() { format!("the provider refused with status {status}") } else { message };
        error(self.caller, kind_of(status), &message).to_string().into()
    }
}

/// Reads JSON as forgivingly as providers write it: a character that was cut in half is shown as one that
/// cannot be.
fn read_json(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|error| {
        let mended = without_lone_surrogates(&String::from_utf8_lossy(bytes));
        serde_json::from_str(&mended).map_err(|_| error)
    })
}

/// Escapes of half a character, without its other half, as the escape of U+FFFD.
fn without_lone_surrogates(text: &str) -> String {
    let unit = |rest: &str| {
        let digits = rest.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (taken, written) = match unit(rest) {
            Some(0xd800..=0xdbff) if matches!(unit(&rest[6..]), Some(0xdc00..=0xdfff)) => (12, &rest[..12]),
            Some(0xd800..=0xdfff) => (6, "\\ufffd"),
            // An escape of one character, which may be a backslash itself.
            _ => {
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (len, &rest[..len])
            }
        };
        out.push_str(written);
        rest = &rest[taken..];
    }
    out + rest
}

/// What both APIs call an error of that status.
fn kind_of(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn error(caller: Dialect, kind: &str, message: &str) -> Value {
    match caller {
        Dialect::ANTHROPIC => json!({ "type": "error", "error": { "type": kind, "message": message } }),
        _ => json!({ "error": { "message": message, "type": kind, "param": null, "code": null } }),
    }
}

#[cfg(test)]
mod tests;
