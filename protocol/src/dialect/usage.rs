//! Reading usage out of a provider's answer, event by event.
//!
//! Anthropic counts cached input beside `input_tokens`, OpenAI counts it inside `prompt_tokens`;
//! both come out here as the same lines. Figures are cumulative: the last one told wins, and a told
//! zero is not the same as nothing told. Where a provider never tells, [`UsageMeter::report`]
//! estimates from what was seen and says so.

mod responses;

use super::sse::SseEvent;
use crate::message::{Dialect, UnitKind, UsageLine};
use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Bytes of text that are taken for one token where the provider did not count.
pub const BYTES_PER_ESTIMATED_TOKEN: u64 = 4;

/// The most events that are set aside.
const MOST_ASIDE: usize = 64;
/// The most bytes of them: the buffers that they came in stay in memory with them.
const MOST_BYTES_ASIDE: usize = 64 << 10;

/// No request uses more of anything. A figure beyond it is no figure: nobody can be charged for it.
const MOST_UNITS: u64 = 1 << 40;

/// A figure that may be meant.
fn sane(told: Option<u64>) -> Option<u64> {
    told.filter(|units| *units <= MOST_UNITS)
}

/// What one event meant for the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventMeaning {
    /// Content or anything else that is passed on.
    Content,
    /// The usage figures that the relay asked for on its own account (OpenAI).
    UsageOnly,
    /// The provider said that the answer is complete.
    Done,
    /// The provider failed after it had begun; its own words.
    Error(String),
}

/// Figures as told so far; `None` was never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    input: Option<u64>,
    output: Option<u64>,
    cache_read: Option<u64>,
    cache_write_5m: Option<u64>,
    cache_write_1h: Option<u64>,
    reasoning: Option<u64>,
    input_audio: Option<u64>,
    output_audio: Option<u64>,
    web_searches: Option<u64>,
}

/// Input tokens as a provider has told them before the end of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ToldInput {
    /// Neither read from nor written to a cache.
    pub input: u64,
    /// Read from the cache.
    pub cache_read: u64,
    /// Written to the cache of five minutes.
    pub cache_write_5m: u64,
    /// Written to the cache of an hour.
    pub cache_write_1h: u64,
}

/// Watches an answer go by.
#[derive(Debug)]
pub struct UsageMeter {
    dialect: Dialect,
    told: Told,
    /// The output figure is the final one, not the opening guess of `message_start`.
    output_is_final: bool,
    /// Bytes of text, thinking and tool arguments seen, JSON-escaped.
    output_bytes: u64,
    /// Events with nothing but content in them, not read yet: their reader waits for the event, and
    /// reading several at a time costs less.
    aside: Vec<Bytes>,
    aside_bytes: usize,
    /// What an event set aside turned out to mean.
    overlooked: Option<EventMeaning>,
    /// Whatever the answer says is no usage.
    is_free: bool,
}

/// What a request used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageReport {
    /// The lines, without zeros.
    pub lines: Vec<UsageLine>,
    /// At least one figure is an estimate.
    pub estimated: bool,
}

impl UsageMeter {
    /// A meter for an answer of that dialect.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            told: Told::default(),
            output_is_final: false,
            output_bytes: 0,
            aside: vec![],
            aside_bytes: 0,
            overlooked: None,
            is_free: false,
        }
    }

    /// The answer has no output that is charged, such as embeddings.
    pub fn expects_no_output(&mut self) {
        self.told.output = Some(0);
        self.output_is_final = true;
    }

    /// The answer costs nothing, such as a count of tokens.
    pub fn expects_no_usage(&mut self) {
        self.expects_no_output();
        self.told.input = Some(0);
        self.is_free = true;
    }

    /// Bytes of output seen until the last [`catch_up`](Self::catch_up): the progress of a request
    /// whose usage is not told yet.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// Input tokens as told so far.
    #[must_use]
    pub fn told_input(&self) -> Option<ToldInput> {
        let told = &self.told;
        told.input.map(|input| ToldInput {
            input: input + told.input_audio.unwrap_or(0),
            cache_read: told.cache_read.unwrap_or(0),
            cache_write_5m: told.cache_write_5m.unwrap_or(0),
            cache_write_1h: told.cache_write_1h.unwrap_or(0),
        })
    }

    /// Looks at one server-sent event. One that is plainly content is only kept until
    /// [`catch_up`](Self::catch_up).
    pub fn event(&mut self, event: &Bytes) -> EventMeaning {
        if self.overlooked.is_none() && is_plain(self.dialect, event) {
            self.aside.push(event.clone());
            self.aside_bytes += event.len();
            if self.aside.len() >= MOST_ASIDE || self.aside_bytes >= MOST_BYTES_ASIDE {
                self.catch_up();
            }
            return EventMeaning::Content;
        }
        let meaning = self.read(event);
        self.overlooked.take().unwrap_or(meaning)
    }

    /// Reads the events that were set aside.
    pub fn catch_up(&mut self) {
        let mut aside = std::mem::take(&mut self.aside);
        self.aside_bytes = 0;
        for event in aside.drain(..) {
            match self.read(&event) {
                EventMeaning::Content | EventMeaning::UsageOnly => {}
                // Written so that a look at its bytes did not show it.
                meaning => self.overlooked = Some(meaning),
            }
        }
        self.aside = aside;
    }

    /// What an event that was set aside turned out to mean, if it was more than content.
    #[must_use]
    pub fn overlooked(&mut self) -> Option<EventMeaning> {
        self.overlooked.take()
    }

    fn read(&mut self, event: &[u8]) -> EventMeaning {
        let event = SseEvent::parse(event);
        if event.data.is_empty() {
            return EventMeaning::Content;
        }
        match self.dialect {
            Dialect::ANTHROPIC => self.anthropic_event(&event.data),
            Dialect::OPENAI_RESPONSES => self.responses_event(&event.data),
            _ => self.openai_event(&event.data),
        }
    }

    /// Looks at a whole answer that was not streamed.
    pub fn body(&mut self, body: &[u8]) {
        if self.is_free {
            return;
        }
        match self.dialect {
            Dialect::ANTHROPIC => {
                if let Ok(message) = serde_json::from_slice::<AnthropicMessage<'_>>(body) {
                    self.output_bytes += message.content.map_or(0, |raw| raw.get().len() as u64);
                    if let Some(usage) = message.usage {
                        self.anthropic_usage(&usage, true);
                    }
                }
            }
            Dialect::OPENAI_RESPONSES => self.responses_body(body),
            _ => {
                if let Ok(answer) = serde_json::from_slice::<OpenAiChunk<'_>>(body) {
                    self.openai_content(&answer);
                    if let Some(usage) = answer.usage {
                        self.openai_usage(&usage);
                    }
                }
            }
        }
    }

    /// The usage, estimating what was never told: output from the bytes seen, input from
    /// `input_bytes` of request text.
    #[must_use]
    pub fn report(&mut self, input_bytes: u64) -> UsageReport {
        self.catch_up();
        let estimate = |bytes: u64| bytes.div_ceil(BYTES_PER_ESTIMATED_TOKEN);
        let told = &self.told;
        let output = match told.output {
            Some(output) if self.output_is_final => output,
            // The opening guess is a lower bound of what was produced.
            opening => estimate(self.output_bytes).max(opening.unwrap_or(0)),
        };
        let lines = [
            (UnitKind::INPUT, told.input.unwrap_or_else(|| estimate(input_bytes))),
            (UnitKind::OUTPUT, output),
            (UnitKind::CACHE_READ, told.cache_read.unwrap_or(0)),
            (UnitKind::CACHE_WRITE_5M, told.cache_write_5m.unwrap_or(0)),
            (UnitKind::CACHE_WRITE_1H, told.cache_write_1h.unwrap_or(0)),
            (UnitKind::REASONING, told.reasoning.unwrap_or(0)),
            (UnitKind::INPUT_AUDIO, told.input_audio.unwrap_or(0)),
            (UnitKind::OUTPUT_AUDIO, told.output_audio.unwrap_or(0)),
            (UnitKind::WEB_SEARCHES, told.web_searches.unwrap_or(0)),
        ];
        UsageReport {
            lines: lines
                .into_iter()
                .filter(|(_, units)| *units > 0)
                .map(|(kind, units)| UsageLine { kind, units })
                .collect(),
            estimated: told.input.is_none() || told.output.is_none() || !self.output_is_final,
        }
    }

    fn anthropic_event(&mut self, data: &[u8]) -> EventMeaning {
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

    fn openai_event(&mut self, data: &[u8]) -> EventMeaning {
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
                let texts = [part.content, part.refusal, part.reasoning_content];
                self.output_bytes += texts.into_iter().flatten().map(string_len).sum::<u64>();
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
}

static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"content_block_delta"));
static MESSAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"message_"));
static PIECE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b".delta\""));
static DONE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"[DONE]"));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));

/// True if a look at its bytes shows that an event can hold nothing but content: no usage, no error,
/// no end.
fn is_plain(dialect: Dialect, event: &[u8]) -> bool {
    let has = |finder: &Finder<'_>| finder.find(event).is_some();
    match dialect {
        Dialect::ANTHROPIC => has(&DELTA) && !has(&ERROR) && !has(&MESSAGE),
        Dialect::OPENAI_RESPONSES => has(&PIECE) && !has(&ERROR) && !tells_usage(event),
        _ => !has(&DONE) && !has(&ERROR) && !tells_usage(event),
    }
}

/// OpenAI's chunks carry `"usage":null` until the last one.
fn tells_usage(event: &[u8]) -> bool {
    USAGE.find_iter(event).any(|at| {
        let value = event[at + USAGE.needle().len()..].trim_ascii_start();
        value.strip_prefix(b":").is_none_or(|value| !value.trim_ascii_start().starts_with(b"null"))
    })
}

/// Length of a JSON string without its quotes; zero for null and other values.
fn string_len(raw: &RawValue) -> u64 {
    let text = raw.get();
    if text.starts_with('"') { (text.len() as u64).saturating_sub(2) } else { 0 }
}

/// The words of an error object: its `message`, or all of it, cut to a bearable length.
fn error_text(error: Option<&RawValue>) -> String {
    #[derive(Deserialize)]
    struct Words {
        message: String,
    }
    let raw = error.map_or("", RawValue::get);
    let text = serde_json::from_str::<Words>(raw).map_or_else(|_| raw.to_owned(), |words| words.message);
    text.chars().take(500).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(report: &UsageReport) -> Vec<(UnitKind, u64)> {
        report.lines.iter().map(|line| (line.kind, line.units)).collect()
    }

    #[test]
    fn a_figure_that_nobody_can_mean_is_none() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        let absurd = b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":18446744073709551615,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":18446744073709551615}}}\n\n";
        meter.event(&Bytes::from_static(absurd));
        let report = meter.report(40);
        assert!(report.estimated);
        assert_eq!(lines(&report), [(UnitKind::INPUT, 10), (UnitKind::OUTPUT, 7)]);
        let mut meter = UsageMeter::new(Dialect::ANTHROPIC);
        meter.body(br#"{"content":[],"usage":{"input_tokens":3,"output_tokens":9223372036854775807}}"#);
        assert!(meter.report(0).estimated);
    }

    #[test]
    fn anthropic_counts_the_cache_beside_the_input_and_the_last_figure_wins() {
        let mut meter = UsageMeter::new(Dialect::ANTHROPIC);
        meter.event(&Bytes::from_static(b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[],\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":30,\"cache_read_input_tokens\":40,\"cache_creation\":{\"ephemeral_5m_input_tokens\":20,\"ephemeral_1h_input_tokens\":10},\"output_tokens\":1}}}\n\n"));
        meter.event(&Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"));
        let delta = b"data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"abcdefgh\"}}\n\n";
        assert_eq!(meter.event(&Bytes::from_static(delta)), EventMeaning::Content);
        assert_eq!(meter.output_bytes(), 0, "nobody waits for the figure");
        meter.catch_up();
        assert_eq!(meter.output_bytes(), 8);
        assert!(meter.report(0).estimated, "the opening figure is not the final one");
        meter.event(&Bytes::from_static(b"data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":7}}\n\n"));
        assert_eq!(meter.event(&Bytes::from_static(b"data: {\"type\":\"message_stop\"}\n\n")), EventMeaning::Done);
        let report = meter.report(999);
        assert!(!report.estimated);
        assert_eq!(
            lines(&report),
            [
                (UnitKind::INPUT, 10),
                (UnitKind::OUTPUT, 7),
                (UnitKind::CACHE_READ, 40),
                (UnitKind::CACHE_WRITE_5M, 20),
                (UnitKind::CACHE_WRITE_1H, 10)
            ]
        );
        let told = ToldInput { input: 10, cache_read: 40, cache_write_5m: 20, cache_write_1h: 10 };
        assert_eq!(meter.told_input(), Some(told));
    }

    #[test]
    fn openai_counts_the_cache_inside_the_input() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        let content = b"data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}],\"usage\":null}\n\n";
        assert_eq!(meter.event(&Bytes::from_static(content)), EventMeaning::Content);
        let usage = b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\":64},\"completion_tokens_details\":{\"reasoning_tokens\":4}}}\n\n";
        assert_eq!(meter.event(&Bytes::from_static(usage)), EventMeaning::UsageOnly);
        assert_eq!(meter.event(&Bytes::from_static(b"data: [DONE]\n\n")), EventMeaning::Done);
        let report = meter.report(0);
        assert!(!report.estimated);
        assert_eq!(
            lines(&report),
            [(UnitKind::INPUT, 36), (UnitKind::OUTPUT, 9), (UnitKind::CACHE_READ, 64), (UnitKind::REASONING, 4)]
        );
    }

    #[test]
    fn a_told_zero_is_not_missing_and_a_missing_figure_is_estimated() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        meter.body(br#"{"choices":[{"message":{"content":""}}],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#);
        assert_eq!(meter.report(4000), UsageReport { lines: vec![], estimated: false });

        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        meter.event(&Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"12345678\"}}]}\n\n"));
        let report = meter.report(4000);
        assert!(report.estimated);
        assert_eq!(lines(&report), [(UnitKind::INPUT, 1000), (UnitKind::OUTPUT, 2)]);
    }

    #[test]
    fn errors_after_the_head_are_seen() {
        let mut meter = UsageMeter::new(Dialect::ANTHROPIC);
        let error = b"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
        assert_eq!(meter.event(&Bytes::from_static(error)), EventMeaning::Error("Overloaded".into()));
    }

    #[test]
    fn what_was_set_aside_is_read_in_the_end() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        let content =
            Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"abcd\"}}],\"usage\": null}\n\n");
        for _ in 0..1000 {
            assert_eq!(meter.event(&content), EventMeaning::Content);
            assert!(meter.aside.len() < MOST_ASIDE);
        }
        assert_eq!(lines(&meter.report(0))[0], (UnitKind::OUTPUT, 1000));
        // Large ones are read sooner: fewer than six of these are kept.
        let large = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(12_000));
        for _ in 0..20 {
            meter.event(&large.clone().into());
            assert!(meter.aside_bytes < MOST_BYTES_ASIDE && meter.aside.len() < 6);
        }
        // Valid JSON for a key that no look at the bytes finds.
        let hidden = Bytes::from_static(b"data: {\"\\u0065rror\":{\"message\":\"late\"}}\n\n");
        assert_eq!(meter.event(&hidden), EventMeaning::Content);
        meter.catch_up();
        assert_eq!(meter.overlooked(), Some(EventMeaning::Error("late".into())));
    }

    proptest! {
        #[test]
        fn metering_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), json in "[{}\\[\\]\":,a-z0-9 ]{0,80}") {
            for dialect in [Dialect::OPENAI_CHAT, Dialect::ANTHROPIC] {
                let mut meter = UsageMeter::new(dialect);
                meter.event(&bytes.clone().into());
                meter.body(&bytes);
                meter.event(&format!("data: {json}\n\n").into());
                let _ = meter.report(u64::MAX);
            }
        }
    }
}
