//! Payments by Stripe: what is told is booked once, whatever happens to the telling.

use aws_lc_rs::{digest, hmac};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::TermsChange;
use belay_relay::store::central::keys::KeyScope;
use belay_relay::store::ledger::money::Operation;
use belay_tests::http::{HTTP, HttpCaller};
use belay_tests::relay::{PATIENCE, TestRelay, eventually, tenant};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A Stripe that makes pages, payments and meter events, knows names of requests, and can be down.
#[derive(Debug, Default)]
struct Fake {
    calls: Vec<(String, HashMap<String, String>)>,
    /// Answers by the name of their request.
    named: HashMap<String, Value>,
    intents: HashMap<String, Value>,
    /// Does what it is asked, and answers with an error.
    loses_answers: bool,
    down: bool,
    /// Takes another key than the relay's.
    locked: bool,
    declines: bool,
    /// All refunds of a charge, the newest first; told a few at a time.
    refunds: Vec<Value>,
}

type Shared = Arc<Mutex<Fake>>;

struct FakeStripe {
    url: String,
    fake: Shared,
    task: JoinHandle<()>,
}

impl Drop for FakeStripe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeStripe {
    async fn start() -> Self {
        let fake = Shared::default();
        let router = Router::new()
            .route("/v1/{*path}", post(make).get(look))
            .route("/", get(async || "fake"))
            .with_state(Arc::clone(&fake));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, fake, task }
    }

    fn set(&self, change: impl FnOnce(&mut Fake)) {
        change(&mut self.fake.lock().unwrap());
    }

    fn calls(&self, path: &str) -> Vec<HashMap<String, String>> {
        let fake = self.fake.lock().unwrap();
        fake.calls.iter().filter(|(called, _)| called == path).map(|(_, form)| form.clone()).collect()
    }
}

async fn make(State(fake): State<Shared>, Path(path): Path<String>, headers: HeaderMap, body: String) -> Response {
    let Query(form): Query<HashMap<String, String>> =
        Query::try_from_uri(&format!("/?{body}").parse().unwrap()).unwrap();
    let mut fake = fake.lock().unwrap();
    if fake.down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if fake.locked {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "Invalid API Key" } }))).into_response();
    }
    let name = headers["idempotency-key"].to_str().unwrap().to_owned();
    if let Some(known) = fake.named.get(&name) {
        return Json(known.clone()).into_response();
    }
    fake.calls.push((path.clone(), form.clone()));
    let number = fake.calls.len();
    let answer = match path.as_str() {
        "customers" => json!({ "id": format!("cus_{number}") }),
        "checkout/sessions" => {
            json!({ "id": format!("cs_{number}"), "url": format!("https://checkout.stripe.test/{number}") })
        }
        "payment_intents" if fake.declines => {
            let error = json!({ "error": { "code": "card_declined", "message": "Your card was declined." } });
            return (StatusCode::PAYMENT_REQUIRED, Json(error)).into_response();
        }
        "payment_intents" => {
            let tenant = form["metadata[belay_tenant]"].clone();
            let (relay, attempt) = (form["metadata[belay_relay]"].clone(), form["metadata[belay_attempt]"].clone());
            let intent = json!({
                "id": format!("pi_{number}"), "status": "succeeded", "currency": "usd",
                "amount": form["amount"].parse::<u64>().unwrap(),
                "metadata": { "belay_tenant": tenant, "belay_relay": relay, "belay_attempt": attempt },
            });
            fake.intents.insert(format!("pi_{number}"), intent.clone());
            intent
        }
        _ => json!({ "id": format!("obj_{number}") }),
    };
    fake.named.insert(name, answer.clone());
    if fake.loses_answers { StatusCode::BAD_GATEWAY.into_response() } else { Json(answer).into_response() }
}

async fn look(
    State(fake): State<Shared>,
    Path(path): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let fake = fake.lock().unwrap();
    if fake.down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if fake.locked {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "Invalid API Key" } }))).into_response();
    }
    let found = path.strip_prefix("payment_intents/").and_then(|id| fake.intents.get(id));
    match found {
        Some(intent) => Json(intent.clone()).into_response(),
        None if path == "refunds" => {
            let after = query.get("starting_after");
            let from = after.map_or(0, |id| fake.refunds.iter().position(|one| one["id"] == id.as_str()).unwrap() + 1);
            let page = &fake.refunds[from..fake.refunds.len().min(from + 3)];
            Json(json!({ "data": page, "has_more": from + 3 < fake.refunds.len() })).into_response()
        }
        None if path == "payment_intents" => Json(json!({ "data": [] })).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({ "error": { "code": "resource_missing" } }))).into_response(),
    }
}

pub(crate) const SECRET: &str = "whsec_one";

/// A relay that takes payments, and its directory of secrets.
pub(crate) async fn relay_at(url: &str, extra: &str) -> (TestRelay, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (key, secrets) = (file("key", "sk_test_1\n"), file("secrets", &format!("whsec_old\n{SECRET}\n")));
    let relay = TestRelay::start(&format!(
        "{HTTP}[stripe]\nkey_file = {key:?}\nwebhook_secrets_file = {secrets:?}\nurl = \"{url}\"\n\
         success_url = \"https://example.org/paid\"\nlook_every_s = 1\n{extra}"
    ))
    .await;
    (relay, dir)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn signed(secret: &str, at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", data_encoding::HEXLOWER.encode(tag.as_ref()))
}

pub(crate) fn event(kind: &str, object: Value) -> String {
    json!({ "id": format!("evt_{kind}"), "object": "event", "type": kind, "data": { "object": object } }).to_string()
}

pub(crate) struct Hooks {
    http: reqwest::Client,
    pub(crate) url: String,
    /// What the relay calls itself at Stripe.
    pub(crate) relay: String,
}

impl Hooks {
    pub(crate) fn of(relay: &TestRelay) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let pem = std::fs::read_to_string(relay.state().join("ca/ca.pem")).unwrap();
        let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let certificate = data_encoding::BASE64.decode(text.as_bytes()).unwrap();
        let fingerprint = digest::digest(&digest::SHA256, &certificate);
        let name = data_encoding::HEXLOWER.encode(&fingerprint.as_ref()[..8]);
        Self { http, url: format!("{}/webhooks/stripe", relay.url()), relay: name }
    }

    async fn send(&self, signature: &str, body: &str) -> u16 {
        let request = self.http.post(&self.url).header("stripe-signature", signature).body(body.to_owned());
        request.send().await.unwrap().status().as_u16()
    }

    pub(crate) async fn tell(&self, body: &str) -> u16 {
        self.send(&signed(SECRET, now(), body), body).await
    }

    fn paid(&self, intent: &str, cents: u64) -> String {
        let object = json!({
            "id": format!("cs_{intent}"), "mode": "payment", "payment_status": "paid", "payment_intent": intent,
            "amount_total": cents, "currency": "usd", "metadata": { "belay_tenant": "acme", "belay_relay": self.relay },
        });
        event("checkout.session.completed", object)
    }

    fn intent(&self, id: &str, cents: u64) -> Value {
        json!({
            "id": id, "amount": cents, "amount_received": cents, "currency": "usd", "payment_method": "pm_1",
            "metadata": { "belay_tenant": "acme", "belay_relay": self.relay },
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_up_is_paid_at_stripe_and_credited_once() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let client = relay.client().await;
    let page = client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap().url;
    assert!(page.starts_with("https://checkout.stripe.test/"), "{page}");
    let asked = &stripe.calls("checkout/sessions")[0];
    assert_eq!(asked["line_items[0][price_data][unit_amount]"], "2000");
    assert_eq!(asked["payment_intent_data[metadata][belay_tenant]"], "acme");
    assert_eq!(stripe.calls("customers").len(), 1);
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap();
    assert_eq!(stripe.calls("customers").len(), 1, "one customer");
    for odd in [NanoUsd(1), NanoUsd(500_000_000), NanoUsd(10_000_000_000_001)] {
        let error = client.client.top_up(odd, PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains("whole cents"), "{error}");
    }
    let before = relay.balance("acme").await;
    let hooks = Hooks::of(&relay);
    assert_eq!(hooks.tell(&hooks.paid("pi_1", 2000)).await, 200);
    // When it was answered, the money is there.
    assert_eq!(relay.balance("acme").await, before + 20_000_000_000);
    // The payment tells the same.
    assert_eq!(hooks.tell(&event("payment_intent.succeeded", hooks.intent("pi_1", 2000))).await, 200);
    assert_eq!(relay.balance("acme").await, before + 20_000_000_000);
    // Stripe is down: a page is not to be had, and said so.
    stripe.set(|fake| fake.down = true);
    let error = client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_webhooks_money_moves_once_and_only_on_stripes_word() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    let start = relay.balance("acme").await;
    let body = hooks.paid("pi_1", 1500);
    // Forged, cut, stale, of another secret, of an unknown scheme, unsigned.
    for (what, signature, body) in [
        ("forged", signed("whsec_guess", now(), &body), body.clone()),
        ("changed", signed(SECRET, now(), &body), body.replace("1500", "9900")),
        ("cut", signed(SECRET, now(), &body), body[..body.len() - 9].to_owned()),
        ("stale", signed(SECRET, now() - 900, &body), body.clone()),
        ("of tomorrow", signed(SECRET, now() + 900, &body), body.clone()),
        ("unsigned", String::new(), body.clone()),
        ("another scheme", signed(SECRET, now(), &body).replace("v1=", "v0="), body.clone()),
        ("signed, and no JSON", signed(SECRET, now(), "{"), "{".to_owned()),
        ("signed, and no event", signed(SECRET, now(), "{}"), "{}".to_owned()),
    ] {
        assert_eq!(hooks.send(&signature, &body).await, 400, "{what}");
    }
    assert_eq!(relay.balance("acme").await, start);
    // A secret takes the place of another: both are good meanwhile.
    assert_eq!(hooks.send(&signed("whsec_old", now(), &body), &body).await, 200);
    assert_eq!(hooks.send(&signed(SECRET, now(), &body), &body).await, 200);
    // The same ten thousand times, eight at once.
    let signature = signed(SECRET, now(), &body);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (hooks, signature, body) = (Hooks::of(&relay), signature.clone(), body.clone());
        running.spawn(async move {
            for _ in 0..1250 {
                assert_eq!(hooks.send(&signature, &body).await, 200);
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    assert_eq!(relay.balance("acme").await, start + 15_000_000_000);
    // Another relay's, another program's, another currency: nothing of ours.
    for body in [
        hooks.paid("pi_2", 100).replace("acme", "nobody"),
        event("payment_intent.succeeded", json!({ "id": "pi_3", "amount": 100, "currency": "usd", "metadata": {} })),
        hooks.paid("pi_4", 100).replace("usd", "eur"),
        hooks.paid("pi_5", 100).replace("\"paid\"", "\"unpaid\""),
        event("customer.created", json!({ "id": "cus_1" })),
    ] {
        assert_eq!(hooks.tell(&body).await, 200, "{body}");
    }
    assert_eq!(relay.balance("acme").await, start + 15_000_000_000);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refunds_and_disputes_in_any_order_come_to_the_same() {
    let seed: u64 = std::env::var("BELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        let stripe = FakeStripe::start().await;
        let (relay, _dir) = relay_at(&stripe.url, "").await;
        let hooks = Hooks::of(&relay);
        stripe.set(|fake| drop(fake.intents.insert("pi_1".into(), hooks.intent("pi_1", 5000))));
        let start = relay.balance("acme").await;
        let refund = |id: &str, cents: u64, status: &str| json!({ "id": id, "object": "refund", "payment_intent": "pi_1", "amount": cents, "status": status });
        let charge = json!({
            "id": "ch_1", "payment_intent": "pi_1", "amount_refunded": 1200,
            "refunds": { "data": [refund("re_1", 500, "succeeded"), refund("re_2", 700, "succeeded")], "has_more": false },
        });
        let dispute =
            |id: &str, status: &str| json!({ "id": id, "payment_intent": "pi_1", "amount": 900, "status": status });
        let mut told = vec![
            hooks.paid("pi_1", 5000),
            event("payment_intent.succeeded", hooks.intent("pi_1", 5000)),
            event("refund.created", refund("re_1", 500, "pending")),
            event("refund.updated", refund("re_1", 500, "succeeded")),
            event("charge.refunded", charge),
            event("refund.created", refund("re_3", 300, "pending")),
            event("refund.failed", refund("re_3", 300, "failed")),
            event("charge.dispute.created", dispute("dp_1", "needs_response")),
            event("charge.dispute.funds_withdrawn", dispute("dp_1", "needs_response")),
            event("charge.dispute.closed", dispute("dp_1", "lost")),
            event("charge.dispute.created", dispute("dp_2", "needs_response")),
            event("charge.dispute.funds_reinstated", dispute("dp_2", "won")),
            event("charge.dispute.closed", dispute("dp_2", "won")),
            event("charge.dispute.created", dispute("dp_3", "warning_needs_response")),
        ];
        // Each of them up to three times.
        for _ in 0..20 {
            let again = told[random.random_range(0..told.len())].clone();
            told.push(again);
        }
        told.shuffle(&mut random);
        for body in &told {
            assert_eq!(hooks.tell(body).await, 200, "{body}, seed {seed}");
        }
        // 50.00 paid, 5.00 and 7.00 given back, 3.00 not, 9.00 taken back for good, 9.00 won.
        assert_eq!(relay.balance("acme").await, start + (5000 - 500 - 700 - 900) * 10_000_000, "seed {seed}");
        relay.verify().await;
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_refunds_than_an_event_has_are_asked_for_page_by_page() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    let start = relay.balance("acme").await;
    assert_eq!(hooks.tell(&hooks.paid("pi_1", 5000)).await, 200);
    let refund = |number: u64| json!({ "id": format!("re_{number}"), "object": "refund", "payment_intent": "pi_1", "amount": 100, "status": "succeeded" });
    stripe.set(|fake| fake.refunds = (0..8).map(refund).collect());
    let charge = json!({ "id": "ch_1", "payment_intent": "pi_1", "amount_refunded": 800,
        "refunds": { "data": [refund(0)], "has_more": true } });
    for _ in 0..2 {
        assert_eq!(hooks.tell(&event("charge.refunded", charge.clone())).await, 200);
        assert_eq!(relay.balance("acme").await, start + (5000 - 800) * 10_000_000);
    }
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_stripe_is_away_nothing_is_lost_and_nothing_is_done_twice() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    let client = relay.client().await;
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap();
    // A refund of a payment that was never heard of: who it belongs to has to be asked for.
    stripe.set(|fake| {
        fake.down = true;
        fake.intents.insert("pi_9".into(), hooks.intent("pi_9", 1000));
    });
    let refund = json!({ "id": "re_9", "payment_intent": "pi_9", "amount": 400, "status": "succeeded" });
    let refund = event("refund.created", refund);
    assert_eq!(hooks.tell(&refund).await, 503);
    // The money is below the threshold.
    let operator = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Admin]).await;
    let auto = json!({
        "enabled": true, "threshold_nano_usd": 9_500_000_000i64, "amount_nano_usd": 7_000_000_000i64,
        "monthly_cap_nano_usd": 15_000_000_000i64,
    });
    assert_eq!(hooks.tell(&event("payment_intent.succeeded", hooks.intent("pi_1", 100))).await, 200);
    assert_eq!(HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto)).await["enabled"], true);
    let before = relay.balance("acme").await;
    // Up again, and every answer is lost: it does what it is asked, and nobody hears of it.
    stripe.set(|fake| (fake.down, fake.loses_answers) = (false, true));
    eventually("it is asked", async || !stripe.calls("payment_intents").is_empty()).await;
    stripe.set(|fake| fake.loses_answers = false);
    eventually("it is topped up", async || relay.balance("acme").await == before + 7_000_000_000).await;
    assert_eq!(stripe.calls("payment_intents").len(), 1);
    assert_eq!(hooks.tell(&refund).await, 200);
    assert_eq!(hooks.tell(&refund).await, 200);
    assert_eq!(relay.balance("acme").await, before + 7_000_000_000 - 4_000_000_000);
    // Below the threshold again, once more within the month's cap; then not.
    eventually("it is topped up again", async || relay.balance("acme").await == before + 10_000_000_000).await;
    assert_eq!(stripe.calls("payment_intents").len(), 2);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_is_declined_is_not_asked_again_at_once() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    let client = relay.client().await;
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap();
    assert_eq!(hooks.tell(&event("payment_intent.succeeded", hooks.intent("pi_1", 100))).await, 200);
    stripe.set(|fake| fake.declines = true);
    let operator = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Admin]).await;
    let auto = json!({
        "enabled": true, "threshold_nano_usd": 9_000_000_000i64, "amount_nano_usd": 7_000_000_000i64,
        "monthly_cap_nano_usd": 70_000_000_000i64,
    });
    HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto)).await;
    eventually("it is told", async || {
        HttpCaller::good(operator.get("/v1/billing/auto-topup")).await["last_error"] == "Your card was declined."
    })
    .await;
    let asked = stripe.calls("payment_intents").len();
    // Two more looks.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(stripe.calls("payment_intents").len(), asked);
    // Set anew, it may be tried anew.
    stripe.set(|fake| fake.declines = false);
    let before = relay.balance("acme").await;
    HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto)).await;
    eventually("it is topped up", async || relay.balance("acme").await == before + 7_000_000_000).await;
    for bad in [
        json!({ "enabled": true }),
        json!({ "enabled": true, "threshold_nano_usd": -1, "amount_nano_usd": 7_000_000_000i64, "monthly_cap_nano_usd": 7_000_000_000i64 }),
        json!({ "enabled": true, "threshold_nano_usd": 1, "amount_nano_usd": 7, "monthly_cap_nano_usd": 7 }),
        json!({ "enabled": true, "threshold_nano_usd": 1, "amount_nano_usd": 7_000_000_000i64, "monthly_cap_nano_usd": 1 }),
    ] {
        assert_eq!(HttpCaller::json(operator.post("/v1/billing/auto-topup", &bad)).await.0, 400, "{bad}");
    }
    assert_eq!(
        HttpCaller::good(operator.post("/v1/billing/auto-topup", &json!({ "enabled": false }))).await["enabled"],
        false
    );
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pays_later_is_metered_for_what_is_owed_and_that_once() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "meter_event = \"belay_usage\"\n").await;
    let hooks = Hooks::of(&relay);
    let client = relay.client().await;
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap();
    client.ask("hello").await;
    let admin = relay.relay().admin();
    admin.flush(&tenant("acme")).await.unwrap();
    // With a ceiling of late: what was prepaid is not billed again, nor what a refund takes of what is left.
    let terms = TermsChange { ceiling: Some(NanoUsd(100_000_000_000)), ..Default::default() };
    admin.change_terms(&tenant("acme"), terms).await.unwrap();
    // What it owes waits while Stripe takes another key, and nothing is given up: no refund either.
    stripe.set(|fake| {
        fake.locked = true;
        fake.intents.insert("pi_9".into(), hooks.intent("pi_9", 1000));
        fake.intents.insert("pi_8".into(), {
            let mut other = hooks.intent("pi_8", 1000);
            other["currency"] = "jpy".into();
            other
        });
    });
    let refund = |of: &str, cents: u64| {
        let object = json!({ "id": format!("re_{of}"), "payment_intent": of, "amount": cents, "status": "succeeded" });
        event("refund.created", object)
    };
    assert_eq!(hooks.tell(&refund("pi_9", 700)).await, 503);
    let start = relay.balance("acme").await;
    let owed = |balance: i64| (-balance).to_string();
    admin.operate(&tenant("acme"), Operation::Refund, NanoUsd(start + 30_000_000_000), None, None).await.unwrap();
    let metered = || stripe.calls("billing/meter_events");
    stripe.set(|fake| (fake.locked, fake.loses_answers) = (false, true));
    eventually("it is metered", async || !metered().is_empty()).await;
    stripe.set(|fake| fake.loses_answers = false);
    let first = &metered()[0];
    assert_eq!(first["payload[value]"], owed(-30_000_000_000));
    assert_eq!(first["payload[stripe_customer_id]"], "cus_1");
    assert_eq!(first["event_name"], "belay_usage");
    // Seven dollars more are owed, and of the other currency nothing.
    assert_eq!(hooks.tell(&refund("pi_8", 700)).await, 200);
    assert_eq!(hooks.tell(&refund("pi_9", 700)).await, 200);
    assert_eq!(relay.balance("acme").await, -37_000_000_000);
    eventually("it is metered", async || metered().len() == 2).await;
    assert_eq!(metered()[1]["payload[value]"], "7000000000");
    assert_ne!(metered()[1]["identifier"], first["identifier"]);
    // The bill is paid, and told twice: nothing is owed, and nothing is metered until something is.
    let bill = json!({ "id": "in_1", "customer": "cus_1", "amount_paid": 3700, "currency": "usd" });
    for _ in 0..2 {
        assert_eq!(hooks.tell(&event("invoice.paid", bill.clone())).await, 200);
    }
    assert_eq!(relay.balance("acme").await, 0);
    admin.operate(&tenant("acme"), Operation::Refund, NanoUsd(1), None, None).await.unwrap();
    eventually("it is metered", async || metered().len() == 3).await;
    assert_eq!(metered()[2]["payload[value]"], "1");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_not_wanted_any_more_is_given_up() {
    let stripe = FakeStripe::start().await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    let client = relay.client().await;
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap();
    assert_eq!(hooks.tell(&event("payment_intent.succeeded", hooks.intent("pi_1", 100))).await, 200);
    let operator = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Admin]).await;
    let auto = |amount: i64| {
        json!({
            "enabled": true, "threshold_nano_usd": 9_000_000_000_000i64, "amount_nano_usd": amount,
            "monthly_cap_nano_usd": 7_000_000_000i64,
        })
    };
    let before = relay.balance("acme").await;
    // An attempt for seven dollars is made, and not heard.
    stripe.set(|fake| fake.locked = true);
    HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto(7_000_000_000))).await;
    let waits = async || {
        let connection = rusqlite::Connection::open(relay.state().join("central.db")).unwrap();
        let sql = "SELECT count(*) FROM auto_topup_attempt WHERE state = 0";
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 1
    };
    eventually("an attempt is written down", waits).await;
    HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto(3_000_000_000))).await;
    stripe.set(|fake| fake.locked = false);
    eventually("it is topped up", async || relay.balance("acme").await > before).await;
    // The cap has room for two of three dollars: the one for seven does not count.
    eventually("and again", async || relay.balance("acme").await == before + 6_000_000_000).await;
    assert!(stripe.calls("payment_intents").iter().all(|form| form["amount"] == "300"));
    relay.verify().await;
    relay.stop().await;
}
