//! What the fake provider is to do with a request.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Deserializer, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens to one request. Every field has a default that makes a well-behaved provider; a
/// request may carry its own in its last user message, or tool's answer, among any other words, as an object such as
/// `{"fake":{"tokens":50,"pace_ms":2}}`.
///
/// *Events* are counted as they stand on the wire, the opening one (role chunk, `message_start`)
/// being the first. An answer that is not streamed is one event: `cut_after` and `hang_after` then
/// strike in the middle of its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Tokens of output. The request's own output cap ends the answer earlier.
    pub tokens: u64,
    /// No end of tokens, whatever the cap says.
    pub endless: bool,
    /// Take no notice of the request's output cap.
    pub ignore_cap: bool,
    /// The text of every token instead of the built-in ones (see [`Script::token`]).
    pub text: Option<String>,
    /// Each token's text is its time of sending, `t<CLOCK_MONOTONIC in ns>` (see [`crate::clock`]).
    pub stamp: bool,
    /// The first token's text has so many bytes.
    pub giant_bytes: usize,

    /// Silence before status and headers.
    pub head_ms: u64,
    /// Silence between the opening event and the first token.
    pub first_token_ms: u64,
    /// Time between two tokens; they keep to a timetable, so delays do not add up.
    pub pace_ms: u64,
    /// Anthropic: a `ping` before every so many tokens (0: only the usual one at the beginning).
    pub ping_every: u64,
    /// Each event leaves in so many pieces, cut at any byte, UTF-8 or not.
    pub split: usize,
    /// One byte at a time, with so much silence between them.
    pub drip_ms: Option<u64>,

    /// HTTP status. Anything but 200 is answered with an error body and no events.
    pub status: u16,
    /// Headers beside, or instead of, the usual ones.
    pub headers: BTreeMap<String, String>,
    /// A streamed answer's events, as they stand, instead of the dialect's own.
    pub events: Vec<String>,
    /// The body instead of the dialect's own for `status`; with status 200 it is a whole answer.
    pub body: Option<String>,

    /// The first so many requests with this body are refused with 503, as by a provider that has no room
    /// for a moment.
    pub refusals: u64,
    /// Close the connection before any answer.
    pub die: bool,
    /// Never answer at all.
    pub hang: bool,
    /// Drop the connection after so many events.
    pub cut_after: Option<u64>,
    /// Fall silent for ever after so many events.
    pub hang_after: Option<u64>,
    /// The provider's own error event after so many events; then the answer ends.
    pub error_after: Option<u64>,
    /// Bytes that make no sense after so many events; then the answer ends.
    pub garbage_after: Option<u64>,
    /// End the body in order, but without any closing event, after so many events.
    pub stop_after: Option<u64>,
    /// Tell no usage, though asked.
    pub no_usage: bool,
    /// The usage that is told.
    pub usage: Usage,
}

/// Usage figures as a provider counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Input tokens that have nothing to do with a cache.
    pub input: u64,
    /// Output tokens, reasoning included; without it, as many as were sent, and `reasoning` more.
    pub output: Option<u64>,
    /// Input tokens read from the cache. OpenAI tells them inside `prompt_tokens`.
    pub cache_read: u64,
    /// Input tokens written to the cache for five minutes (Anthropic).
    pub cache_write_5m: u64,
    /// Input tokens written to the cache for an hour (Anthropic).
    pub cache_write_1h: u64,
    /// Reasoning tokens; OpenAI tells them apart, Anthropic does not.
    pub reasoning: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { input: 25, output: None, cache_read: 0, cache_write_5m: 0, cache_write_1h: 0, reasoning: 0 }
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 10,
            endless: false,
            ignore_cap: false,
            text: None,
            stamp: false,
            giant_bytes: 0,
            head_ms: 0,
            first_token_ms: 0,
            pace_ms: 0,
            ping_every: 0,
            split: 1,
            drip_ms: None,
            status: 200,
            headers: BTreeMap::new(),
            events: vec![],
            body: None,
            refusals: 0,
            die: false,
            hang: false,
            cut_after: None,
            hang_after: None,
            error_after: None,
            garbage_after: None,
            stop_after: None,
            no_usage: false,
            usage: Usage::default(),
        }
    }
}

impl Script {
    /// A well-behaved answer of so many tokens.
    #[must_use]
    pub fn tokens(tokens: u64) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// A refusal, with `retry-after` in seconds where one is given.
    #[must_use]
    pub fn refusal(status: u16, retry_after_s: Option<u32>) -> Self {
        let headers = retry_after_s.map(|s| ("retry-after".to_owned(), s.to_string()));
        Self { status, headers: headers.into_iter().collect(), ..Self::default() }
    }

    /// The object for a user message that asks for this script.
    #[must_use]
    pub fn as_message(&self) -> String {
        serde_json::json!({ "fake": self }).to_string()
    }

    /// The text of token `number`, counted from 0, unless tokens are stamped: words of one to four
    /// bytes a character, each different from its neighbours, so that a lost, doubled or torn one
    /// shows.
    #[must_use]
    pub fn token(&self, number: u64) -> String {
        const WORDS: [&str; 5] = ["belay", "sé", "結び", "🪢", "\"\\\n"];
        if number == 0 && self.giant_bytes > 0 {
            return "g".repeat(self.giant_bytes);
        }
        match &self.text {
            Some(text) => text.clone(),
            None => format!("{}{number} ", WORDS[(number % WORDS.len() as u64) as usize]),
        }
    }

    /// The whole text of an answer of so many tokens, unless tokens are stamped.
    #[must_use]
    pub fn whole_text(&self, tokens: u64) -> String {
        (0..tokens).map(|number| self.token(number)).collect()
    }

    pub(super) fn first_token(&self) -> Duration {
        Duration::from_millis(self.first_token_ms)
    }

    pub(super) fn pace(&self) -> Duration {
        Duration::from_millis(self.pace_ms)
    }
}

/// What a request's body says that matters here.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) cap: Option<u64>,
    /// Embeddings are wanted in base64.
    pub(super) base64: bool,
    pub(super) script: Option<Script>,
}

/// Reads a body. Errors: it is no JSON object, or the script in it is not understood.
pub(super) fn read_body(body: &Bytes) -> Result<Asked, String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let flag = |pointer| value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
    let cap = ["/max_completion_tokens", "/max_tokens", "/max_output_tokens"]
        .into_iter()
        .find_map(|at| value.pointer(at)?.as_u64());
    Ok(Asked {
        model: value.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
        stream: flag("/stream"),
        include_usage: flag("/stream_options/include_usage"),
        cap,
        base64: value.get("encoding_format").is_some_and(|format| format == "base64"),
        script: script_in(&last_user_text(&value))?,
    })
}

fn last_user_text(body: &Value) -> String {
    let list = body.get("messages").or_else(|| body.get("input"));
    if let Some(Value::String(text)) = list {
        return text.clone();
    }
    let messages = list.and_then(Value::as_array);
    // What a tool has answered is the caller's last word too.
    let is_theirs = |message: &&Value| {
        message.get("role").is_some_and(|role| role == "user" || role == "tool")
            || message.get("type").is_some_and(|kind| kind == "function_call_output")
    };
    let last = messages.into_iter().flatten().rev().find(is_theirs);
    match last.and_then(|message| message.get("content").or_else(|| message.get("output"))) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// Finds `{"fake":{…}}` in a text.
fn script_in(text: &str) -> Result<Option<Script>, String> {
    #[derive(Deserialize)]
    struct Carrier {
        fake: Script,
    }
    let Some(start) = text.find("{\"fake\"") else { return Ok(None) };
    match Deserializer::from_str(&text[start..]).into_iter::<Carrier>().next() {
        Some(Ok(carrier)) => Ok(Some(carrier.fake)),
        Some(Err(error)) => Err(format!("the script in the message is not understood: {error}")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(content: Value) -> Bytes {
        let messages = serde_json::json!([
            {"role": "user", "content": "{\"fake\":{\"tokens\":1}}"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": content},
        ]);
        let body = serde_json::json!({"model": "m", "stream": true, "max_tokens": 7, "messages": messages});
        body.to_string().into()
    }

    #[test]
    fn the_last_user_message_says_what_to_do() {
        let asked =
            read_body(&body("please {\"fake\":{\"tokens\":50,\"pace_ms\":2}} thanks".into())).expect("understood");
        assert_eq!((asked.cap, asked.stream, asked.include_usage), (Some(7), true, false));
        assert_eq!(asked.script, Some(Script { pace_ms: 2, ..Script::tokens(50) }));
        let parts = serde_json::json!([{"type": "text", "text": Script::refusal(429, Some(3)).as_message()}]);
        let script = read_body(&body(parts)).expect("understood").script.expect("there");
        assert_eq!((script.status, script.headers["retry-after"].as_str()), (429, "3"));
        assert_eq!(read_body(&body("hello".into())).expect("understood").script, None);
        assert!(read_body(&body("{\"fake\":{\"tokns\":50}}".into())).is_err(), "a mistyped script is noticed");
        assert!(read_body(&Bytes::from_static(b"{")).is_err());
    }
}
