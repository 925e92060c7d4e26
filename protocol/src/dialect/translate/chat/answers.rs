//! OpenAI Chat Completions: answers.

use crate::dialect::translate::said::{Block, Delta, Stop, Usage, Writer, plain};
use bytes::Bytes;
use serde_json::{Value, json};

/// Reads a stream's events.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    begun: bool,
    /// The calls so far, by their place in this list: the index and the id that the provider gives them. Some
    /// give all the same index.
    calls: Vec<(u64, String)>,
    /// It has said that it will not answer.
    refuses: bool,
}

impl Reader {
    pub(in super::super) fn event(&mut self, data: &Value) -> Vec<Delta> {
        let mut deltas = vec![];
        if let Some(error) = data.get("error").filter(|error| !error.is_null()) {
            return vec![provider_error(error)];
        }
        if !std::mem::replace(&mut self.begun, true) {
            deltas.push(Delta::Begin(text(data, "/id")));
        }
        if let Some(choice) = first_choice(data) {
            deltas.extend(choice.get("delta").and_then(thought));
            for pointer in ["/delta/content", "/delta/refusal"] {
                let said = text(choice, pointer);
                if !said.is_empty() {
                    self.refuses |= pointer == "/delta/refusal";
                    deltas.push(Delta::Text(said));
                }
            }
            let calls = choice.pointer("/delta/tool_calls").and_then(Value::as_array);
            calls.into_iter().flatten().for_each(|call| self.call(call, &mut deltas));
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
                deltas.push(Delta::Stop(if self.refuses { Stop::Refusal } else { stop(reason) }));
            }
        }
        if let Some(usage) = data.get("usage").filter(|usage| !usage.is_null()) {
            deltas.push(Delta::Usage(read_usage(usage)));
        }
        deltas
    }

    fn call(&mut self, call: &Value, deltas: &mut Vec<Delta>) {
        let index = call.get("index").and_then(Value::as_u64).unwrap_or(0);
        let id = text(call, "/id");
        let known = self.calls.iter().rposition(|(at, known)| *at == index && (id.is_empty() || *known == id));
        let place = known.unwrap_or_else(|| {
            self.calls.push((index, id.clone()));
            self.calls.len() - 1
        });
        let key = place as u64;
        if known.is_none() {
            deltas.push(Delta::Call { key, id, name: text(call, "/function/name") });
        }
        let more = text(call, "/function/arguments");
        if !more.is_empty() {
            deltas.push(Delta::Arguments { key, more });
        }
    }
}

/// The one answer that was asked for: by its index, where there is one.
fn first_choice(data: &Value) -> Option<&Value> {
    let choices = data.get("choices")?.as_array()?;
    choices.iter().find(|choice| choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0)
}

/// What it thinks: servers call it by either name, some by both.
fn thought(said: &Value) -> Option<Delta> {
    let thoughts = ["/reasoning_content", "/reasoning"].map(|pointer| text(said, pointer));
    thoughts.into_iter().find(|thought| !thought.is_empty()).map(Delta::Thought)
}

/// Reads a whole answer.
pub(in super::super) fn whole(value: &Value) -> Result<Vec<Delta>, &'static str> {
    let choice = first_choice(value).ok_or("the answer has no choices")?;
    let mut deltas = vec![Delta::Begin(text(value, "/id"))];
    deltas.extend(choice.get("message").and_then(thought));
    for (pointer, make) in [("/message/content", Delta::Text as fn(String) -> Delta), ("/message/refusal", Delta::Text)]
    {
        let said = text(choice, pointer);
        if !said.is_empty() {
            deltas.push(make(said));
        }
    }
    let calls = choice.pointer("/message/tool_calls").and_then(Value::as_array);
    for (key, call) in (0..).zip(calls.into_iter().flatten()) {
        deltas.push(Delta::Call { key, id: text(call, "/id"), name: text(call, "/function/name") });
        let more = text(call, "/function/arguments");
        if !more.is_empty() {
            deltas.push(Delta::Arguments { key, more });
        }
        deltas.push(Delta::CallEnd { key });
    }
    let reason = choice.get("finish_reason").and_then(Value::as_str).unwrap_or("stop");
    let refuses = !text(choice, "/message/refusal").is_empty();
    deltas.push(Delta::Stop(if refuses { Stop::Refusal } else { stop(reason) }));
    if let Some(usage) = value.get("usage") {
        deltas.push(Delta::Usage(read_usage(usage)));
    }
    Ok(deltas)
}

pub(in super::super) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub(in super::super) fn provider_error(error: &Value) -> Delta {
    let kind = error.get("type").and_then(Value::as_str).unwrap_or("api_error").to_owned();
    let message = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
    Delta::Error { kind, message }
}

fn stop(reason: &str) -> Stop {
    match reason {
        "length" => Stop::Length,
        "tool_calls" | "function_call" => Stop::Calls,
        "content_filter" => Stop::Refusal,
        _ => Stop::End,
    }
}

fn read_usage(usage: &Value) -> Usage {
    let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let cache_read = count("/prompt_tokens_details/cached_tokens");
    Usage {
        input: count("/prompt_tokens").saturating_sub(cache_read),
        cache_read,
        cache_write: 0,
        output: count("/completion_tokens"),
        reasoning: count("/completion_tokens_details/reasoning_tokens"),
    }
}

/// Writes the events of one piece.
pub(in super::super) fn write_event(writer: &mut Writer, delta: &Delta, out: &mut Vec<Bytes>) {
    writer.said.add(delta);
    let place = writer.said.blocks.iter().filter(|block| matches!(block, Block::Call { .. })).count().saturating_sub(1);
    let piece = match delta {
        Delta::Begin(_) => json!({ "role": "assistant", "content": "" }),
        Delta::Text(text) => json!({ "content": text }),
        Delta::Thought(text) => json!({ "reasoning_content": text }),
        Delta::Call { id, name, .. } => {
            let function = json!({ "name": name, "arguments": "" });
            json!({ "tool_calls": [{ "index": place, "id": id, "type": "function", "function": function }] })
        }
        Delta::Arguments { more, .. } => {
            json!({ "tool_calls": [{ "index": place, "function": { "arguments": more } }] })
        }
        Delta::Ping => return out.push(Bytes::from_static(b": ping\n\n")),
        Delta::Done => {
            writer.over = true;
            let reason = finish_reason(writer.said.stop);
            out.push(plain(&chunk(writer, json!([{ "index": 0, "delta": {}, "finish_reason": reason }]))));
            if let Some(usage) = writer.said.usage.filter(|_| writer.wants_usage) {
                let mut last = chunk(writer, json!([]));
                last["usage"] = write_usage(&usage);
                out.push(plain(&last));
            }
            return out.push(Bytes::from_static(b"data: [DONE]\n\n"));
        }
        Delta::Stop(_) | Delta::Usage(_) | Delta::CallEnd { .. } | Delta::Error { .. } => return,
    };
    out.push(plain(&chunk(writer, json!([{ "index": 0, "delta": piece, "finish_reason": null }]))));
}

fn chunk(writer: &Writer, choices: Value) -> Value {
    json!({
        "id": writer.said.id,
        "object": "chat.completion.chunk",
        "created": writer.created_s,
        "model": writer.model,
        "choices": choices,
    })
}

fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Sequence => "stop",
        Stop::Length => "length",
        Stop::Calls => "tool_calls",
        Stop::Refusal => "content_filter",
    }
}

fn write_usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.all_input(),
        "completion_tokens": usage.output,
        "total_tokens": usage.all_input().saturating_add(usage.output),
        "prompt_tokens_details": { "cached_tokens": usage.cache_read },
    })
}

/// Writes a whole answer.
pub(in super::super) fn write_whole(writer: &Writer) -> Value {
    let (mut content, mut thoughts, mut calls) = (String::new(), String::new(), vec![]);
    for block in &writer.said.blocks {
        match block {
            Block::Text(text) => content += text,
            Block::Thought(text) => thoughts += text,
            Block::Call { id, name, arguments } => {
                calls.push(
                    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }),
                );
            }
        }
    }
    let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { content.into() };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let mut answer = json!({
        "id": writer.said.id,
        "object": "chat.completion",
        "created": writer.created_s,
        "model": writer.model,
        "choices": [{ "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(writer.said.stop) }],
    });
    if let Some(usage) = writer.said.usage {
        answer["usage"] = write_usage(&usage);
    }
    answer
}
