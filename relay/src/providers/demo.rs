//! The built-in provider that needs no key and no network.
//!
//! It speaks OpenAI Chat as a real server does: a role chunk, content chunks at a pace, comments as
//! pings, a finish reason, usage only at the end and only if asked for, `[DONE]`; its bytes are cut
//! inside events and inside UTF-8 sequences. What it says depends on what it is asked.

use super::{Answer, AnswerBody, Call, CallFuture, Provider, ProviderError};
use belay_protocol::message::Dialect;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// A comment is sent after so many tokens, as real servers do to keep connections open.
const PING_EVERY: usize = 16;

/// The demo provider.
#[derive(Debug)]
pub struct Demo {
    pace: Duration,
}

impl Demo {
    /// One token every `pace`.
    #[must_use]
    pub fn new(pace: Duration) -> Self {
        Self { pace }
    }
}

impl Provider for Demo {
    fn dialect(&self) -> Dialect {
        Dialect::OPENAI_CHAT
    }

    fn call(&self, call: Call) -> CallFuture {
        let pace = self.pace;
        Box::pin(async move {
            sleep(pace).await;
            Ok(answer(&call.body, pace))
        })
    }
}

fn answer(body: &[u8], pace: Duration) -> Answer {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return whole(400, &json!({ "error": { "message": "the body is not JSON", "type": "invalid_request_error" } }));
    };
    let question = question(&request);
    let cap = ["max_completion_tokens", "max_tokens"].iter().find_map(|field| request[*field].as_u64());
    let all = tokens(&reply(&question));
    let said = all.len().min(usize::try_from(cap.unwrap_or(u64::MAX)).unwrap_or(usize::MAX));
    let finish = if said < all.len() { "length" } else { "stop" };
    let usage = json!({
        "prompt_tokens": (body.len() as u64).div_ceil(4),
        "completion_tokens": said,
        "total_tokens": (body.len() as u64).div_ceil(4) + said as u64,
    });
    let model = request["model"].as_str().unwrap_or("demo-1").to_owned();
    if !request["stream"].as_bool().unwrap_or(false) {
        let message = json!({ "role": "assistant", "content": all[..said].concat() });
        return whole(
            200,
            &json!({ "object": "chat.completion", "model": model, "usage": usage,
                "choices": [{ "index": 0, "message": message, "finish_reason": finish }] }),
        );
    }
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({ "object": "chat.completion.chunk", "model": model, "choices": choices, "usage": usage });
        format!("data: {chunk}\n\n")
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "finish_reason": finish }]), Value::Null)
    };
    let mut events = vec![delta(json!({ "role": "assistant", "content": "" }), Value::Null)];
    for (number, token) in all[..said].iter().enumerate() {
        if number % PING_EVERY == PING_EVERY - 1 {
            events.push(": ping\n\n".into());
        }
        events.push(delta(json!({ "content": token }), Value::Null));
    }
    events.push(delta(json!({}), finish.into()));
    if request["stream_options"]["include_usage"].as_bool().unwrap_or(false) {
        events.push(chunk(json!([]), usage));
    }
    events.push("data: [DONE]\n\n".into());
    let body = Paced { pieces: cut(&events), pace, wait: None };
    Answer { status: 200, headers: vec![("content-type".into(), "text/event-stream".into())], body: Box::new(body) }
}

/// The last thing that the user said.
fn question(request: &Value) -> String {
    let messages = request["messages"].as_array();
    let last = messages.and_then(|messages| messages.iter().rev().find(|message| message["role"] == "user"));
    match last.map(|message| &message["content"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn reply(question: &str) -> String {
    let lower = question.to_lowercase();
    if lower.contains("sky") && lower.contains("blue") {
        return "Sunlight is a mixture of all colours. On its way through the air it meets molecules that are much \
                smaller than its wavelength, and those scatter short wavelengths far more than long ones: by the \
                inverse fourth power, so that blue light at 450 nm is scattered about four times as much as red at \
                650 nm. Look away from the sun and what reaches your eye is that scattered light — mostly blue. \
                Violet is scattered even more, but the sun sends less of it and our eyes hardly see it. At dusk the \
                light has crossed so much air that the blue is gone: “les couleurs du soir”, orange and red, remain."
            .into();
    }
    let words = question.split_whitespace().count();
    let shown: String = question.chars().take(200).collect();
    format!(
        "This is belay’s demo provider: it runs inside the relay, knows nothing, and costs demo money. You asked \
         “{shown}” — {words} words, which travelled through the tunnel, were priced, held and forwarded like any \
         request. Configure a real provider (see `belayd config init`) and the same words will reach a real model."
    )
}

/// Words with their spaces: near enough to what real tokenisers do.
fn tokens(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

/// One piece per event, but for every third, whose end comes with the next one: cut in the middle
/// of its last multi-byte character if it has one, else in the middle.
fn cut(events: &[String]) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::with_capacity(events.len());
    let mut carried = Vec::new();
    for (number, event) in events.iter().enumerate() {
        let bytes = event.as_bytes();
        let inside = bytes.iter().rposition(|byte| byte & 0xc0 == 0x80).unwrap_or(bytes.len() / 2);
        let at = if number % 3 == 1 && number + 1 < events.len() { inside } else { bytes.len() };
        let mut piece = std::mem::take(&mut carried);
        piece.extend_from_slice(&bytes[..at]);
        carried.extend_from_slice(&bytes[at..]);
        pieces.push_back(Bytes::from(piece));
    }
    pieces
}

fn whole(status: u16, value: &Value) -> Answer {
    let body = Paced { pieces: VecDeque::from([Bytes::from(value.to_string())]), pace: Duration::ZERO, wait: None };
    Answer { status, headers: vec![("content-type".into(), "application/json".into())], body: Box::new(body) }
}

struct Paced {
    pieces: VecDeque<Bytes>,
    pace: Duration,
    wait: Option<Pin<Box<Sleep>>>,
}

impl AnswerBody for Paced {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        let piece = self.pieces.pop_front();
        if !self.pace.is_zero() && self.pieces.len() > 1 {
            self.wait = Some(Box::pin(sleep(self.pace)));
        }
        Poll::Ready(piece.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_protocol::dialect::answer::event_text;
    use belay_protocol::dialect::sse::SseSplitter;
    use belay_protocol::dialect::usage::{EventMeaning, UsageMeter};
    use belay_protocol::message::Operation;

    #[tokio::test(start_paused = true)]
    async fn it_streams_like_a_real_one() {
        let body = json!({ "model": "demo-1", "stream": true, "stream_options": { "include_usage": true },
            "messages": [{ "role": "user", "content": "Why is the sky blue?" }] });
        let call = Call {
            operation: Operation::CHAT,
            body: Bytes::from(body.to_string()),
            headers: vec![],
            key: None,
            trace: None,
        };
        let mut answer = Demo::new(Duration::from_millis(5)).call(call).await.expect("answers");
        let mut splitter = SseSplitter::new(1 << 16);
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        let (mut text, mut done, mut cut_inside_a_character) = (String::new(), false, false);
        while let Some(chunk) = answer.chunk().await {
            let chunk = chunk.expect("no failure");
            cut_inside_a_character |= std::str::from_utf8(&chunk).is_err();
            splitter.push(chunk);
            while let Some(event) = splitter.next().expect("small") {
                done |= meter.event(&event) == EventMeaning::Done;
                text += &event_text(Dialect::OPENAI_CHAT, &event);
            }
        }
        assert!(done && cut_inside_a_character);
        assert_eq!(text, reply("sky blue"));
        assert!(!meter.report(0).estimated);
    }
}
