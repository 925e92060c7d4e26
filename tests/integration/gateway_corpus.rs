//! What passes through the gateway is what was said: a provider gets the same bytes as from a caller of
//! its own, and the caller the same as from the provider, but for what docs/GATEWAY.md lists.

use crate::gateway::relay_for;
use belay_tests::fake_provider::{FakeProvider, Received, Script};
use belay_tests::gateway::TestGateway;
use rand::prelude::*;
use serde_json::{Map, Value, json};

const CASES: usize = 240;
const PATHS: [&str; 5] =
    ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"];
/// Headers of a provider that a caller gets to see.
const SEEN: [&str; 9] = [
    "content-type",
    "request-id",
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "openai-processing-ms",
    "openai-version",
    "x-ratelimit-remaining-requests",
    "anthropic-ratelimit-tokens-remaining",
];

/// One question and its answer.
#[derive(Debug)]
struct Case {
    path: &'static str,
    body: String,
    /// Nothing in the body is for the relay to set: its bytes stay.
    exact: bool,
    script: Script,
}

struct Maker(StdRng);

impl Maker {
    fn one_of<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values.choose(&mut self.0).copied().unwrap_or_default()
    }

    fn text(&mut self) -> String {
        let words =
            ["belay", "é", "結び目", "🪢", "\"quoted\"", "\\", "\n", "\u{0}", "</script>", "data: x", "\r\n\r\n"];
        (0..self.0.random_range(1..12)).map(|_| self.one_of(&words).to_owned() + " ").collect()
    }

    /// Any JSON, for fields that nobody here knows.
    fn any(&mut self, depth: usize) -> Value {
        match self.0.random_range(0..if depth == 0 { 5 } else { 7 }) {
            0 => Value::Null,
            1 => self.0.random::<bool>().into(),
            2 => self.0.random::<i64>().into(),
            3 => self.0.random_range(-1.0..1e9).into(),
            4 => self.text().into(),
            5 => (0..self.0.random_range(0..4)).map(|_| self.any(depth - 1)).collect(),
            _ => (0..self.0.random_range(0..4)).map(|n| (format!("k{n}"), self.any(depth - 1))).collect(),
        }
    }

    fn written(&mut self, value: &Value) -> String {
        if self.0.random::<bool>() {
            return value.to_string();
        }
        let text = serde_json::to_string_pretty(value).unwrap();
        // Escapes and spaces that a serialiser would not write.
        text.replace("belay", "b\\u0065lay").replace("\": ", "\" :\t")
    }

    fn turns(&mut self, anthropic: bool) -> Value {
        let mut turns = vec![];
        for number in 0..self.0.random_range(1..6) {
            let text = self.text();
            let role = if number % 2 == 0 { "user" } else { "assistant" };
            let picture = match anthropic {
                true => {
                    json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}})
                }
                false => {
                    json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}})
                }
            };
            let content = match self.0.random_range(0..4) {
                0 => json!([{ "type": "text", "text": text, "extra": self.any(2) }]),
                1 if role == "user" => json!([{ "type": "text", "text": text }, picture]),
                _ => json!(text),
            };
            turns.push(json!({ "role": role, "content": content, "name_of_tomorrow": self.any(1) }));
        }
        turns.into()
    }

    fn body(&mut self, path: &'static str, stream: bool, exact: bool) -> String {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        put(
            "model",
            if path.contains("messages") {
                "claude"
            } else if path.ends_with("embeddings") {
                "embed"
            } else {
                "gpt"
            }
            .into(),
        );
        let cap = self.0.random_range(1..900);
        let tool =
            json!({ "type": "object", "properties": { "city": { "type": "string", "description": self.text() } } });
        match path {
            "/v1/chat/completions" => {
                put("messages", self.turns(false));
                if exact || self.0.random::<bool>() {
                    put("max_tokens", cap.into());
                }
                if exact && stream {
                    put("stream_options", json!({ "include_usage": true, "more": self.any(1) }));
                }
                if self.0.random::<bool>() {
                    let function = json!({ "name": "weather", "parameters": tool, "strict": true });
                    put("tools", json!([{ "type": "function", "function": function }]));
                    put("tool_choice", self.any(1));
                }
                if self.0.random::<bool>() {
                    put("n", self.0.random_range(1..4).into());
                    put("logprobs", true.into());
                    put("logit_bias", self.any(1));
                }
            }
            "/v1/responses" => {
                put("input", if self.0.random::<bool>() { self.text().into() } else { self.turns(false) });
                if exact || self.0.random::<bool>() {
                    put("max_output_tokens", cap.into());
                }
                put("reasoning", json!({ "effort": "low" }));
                put("instructions", self.text().into());
            }
            "/v1/embeddings" => put("input", json!([self.text(), self.text()])),
            _ => {
                put("messages", self.turns(true));
                if path == "/v1/messages" {
                    put("max_tokens", cap.into());
                    put("thinking", json!({ "type": "disabled" }));
                }
                put(
                    "system",
                    json!([{ "type": "text", "text": self.text(), "cache_control": { "type": "ephemeral" } }]),
                );
                if self.0.random::<bool>() {
                    put("tools", json!([{ "name": "weather", "input_schema": tool, "cache_control": null }]));
                }
            }
        }
        if !path.ends_with("embeddings") && !path.ends_with("count_tokens") {
            put("stream", stream.into());
        }
        put("temperature", self.0.random_range(0.0..2.0).into());
        for number in 0..self.0.random_range(0..4) {
            put(&format!("field_of_tomorrow_{number}"), self.any(3));
        }
        let value = Value::Object(fields);
        self.written(&value)
    }

    /// The events that say that an answer is complete.
    fn closing(path: &str, end: &str) -> Vec<String> {
        let named = |value: Value| {
            format!("event: {}{}data: {value}{end}", value["type"].as_str().unwrap(), &end[..end.len() / 2])
        };
        match path {
            "/v1/chat/completions" => vec![
                format!(
                    "data: {}{end}",
                    json!({ "choices": [], "usage": { "prompt_tokens": 5, "completion_tokens": 6 } })
                ),
                format!("data: [DONE]{end}"),
            ],
            "/v1/responses" => {
                let response = json!({ "status": "completed", "usage": { "input_tokens": 5, "output_tokens": 6 } });
                vec![named(json!({ "type": "response.completed", "response": response }))]
            }
            _ => vec![
                named(
                    json!({ "type": "message_start", "message": { "usage": { "input_tokens": 5, "output_tokens": 1 } } }),
                ),
                named(json!({ "type": "message_delta", "delta": {}, "usage": { "output_tokens": 6 } })),
                named(json!({ "type": "message_stop" })),
            ],
        }
    }

    fn script(&mut self, path: &str, stream: bool) -> Script {
        let mut script =
            Script { tokens: self.0.random_range(0..30), split: self.0.random_range(1..5), ..Script::default() };
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        if self.0.random::<bool>() {
            script.headers.extend([
                header("x-ratelimit-remaining-requests", "17"),
                header("anthropic-ratelimit-tokens-remaining", "4000"),
                header("openai-processing-ms", "12"),
                header("set-cookie", "secret=1"),
            ]);
        }
        match self.0.random_range(0..4) {
            0 => {
                script.status =
                    *[400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529].choose(&mut self.0).unwrap();
                script.headers.insert("retry-after".into(), "1".into());
                if self.0.random::<bool>() {
                    script.body =
                        Some(self.one_of(&["", "<html>busy</html>", "{\"error\":{\"message\":\"no\"}}"]).to_owned());
                }
            }
            1 if stream => {
                let ends = ["\n\n", "\r\n\r\n"];
                let end = self.one_of(&ends);
                script.events = (0..self.0.random_range(1..20))
                    .map(|_| match self.0.random_range(0..3) {
                        0 => format!(": a comment{end}"),
                        1 => format!("event: of_tomorrow{}data: {}{end}", &end[..end.len() / 2], self.any(2)),
                        _ => format!("id: 7{}data: {{\"new\":{}}}{end}", &end[..end.len() / 2], self.any(2)),
                    })
                    .chain(Self::closing(path, end))
                    .collect();
            }
            2 if !stream => {
                let usage =
                    json!({ "prompt_tokens": 5, "completion_tokens": 6, "input_tokens": 5, "output_tokens": 6 });
                let value = json!({ "usage": usage, "of_tomorrow": self.any(3) });
                script.body = Some(self.written(&value));
            }
            _ => {}
        }
        script
    }

    fn case(&mut self, number: usize) -> Case {
        let path = PATHS[number % PATHS.len()];
        let may_stream = !path.ends_with("embeddings") && !path.ends_with("count_tokens");
        let stream = may_stream && self.0.random::<bool>();
        let exact = !number.is_multiple_of(3);
        Case { path, body: self.body(path, stream, exact), exact, script: self.script(path, stream) }
    }
}

/// What a caller sees.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn renumbered(self, from: u64, to: u64) -> Self {
        let renumber = |text: String| text.replace(&format!("fake{from}\""), &format!("fake{to}\""));
        let headers = self.headers.into_iter().map(|(name, value)| {
            let value = if value == format!("req_fake{from}") { format!("req_fake{to}") } else { value };
            (name, value)
        });
        Self { status: self.status, headers: headers.collect(), body: renumber(self.body) }
    }
}

async fn ask(http: &reqwest::Client, base: &str, case: &Case) -> Seen {
    let asked = http
        .post(format!("{base}{}", case.path))
        .header("content-type", "application/json")
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "of-tomorrow")
        .header("cookie", "callers=own")
        .header("authorization", "Bearer callers-own-key")
        .body(case.body.clone());
    let answer = asked.send().await.unwrap();
    let header = |name: &str| Some((name.to_owned(), answer.headers().get(name)?.to_str().ok()?.to_owned()));
    let headers = SEEN.into_iter().filter_map(header).collect();
    let status = answer.status().as_u16();
    let body = String::from_utf8(answer.bytes().await.unwrap().to_vec()).unwrap();
    Seen { status, headers, body }
}

/// The request without what the relay may set.
fn without_set(received: &Received) -> Value {
    let mut value = received.json();
    if let Some(fields) = value.as_object_mut() {
        for name in ["model", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options"] {
            fields.remove(name);
        }
    }
    value
}

/// An answer without the usage that only the relay asked for.
fn without_usage(body: &str) -> String {
    let event = |event: &str| -> Option<String> {
        let Some(data) = event.strip_prefix("data: ") else { return Some(event.to_owned()) };
        let Ok(mut value) = serde_json::from_str::<Value>(data) else { return Some(event.to_owned()) };
        let choices = value.get("choices").and_then(Value::as_array).map(Vec::len);
        let told = value.as_object_mut().and_then(|fields| fields.remove("usage"));
        (choices != Some(0) || told.is_none()).then(|| value.to_string())
    };
    let body = body.replace("\r\n", "\n");
    body.split("\n\n").filter_map(event).collect::<Vec<_>>().join("\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_through_as_they_are() {
    let _turn = crate::MACHINE.lock().await;
    let seed: u64 = std::env::var("BELAY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("seed {seed}; repeat with BELAY_SEED={seed}");
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let client = relay.client().await;
    let gateway = TestGateway::start(&client).await;
    let mut maker = Maker(StdRng::seed_from_u64(seed));
    let (mut exact, mut refused, mut streamed) = (0, 0, 0);
    for number in 0..CASES {
        let case = maker.case(number);
        provider.push_script(case.script.clone());
        let direct = ask(&gateway.http, &provider.url(), &case).await;
        let wanted = provider.last();
        provider.push_script(case.script.clone());
        let through = ask(&gateway.http, &gateway.url, &case).await;
        let got = provider.last();
        // The provider counts its answers.
        let direct = direct.renumbered(wanted.number, got.number);
        assert_eq!(got.number, wanted.number + 1, "case {number} did not arrive: {through:?}\n{case:?}");
        assert_eq!(got.path, wanted.path);
        assert_eq!(got.headers.get("anthropic-beta"), wanted.headers.get("anthropic-beta"));
        for name in ["cookie", "authorization"] {
            assert!(!got.headers.contains_key(name), "case {number}: {name} of the caller was passed on");
        }
        if case.exact {
            assert_eq!(got.body, wanted.body, "case {number}: {case:?}");
            assert_eq!(through, direct, "case {number}: {case:?}");
            exact += 1;
        } else {
            assert_eq!(without_set(&got), without_set(&wanted), "case {number}: {case:?}");
            assert_eq!((through.status, &through.headers), (direct.status, &direct.headers), "case {number}: {case:?}");
            assert_eq!(without_usage(&through.body), without_usage(&direct.body), "case {number}: {case:?}");
        }
        refused += usize::from(through.status != 200);
        streamed += usize::from(through.headers.iter().any(|(_, value)| value.starts_with("text/event-stream")));
    }
    assert!(exact >= 150 && refused >= 20 && streamed >= 20, "{exact} exact, {refused} refused, {streamed} streamed");
    gateway.stop().await;
    relay.verify().await;
    relay.stop().await;
}
