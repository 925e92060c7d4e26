//! Usage in the events and bodies of OpenAI Responses. Cached input is counted inside `input_tokens`.

use super::{EventMeaning, UsageMeter, error_text, sane, string_len};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

impl UsageMeter {
    pub(super) fn responses_event(&mut self, data: &[u8]) -> EventMeaning {
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else {
            return EventMeaning::Content;
        };
        if let Some(delta) = event.delta.filter(|_| event.kind.ends_with(".delta")) {
            self.output_bytes += string_len(delta);
        }
        if let Some(usage) = event.response.as_ref().and_then(|response| response.usage.as_ref()) {
            self.responses_usage(usage);
        }
        match event.kind.as_ref() {
            "response.completed" | "response.incomplete" => EventMeaning::Done,
            "response.failed" => EventMeaning::Error(error_text(event.response.and_then(|response| response.error))),
            "error" => EventMeaning::Error(event.message.map_or_else(|| error_text(event.error), Cow::into_owned)),
            _ => EventMeaning::Content,
        }
    }

    pub(super) fn responses_body(&mut self, body: &[u8]) {
        if let Ok(response) = serde_json::from_slice::<Response<'_>>(body) {
            self.output_bytes += response.output.map_or(0, |raw| raw.get().len() as u64);
            if let Some(usage) = &response.usage {
                self.responses_usage(usage);
            }
        }
    }

    fn responses_usage(&mut self, usage: &Usage) {
        let cached = sane(usage.input_tokens_details.as_ref().and_then(|details| details.cached_tokens));
        if let Some(input) = sane(usage.input_tokens) {
            self.told.input = Some(input.saturating_sub(cached.unwrap_or(0)));
            self.told.cache_read = cached;
        }
        if let Some(output) = sane(usage.output_tokens) {
            self.told.output = Some(output);
            self.output_is_final = true;
        }
        if let Some(details) = &usage.output_tokens_details {
            self.told.reasoning = sane(details.reasoning_tokens);
        }
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<Response<'a>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    usage: Option<Usage>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Usage {
    input_tokens: Option<u64>,
    input_tokens_details: Option<InputDetails>,
    output_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Deserialize)]
struct InputDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct OutputDetails {
    reasoning_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Dialect, UnitKind};
    use bytes::Bytes;

    fn event(json: &str) -> Bytes {
        Bytes::from(format!("event: x\ndata: {json}\n\n"))
    }

    fn units(meter: &mut UsageMeter) -> Vec<(UnitKind, u64)> {
        meter.report(400).lines.iter().map(|line| (line.kind, line.units)).collect()
    }

    #[test]
    fn a_stream_of_responses_is_metered_by_its_last_event() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_RESPONSES);
        let created = r#"{"type":"response.created","sequence_number":0,"response":{"status":"in_progress","error":null,"usage":null}}"#;
        assert_eq!(meter.event(&event(created)), EventMeaning::Content);
        for kind in [
            "response.output_text.delta",
            "response.function_call_arguments.delta",
            "response.reasoning_summary_text.delta",
        ] {
            let delta = format!(r#"{{"type":"{kind}","sequence_number":3,"item_id":"i","delta":"abcd"}}"#);
            assert_eq!(meter.event(&event(&delta)), EventMeaning::Content);
        }
        // What is whole in the end was counted piece by piece.
        meter.event(&event(r#"{"type":"response.output_text.done","text":"abcdabcd"}"#));
        meter.catch_up();
        assert_eq!(meter.output_bytes(), 12);
        assert!(meter.report(400).estimated);
        let done = r#"{"type":"response.completed","response":{"error":null,"usage":{"input_tokens":50,"input_tokens_details":{"cached_tokens":40},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":3}}}}"#;
        assert_eq!(meter.event(&event(done)), EventMeaning::Done);
        let told = [(UnitKind::INPUT, 10), (UnitKind::OUTPUT, 7), (UnitKind::CACHE_READ, 40), (UnitKind::REASONING, 3)];
        assert_eq!(units(&mut meter), told);
        assert!(!meter.report(400).estimated);
    }

    #[test]
    fn an_answer_that_fails_says_why_and_what_it_used() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_RESPONSES);
        let failed = r#"{"type":"response.failed","response":{"error":{"code":"server_error","message":"no luck"},"usage":{"input_tokens":5,"output_tokens":0}}}"#;
        assert_eq!(meter.event(&event(failed)), EventMeaning::Error("no luck".into()));
        assert_eq!(units(&mut meter), [(UnitKind::INPUT, 5)]);
        let error = r#"{"type":"error","code":"x","message":"broken"}"#;
        assert_eq!(meter.event(&event(error)), EventMeaning::Error("broken".into()));
        let cut = r#"{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}"#;
        assert_eq!(meter.event(&event(cut)), EventMeaning::Done);
    }

    #[test]
    fn a_whole_response_is_metered() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_RESPONSES);
        meter.body(br#"{"output":[{"type":"message"}],"usage":{"input_tokens":5,"output_tokens":6}}"#);
        assert_eq!(units(&mut meter), [(UnitKind::INPUT, 5), (UnitKind::OUTPUT, 6)]);
    }

    #[test]
    fn what_has_no_output_or_costs_nothing_is_not_estimated() {
        let mut meter = UsageMeter::new(Dialect::OPENAI_CHAT);
        meter.expects_no_output();
        meter.body(br#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":9,"total_tokens":9}}"#);
        assert_eq!((units(&mut meter), meter.report(0).estimated), (vec![(UnitKind::INPUT, 9)], false));
        let mut meter = UsageMeter::new(Dialect::ANTHROPIC);
        meter.expects_no_usage();
        meter.body(br#"{"input_tokens":9}"#);
        assert_eq!((units(&mut meter), meter.report(400).estimated), (vec![], false));
    }
}
