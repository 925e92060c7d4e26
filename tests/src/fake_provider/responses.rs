//! OpenAI Responses, as the real API writes it.

use super::dialect::{Writer, named};
use serde_json::{Value, json};

fn response(writer: &Writer, status: &str) -> Value {
    json!({
        "id": format!("resp_fake{}", writer.number), "object": "response", "created_at": 1_790_000_000,
        "status": status, "model": writer.asked.model, "error": null, "incomplete_details": null,
        "output": [], "parallel_tool_calls": true, "usage": null,
    })
}

fn item(writer: &Writer) -> String {
    format!("msg_fake{}", writer.number)
}

/// The number is not counted up between tokens: nothing here reads it.
fn event(kind: &str, more: Value) -> String {
    let mut data = json!({"type": kind, "sequence_number": 0});
    if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
        data.extend(more);
    }
    named(&data)
}

pub(super) fn opening(writer: &Writer) -> Vec<String> {
    let message =
        json!({"id": item(writer), "type": "message", "status": "in_progress", "role": "assistant", "content": []});
    let part = json!({"type": "output_text", "text": "", "annotations": []});
    vec![
        event("response.created", json!({"response": response(writer, "in_progress")})),
        event("response.in_progress", json!({"response": response(writer, "in_progress")})),
        event("response.output_item.added", json!({"output_index": 0, "item": message})),
        event(
            "response.content_part.added",
            json!({"item_id": item(writer), "output_index": 0, "content_index": 0, "part": part}),
        ),
    ]
}

pub(super) fn token(writer: &Writer, text: &str) -> String {
    let place = json!({"item_id": item(writer), "output_index": 0, "content_index": 0, "delta": text, "logprobs": []});
    event("response.output_text.delta", place)
}

pub(super) fn closing(writer: &Writer, tokens: u64, capped: bool) -> Vec<String> {
    let (kind, last) = if capped {
        let mut last = response(writer, "incomplete");
        last["incomplete_details"] = json!({"reason": "max_output_tokens"});
        ("response.incomplete", last)
    } else {
        ("response.completed", response(writer, "completed"))
    };
    let mut last = last;
    let text = if writer.script.stamp { String::new() } else { writer.script.whole_text(tokens) };
    last["output"] = json!([message(writer, &text)]);
    if !writer.script.no_usage {
        last["usage"] = usage(writer, tokens);
    }
    vec![
        event("response.output_item.done", json!({"output_index": 0, "item": message(writer, &text)})),
        event(kind, json!({"response": last})),
    ]
}

pub(super) fn error(writer: &Writer) -> String {
    let mut failed = response(writer, "failed");
    failed["error"] =
        json!({"code": "server_error", "message": "The server had an error while processing your request"});
    event("response.failed", json!({"response": failed}))
}

pub(super) fn whole(writer: &Writer, text: &str, tokens: u64, capped: bool) -> Value {
    let mut answer = response(writer, if capped { "incomplete" } else { "completed" });
    answer["output"] = json!([message(writer, text)]);
    if !writer.script.no_usage {
        answer["usage"] = usage(writer, tokens);
    }
    answer
}

fn message(writer: &Writer, text: &str) -> Value {
    let part = json!({"type": "output_text", "text": text, "annotations": []});
    json!({"id": item(writer), "type": "message", "status": "completed", "role": "assistant", "content": [part]})
}

/// Cached input is counted inside.
fn usage(writer: &Writer, tokens: u64) -> Value {
    let (told, output) = (&writer.script.usage, writer.output(tokens));
    let input = told.input + told.cache_read;
    json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": told.cache_read},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": told.reasoning},
        "total_tokens": input + output,
    })
}
