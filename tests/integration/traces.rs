//! Spans of requests: one trace from a caller over the client and the relay to the provider, and in what the caller is
//! told; nothing where nothing is configured; and nobody who waits for a collector.

use crate::programs::{Site, belay, exits, run};
use belay_client::Options;
use belay_client::escalation::EscalationRequest;
use belay_client::gateway::Settings;
use belay_protocol::trace::TraceContext;
use belay_relay::store::central::keys::KeyScope;
use belay_tests::collector::{Collector, Told};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::gateway::TestGateway;
use belay_tests::http::HttpCaller;
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A relay with one provider that is told where requests stand, and with `extra`.
async fn relay(provider: &FakeProvider, extra: &str) -> TestRelay {
    TestRelay::start(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[providers.p]\nkind = \"openai\"\nurl = \"{}/v1\"\ntrace_context = true\n\
         [models.m]\nprovider = \"p\"\nname = \"gpt-x\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
         price = {{ input = \"3\", output = \"15\" }}\n[aliases]\nauto = \"m\"\n{extra}",
        provider.url()
    ))
    .await
}

fn traces(endpoint: &str) -> String {
    format!("[traces]\nendpoint = \"{endpoint}\"\n")
}

/// A client that tells the collector, too.
async fn telling(relay: &TestRelay, collector: &Collector) -> TestClient {
    let traces = belay_traces::Settings {
        endpoint: collector.url(),
        headers: vec![],
        service: "belay",
        version: "0",
        ratio: 1.0,
        follows_callers: true,
    };
    relay.client_with(Options { traces: Some(traces), ..Options::default() }).await
}

fn chat(script: &Script, stream: bool) -> String {
    let words = script.as_message();
    json!({ "model": "m", "stream": stream, "max_tokens": 100, "messages": [{ "role": "user", "content": words }] })
        .to_string()
}

async fn span(collector: &Collector, service: &str, name: &str) -> Told {
    eventually(&format!("{name} of {service} is told"), async || !collector.of(service, name).is_empty()).await;
    collector.of(service, name).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_from_its_caller_to_its_provider() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let relay = relay(&provider, &traces(&collector.url())).await;
    let client = telling(&relay, &collector).await;
    let gateway = TestGateway::with(&client, Settings::default()).await;
    let asked = gateway.post("/v1/chat/completions", chat(&Script::tokens(20), true)).header("traceparent", CALLER);
    let (status, _) = HttpCaller::text(asked).await;
    assert_eq!(status, 200);

    let of_client = span(&collector, "belay", "escalate").await;
    let of_relay = span(&collector, "belayd", "request").await;
    let call = span(&collector, "belayd", "chat gpt-x").await;
    let (hold, settle) = (span(&collector, "belayd", "hold").await, span(&collector, "belayd", "settle").await);
    for told in [&of_client, &of_relay, &call, &hold, &settle] {
        assert_eq!(told.trace, TRACE, "{told:?}");
        assert!(!told.failed && told.ended >= told.began && told.began > 1_700_000_000_000_000_000, "{told:?}");
    }
    // Each below the one before.
    assert_eq!(of_client.parent, CALLER[36..52]);
    assert_eq!(of_relay.parent, of_client.id);
    for told in [&call, &hold, &settle] {
        assert_eq!(told.parent, of_relay.id);
        // Of one clock.
        assert!(told.began >= of_relay.began && told.ended <= of_relay.ended, "{told:?} in {of_relay:?}");
    }
    assert!(hold.ended <= call.began && call.ended <= settle.ended, "{hold:?} {call:?} {settle:?}");
    assert_eq!((of_client.kind, of_relay.kind, call.kind, hold.kind), (3, 2, 3, 1));
    let at_provider = provider.last().headers["traceparent"].to_str().unwrap().parse::<TraceContext>().unwrap();
    assert_eq!(at_provider.trace_id().to_string(), TRACE);
    assert_eq!(at_provider.to_string()[36..52], call.id);

    // In the words of GenAI, and with what it cost.
    let address = provider.address();
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-x"),
        ("gen_ai.request.max_tokens", "100"),
        ("gen_ai.request.stream", "true"),
        ("gen_ai.usage.output_tokens", "20"),
        ("http.response.status_code", "200"),
        ("server.address", &address.ip().to_string()),
        ("server.port", &address.port().to_string()),
    ] {
        assert_eq!(call.says.get(key).map(String::as_str), Some(value), "{key}: {call:?}");
    }
    assert!(call.says["gen_ai.usage.input_tokens"].parse::<u64>().unwrap() > 0);
    let first: f64 = call.says["gen_ai.response.time_to_first_chunk"].parse().unwrap();
    assert!(first > 0.0 && first < 30.0, "{first}");
    assert_eq!(of_relay.says["belay.tenant"], "acme");
    assert_eq!(of_relay.says["belay.outcome"], "complete");
    assert_eq!(of_relay.says["belay.cost_nano_usd"], of_client.says["belay.cost_nano_usd"]);
    assert_eq!(of_relay.says["belay.request_id"], of_client.says["belay.request_id"]);
    assert!(of_client.events.starts_with(&["head".into(), "first token".into()]), "{of_client:?}");
    gateway.stop().await;
    client.client.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_found_by_what_its_caller_is_told() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let relay = relay(&provider, &traces(&collector.url())).await;
    let client = telling(&relay, &collector).await;
    let gateway = TestGateway::with(&client, Settings::default()).await;
    let body = |model: &str| {
        json!({ "model": model, "max_tokens": 5, "messages": [{ "role": "user", "content": "x" }] }).to_string()
    };
    let caller = relay.caller_of("acme", &[KeyScope::Escalate]).await;
    let parsed = |body: &str| serde_json::from_str::<Value>(body).unwrap();
    for (at, request) in [
        ("gateway", gateway.post("/v1/chat/completions", body("nobody"))),
        ("relay", caller.post("/v1/chat/completions", &parsed(&body("nobody")))),
    ] {
        // In the caller's own trace.
        let (status, refused) = HttpCaller::json(request.try_clone().unwrap().header("traceparent", CALLER)).await;
        assert_eq!((status, &refused["error"]["belay"]["trace_id"]), (404, &json!(TRACE)), "{at}: {refused}");
        // And in one of its own, which is called as the request is.
        let answer = request.send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let refused = parsed(&answer.text().await.unwrap());
        assert_eq!(refused["error"]["belay"]["trace_id"], json!(id), "{at}: {refused}");
        let found = async || {
            let spans = collector.of("belayd", "request");
            spans.iter().filter(|span| span.failed && span.says["error.type"] == "unknown_model").cloned().collect()
        };
        eventually("both are told", async || {
            let spans: Vec<Told> = found().await;
            spans.iter().any(|span| span.trace == TRACE) && spans.iter().any(|span| span.trace == id)
        })
        .await;
    }
    // What is refused before it is a request is in its caller's trace, too.
    for (url, http) in [(&gateway.url, &gateway.http), (&caller.url, &caller.http)] {
        let broken = http.post(format!("{url}/v1/chat/completions")).header("traceparent", CALLER).body("{");
        let (_, refused) = HttpCaller::json(broken.bearer_auth(&caller.key)).await;
        assert_eq!(refused["error"]["belay"]["trace_id"], TRACE, "{refused}");
    }
    let own = caller.post("/v1/escalate", &json!({ "query": "x", "model_preference": "nobody" }));
    let (_, refused) = HttpCaller::json(own.header("traceparent", CALLER)).await;
    assert_eq!(refused["error"]["trace_id"], TRACE, "{refused}");
    // A provider that refuses is a call that failed; a stream that breaks tells it in its last event.
    let (_, refused) =
        HttpCaller::json(gateway.post("/v1/chat/completions", chat(&Script::refusal(400, None), false))).await;
    assert!(refused["error"].is_object(), "{refused}");
    eventually("the call is told", async || {
        collector.of("belayd", "chat gpt-x").iter().any(|call| call.failed && call.says["error.type"] == "400")
    })
    .await;
    let cut = Script { cut_after: Some(3), ..Script::tokens(10) };
    let asked = gateway.post("/v1/chat/completions", chat(&cut, true)).header("traceparent", CALLER);
    let (_, text) = HttpCaller::text(asked).await;
    assert!(text.contains(&format!("\"trace_id\":\"{TRACE}\"")), "{text}");
    eventually("the request is told", async || {
        let failed = collector
            .of("belayd", "request")
            .into_iter()
            .find(|span| span.says.get("belay.outcome").is_some_and(|outcome| outcome == "provider_failed"));
        failed.is_some_and(|span| span.failed && span.trace == TRACE)
    })
    .await;
    gateway.stop().await;
    client.client.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_configured_a_callers_place_goes_through_and_nothing_else() {
    let provider = FakeProvider::start().await.unwrap();
    let relay = relay(&provider, "").await;
    let client = relay.client().await;
    let gateway = TestGateway::with(&client, Settings::default()).await;
    let ask = || gateway.post("/v1/chat/completions", chat(&Script::tokens(2), false));
    assert_eq!(HttpCaller::text(ask().header("traceparent", CALLER)).await.0, 200);
    assert_eq!(provider.last().headers["traceparent"], CALLER);
    for header in ["", "00-xyz-01"] {
        let request = if header.is_empty() { ask() } else { ask().header("traceparent", header) };
        assert_eq!(HttpCaller::text(request).await.0, 200);
        assert!(!provider.last().headers.contains_key("traceparent"), "{header:?}");
    }
    gateway.stop().await;
    relay.stop().await;
    // A provider that is not to know is not told.
    let collector = Collector::start().await;
    let config =
        format!("[providers.p]\nkind = \"openai\"\nurl = \"{}/v1\"\n{}", provider.url(), traces(&collector.url()));
    let model = "[models.m]\nprovider = \"p\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
                 price = { input = \"3\", output = \"15\" }\n[aliases]\nauto = \"m\"\n";
    let relay = TestRelay::start(&format!("{config}{model}")).await;
    let client = relay.client().await;
    assert!(client.ask(&Script::tokens(2).as_message()).await.end.is_some());
    span(&collector, "belayd", "chat m").await;
    assert!(!provider.last().headers.contains_key("traceparent"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_to_be_kept_is_kept() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let relay = relay(&provider, &format!("{}ratio = 0.0\n", traces(&collector.url()))).await;
    let caller = relay.caller_of("acme", &[KeyScope::Escalate]).await;
    let ask = |place: Option<&str>| {
        let body: Value = serde_json::from_str(&chat(&Script::tokens(2), false)).unwrap();
        let request = caller.post("/v1/chat/completions", &body);
        HttpCaller::text(match place {
            Some(place) => request.header("traceparent", place),
            None => request,
        })
    };
    let unkept = hidden();
    for place in [None, Some(unkept.as_str()), Some(CALLER)] {
        assert_eq!(ask(place).await.0, 200);
    }
    span(&collector, "belayd", "request").await;
    // The one that was asked for last is there, so the others would be.
    assert!(collector.spans().iter().all(|span| span.trace == TRACE), "{:?}", collector.spans());
    relay.stop().await;
}

/// A place whose trace its caller does not keep.
fn hidden() -> String {
    CALLER.replace("0af7", "1bf8").replace("-01", "-00")
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_neither_hide_from_the_operator_nor_write_what_they_like_nor_push_others_out() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let extra = format!(
        "{}[providers.any]\nkind = \"openai\"\nurl = \"{}/v1\"\nany_model = true\n",
        traces(&collector.url()),
        provider.url()
    );
    let price = "[billing]\ndefault_price = { input = \"1\", output = \"1\" }\n";
    let relay = relay(&provider, &format!("{extra}{price}")).await;
    let client = telling(&relay, &collector).await;
    let gateway = TestGateway::with(&client, Settings::default()).await;
    let ask = |body: String| gateway.post("/v1/chat/completions", body).header("traceparent", hidden());
    assert_eq!(HttpCaller::text(ask(chat(&Script::tokens(2), false))).await.0, 200);
    let told = span(&collector, "belayd", "request").await;
    assert!(hidden().contains(&told.trace), "{told:?}");
    // The computer's own side does as it is told.
    assert_eq!(collector.of("belay", "escalate"), []);
    // A name that a caller has made up is no span's name, and not longer than a name is.
    let named = |name: &str| chat(&Script::tokens(1), false).replacen("\"m\"", &format!("\"any/{name}\""), 1);
    let long = "words ".repeat(40);
    assert_eq!(HttpCaller::text(ask(named(&long))).await.0, 200);
    let call = span(&collector, "belayd", "chat").await;
    assert!(call.says["gen_ai.request.model"].len() <= belay_traces::MAX_TEXT, "{call:?}");
    let (status, refused) = HttpCaller::json(ask(named(&"x".repeat(300)))).await;
    assert_eq!((status, refused["error"]["belay"]["trace_id"].as_str()), (404, Some(&hidden()[3..35])), "{refused}");
    // A request whose answer is there already calls nobody.
    let calls = || collector.of("belayd", "chat gpt-x").len();
    let repeat = || ask(chat(&Script::tokens(3), false)).header("idempotency-key", "k");
    assert_eq!(HttpCaller::text(repeat()).await.0, 200);
    eventually("its call is told", async || calls() == 2).await;
    assert_eq!(HttpCaller::text(repeat()).await.0, 200);
    // Refusals cost nothing, so there may be many.
    let caller = relay.caller_of("acme", &[KeyScope::Escalate]).await;
    let nobody = json!({ "model": "nobody", "messages": [{ "role": "user", "content": "x" }] });
    for _ in 0..400 {
        HttpCaller::text(caller.post("/v1/chat/completions", &nobody)).await;
    }
    relay.stop().await;
    let requests = collector.of("belayd", "request");
    let repeated: Vec<&Told> = requests.iter().filter(|span| !span.events.is_empty()).collect();
    assert_eq!((repeated.len(), calls()), (1, 2), "{repeated:?}");
    let refused = requests.iter().filter(|span| span.failed).count();
    assert!(refused >= 100, "{refused}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_its_share_of_what_is_told() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let relay = relay(&provider, &traces(&collector.url())).await;
    let client = relay.client().await;
    let unknown = || EscalationRequest { model: "nobody".into(), ..client.prompt("x") };
    // Within a second or two: more than a share, and fewer than the queue holds.
    for _ in 0..10 {
        let all: JoinSet<_> = (0..40)
            .map(|_| {
                let (client, request) = (Arc::clone(&client.client), unknown());
                async move { client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap() }
            })
            .collect();
        assert!(all.join_all().await.iter().all(|answer| answer.failed.is_some()));
    }
    let seen = || sums_of_spans(&relay);
    eventually("each is told or counted", async || seen().0 + seen().1 == 400).await;
    assert!(seen().0 >= 100 && seen().1 > 0, "{:?}", seen());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_and_what_it_loses_is_counted() {
    let provider = FakeProvider::start().await.unwrap();
    // One that takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = relay(&provider, &traces(&format!("http://{}", silent.local_addr().unwrap()))).await;
    let client = relay.client().await;
    let lost = || sums_of_spans(&relay).1;
    let began = Instant::now();
    // More spans than may wait.
    for _ in 0..belay_traces::QUEUE / 4 + 200 {
        assert!(client.ask(&Script::tokens(1).as_message()).await.end.is_some());
    }
    assert!(lost() > 0, "the queue overflows");
    drop(silent);
    // Nor does whoever stops it; what is under way has two seconds.
    timeout(Duration::from_secs(15), relay.stop()).await.expect("it stops");
    assert!(began.elapsed() < PATIENCE * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_shown_its_key_and_one_that_refuses_is_told_of() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let dir = tempfile::tempdir().unwrap();
    let headers = dir.path().join("headers");
    std::fs::write(&headers, "# for the collector\nX-Collector-Key: k-123\n").unwrap();
    let mut relay = relay(&provider, &format!("{}headers_file = {headers:?}\n", traces(&collector.url()))).await;
    let client = relay.client().await;
    client.ask(&Script::tokens(1).as_message()).await;
    span(&collector, "belayd", "request").await;
    assert_eq!(collector.headers("x-collector-key").first().map(String::as_str), Some("k-123"));
    let agent = collector.headers("user-agent").remove(0);
    assert!(agent.starts_with("belayd/"), "{agent}");
    // Another key waits for a start, and is said to.
    std::fs::write(&headers, "X-Collector-Key: k-456\n").unwrap();
    let difference = relay.reload(|text| text).await.unwrap();
    assert_eq!(difference.needs_restart, ["traces.headers_file"]);
    let answered = || sums_of_spans(&relay);
    let before = answered();
    collector.reject(1);
    client.ask(&Script::tokens(1).as_message()).await;
    eventually("one of four was rejected", async || {
        let now = answered();
        (now.0 - before.0, now.1 - before.1) == (3, 1)
    })
    .await;
    collector.reject(0);
    collector.refuse(Some(StatusCode::FORBIDDEN));
    client.ask(&Script::tokens(1).as_message()).await;
    let before = answered().1;
    eventually("it is counted", async || answered().1 > before).await;
    let findings = relay.relay().admin().doctor().await.unwrap();
    let traces = findings.iter().find(|finding| finding.what == "traces").expect("it is looked at");
    assert!(format!("{traces:?}").contains("did not take"), "{traces:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_tell_their_trace() {
    let (provider, collector) = (FakeProvider::start().await.unwrap(), Collector::start().await);
    let config = format!(
        "[providers.p]\nkind = \"openai\"\nurl = \"{}/v1\"\n[models.m]\nprovider = \"p\"\ncontext_tokens = 32000\n\
         max_output_tokens = 4096\nprice = {{ input = \"3\", output = \"15\" }}\n[aliases]\nauto = \"m\"\n",
        provider.url()
    );
    let question = Script::tokens(3).as_message();
    tokio::task::block_in_place(|| {
        let site = Site::with(&config, &[]);
        let home = site.join("laptop", "acme");
        let ask = |args: &[&str]| {
            let mut command = belay(&home, &[&["ask", "--traces", &collector.url()][..], args].concat());
            run(command.env("TRACEPARENT", CALLER))
        };
        exits(&ask(&[&question]), 0);
        // It is told before the command ends.
        let told = collector.of("belay", "escalate");
        assert_eq!((told.len(), told[0].trace.as_str(), told[0].failed), (1, TRACE, false), "{told:?}");
        let cut = Script { cut_after: Some(2), ..Script::tokens(9) }.as_message();
        for json in [&[][..], &["--json"]] {
            let ran = ask(&[&[&*cut][..], json].concat());
            exits(&ran, 1);
            assert!(ran.stderr.contains(&format!("trace {TRACE}")), "{}", ran.stderr);
        }
        collector.forget();
        exits(&ask(&[&question]), 0);
        let ran = ask(&["--model", "nobody", "--json", &question]);
        exits(&ran, 77);
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(object["trace_id"], TRACE, "{object}");
        assert!(ran.stderr.contains(TRACE), "{}", ran.stderr);
        let told = collector.of("belay", "escalate");
        assert_eq!(told[1].says["error.type"], "unknown_model", "{told:?}");
        // Without a caller's, it is the request's own.
        let ran = run(&mut belay(&home, &["ask", "--model", "nobody", "--json", &question]));
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(object["trace_id"], object["request_id"], "{object}");
        let ran = run(&mut belay(&home, &["ask", "--traces", "collector:4318", &question]));
        exits(&ran, 2);
        assert!(ran.stderr.contains("http://127.0.0.1:4318"), "{}", ran.stderr);
    });
}

/// Spans that were taken, and those that were not.
fn sums_of_spans(relay: &TestRelay) -> (u64, u64) {
    let text = relay.relay().admin().metrics();
    let of = |result: &str| {
        let name = format!("belay_spans_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    };
    (of("exported"), of("dropped"))
}
