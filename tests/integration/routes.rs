//! Names that stand for several models: which is asked, when another is, and when one is asked again.

use belay_client::escalation::{Collected, EscalationRequest};
use belay_protocol::message::{Dialect, FailureCode, Outcome};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::relay::{TestClient, TestRelay};
use std::time::{Duration, Instant};

/// Two providers with a model each, and the aliases that a test names.
struct Two {
    first: FakeProvider,
    second: FakeProvider,
    relay: TestRelay,
    client: TestClient,
}

impl Two {
    /// `models` are the two models' own lines.
    async fn start(models: [&str; 2], aliases: &str) -> Self {
        let (first, second) = (FakeProvider::start().await.unwrap(), FakeProvider::start().await.unwrap());
        let part = |name: &str, provider: &FakeProvider, lines: &str| {
            format!(
                "[providers.{name}]\nkind = \"openai\"\nurl = \"{}\"\n[models.{name}]\nprovider = \"{name}\"\n\
                 max_output_tokens = 1000\n{lines}\n",
                provider.url()
            )
        };
        let extra = part("first", &first, models[0]) + &part("second", &second, models[1]) + aliases;
        let relay = TestRelay::start(&extra).await;
        let client = relay.client().await;
        Self { first, second, relay, client }
    }

    async fn ask(&self, model: &str, more: &str) -> Collected {
        let body = format!(r#"{{"model":"{model}","stream":true,"max_tokens":50{more}}}"#);
        let request =
            EscalationRequest::new(self.client.client.request_id(), Dialect::OPENAI_CHAT, model, body.into_bytes());
        self.client.send(request).await
    }

    async fn stop(self) {
        self.relay.verify().await;
        self.relay.stop().await;
    }
}

const PLAIN: &str = r#","messages":[{"role":"user","content":"hi"}]"#;
const LINES: &str = "context_tokens = 100000\nprice = { input = \"2\", output = \"2\" }";

fn provider(answer: &Collected) -> &str {
    &answer.head.as_ref().unwrap_or_else(|| panic!("no answer: {:?}", answer.failed)).provider
}

fn header<'a>(answer: &'a Collected, name: &str) -> Option<&'a str> {
    let headers = &answer.head.as_ref()?.headers;
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_picked_by_what_the_request_needs_and_what_it_may_cost() {
    let small = "context_tokens = 3000\nimages = false\ntools = false\nprice = { input = \"1\", output = \"1\" }";
    let large = "context_tokens = 200000\nprice = { input = \"3\", output = \"9\" }";
    let rules = "[aliases]\nauto = \"demo\"\n[aliases.pick]\nmodels = [\"second\", \"first\"]\nprefer = \"cheapest\"\n\
                 [aliases.cheap]\nmodels = [\"first\", \"second\"]\nmax_output = \"5\"\n";
    let two = Two::start([small, large], rules).await;
    let answer = two.ask("pick", PLAIN).await;
    assert_eq!((provider(&answer), header(&answer, "belay-picked")), ("first", Some("first/first")), "the cheaper one");
    let long = format!(r#","messages":[{{"role":"user","content":"{}"}}]"#, "long ".repeat(3000));
    let picture =
        r#","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]"#;
    let tool = format!(r#"{PLAIN},"tools":[{{"type":"function","function":{{"name":"f"}}}}]"#);
    for (body, why) in [
        (long.as_str(), "takes 3000 tokens, and about"),
        (picture, "sees no images"),
        (tool.as_str(), "calls no tools"),
    ] {
        let answer = two.ask("pick", body).await;
        assert_eq!(provider(&answer), "second", "{why}");
        let words = header(&answer, "belay-picked").unwrap();
        assert!(words.starts_with("second/second (first ") && words.contains(why), "{words}");
    }
    assert_eq!(provider(&two.ask("cheap", PLAIN).await), "first");
    let failed = two.ask("cheap", picture).await.failed.expect("none fits");
    assert_eq!(failed.code, FailureCode::INVALID_REQUEST);
    for words in ["first sees no images", "second costs more per output_tokens than $5.00 a million"] {
        assert!(failed.message.contains(words), "{}", failed.message);
    }
    // A name that stands for one model is that model's, whatever it can.
    assert_eq!(provider(&two.ask("first", picture).await), "first");
    assert_eq!(header(&two.ask("first", PLAIN).await, "belay-picked"), None);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_the_requests() {
    let alias =
        "[aliases]\nauto = \"demo\"\nboth = [{ model = \"first\", weight = 9 }, { model = \"second\", weight = 1 }]\n";
    let two = Two::start([LINES, LINES], alias).await;
    let mut firsts = 0;
    for _ in 0..200 {
        firsts += u32::from(provider(&two.ask("both", PLAIN).await) == "first");
    }
    // 180 are expected; by chance alone, one run in a million is outside of this.
    assert!((155..200).contains(&firsts), "{firsts} of 200");
    // Whichever is drawn, the other stands in for it.
    two.first.set_script(Script { status: 503, ..Script::default() });
    for _ in 0..20 {
        assert_eq!(provider(&two.ask("both", PLAIN).await), "second");
    }
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_again_and_again_is_asked_after_the_others_until_it_answers() {
    let two = Two::start([LINES, LINES], "[aliases]\nauto = \"demo\"\nboth = [\"first\", \"second\"]\n").await;
    two.first.set_script(Script { status: 500, ..Script::default() });
    for _ in 0..8 {
        assert_eq!(provider(&two.ask("both", PLAIN).await), "second");
    }
    assert_eq!(two.first.counts().requests, 5, "it is left alone after five failures");
    // Alone it is asked all the same, and the second's failure brings it back into play.
    assert_eq!(two.ask("first", PLAIN).await.failed.expect("refused").code, FailureCode::PROVIDER_REFUSED);
    two.first.set_script(Script::tokens(3));
    two.second.push_script(Script { status: 500, ..Script::default() });
    assert_eq!(provider(&two.ask("both", PLAIN).await), "first");
    assert_eq!(provider(&two.ask("both", PLAIN).await), "first", "it answers again");
    // One that says when it will be back is left alone at once.
    two.first.push_script(Script::refusal(429, Some(60)));
    let asked = two.first.counts().requests;
    for _ in 0..3 {
        assert_eq!(provider(&two.ask("both", PLAIN).await), "second");
    }
    assert_eq!(two.first.counts().requests, asked + 1);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_are_ill_come_after_all_that_are_well() {
    let providers = [(); 4].map(|()| FakeProvider::start());
    let mut fakes = vec![];
    for provider in providers {
        fakes.push(provider.await.unwrap());
    }
    let part = |(number, fake): (usize, &FakeProvider)| {
        format!(
            "[providers.p{number}]\nkind = \"openai\"\nurl = \"{}\"\n[models.p{number}]\nprovider = \"p{number}\"\n\
             max_output_tokens = 1000\n{LINES}\n",
            fake.url()
        )
    };
    let extra: String = fakes.iter().enumerate().map(part).collect();
    let all = "[aliases]\nauto = \"demo\"\nall = [\"p0\", \"p1\", \"p2\", \"p3\"]\n";
    let relay = TestRelay::start(&format!("{extra}{all}")).await;
    let client = relay.client().await;
    let ask = async || {
        let body = format!(r#"{{"model":"all","stream":true,"max_tokens":50{PLAIN}}}"#);
        let id = client.client.request_id();
        client.send(EscalationRequest::new(id, Dialect::OPENAI_CHAT, "all", body.into_bytes())).await
    };
    for ill in [0, 1] {
        fakes[ill].set_script(Script { status: 500, ..Script::default() });
    }
    for _ in 0..5 {
        assert_eq!(provider(&ask().await), "p2");
    }
    let asked = || fakes.iter().map(|fake| fake.counts().requests).collect::<Vec<_>>();
    assert_eq!(asked(), [5, 5, 5, 0]);
    // The next well one stands in, and neither of the ill.
    fakes[2].push_script(Script { status: 500, ..Script::default() });
    assert_eq!(provider(&ask().await), "p3");
    assert_eq!(asked(), [5, 5, 6, 1]);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_in_a_hurry_makes_no_provider_ill() {
    let two = Two::start([LINES, LINES], "[aliases]\nauto = \"demo\"\nboth = [\"first\", \"second\"]\n").await;
    two.first.set_script(Script { hang: true, ..Script::default() });
    for _ in 0..8 {
        let body = format!(r#"{{"model":"both","stream":true,"max_tokens":50{PLAIN}}}"#);
        let id = two.client.client.request_id();
        let mut request = EscalationRequest::new(id, Dialect::OPENAI_CHAT, "both", body.into_bytes());
        request.deadline_ms = Some(20);
        let answer = two.client.send(request).await;
        assert_eq!(answer.end.expect("settled").outcome, Outcome::TIMED_OUT);
    }
    assert_eq!((two.first.counts().requests, two.second.counts().requests), (8, 0));
    two.first.set_script(Script::tokens(3));
    assert_eq!(provider(&two.ask("both", PLAIN).await), "first");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_asked_again_when_the_provider_says() {
    let aliases = "[aliases]\nauto = \"demo\"\nboth = [\"first\", \"second\"]\n";
    let two = Two::start([LINES, LINES], &format!("[retries]\nrounds = 2\nlongest_wait_ms = 3000\n{aliases}")).await;
    // Alone, and told when to come back.
    two.first.push_script(Script::refusal(429, Some(1)));
    let began = Instant::now();
    let answer = two.ask("first", PLAIN).await;
    assert_eq!((provider(&answer), header(&answer, "belay-fell-back-from")), ("first", Some("first (status 429)")));
    assert!(began.elapsed() >= Duration::from_secs(1) && answer.end.is_some());
    // Both fail: the one that comes back first is asked again.
    two.first.push_script(Script::refusal(503, Some(2)));
    two.second.push_script(Script::refusal(503, Some(1)));
    assert_eq!(provider(&two.ask("both", PLAIN).await), "second");
    // Not what takes too long, nor what would be the same.
    let count = two.first.counts().requests;
    for script in [Script::refusal(429, Some(30)), Script::refusal(400, None), Script::refusal(401, None)] {
        two.first.push_script(script);
        assert_eq!(two.ask("first", PLAIN).await.failed.expect("refused").code, FailureCode::PROVIDER_REFUSED);
    }
    assert_eq!(two.first.counts().requests, count + 3);
    // Nor more often than it is to be.
    for _ in 0..3 {
        two.first.push_script(Script { die: true, ..Script::default() });
    }
    assert!(two.ask("first", PLAIN).await.head.is_none());
    assert_eq!(two.first.counts().requests, count + 6);
    // Nor an answer that has begun.
    two.first.push_script(Script { cut_after: Some(3), ..Script::default() });
    assert!(two.ask("first", PLAIN).await.end.is_some());
    assert_eq!(two.first.counts().requests, count + 7);
    two.stop().await;
}
