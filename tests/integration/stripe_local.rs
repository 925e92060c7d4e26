//! Payments against somebody else's Stripe: localstripe, which keeps customers, cards, payments and refunds, and signs
//! its webhooks itself.

use crate::stripe::{Hooks, SECRET, event, relay_at};
use belay_protocol::money::NanoUsd;
use belay_relay::store::central::keys::KeyScope;
use belay_tests::http::HttpCaller;
use belay_tests::python;
use belay_tests::relay::{PATIENCE, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A process of it.
struct LocalStripe {
    url: String,
    http: reqwest::Client,
    _process: Child,
}

impl LocalStripe {
    async fn start(python: &Path) -> Self {
        // It takes a port by number alone: one that is free now.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(python.with_file_name("localstripe"));
        command.args(["--port", &free.to_string(), "--from-scratch"]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.kill_on_drop(true).spawn().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let stripe = Self { url: format!("http://127.0.0.1:{free}"), http, _process: process };
        eventually("localstripe listens", async || stripe.http.get(&stripe.url).send().await.is_ok()).await;
        stripe
    }

    /// Asks for something to be made, as the payer's page does.
    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let body: Vec<String> = form.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth("sk_test_1");
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body.join("&"));
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_at_localstripe_arrives_once_and_so_do_its_refund_and_a_top_up_by_itself() {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("stripe/requirements.txt");
    let made = tokio::task::spawn_blocking(move || python::environment("stripe", &requirements)).await.unwrap();
    let Some(python) = made else { return };
    let stripe = LocalStripe::start(&python).await;
    let (relay, _dir) = relay_at(&stripe.url, "").await;
    let hooks = Hooks::of(&relay);
    stripe.post("/_config/webhooks/belay", &[("url", &hooks.url), ("secret", SECRET)]).await;
    let client = relay.client().await;
    // It has no pages to pay at; but the customer is made for one.
    client.client.top_up(NanoUsd(20_000_000_000), PATIENCE).await.unwrap_err();
    let customers =
        stripe.http.get(format!("{}/v1/customers", stripe.url)).bearer_auth("sk_test_1").send().await.unwrap();
    let customers: Value = serde_json::from_str(&customers.text().await.unwrap()).unwrap();
    assert_eq!(customers["data"][0]["metadata"]["belay_tenant"], "acme");
    let customer = customers["data"][0]["id"].as_str().unwrap().to_owned();
    let card = [
        ("type", "card"),
        ("card[number]", "4242424242424242"),
        ("card[exp_month]", "12"),
        ("card[exp_year]", "2040"),
        ("card[cvc]", "123"),
    ];
    let method = stripe.post("/v1/payment_methods", &card).await["id"].as_str().unwrap().to_owned();
    stripe.post(&format!("/v1/payment_methods/{method}/attach"), &[("customer", &customer)]).await;

    let start = relay.balance("acme").await;
    let form = [
        ("amount", "2000"),
        ("currency", "usd"),
        ("customer", &customer),
        ("payment_method", &method),
        ("confirm", "true"),
        ("metadata[belay_tenant]", "acme"),
        ("metadata[belay_relay]", &hooks.relay),
    ];
    let intent = stripe.post("/v1/payment_intents", &form).await;
    eventually("the payment arrives", async || relay.balance("acme").await == start + 20_000_000_000).await;

    let id = intent["id"].as_str().unwrap();
    stripe.post("/v1/refunds", &[("payment_intent", id), ("amount", "500")]).await;
    let charge = intent["latest_charge"].as_str().or_else(|| intent["charges"]["data"][0]["id"].as_str()).unwrap();
    // It tells nothing of refunds by itself; which ones there are is asked of it.
    let told = event("charge.refunded", json!({ "id": charge, "payment_intent": id, "amount_refunded": 500 }));
    for _ in 0..2 {
        assert_eq!(hooks.tell(&told).await, 200);
    }
    assert_eq!(relay.balance("acme").await, start + 15_000_000_000, "given back once");

    let operator = relay.caller_of("acme", &[KeyScope::Read, KeyScope::Admin]).await;
    let auto = json!({
        "enabled": true, "threshold_nano_usd": 25_000_000_000i64, "amount_nano_usd": 10_000_000_000i64,
        "monthly_cap_nano_usd": 10_000_000_000i64,
    });
    HttpCaller::good(operator.post("/v1/billing/auto-topup", &auto)).await;
    eventually("it is topped up", async || relay.balance("acme").await == start + 25_000_000_000).await;
    // Its webhook comes a second later, and says the same.
    let entries = async || {
        let statement = HttpCaller::good(operator.get("/v1/billing/statement")).await;
        let all = statement["entries"].as_array().unwrap().clone();
        all.iter().filter(|entry| entry["operation"].as_str().unwrap().starts_with("stripe pi_")).count()
    };
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!((entries().await, relay.balance("acme").await), (2, start + 25_000_000_000));
    relay.verify().await;
    relay.stop().await;
}
