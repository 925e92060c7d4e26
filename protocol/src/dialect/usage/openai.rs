//! Usage in the events and bodies of OpenAI Chat Completions. Cached input is counted inside
//! `prompt_tokens`.

use super::{EventMeaning, UsageMeter, error_text, sane, string_len};
use serde::Deserialize;
use serde_json::value::RawValue;

impl UsageMeter {
    pub(super) fn openai_event(&mut self, data: &[u8]) -> EventMeaning {
        if data == b"[DONE]" {
            return EventMeaning::Done;
        }
        let Ok(chunk) = serde_json::from_slice::<OpenAiChunk<'_>>(data) else {
            return EventMeaning::Content;
        };
        self.openai_content(&chunk);
        if let Some(usage) = &chunk.usage {
            self.openai_usage(usage);
            if chunk.choices.as_ref().is_some_and(Vec::is_empty) {
                return EventMeaning::UsageOnly;
            }
        }
        match chunk.error {
            Some(error) if error.get() != "null" => EventMeaning::Error(error_text(Some(error))),
            _ => EventMeaning::Content,
        }
    }

    fn openai_content(&mut self, chunk: &OpenAiChunk<'_>) {
        for choice in chunk.choices.iter().flatten() {
            for part in [&choice.delta, &choice.message].into_iter().flatten() {
                // Servers call it by either name, some by both.
                let thoughts = [part.reasoning_content, part.reasoning].into_iter().flatten().map(string_len);
                let texts = [part.content, part.refusal].into_iter().flatten().map(string_len);
                self.output_bytes += texts.sum::<u64>() + thoughts.max().unwrap_or(0);
                for call in part.tool_calls.iter().flatten() {
                    self.output_bytes += call.function.as_ref().and_then(|f| f.arguments).map_or(0, string_len);
                }
            }
        }
    }

    fn openai_usage(&mut self, usage: &OpenAiUsage) {
        let details = usage.prompt_tokens_details.as_ref();
        let cached = sane(details.and_then(|details| details.cached_tokens));
        let audio = sane(details.and_then(|details| details.audio_tokens));
        let written = sane(details.and_then(|details| details.cache_write_tokens));
        if let Some(prompt) = sane(usage.prompt_tokens) {
            // All three are counted inside.
            let inside = [cached, written, audio].into_iter().flatten().sum();
            self.told.input = Some(prompt.saturating_sub(inside));
            (self.told.cache_read, self.told.cache_write_5m) = (cached, written);
            self.told.input_audio = audio;
        }
        let details = usage.completion_tokens_details.as_ref();
        if let Some(completion) = sane(usage.completion_tokens) {
            let audio = sane(details.and_then(|details| details.audio_tokens));
            self.told.output = Some(completion.saturating_sub(audio.unwrap_or(0)));
            self.told.output_audio = audio;
            self.output_is_final = true;
        }
        if let Some(details) = details {
            self.told.reasoning = sane(details.reasoning_tokens);
        }
    }

    pub(super) fn openai_body(&mut self, body: &[u8]) {
        if let Ok(answer) = serde_json::from_slice::<OpenAiChunk<'_>>(body) {
            self.openai_content(&answer);
            if let Some(usage) = answer.usage {
                self.openai_usage(&usage);
            }
        }
    }
}

#[derive(Deserialize)]
struct OpenAiChunk<'a> {
    #[serde(borrow)]
    choices: Option<Vec<OpenAiChoice<'a>>>,
    usage: Option<OpenAiUsage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OpenAiChoice<'a> {
    #[serde(borrow)]
    delta: Option<OpenAiPart<'a>>,
    #[serde(borrow)]
    message: Option<OpenAiPart<'a>>,
}

#[derive(Deserialize)]
struct OpenAiPart<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<Vec<OpenAiToolCall<'a>>>,
}

#[derive(Deserialize)]
struct OpenAiToolCall<'a> {
    #[serde(borrow)]
    function: Option<OpenAiFunction<'a>>,
}

#[derive(Deserialize)]
struct OpenAiFunction<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OpenAiUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    audio_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
    audio_tokens: Option<u64>,
}
