//! Anthropic Messages: answers.

use crate::dialect::translate::chat::{provider_error, text};
use crate::dialect::translate::said::{Block, Delta, Stop, Usage, Writer, named};
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Reads a stream's events.
#[derive(Debug, Default)]
pub(in super::super) struct Reader {
    usage: Usage,
    /// The blocks that are calls, by their index.
    calls: Vec<u64>,
}

impl Reader {
    pub(in super::super) fn event(&mut self, data: &Value) -> Vec<Delta> {
        match data.get("type").and_then(Value::as_str).unwrap_or_default() {
            "message_start" => {
                let message = data.get("message").unwrap_or(&Value::Null);
                self.told(message.get("usage"));
                vec![Delta::Begin(text(message, "/id"))]
            }
            "content_block_start" => {
                let block = data.get("content_block").unwrap_or(&Value::Null);
                if block.get("type").is_some_and(|kind| kind == "tool_use") {
                    self.calls.push(index(data));
                }
                block_begins(index(data), block)
            }
            "content_block_stop" if self.calls.contains(&index(data)) => vec![Delta::CallEnd { key: index(data) }],
            "content_block_delta" => {
                let piece = |pointer: &str, make: fn(u64, String) -> Delta| {
                    let more = text(data, pointer);
                    if more.is_empty() { vec![] } else { vec![make(index(data), more)] }
                };
                match data.pointer("/delta/type").and_then(Value::as_str).unwrap_or_default() {
                    "text_delta" => piece("/delta/text", |_, text| Delta::Text(text)),
                    "input_json_delta" => piece("/delta/partial_json", |key, more| Delta::Arguments { key, more }),
                    "thinking_delta" => piece("/delta/thinking", |_, text| Delta::Thought(text)),
                    _ => vec![],
                }
            }
            "message_delta" => {
                self.told(data.get("usage"));
                let mut deltas = vec![Delta::Usage(self.usage)];
                if let Some(reason) = data.pointer("/delta/stop_reason").and_then(Value::as_str) {
                    deltas.push(Delta::Stop(stop(reason)));
                }
                deltas
            }
            "message_stop" => vec![Delta::Done],
            "ping" => vec![Delta::Ping],
            "error" => vec![provider_error(data.get("error").unwrap_or(&Value::Null))],
            _ => vec![],
        }
    }

    /// Figures are cumulative: the last one told wins.
    fn told(&mut self, usage: Option<&Value>) {
        let count = |name: &str| usage.and_then(|usage| usage.get(name)).and_then(Value::as_u64);
        self.usage.input = count("input_tokens").unwrap_or(self.usage.input);
        self.usage.output = count("output_tokens").unwrap_or(self.usage.output);
        self.usage.cache_read = count("cache_read_input_tokens").unwrap_or(self.usage.cache_read);
        self.usage.cache_write = count("cache_creation_input_tokens").unwrap_or(self.usage.cache_write);
    }
}

fn index(data: &Value) -> u64 {
    data.get("index").and_then(Value::as_u64).unwrap_or(0)
}

fn block_begins(key: u64, block: &Value) -> Vec<Delta> {
    match block.get("type").and_then(Value::as_str).unwrap_or_default() {
        "tool_use" => {
            let mut deltas = vec![Delta::Call { key, id: text(block, "/id"), name: text(block, "/name") }];
            // Some servers give the whole input at once.
            if let Some(input) = block.get("input").filter(|input| input.as_object().is_some_and(|map| !map.is_empty()))
            {
                deltas.push(Delta::Arguments { key, more: input.to_string() });
            }
            deltas
        }
        "text" if !text(block, "/text").is_empty() => vec![Delta::Text(text(block, "/text"))],
        "thinking" if !text(block, "/thinking").is_empty() => vec![Delta::Thought(text(block, "/thinking"))],
        _ => vec![],
    }
}

fn stop(reason: &str) -> Stop {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => Stop::Length,
        "tool_use" => Stop::Calls,
        "stop_sequence" => Stop::Sequence,
        "refusal" => Stop::Refusal,
        _ => Stop::End,
    }
}

/// Reads a whole answer.
pub(in super::super) fn whole(value: &Value) -> Result<Vec<Delta>, &'static str> {
    let blocks = value.get("content").and_then(Value::as_array).ok_or("the answer has no content")?;
    let mut deltas = vec![Delta::Begin(text(value, "/id"))];
    for (key, block) in (0..).zip(blocks) {
        deltas.extend(block_begins(key, block));
        if block.get("type").is_some_and(|kind| kind == "tool_use") {
            deltas.push(Delta::CallEnd { key });
        }
    }
    let mut reader = Reader::default();
    reader.told(value.get("usage"));
    deltas.push(Delta::Usage(reader.usage));
    deltas.push(Delta::Stop(stop(&text(value, "/stop_reason"))));
    Ok(deltas)
}

/// Arguments as the object that a call has here. What is no object is handed over under one name.
pub(super) fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ if arguments.trim().is_empty() => Value::Object(Map::new()),
        _ => json!({ "arguments": arguments }),
    }
}

/// Writes the events of one piece.
pub(in super::super) fn write_event(writer: &mut Writer, delta: &Delta, out: &mut Vec<Bytes>) {
    if !writer.begun && !matches!(delta, Delta::Ping) {
        writer.begun = true;
        let id = if let Delta::Begin(id) = delta { id.clone() } else { String::new() };
        let message =
            message(&id, &writer.model, json!([]), &Value::Null, json!({ "input_tokens": 0, "output_tokens": 0 }));
        out.push(event(&json!({ "type": "message_start", "message": message })));
    }
    if writer.said.add(delta) {
        close(writer, out);
        let block = match writer.said.blocks.last() {
            Some(Block::Call { id, name, .. }) => json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
            Some(Block::Thought(_)) => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            _ => json!({ "type": "text", "text": "" }),
        };
        let index = writer.said.blocks.len() - 1;
        out.push(event(&json!({ "type": "content_block_start", "index": index, "content_block": block })));
        writer.open = true;
    }
    let piece = match delta {
        Delta::Text(text) => json!({ "type": "text_delta", "text": text }),
        Delta::Thought(text) => json!({ "type": "thinking_delta", "thinking": text }),
        Delta::Arguments { more, .. } => json!({ "type": "input_json_delta", "partial_json": more }),
        Delta::Ping => return out.push(event(&json!({ "type": "ping" }))),
        Delta::Done => {
            writer.over = true;
            close(writer, out);
            let usage = write_usage(&writer.said.usage.unwrap_or_default());
            let delta = json!({ "stop_reason": stop_reason(writer.said.stop), "stop_sequence": null });
            out.push(event(&json!({ "type": "message_delta", "delta": delta, "usage": usage })));
            return out.push(event(&json!({ "type": "message_stop" })));
        }
        _ => return,
    };
    let index = writer.said.blocks.len().saturating_sub(1);
    out.push(event(&json!({ "type": "content_block_delta", "index": index, "delta": piece })));
}

fn close(writer: &mut Writer, out: &mut Vec<Bytes>) {
    if std::mem::take(&mut writer.open) {
        // A block that has just begun is not the one that is closed.
        let open = out.len();
        let closed = writer.said.blocks.len() - usize::from(!writer.over) - 1;
        out.insert(open, event(&json!({ "type": "content_block_stop", "index": closed })));
    }
}

fn event(data: &Value) -> Bytes {
    named(data["type"].as_str().unwrap_or_default(), data)
}

fn message(id: &str, model: &str, content: Value, stop_reason: &Value, usage: Value) -> Value {
    json!({
        "id": id, "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": stop_reason, "stop_sequence": null, "usage": usage,
    })
}

fn stop_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "end_turn",
        Stop::Length => "max_tokens",
        Stop::Calls => "tool_use",
        Stop::Sequence => "stop_sequence",
        Stop::Refusal => "refusal",
    }
}

fn write_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": usage.cache_write,
        "output_tokens": usage.output,
    })
}

/// Writes a whole answer.
pub(in super::super) fn write_whole(writer: &Writer) -> Value {
    let block = |block: &Block| match block {
        Block::Text(text) => json!({ "type": "text", "text": text }),
        Block::Thought(text) => json!({ "type": "thinking", "thinking": text, "signature": "" }),
        Block::Call { id, name, arguments } => {
            json!({ "type": "tool_use", "id": id, "name": name, "input": input(arguments) })
        }
    };
    let said = &writer.said;
    let content: Vec<Value> = said.blocks.iter().map(block).collect();
    let usage = write_usage(&said.usage.unwrap_or_default());
    message(&said.id, &writer.model, content.into(), &stop_reason(said.stop).into(), usage)
}
