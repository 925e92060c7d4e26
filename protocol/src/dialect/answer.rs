//! Reading text out of an answer, for a caller that wants text and not the provider's events.

use super::sse::SseEvent;
use crate::message::Dialect;
use serde_json::Value;

/// The text that one server-sent event adds to the answer; empty for all other events.
#[must_use]
pub fn event_text(dialect: Dialect, event: &[u8]) -> String {
    let event = SseEvent::parse(event);
    let Ok(value) = serde_json::from_slice::<Value>(&event.data) else {
        return String::new();
    };
    let text = match dialect {
        Dialect::ANTHROPIC => value.pointer("/delta/text"),
        Dialect::OPENAI_RESPONSES => {
            value.get("delta").filter(|_| value.get("type").is_some_and(|kind| kind == "response.output_text.delta"))
        }
        _ => value.pointer("/choices/0/delta/content"),
    };
    text.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The text of an answer that was not streamed.
#[must_use]
pub fn body_text(dialect: Dialect, body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return String::new();
    };
    match dialect {
        Dialect::ANTHROPIC => {
            let blocks = value.pointer("/content").and_then(Value::as_array);
            blocks.into_iter().flatten().filter_map(|block| block.get("text")?.as_str()).collect()
        }
        Dialect::OPENAI_RESPONSES => {
            let items = value.get("output").and_then(Value::as_array);
            let parts = items.into_iter().flatten().filter_map(|item| item.get("content")?.as_array()).flatten();
            parts.filter_map(|part| part.get("text")?.as_str()).collect()
        }
        _ => value.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_out_of_every_dialect() {
        let anthropic = b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"h\\u00e9\"}}\n\n";
        assert_eq!(event_text(Dialect::ANTHROPIC, anthropic), "hé");
        let openai = b"data: {\"choices\":[{\"delta\":{\"content\":\"yo\"}}]}\n\n";
        assert_eq!(event_text(Dialect::OPENAI_CHAT, openai), "yo");
        assert_eq!(event_text(Dialect::OPENAI_CHAT, b"data: [DONE]\n\n"), "");
        let piece = b"data: {\"type\":\"response.output_text.delta\",\"delta\":\"piece\"}\n\n";
        assert_eq!(event_text(Dialect::OPENAI_RESPONSES, piece), "piece");
        let other = b"data: {\"type\":\"response.function_call_arguments.delta\",\"delta\":\"{\"}\n\n";
        assert_eq!(event_text(Dialect::OPENAI_RESPONSES, other), "");
        let response =
            br#"{"output":[{"type":"reasoning","summary":[]},{"type":"message","content":[{"type":"output_text","text":"ab"}]}]}"#;
        assert_eq!(body_text(Dialect::OPENAI_RESPONSES, response), "ab");
        let whole = br#"{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        assert_eq!(body_text(Dialect::ANTHROPIC, whole), "ab");
    }
}
