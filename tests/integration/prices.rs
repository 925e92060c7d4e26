//! Prices: the catalogue beside its source, models that only their provider names, aliases that fall back.

use belay_client::escalation::{Collected, EscalationRequest};
use belay_protocol::message::{Dialect, FailureCode, Outcome, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use belay_relay::pricing::{Catalogue, PriceSnapshot};
use belay_tests::fake_provider::{FakeProvider, Script};
use belay_tests::relay::{TestClient, TestRelay};
use genai_prices::{Calculator, PriceRequest, Usage, UsageKey};
use std::time::{Duration, UNIX_EPOCH};

/// Moments before and after price changes, by day and by night, in milliseconds since 1970.
const MOMENTS: [u64; 4] = [1_704_067_200_000, 1_756_700_000_000, 1_780_016_400_000, 1_795_438_800_000];
/// Input that was not cached, read, written for five minutes, written for an hour; output.
const USAGES: [[u64; 5]; 3] = [[1000, 0, 0, 0, 500], [90_000, 5_000, 3_000, 1_000, 7_777], [400_000, 20_000, 1, 7, 99]];

/// What genai-prices itself asks for a call, in dollars.
fn theirs(provider: &str, model: &str, at_ms: u64, units: [u64; 5]) -> Option<f64> {
    let [input, read, write, write_1h, output] = units.map(|units| units as f64);
    let usage = Usage::from([
        (UsageKey::INPUT_TOKENS, input + read + write + write_1h),
        (UsageKey::CACHE_READ_TOKENS, read),
        (UsageKey::CACHE_WRITE_TOKENS, write + write_1h),
        (UsageKey::CACHE_WRITE_1H_TOKENS, write_1h),
        (UsageKey::OUTPUT_TOKENS, output),
    ]);
    let request = PriceRequest::new(model, &usage).with_provider_id(provider);
    let request = request.with_timestamp(UNIX_EPOCH + Duration::from_millis(at_ms));
    Calculator::bundled().calculate(&request).ok().map(|price| price.total_price)
}

#[test]
fn every_price_of_the_catalogue_is_that_of_its_source_to_the_nano_dollar() {
    let catalogue = Catalogue::built_in();
    let (mut compared, mut without, mut dated) = (0, 0, 0);
    for provider in catalogue.providers() {
        for model in &provider.models {
            // By a name that means it; the first that matches is meant, here as there.
            let Some(found) = catalogue.find(&provider.id, &model.id) else { continue };
            let Some(list) = found.price_list() else {
                without += 1;
                continue;
            };
            dated += usize::from(list.0.len() > 1);
            for (moment, units) in MOMENTS.iter().flat_map(|moment| USAGES.map(|units| (*moment, units))) {
                let set = list.at(moment).expect("has one").clone();
                let kinds = [
                    UnitKind::INPUT,
                    UnitKind::CACHE_READ,
                    UnitKind::CACHE_WRITE_5M,
                    UnitKind::CACHE_WRITE_1H,
                    UnitKind::OUTPUT,
                    UnitKind::CALLS,
                ];
                let counted = [units.as_slice(), &[1]].concat();
                let lines = kinds.into_iter().zip(counted).filter(|(_, units)| *units > 0);
                let usage: Vec<UsageLine> = lines.map(|(kind, units)| UsageLine { kind, units }).collect();
                let price = PriceSnapshot { version: 1, multiplier_bp: 10_000, lines: set.lines, tiers: set.tiers };
                let ours = price.cost(&usage).expect("in range").0;
                let theirs = theirs(&provider.id, &model.id, moment, units).expect("priced");
                // Each line is rounded up once; a price that is no whole number of nano-dollars per million
                // is kept to the nearest.
                let off = ours as f64 - theirs * 1e9;
                assert!((-1.0..=6.5).contains(&off), "{} {}: {ours} against {theirs}", provider.id, model.id);
                compared += 1;
            }
        }
    }
    assert!(compared > 22_000, "{compared} compared");
    assert!(dated > 100, "{dated} with dates or hours");
    assert!(without < 300, "{without} without a price for input or output");
}

fn request(client: &TestClient, model: &str) -> EscalationRequest {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"max_tokens":100,"messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, model, body.into_bytes())
}

fn header<'a>(collected: &'a Collected, name: &str) -> Option<&'a str> {
    let found = collected.head.as_ref()?.headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_model_of_a_provider_is_served_at_its_catalogue_price_and_none_without_a_price() {
    let provider = FakeProvider::start().await.unwrap();
    provider.set_script(Script::tokens(7));
    let (url, open) = (provider.url(), "kind = \"openai\"\nany_model = true");
    let relay = TestRelay::start(&format!(
        "[providers.openai]\n{open}\nurl = \"{url}\"\nprices = \"openai\"\n\
         [models.local]\nprovider = \"openai\"\nname = \"nobody-knows\"\n\
         [models.gpt-4o]\nprovider = \"openai\"\nmax_output_tokens = 50\nprice = {{ input = \"100\", output = \"200\" }}\n"
    ))
    .await;
    let client = relay.client().await;
    for name in ["openai/gpt-4.1", "gpt-4.1"] {
        let end = client.send(request(&client, name)).await.end.expect("settled");
        assert_eq!((end.provider.as_str(), end.model.as_str()), ("openai", "gpt-4.1"));
        // $2 and $8 per million, and the tenant's 1.03.
        let exact = (end.units(UnitKind::INPUT) * 2000 + end.units(UnitKind::OUTPUT) * 8000) * 10_300;
        let lines = [end.units(UnitKind::INPUT) * 2000, end.units(UnitKind::OUTPUT) * 8000];
        let rounded: u64 = lines.iter().map(|line| (line * 10_300).div_ceil(10_000)).sum();
        assert_eq!(end.cost, NanoUsd(i64::try_from(rounded).unwrap()), "{exact}");
    }
    let sent = provider.received().pop().unwrap().json();
    assert_eq!(sent["model"], "gpt-4.1");
    // What the operator says of a model holds under its other names: a price, and a ceiling.
    for name in ["openai/gpt-4o", "openai/GPT-4o", "gpt-4o-2024-08-06"] {
        let held = client.send(request(&client, name)).await;
        let (head, end) = (held.head.expect("answered"), held.end.expect("settled"));
        let dear = (end.units(UnitKind::INPUT) * 103_000, end.units(UnitKind::OUTPUT) * 206_000);
        assert_eq!(end.cost, NanoUsd(i64::try_from(dear.0 + dear.1).unwrap()), "{name}");
        assert_eq!(head.max_output_tokens, 50, "{name}");
    }
    assert_eq!(provider.received().pop().unwrap().json()["model"], "gpt-4o-2024-08-06");
    for name in ["local", "openai/nobody-knows-it-either"] {
        let failed = client.send(request(&client, name)).await.failed.expect("refused");
        assert_eq!(failed.code, FailureCode::NO_PRICE, "{}", failed.message);
        assert!(failed.message.contains("has no price"), "{}", failed.message);
    }
    let failed = client.send(request(&client, "gtp-4.1")).await.failed.expect("refused");
    assert_eq!(failed.code, FailureCode::UNKNOWN_MODEL);
    assert!(failed.message.contains("openai/MODEL"), "{}", failed.message);
    relay.verify().await;
    relay.stop().await;
    let default = format!(
        "[billing.default_price]\ninput = \"1\"\noutput = \"1\"\n[providers.openai]\n{open}\nurl = \"{url}\"\n\
         prices = \"openai\"\n"
    );
    let relay = TestRelay::start(&default).await;
    let client = relay.client().await;
    let end = client.send(request(&client, "openai/nobody-knows-it-either")).await.end.expect("settled");
    let tokens = end.units(UnitKind::INPUT) + end.units(UnitKind::OUTPUT);
    assert!((tokens * 1030..=tokens * 1030 + 1).contains(&u64::try_from(end.cost.0).unwrap()), "{:?}", end.cost);
    // Nobody counts here what that one is priced by.
    let failed = client.send(request(&client, "openai/whisper-1")).await.failed.expect("refused");
    assert_eq!(failed.code, FailureCode::NO_PRICE, "{}", failed.message);
    relay.stop().await;
}

/// Two providers, the first dearer, and an alias over both.
async fn two(first: &FakeProvider, second: &FakeProvider, extra: &str) -> TestRelay {
    let part = |name: &str, provider: &FakeProvider, price: u32| {
        format!(
            "[providers.{name}]\nkind = \"openai\"\nurl = \"{}\"\n[models.{name}]\nprovider = \"{name}\"\n\
             context_tokens = 100000\nmax_output_tokens = 1000\n\
             price = {{ input = \"{price}\", output = \"{price}\" }}\n",
            provider.url()
        )
    };
    let providers = part("first", first, 3) + &part("second", second, 2);
    TestRelay::start(&format!("{providers}{extra}[aliases]\nauto = \"demo\"\nprime = [\"first\", \"second\"]\n")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_falls_back_before_the_first_byte_and_charges_who_served() {
    let (first, second) = (FakeProvider::start().await.unwrap(), FakeProvider::start().await.unwrap());
    second.set_script(Script::tokens(20));
    let relay = two(&first, &second, "[timeouts]\nfirst_event_ms = 500\n").await;
    let client = relay.client().await;
    let ways = [
        (Script { status: 529, ..Script::default() }, "first (status 529)"),
        (Script { status: 401, ..Script::default() }, "first (status 401)"),
        (Script { die: true, ..Script::default() }, "first (failed)"),
        (Script { hang: true, ..Script::default() }, "first (silent)"),
    ];
    for (script, why) in ways {
        first.push_script(script);
        let before = relay.balance("acme").await;
        let collected = client.send(request(&client, "prime")).await;
        let end = collected.end.clone().unwrap_or_else(|| panic!("{why}: {:?}", collected.failed));
        assert_eq!((end.outcome, end.provider.as_str()), (Outcome::COMPLETE, "second"), "{why}");
        assert_eq!(header(&collected, "belay-fell-back-from"), Some(why));
        assert_eq!(collected.head.as_ref().unwrap().provider, "second");
        let lines = [UnitKind::INPUT, UnitKind::OUTPUT].map(|kind| (end.units(kind) * 2060).div_ceil(1));
        assert_eq!(end.cost.0, i64::try_from(lines.iter().sum::<u64>()).unwrap(), "at the second's price");
        assert_eq!(before - relay.balance("acme").await, end.cost.0);
    }
    // What is wrong with the request is wrong everywhere.
    first.push_script(Script { status: 400, ..Script::default() });
    let asked = second.counts().requests;
    let collected = client.send(request(&client, "prime")).await;
    assert_eq!(collected.failed.expect("refused").code, FailureCode::PROVIDER_REFUSED);
    assert_eq!(second.counts().requests, asked);
    // An answer that has begun is not begun again.
    first.push_script(Script { tokens: 50, cut_after: Some(10), ..Script::default() });
    let end = client.send(request(&client, "prime")).await.end.expect("settled");
    assert_eq!((end.outcome, end.provider.as_str()), (Outcome::PROVIDER_FAILED, "first"));
    assert_eq!(second.counts().requests, asked);
    // Nobody answers: the last one's words.
    first.push_script(Script { status: 503, ..Script::default() });
    second.push_script(Script { status: 503, ..Script::default() });
    let before = relay.balance("acme").await;
    let collected = client.send(request(&client, "prime")).await;
    assert_eq!(collected.failed.expect("refused").code, FailureCode::PROVIDER_REFUSED);
    assert_eq!(relay.balance("acme").await, before);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_held_for_the_dearest_offer() {
    let (first, second) = (FakeProvider::start().await.unwrap(), FakeProvider::start().await.unwrap());
    let relay = two(&first, &second, "").await;
    let client = relay.client().await;
    let held = async |model| client.send(request(&client, model)).await.head.expect("answered").held;
    let (dear, cheap, alias) = (held("first").await, held("second").await, held("prime").await);
    assert!(cheap < dear && alias == dear, "{cheap} {dear} {alias}");
    relay.verify().await;
    relay.stop().await;
}
