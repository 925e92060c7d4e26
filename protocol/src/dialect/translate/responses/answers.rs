//! OpenAI Responses: answers.

use crate::dialect::translate::said::{Block, Delta, Stop, Usage, Writer, named};
use bytes::Bytes;
use serde_json::{Value, json};

/// Writes the events of one piece.
pub(in super::super) fn write_event(writer: &mut Writer, delta: &Delta, out: &mut Vec<Bytes>) {
    if let Delta::Ping = delta {
        return out.push(Bytes::from_static(b": ping\n\n"));
    }
    let begins = writer.said.add(delta);
    if !std::mem::replace(&mut writer.begun, true) {
        let response = response(writer, "in_progress", &json!([]));
        event(writer, out, "response.created", json!({ "response": response }));
        event(writer, out, "response.in_progress", json!({ "response": response }));
    }
    if begins {
        let index = writer.said.blocks.len() - 1;
        if index > 0 {
            close(writer, out, index - 1);
        }
        open(writer, out, index);
    }
    let index = writer.said.blocks.len().saturating_sub(1);
    match delta {
        Delta::Text(text) => {
            let place = json!({ "item_id": item_id(writer, index), "output_index": index, "content_index": 0 });
            event(writer, out, "response.output_text.delta", with(place, json!({ "delta": text, "logprobs": [] })));
        }
        Delta::Thought(text) => {
            let place = json!({ "item_id": item_id(writer, index), "output_index": index, "summary_index": 0 });
            event(writer, out, "response.reasoning_summary_text.delta", with(place, json!({ "delta": text })));
        }
        Delta::Arguments { more, .. } => {
            let place = json!({ "item_id": item_id(writer, index), "output_index": index, "delta": more });
            event(writer, out, "response.function_call_arguments.delta", place);
        }
        Delta::Done => {
            writer.over = true;
            if !writer.said.blocks.is_empty() {
                close(writer, out, index);
            }
            let status = status(writer.said.stop);
            let name = if status == "completed" { "response.completed" } else { "response.incomplete" };
            let response = write_whole(writer);
            event(writer, out, name, json!({ "response": response }));
        }
        _ => {}
    }
}

fn open(writer: &mut Writer, out: &mut Vec<Bytes>, index: usize) {
    let mut begun = item(writer, index, "in_progress");
    let id = item_id(writer, index);
    match &writer.said.blocks[index] {
        Block::Text(_) => {
            begun["content"] = json!([]);
            event(writer, out, "response.output_item.added", json!({ "output_index": index, "item": begun }));
            let part = json!({ "type": "output_text", "text": "", "annotations": [], "logprobs": [] });
            let place = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
            event(writer, out, "response.content_part.added", place);
        }
        Block::Thought(_) => {
            begun["summary"] = json!([]);
            event(writer, out, "response.output_item.added", json!({ "output_index": index, "item": begun }));
            let part = json!({ "type": "summary_text", "text": "" });
            let place = json!({ "item_id": id, "output_index": index, "summary_index": 0, "part": part });
            event(writer, out, "response.reasoning_summary_part.added", place);
        }
        Block::Call { .. } => {
            event(writer, out, "response.output_item.added", json!({ "output_index": index, "item": begun }));
        }
    }
}

fn close(writer: &mut Writer, out: &mut Vec<Bytes>, index: usize) {
    let id = item_id(writer, index);
    let done = item(writer, index, "completed");
    match writer.said.blocks[index].clone() {
        Block::Text(text) => {
            let place = json!({ "item_id": id, "output_index": index, "content_index": 0 });
            event(
                writer,
                out,
                "response.output_text.done",
                with(place.clone(), json!({ "text": text, "logprobs": [] })),
            );
            let part = done["content"][0].clone();
            event(writer, out, "response.content_part.done", with(place, json!({ "part": part })));
        }
        Block::Thought(text) => {
            let place = json!({ "item_id": id, "output_index": index, "summary_index": 0 });
            event(writer, out, "response.reasoning_summary_text.done", with(place.clone(), json!({ "text": text })));
            let part = done["summary"][0].clone();
            event(writer, out, "response.reasoning_summary_part.done", with(place, json!({ "part": part })));
        }
        Block::Call { arguments, name, .. } => {
            let place = json!({ "item_id": id, "output_index": index, "name": name, "arguments": arguments });
            event(writer, out, "response.function_call_arguments.done", place);
        }
    }
    event(writer, out, "response.output_item.done", json!({ "output_index": index, "item": done }));
}

fn event(writer: &mut Writer, out: &mut Vec<Bytes>, name: &str, more: Value) {
    let data = with(json!({ "type": name, "sequence_number": writer.sequence }), more);
    writer.sequence += 1;
    out.push(named(name, &data));
}

fn with(mut value: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, more) {
        fields.extend(more);
    }
    value
}

/// Ids of items are made of the answer's.
fn item_id(writer: &Writer, index: usize) -> String {
    let kind = match writer.said.blocks.get(index) {
        Some(Block::Call { .. }) => "fc",
        Some(Block::Thought(_)) => "rs",
        _ => "msg",
    };
    format!("{kind}_{}_{index}", writer.said.id)
}

fn item(writer: &Writer, index: usize, status: &str) -> Value {
    let id = item_id(writer, index);
    match &writer.said.blocks[index] {
        Block::Text(text) => {
            let part = json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] });
            json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": [part] })
        }
        Block::Thought(text) => {
            json!({ "id": id, "type": "reasoning", "summary": [{ "type": "summary_text", "text": text }] })
        }
        Block::Call { id: call, name, arguments } => json!({
            "id": id, "type": "function_call", "status": status, "call_id": call, "name": name, "arguments": arguments,
        }),
    }
}

fn status(stop: Stop) -> &'static str {
    match stop {
        Stop::Length | Stop::Refusal => "incomplete",
        _ => "completed",
    }
}

fn response(writer: &Writer, status: &str, output: &Value) -> Value {
    json!({
        "id": format!("resp_{}", writer.said.id),
        "object": "response",
        "created_at": writer.created_s,
        "status": status,
        "error": null,
        "incomplete_details": null,
        "model": writer.model,
        "output": output,
        "parallel_tool_calls": true,
        "tool_choice": "auto",
        "tools": [],
        "usage": null,
    })
}

/// Writes a whole answer.
pub(in super::super) fn write_whole(writer: &Writer) -> Value {
    let output: Vec<Value> = (0..writer.said.blocks.len()).map(|index| item(writer, index, "completed")).collect();
    let stop = writer.said.stop;
    let mut whole = response(writer, status(stop), &output.into());
    match stop {
        Stop::Length => whole["incomplete_details"] = json!({ "reason": "max_output_tokens" }),
        Stop::Refusal => whole["incomplete_details"] = json!({ "reason": "content_filter" }),
        _ => {}
    }
    whole["usage"] = write_usage(&writer.said.usage.unwrap_or_default());
    whole
}

fn write_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.all_input(),
        "input_tokens_details": { "cached_tokens": usage.cache_read },
        "output_tokens": usage.output,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning },
        "total_tokens": usage.all_input().saturating_add(usage.output),
    })
}
