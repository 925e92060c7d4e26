//! The words of the APIs: events, whole answers and refusals, as the real ones write them.

use super::responses;
use super::script::{Asked, Script};
use serde_json::{Value, json};

/// Which API a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    OpenAiChat,
    Responses,
    Embeddings,
    Anthropic,
    CountTokens,
}

impl Api {
    pub(super) fn of_path(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::OpenAiChat),
            "/v1/responses" => Some(Self::Responses),
            "/v1/embeddings" => Some(Self::Embeddings),
            "/v1/messages" => Some(Self::Anthropic),
            "/v1/messages/count_tokens" => Some(Self::CountTokens),
            _ => None,
        }
    }

    fn is_anthropic(self) -> bool {
        matches!(self, Self::Anthropic | Self::CountTokens)
    }

    /// It answers with events where they are asked for.
    pub(super) fn streams(self) -> bool {
        !matches!(self, Self::Embeddings | Self::CountTokens)
    }

    /// Headers that every answer carries.
    pub(super) fn headers(self, number: u64) -> Vec<(&'static str, String)> {
        match self.is_anthropic() {
            false => vec![
                ("x-request-id", format!("req_fake{number}")),
                ("openai-processing-ms", "7".into()),
                ("openai-version", "2020-10-01".into()),
                ("x-ratelimit-remaining-requests", "9999".into()),
                ("x-ratelimit-reset-requests", "20ms".into()),
            ],
            true => vec![
                ("request-id", format!("req_fake{number}")),
                ("anthropic-ratelimit-requests-remaining", "9999".into()),
                ("anthropic-ratelimit-requests-reset", "2030-01-01T00:00:00Z".into()),
            ],
        }
    }

    /// The body of a refusal.
    pub(super) fn refusal(self, status: u16, message: &str) -> String {
        let kind = match (status, self.is_anthropic()) {
            (400 | 404 | 413 | 422, _) => "invalid_request_error",
            (401, _) => "authentication_error",
            (429, false) => "rate_limit_exceeded",
            (429, true) => "rate_limit_error",
            (529, _) => "overloaded_error",
            (_, false) => "server_error",
            (_, true) => "api_error",
        };
        match self.is_anthropic() {
            false => json!({"error": {"message": message, "type": kind, "param": null, "code": null}}),
            true => json!({"type": "error", "error": {"type": kind, "message": message}}),
        }
        .to_string()
    }
}

/// Writes the answer to one request.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) api: Api,
    pub(super) number: u64,
    pub(super) asked: Asked,
    pub(super) script: Script,
}

impl Writer {
    /// The events before the first token.
    pub(super) fn opening(&self) -> Vec<String> {
        match self.api {
            Api::OpenAiChat => {
                vec![self.chunk(&json!({"role": "assistant", "content": "", "refusal": null}), &Value::Null)]
            }
            Api::Responses => responses::opening(self),
            _ => {
                let mut message = json!({
                    "id": format!("msg_fake{}", self.number), "type": "message", "role": "assistant",
                    "model": self.asked.model, "content": [], "stop_reason": null, "stop_sequence": null,
                });
                if !self.script.no_usage {
                    // The output figure is an opening guess here, as in the real one.
                    message["usage"] = self.anthropic_usage(1);
                }
                let block = json!({"type": "text", "text": ""});
                vec![
                    named(&json!({"type": "message_start", "message": message})),
                    named(&json!({"type": "content_block_start", "index": 0, "content_block": block})),
                    Self::ping(),
                ]
            }
        }
    }

    /// One token.
    pub(super) fn token(&self, text: &str) -> String {
        match self.api {
            Api::OpenAiChat => self.chunk(&json!({"content": text}), &Value::Null),
            Api::Responses => responses::token(self, text),
            _ => {
                let delta = json!({"type": "text_delta", "text": text});
                named(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
            }
        }
    }

    /// Anthropic's sign of life.
    pub(super) fn ping() -> String {
        named(&json!({"type": "ping"}))
    }

    /// The events after the last token.
    pub(super) fn closing(&self, tokens: u64, capped: bool) -> Vec<String> {
        match self.api {
            Api::OpenAiChat => {
                let reason = if capped { "length" } else { "stop" };
                let mut events = vec![self.chunk(&json!({}), &reason.into())];
                if self.asked.include_usage && !self.script.no_usage {
                    let mut last = self.envelope("chat.completion.chunk");
                    last["choices"] = json!([]);
                    last["usage"] = self.openai_usage(tokens);
                    events.push(format!("data: {last}\n\n"));
                }
                events.push("data: [DONE]\n\n".into());
                events
            }
            Api::Responses => responses::closing(self, tokens, capped),
            _ => {
                let delta = json!({"stop_reason": stop_reason(capped), "stop_sequence": null});
                let mut last = json!({"type": "message_delta", "delta": delta});
                if !self.script.no_usage {
                    last["usage"] = self.anthropic_usage(tokens);
                }
                vec![
                    named(&json!({"type": "content_block_stop", "index": 0})),
                    named(&last),
                    named(&json!({"type": "message_stop"})),
                ]
            }
        }
    }

    /// The provider fails after it has begun.
    pub(super) fn error(&self) -> String {
        match self.api {
            Api::OpenAiChat => {
                format!("data: {}\n\n", self.api.refusal(500, "The server had an error while processing your request"))
            }
            Api::Responses => responses::error(self),
            _ => format!("event: error\ndata: {}\n\n", self.api.refusal(529, "Overloaded")),
        }
    }

    /// An answer that is not streamed.
    pub(super) fn whole(&self, text: &str, tokens: u64, capped: bool) -> String {
        let mut answer;
        match self.api {
            Api::OpenAiChat => {
                let reason = if capped { "length" } else { "stop" };
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                answer = self.envelope("chat.completion");
                answer["choices"] =
                    json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": reason}]);
                if !self.script.no_usage {
                    answer["usage"] = self.openai_usage(tokens);
                }
            }
            Api::Responses => answer = responses::whole(self, text, tokens, capped),
            Api::Embeddings => {
                // Two floats, little endian, for those who ask for them so.
                let embedding = if self.asked.base64 { json!("AACAPgAAAL8=") } else { json!([0.25, -0.5]) };
                let input = self.script.usage.input;
                answer = json!({
                    "object": "list", "model": self.asked.model,
                    "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
                    "usage": {"prompt_tokens": input, "total_tokens": input},
                });
            }
            Api::CountTokens => answer = json!({"input_tokens": self.script.usage.input}),
            Api::Anthropic => {
                answer = json!({
                    "id": format!("msg_fake{}", self.number), "type": "message", "role": "assistant",
                    "model": self.asked.model, "content": [{"type": "text", "text": text}],
                    "stop_reason": stop_reason(capped), "stop_sequence": null,
                });
                if !self.script.no_usage {
                    answer["usage"] = self.anthropic_usage(tokens);
                }
            }
        }
        answer.to_string()
    }

    fn envelope(&self, object: &str) -> Value {
        json!({
            "id": format!("chatcmpl-fake{}", self.number), "object": object, "created": 1_790_000_000,
            "model": self.asked.model, "service_tier": "default", "system_fingerprint": "fp_fake",
        })
    }

    fn chunk(&self, delta: &Value, finish_reason: &Value) -> String {
        let mut chunk = self.envelope("chat.completion.chunk");
        chunk["choices"] = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]);
        if self.asked.include_usage {
            chunk["usage"] = Value::Null;
        }
        format!("data: {chunk}\n\n")
    }

    pub(super) fn output(&self, tokens: u64) -> u64 {
        self.script.usage.output.unwrap_or(tokens + self.script.usage.reasoning)
    }

    /// OpenAI counts cached input inside `prompt_tokens`.
    fn openai_usage(&self, tokens: u64) -> Value {
        let (usage, output) = (&self.script.usage, self.output(tokens));
        let prompt = usage.input + usage.cache_read;
        json!({
            "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": usage.reasoning, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }

    /// Anthropic counts cached input beside `input_tokens`.
    fn anthropic_usage(&self, tokens: u64) -> Value {
        let usage = &self.script.usage;
        let (short, long) = (usage.cache_write_5m, usage.cache_write_1h);
        json!({
            "input_tokens": usage.input,
            "cache_creation_input_tokens": short + long,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
            "output_tokens": self.output(tokens),
            "service_tier": "standard",
        })
    }
}

fn stop_reason(capped: bool) -> &'static str {
    if capped { "max_tokens" } else { "end_turn" }
}

/// An Anthropic event: its name stands twice.
pub(super) fn named(data: &Value) -> String {
    let name = data.get("type").and_then(Value::as_str).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}
