//! The local gateway: what callers see of it, and what it lets through.

use belay_client::gateway::Settings;
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::gateway::TestGateway;
use belay_tests::link::{Direction, Link};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A relay with a provider of each API, and the models `gpt`, `claude` and `embed`.
pub(crate) async fn relay_for(provider: &FakeProvider, extra: &str) -> TestRelay {
    let url = provider.url();
    let model = |name: &str, provider: &str| {
        format!(
            "[models.{name}]\nprovider = \"{provider}\"\ncontext_tokens = 200000\nmax_output_tokens = 8192\nprice = {{ input = \"0.3\", output = \"1.5\", cache_read = \"0.03\", cache_write_5m = \"0.375\" }}\n"
        )
    };
    TestRelay::start(&format!(
        "[providers.anthropic]\nkind = \"anthropic\"\nurl = \"{url}\"\n[providers.openai]\nkind = \"openai\"\nurl = \"{url}/v1\"\n{}{}{}[aliases]\nauto = \"gpt\"\n{extra}",
        model("claude", "anthropic"),
        model("gpt", "openai"),
        model("embed", "openai"),
    ))
    .await
}

fn chat(words: &str, stream: bool) -> String {
    json!({ "model": "gpt", "stream": stream, "max_tokens": 1000, "messages": [{ "role": "user", "content": words }] })
        .to_string()
}

fn messages(words: &str, stream: bool) -> String {
    json!({ "model": "claude", "stream": stream, "max_tokens": 1000, "messages": [{ "role": "user", "content": words }] })
        .to_string()
}

/// A provider, a relay, a client and a gateway.
struct Scene {
    provider: FakeProvider,
    relay: TestRelay,
    gateway: TestGateway,
}

impl Scene {
    async fn start() -> Self {
        Self::with(Settings::default(), "").await
    }

    async fn with(settings: Settings, extra: &str) -> Self {
        let provider = FakeProvider::start().await.unwrap();
        let relay = relay_for(&provider, extra).await;
        let client = relay.client().await;
        let gateway = TestGateway::with(&client, settings).await;
        Self { provider, relay, gateway }
    }

    async fn stop(self) {
        self.gateway.stop().await;
        self.relay.verify().await;
        self.relay.stop().await;
    }

    /// What the gateway says of the latest request.
    async fn latest(&self) -> Value {
        self.gateway.get("/belay/requests").await["requests"][0].clone()
    }
}

async fn text_of(builder: reqwest::RequestBuilder) -> (u16, String) {
    let answer = tokio::time::timeout(PATIENCE, builder.send()).await.expect("in time").unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_ends_its_request_and_one_with_a_key_comes_back_to_it() {
    let scene = Scene::start().await;
    let endless = Script { endless: true, pace_ms: 5, ..Script::default() }.as_message();
    let mut leaving = scene.gateway.post("/v1/chat/completions", chat(&endless, true)).send().await.unwrap();
    leaving.chunk().await.unwrap().expect("events");
    drop(leaving);
    scene.provider.wait_until("the call ends", PATIENCE, |counts| counts.cancelled == 1).await;
    eventually("the gateway knows", async || scene.latest().await["state"] == "left").await;

    let script = Script { tokens: 200, pace_ms: 10, ..Script::default() };
    let body = chat(&script.as_message(), true);
    let keyed = |key: &str, body: &str| {
        scene.gateway.post("/v1/chat/completions", body.to_owned()).header("idempotency-key", key)
    };
    let mut leaving = keyed("one", &body).send().await.unwrap();
    let first = leaving.chunk().await.unwrap().expect("events");
    drop(leaving);
    eventually("the gateway knows", async || scene.latest().await["state"] == "kept").await;
    let (status, whole) = text_of(keyed("one", &body)).await;
    assert_eq!(status, 200);
    assert!(whole.as_bytes().starts_with(&first), "from its beginning");
    assert!(whole.ends_with("data: [DONE]\n\n"));
    let words: Vec<&str> = whole.matches("\"content\":\"belay").collect();
    assert_eq!(words.len(), 40, "every token once");
    // And once more after its end; then another body under the same key.
    assert_eq!(text_of(keyed("one", &body)).await, (200, whole));
    let (status, refusal) = text_of(keyed("one", &chat("something else", true))).await;
    assert_eq!(status, 422, "{refusal}");
    let whole = text_of(keyed("two", &chat("hi", false))).await;
    assert_eq!(whole.0, 200);
    assert_eq!(text_of(keyed("two", &chat("hi", false))).await, whole);
    assert_eq!(scene.provider.counts().requests, 3, "nothing ran twice");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_hears_something_while_nothing_comes() {
    let settings = Settings { keep_alive: Duration::from_millis(150), ..Settings::default() };
    let scene = Scene::with(settings, "").await;
    // Before the provider's head, and in the middle.
    for script in [Script { head_ms: 1000, ..Script::default() }, Script { first_token_ms: 1000, ..Script::default() }]
    {
        let (status, answer) = text_of(scene.gateway.post("/v1/messages", messages(&script.as_message(), true))).await;
        assert_eq!(status, 200);
        let pings = answer.matches("event: ping\n").count();
        assert!(pings >= 4, "{pings} signs of life\n{answer}");
        assert!(answer.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), "{answer}");
        let chat = scene.gateway.post("/v1/chat/completions", chat(&script.as_message(), true));
        let (_, answer) = text_of(chat).await;
        assert!(answer.matches(": belay keeps this stream alive\n\n").count() >= 4, "{answer}");
    }
    // A provider that refuses after the caller was answered says so in the stream.
    let script = Script { head_ms: 500, status: 529, ..Script::default() }.as_message();
    let (status, answer) = text_of(scene.gateway.post("/v1/messages", messages(&script, true))).await;
    assert_eq!(status, 200);
    assert!(answer.contains("event: error\ndata: {") && answer.contains("the script refuses this request"), "{answer}");
    let (status, _) = text_of(scene.gateway.post("/v1/messages", messages(&script, false))).await;
    assert_eq!(status, 529, "one that is not streamed is answered once there is an answer");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_of_the_tunnel_is_not_seen() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay_for(&provider, "").await;
    let link = Link::start(relay.address(), 7, Direction::default()).unwrap();
    let client = relay.client_through(link.address()).await;
    let gateway = TestGateway::start(&client).await;
    let script = Script { tokens: 400, pace_ms: 10, ..Script::default() };
    let asked = tokio::spawn(gateway.post("/v1/chat/completions", chat(&script.as_message(), true)).send());
    provider.wait_until("tokens flow", PATIENCE, |counts| counts.events > 50).await;
    link.blackhole(true);
    eventually("the gateway knows of the interruption", async || {
        gateway.get("/belay/requests").await["requests"][0]["state"] == "interrupted"
    })
    .await;
    link.blackhole(false);
    let answer = asked.await.unwrap().unwrap().text().await.unwrap();
    let contents: String = answer
        .split("\n\n")
        .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
        .filter_map(|event| Some(event.pointer("/choices/0/delta/content")?.as_str()?.to_owned()))
        .collect();
    assert_eq!(contents, script.whole_text(400));
    assert!(answer.ends_with("data: [DONE]\n\n"));
    let latest = gateway.get("/belay/requests").await["requests"][0].clone();
    assert_eq!((&latest["state"], &latest["interruptions"]), (&json!("complete"), &json!(1)));
    gateway.stop().await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_callers_form() {
    let scene = Scene::with(Settings { max_body: 100_000, ..Settings::default() }, "").await;
    let gateway = &scene.gateway;
    let post = async |path: &str, body: String| {
        let (status, text) = text_of(gateway.post(path, body)).await;
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    for (body, words) in [
        ("{".to_owned(), "not understood"),
        ("[]".to_owned(), "not a JSON object"),
        ("\u{feff}{}".to_owned(), "not understood"),
        (json!({ "model": 7 }).to_string(), "expected a string"),
        (json!({ "model": "gpt", "messages": [], "stream": "yes" }).to_string(), "expected a boolean"),
        (json!({ "model": "gpt", "messages": [], "max_tokens": 0 }).to_string(), "at least 1"),
    ] {
        let (status, error) = post("/v1/chat/completions", body.clone()).await;
        assert_eq!((status, &error["error"]["type"]), (400, &json!("invalid_request_error")), "{body}");
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{error}");
        let (status, error) = post("/v1/messages", body).await;
        assert_eq!(
            (status, &error["type"], &error["error"]["type"]),
            (400, &json!("error"), &json!("invalid_request_error"))
        );
    }
    let (status, error) = post("/v1/messages", "x".repeat(100_001)).await;
    assert_eq!((status, &error["error"]["type"]), (413, &json!("request_too_large")));
    let (status, error) = post("/v1/files", String::new()).await;
    assert_eq!(status, 404);
    assert!(error["error"]["message"].as_str().unwrap().contains("/v1/chat/completions"), "{error}");
    let (status, error) = post("/v1/models", String::new()).await;
    assert_eq!((status, &error["error"]["belay"]["code"]), (405, &json!("wrong_method")));
    for (header, value) in [("belay-cost-cap", "much"), ("belay-deadline-ms", "0"), ("belay-may-reduce", "yes")] {
        let (status, text) =
            text_of(gateway.post("/v1/chat/completions", chat("hi", false)).header(header, value)).await;
        assert!(status == 400 && text.contains(header), "{status}: {text}");
    }
    let encoded = gateway.post("/v1/chat/completions", chat("hi", false)).header("content-encoding", "gzip");
    assert_eq!(text_of(encoded).await.0, 415);
    let deadline = Script { first_token_ms: 20_000, ..Script::default() }.as_message();
    let late = gateway.post("/v1/chat/completions", chat(&deadline, true)).header("belay-deadline-ms", "300");
    let (status, answer) = text_of(late).await;
    assert!(status == 200 && answer.contains("\"code\":\"timed_out\""), "{answer}");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_status_and_feed_tell_what_runs_and_what_it_cost() {
    let scene = Scene::with(Settings { show_prompts: true, ..Settings::default() }, "").await;
    let mut feed = scene.gateway.http.get(format!("{}/belay/events", scene.gateway.url)).send().await.unwrap();
    let first = feed.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"event: status\ndata: {"));
    let script = Script { tokens: 60, pace_ms: 20, ..Script::default() };
    let (status, _) = text_of(scene.gateway.post("/v1/chat/completions", chat(&script.as_message(), true))).await;
    assert_eq!(status, 200);
    let mut seen = String::new();
    while !seen.contains("\"state\":\"complete\"") {
        let chunk = tokio::time::timeout(PATIENCE, feed.chunk()).await.expect("in time").unwrap().unwrap();
        seen += std::str::from_utf8(&chunk).unwrap();
    }
    assert!(seen.contains("\"state\":\"waiting\"") && seen.matches("\"state\":\"streaming\"").count() > 2, "{seen}");
    let latest = scene.latest().await;
    assert_eq!(
        (&latest["model"], &latest["provider"], &latest["output_tokens"]),
        (&json!("gpt"), &json!("openai"), &json!(60))
    );
    assert!(
        latest["cost_nano_usd"].as_i64().unwrap() > 0 && latest["first_event_us"].as_u64().unwrap() > 0,
        "{latest}"
    );
    assert!(latest["prompt"].as_str().unwrap().contains("pace_ms"), "{latest}");
    let by_id = scene.gateway.get(&format!("/belay/requests/{}", latest["id"].as_str().unwrap())).await;
    assert_eq!(by_id, latest);
    let status = scene.gateway.get("/belay/status").await;
    assert_eq!((&status["tenant"], &status["tunnel"]["phase"]), (&json!("acme"), &json!("up")));
    let usage = scene.gateway.get("/belay/usage?period=day&by=device").await;
    assert_eq!(usage["total"]["cost_nano_usd"], latest["cost_nano_usd"]);
    let (status, wrong) =
        text_of(scene.gateway.http.get(format!("{}/belay/usage?period=year", scene.gateway.url))).await;
    assert!(status == 400 && wrong.contains("day, week, month, all"), "{wrong}");
    // Only the last 200 are kept.
    for _ in 0..205 {
        text_of(scene.gateway.post("/v1/chat/completions", json!({ "model": "nobody" }).to_string())).await;
    }
    let list = scene.gateway.get("/belay/requests").await;
    assert_eq!(list["requests"].as_array().unwrap().len(), 200);
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_on_loopback_get_nothing() {
    let settings = Settings {
        token: Some("s3cret".into()),
        origins: vec!["app://notes".into()],
        connections: 8,
        header_timeout: Duration::from_secs(3),
        ..Settings::default()
    };
    let scene = Scene::with(settings, "").await;
    let gateway = &scene.gateway;
    let (status, text) = text_of(gateway.post("/v1/chat/completions", chat("hi", false))).await;
    assert!(status == 401 && text.contains("authentication_error"), "{text}");
    let asked = gateway.post("/v1/chat/completions", chat("hi", false)).bearer_auth("s3cret");
    assert_eq!(text_of(asked.try_clone().unwrap()).await.0, 200);
    assert_eq!(text_of(asked.try_clone().unwrap().header("origin", "http://evil.example")).await.0, 403);
    assert_eq!(text_of(asked.try_clone().unwrap().header("host", "evil.example")).await.0, 403);
    let answer = asked.try_clone().unwrap().header("origin", "app://notes").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "app://notes");
    let answer = asked.send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    let preflight = |origin: &str| {
        let url = format!("{}/v1/chat/completions", gateway.url);
        let asked = gateway.http.request(reqwest::Method::OPTIONS, url).header("origin", origin.to_owned());
        asked.header("access-control-request-headers", "authorization").bearer_auth("s3cret")
    };
    assert_eq!(text_of(preflight("app://notes")).await.0, 204);
    // A browser shows no token before it may.
    let bare = gateway.http.request(reqwest::Method::OPTIONS, format!("{}/v1/models", gateway.url));
    assert_eq!(text_of(bare.try_clone().unwrap().header("origin", "app://notes")).await.0, 204);
    assert_eq!(text_of(bare).await.0, 401);
    assert_eq!(text_of(preflight("http://evil.example")).await.0, 403);
    // Half a request holds its place only for so long, and nobody else's.
    let address = gateway.url.strip_prefix("http://").unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local").await.unwrap();
    let mut flood = tokio::net::TcpStream::connect(address).await.unwrap();
    flood.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let line = format!("X-Filler: {}\r\n", "x".repeat(8000));
    for _ in 0..20 {
        if flood.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut said = vec![];
    let _ = tokio::time::timeout(PATIENCE, flood.read_to_end(&mut said)).await.expect("it is closed");
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(text_of(gateway.http.get(format!("{}/", gateway.url))).await.0, 200);
    let closed = tokio::time::timeout(PATIENCE, slow.read_to_end(&mut said)).await;
    assert!(closed.is_ok(), "a caller that does not go on is let go");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_at_once_are_whole() {
    let _turn = crate::MACHINE.lock().await;
    let scene = Scene::with(Settings::default(), "").await;
    let script = Script { tokens: 100, pace_ms: 20, ..Script::default() };
    let body = chat(&script.as_message(), true);
    let asked: Vec<_> =
        (0..256).map(|_| tokio::spawn(text_of(scene.gateway.post("/v1/chat/completions", body.clone())))).collect();
    scene.provider.wait_until("all run at once", PATIENCE, |counts| counts.running == 256).await;
    assert_eq!(scene.gateway.get("/belay/status").await["gateway"]["tunnels"], 3);
    // More than there is room for wait, and are told so at last.
    let mut answers = vec![];
    for asked in asked {
        let (status, answer) = asked.await.unwrap();
        assert_eq!(status, 200, "{answer}");
        let ids = answer.replace(|digit: char| digit.is_ascii_digit(), "");
        assert!(answer.matches("chat.completion.chunk").count() >= 102 && answer.ends_with("data: [DONE]\n\n"));
        answers.push(ids);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "all the same");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_its_head_says_so() {
    let scene = Scene::start().await;
    let slow = Script { head_ms: 20_000, ..Script::default() }.as_message();
    for (path, body) in [("/v1/chat/completions", chat(&slow, false)), ("/v1/messages", messages(&slow, true))] {
        let asked = scene.gateway.post(path, body).header("belay-deadline-ms", "300");
        let (status, answer) = text_of(asked).await;
        assert_eq!(status, 504, "{answer}");
        assert!(answer.contains("was charged for what came"), "{answer}");
        assert_eq!(scene.latest().await["state"], "incomplete");
    }
    let moved = Script { status: 302, ..Script::default() }.as_message();
    assert_eq!(text_of(scene.gateway.post("/v1/chat/completions", chat(&moved, false))).await.0, 502);
    let long = json!({ "model": "m".repeat(100_000), "messages": [] }).to_string();
    assert_eq!(text_of(scene.gateway.post("/v1/chat/completions", long)).await.0, 404);
    assert_eq!(scene.latest().await["asked_model"].as_str().unwrap().len(), 200);
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_closing_event_is_closed_when_it_is_carried_over() {
    let scene = Scene::start().await;
    let choices = json!([{ "index": 0, "delta": { "content": "hi" }, "finish_reason": "stop" }]);
    let usage = json!({ "prompt_tokens": 3, "completion_tokens": 2 });
    let chunk = json!({ "id": "c", "choices": choices, "usage": usage });
    let script = Script { events: vec![format!("data: {chunk}\n\n")], ..Script::default() };
    let body = messages(&script.as_message(), true).replace("\"claude\"", "\"gpt\"");
    let (status, answer) = text_of(scene.gateway.post("/v1/messages", body)).await;
    assert_eq!(status, 200);
    assert!(answer.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), "{answer}");
    assert_eq!(scene.latest().await["state"], "complete");
    // A refusal that is carried over is JSON, whatever the provider's was.
    let headers = [("content-type".to_owned(), "text/html".to_owned())].into_iter().collect();
    let script = Script { status: 502, body: Some("<html>".into()), headers, ..Script::default() };
    let body = messages(&script.as_message(), false).replace("\"claude\"", "\"gpt\"");
    let answer = scene.gateway.post("/v1/messages", body).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (502, &"application/json".parse().unwrap())
    );
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_end_waits_for_answers_and_for_nobody_else() {
    let scene = Scene::start().await;
    // A page that is open does not hold it up.
    let mut feed = scene.gateway.http.get(format!("{}/belay/events", scene.gateway.url)).send().await.unwrap();
    feed.chunk().await.unwrap().unwrap();
    let began = Instant::now();
    scene.gateway.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    scene.relay.stop().await;
    // An answer that goes on for longer than it waits is told.
    let scene = Scene::start().await;
    let endless = Script { endless: true, pace_ms: 20, ..Script::default() }.as_message();
    let asked = tokio::spawn(text_of(scene.gateway.post("/v1/chat/completions", chat(&endless, true))));
    scene.provider.wait_until("tokens flow", PATIENCE, |counts| counts.events > 10).await;
    scene.gateway.stop().await;
    let (_, answer) = asked.await.unwrap();
    let last = answer.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\":") && last.contains("\"code\":\"stopped\""), "{last}");
    scene.provider.wait_until("the call ends", PATIENCE, |counts| counts.cancelled == 1).await;
    scene.relay.verify().await;
    scene.relay.stop().await;
}
