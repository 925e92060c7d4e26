//! Usage in the events and bodies of Anthropic Messages. Cached input is counted beside `input_tokens`.

use super::{EventMeaning, UsageMeter, error_text, sane, string_len};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

impl UsageMeter {
    pub(super) fn anthropic_event(&mut self, data: &[u8]) -> EventMeaning {
        let Ok(event) = serde_json::from_slice::<AnthropicEvent<'_>>(data) else {
            return EventMeaning::Content;
        };
        match event.kind.as_ref() {
            "content_block_delta" => {
                if let Some(delta) = event.delta {
                    let parts = [delta.text, delta.partial_json, delta.thinking];
                    self.output_bytes += parts.into_iter().flatten().map(string_len).sum::<u64>();
                }
            }
            "message_start" => {
                if let Some(usage) = event.message.and_then(|message| message.usage) {
                    self.anthropic_usage(&usage, false);
                }
            }
            "message_delta" => {
                if let Some(usage) = event.usage {
                    self.anthropic_usage(&usage, true);
                }
            }
            "message_stop" => return EventMeaning::Done,
            "error" => return EventMeaning::Error(error_text(event.error)),
            _ => {}
        }
        EventMeaning::Content
    }

    fn anthropic_usage(&mut self, usage: &AnthropicUsage, is_final: bool) {
        let keep = |slot: &mut Option<u64>, told: Option<u64>| *slot = sane(told).or(*slot);
        keep(&mut self.told.input, usage.input_tokens);
        keep(&mut self.told.output, usage.output_tokens);
        keep(&mut self.told.cache_read, usage.cache_read_input_tokens);
        match &usage.cache_creation {
            Some(split) => {
                keep(&mut self.told.cache_write_5m, split.ephemeral_5m_input_tokens);
                keep(&mut self.told.cache_write_1h, split.ephemeral_1h_input_tokens);
            }
            // Without the split the total is of the five-minute kind, unless a split came before.
            None if self.told.cache_write_1h.is_none() => {
                keep(&mut self.told.cache_write_5m, usage.cache_creation_input_tokens);
            }
            None => {}
        }
        if let Some(tools) = &usage.server_tool_use {
            keep(&mut self.told.web_searches, tools.web_search_requests);
        }
        self.output_is_final |= is_final && sane(usage.output_tokens).is_some();
    }

    pub(super) fn anthropic_body(&mut self, body: &[u8]) {
        if let Ok(message) = serde_json::from_slice::<AnthropicMessage<'_>>(body) {
            self.output_bytes += message.content.map_or(0, |raw| raw.get().len() as u64);
            if let Some(usage) = message.usage {
                self.anthropic_usage(&usage, true);
            }
        }
    }
}

#[derive(Deserialize)]
struct AnthropicEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<AnthropicDelta<'a>>,
    #[serde(borrow)]
    message: Option<AnthropicMessage<'a>>,
    usage: Option<AnthropicUsage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AnthropicDelta<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    partial_json: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AnthropicMessage<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    usage: Option<AnthropicUsage>,
}

#[derive(Deserialize)]
struct AnthropicUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    server_tool_use: Option<ServerTools>,
}

#[derive(Deserialize)]
struct ServerTools {
    web_search_requests: Option<u64>,
}

#[derive(Deserialize)]
struct CacheCreation {
    ephemeral_5m_input_tokens: Option<u64>,
    ephemeral_1h_input_tokens: Option<u64>,
}
