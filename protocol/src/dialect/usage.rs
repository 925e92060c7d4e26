//! Reading usage out of a provider's answer, event by event.
//!
//! Anthropic counts cached input beside `input_tokens`, OpenAI counts it inside `prompt_tokens`;
//! both come out here as the same lines. Figures are cumulative: the last one told wins, and a told
//! zero is not the same as nothing told. Where a provider never tells, [`UsageMeter::report`]
//! estimates from what was seen and says so.

mod anthropic;
mod openai;
mod responses;

use super::sse::SseEvent;
use crate::message::{Dialect, UnitKind, UsageLine};
use bytes::Bytes;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::LazyLock;

/// Bytes of text that are taken for one token where the provider did not count.
pub const BYTES_PER_ESTIMATED_TOKEN: u64 = 4;

/// The most events that are set aside.
const MOST_ASIDE: usize = 64;
/// The most bytes of them: the buffers that they came in stay in memory with them.
const MOST_BYTES_ASIDE: usize = 64 << 10;

/// No request uses more of anything. A figure beyond it is no figure: nobody can be charged for it.
pub const MOST_UNITS: u64 = 1 << 40;

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
            Dialect::ANTHROPIC => self.anthropic_body(body),
            Dialect::OPENAI_RESPONSES => self.responses_body(body),
            _ => self.openai_body(body),
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
