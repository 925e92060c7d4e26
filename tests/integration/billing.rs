//! Billing streams: what was used, every entry of the book, records of usage elsewhere, where to pay.

use belay_client::billing::Span;
use belay_client::escalation::EscalationRequest;
use belay_protocol::calendar;
use belay_protocol::id::RequestId;
use belay_protocol::message::{
    FailureCode, PaysWith, RecordRequest, StatementLine, UnitKind, UsageBy, UsageClass, UsageLine, UsagePeriod,
};
use belay_protocol::money::NanoUsd;
use belay_relay::admin::service::TermsChange;
use belay_relay::store::ledger::budget::{Measure, Scope};
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::standing::Tier;
use belay_tests::procs::{Belayd, binary, run};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, tenant};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const EVER: Span = Span::Period(UsagePeriod::EVER);
const KNOWLEDGE: &str = "[recorded.knowledge]\nprice = { input = \"0.10\", output = \"0\" }\n\
    [recorded.knowledge.models]\nsmall = { input = \"0.01\", output = \"0\" }\n";

fn local(id: u8, input: u64, output: u64) -> RecordRequest {
    let usage =
        vec![UsageLine { kind: UnitKind::INPUT, units: input }, UsageLine { kind: UnitKind::OUTPUT, units: output }];
    RecordRequest { request_id: RequestId([id; 16]), class: UsageClass::LOCAL, model: "llama3".into(), usage }
}

fn knowledge(id: u8, model: &str, input: u64) -> RecordRequest {
    let usage = vec![UsageLine { kind: UnitKind::INPUT, units: input }];
    RecordRequest { request_id: RequestId([id; 16]), class: UsageClass::KNOWLEDGE, model: model.into(), usage }
}

async fn record(client: &TestClient, record: &RecordRequest) -> Result<belay_protocol::message::End, FailureCode> {
    client.client.record(record, PATIENCE).await.map_err(|error| match error {
        belay_client::ClientError::Failed(failed) => failed.code,
        other => panic!("{other}"),
    })
}

async fn statement(client: &TestClient) -> Vec<StatementLine> {
    let mut lines = vec![];
    let rows = client
        .client
        .statement((0, 1_000_000), PATIENCE, |line| {
            lines.push(line);
            true
        })
        .await
        .unwrap();
    assert_eq!(rows, lines.len() as u64);
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_the_sum_of_the_entries_however_it_is_told_apart() {
    let relay = TestRelay::start(KNOWLEDGE).await;
    let (client, other) = (relay.client().await, relay.client().await);
    for _ in 0..3 {
        assert!(client.ask("Why is the sky blue?").await.end.is_some());
        assert!(other.ask("And the sea?").await.end.is_some());
    }
    record(&client, &local(1, 1000, 500)).await.unwrap();
    record(&other, &knowledge(2, "nomic", 12_345)).await.unwrap();
    let lines = statement(&client).await;
    assert!(lines.iter().map(|line| line.entry).eq(1..=lines.len() as u64), "every entry, in order");
    assert!(lines.is_sorted_by_key(|line| line.at_ms));
    let charged: i64 = lines.iter().filter(|line| line.to == "relay:revenue").map(|line| line.amount.0).sum();
    // The running balance is what the entries make of it.
    let mut balance = 0;
    for line in &lines {
        balance += if line.to == "tenant:prepaid" { line.amount.0 } else { 0 };
        balance -= if line.from == "tenant:prepaid" { line.amount.0 } else { 0 };
        assert_eq!(line.balance.0, balance, "{line:?}");
    }
    assert_eq!(balance, relay.balance("acme").await);
    assert_eq!(lines[0].kind, "credit");
    let asked = lines.iter().find(|line| line.kind == "settle" && line.model == "demo/demo-1");
    assert!(asked.is_some_and(|line| line.request_id.is_some()), "{lines:?}");
    let by =
        [UsageBy::TOTAL, UsageBy::DAY, UsageBy::MONTH, UsageBy::MODEL, UsageBy::DEVICE, UsageBy::KEY, UsageBy::CLASS];
    let today = u32::try_from(calendar::day(now_ms())).unwrap();
    let spans =
        [EVER, Span::Period(UsagePeriod::MONTH), Span::Period(UsagePeriod::WEEK), Span::Days(today - 40, today + 2)];
    for (by, span) in by.into_iter().flat_map(|by| spans.map(|span| (by, span))) {
        let usage = client.client.usage(span, by, PATIENCE).await.unwrap();
        let sum: i64 = usage.groups.iter().map(|group| group.cost.0).sum();
        let requests: u64 = usage.groups.iter().map(|group| group.requests).sum();
        assert_eq!((sum, requests), (charged, 8), "{by} {span:?}");
    }
    let classes = client.client.usage(EVER, UsageBy::CLASS, PATIENCE).await.unwrap().groups;
    assert_eq!(classes.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["cloud", "local", "knowledge"]);
    let models = client.client.usage(EVER, UsageBy::MODEL, PATIENCE).await.unwrap().groups;
    let knowledge = models.iter().find(|group| group.name == "knowledge/nomic").unwrap();
    // 12,345 tokens at $0.10 per million and 1.3.
    assert_eq!((knowledge.input, knowledge.cost), (12_345, NanoUsd(1_604_850)));
    assert_eq!(client.client.usage(EVER, UsageBy::DEVICE, PATIENCE).await.unwrap().groups.len(), 2);
    let long = Some("x".repeat(1001));
    let admin = relay.relay().admin();
    let refused = admin.operate(&tenant("acme"), Operation::Credit, NanoUsd(1), None, long).await;
    assert!(refused.expect_err("fits no statement").to_string().contains("1000 bytes"));
    let none = client.client.usage(Span::Days(today + 5, today + 6), UsageBy::MODEL, PATIENCE).await.unwrap();
    assert_eq!((none.groups, none.from_day, none.until_day), (vec![], today + 5, today + 6));
    assert_eq!(client.client.flush(PATIENCE).await.unwrap().waiting_rows, 0);
    relay.verify().await;
    relay.stop().await;
}

fn now_ms() -> u64 {
    belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_charged_once_at_the_relays_price_or_refused_with_the_reason() {
    let relay = TestRelay::start(KNOWLEDGE).await;
    let client = relay.client().await;
    let before = relay.balance("acme").await;
    let free = record(&client, &local(1, 1000, 500)).await.unwrap();
    assert_eq!((free.cost, free.units(UnitKind::OUTPUT)), (NanoUsd::ZERO, 500));
    let first = record(&client, &knowledge(2, "nomic", 1_000_000)).await.unwrap();
    assert_eq!(first.cost, NanoUsd(130_000_000));
    for _ in 0..20 {
        assert_eq!(record(&client, &knowledge(2, "nomic", 1_000_000)).await.unwrap(), first);
    }
    assert_eq!(record(&client, &knowledge(3, "small", 1_000_000)).await.unwrap().cost, NanoUsd(13_000_000));
    assert_eq!(before - relay.balance("acme").await, 143_000_000);
    // The same id for anything else.
    let asked = client.ask("Hi").await.end.unwrap();
    let mut taken = local(4, 1, 1);
    taken.request_id = asked.request_id;
    let mut cloud = local(5, 1, 1);
    cloud.class = UsageClass::CLOUD;
    let mut unknown = local(6, 1, 1);
    unknown.usage[0].kind = UnitKind(999);
    let mut unnamed = local(7, 1, 1);
    unnamed.model = "a\nb".into();
    let cases = [
        (knowledge(2, "nomic", 1_000_001), FailureCode::CONFLICT),
        (knowledge(2, "other", 1_000_000), FailureCode::CONFLICT),
        (taken, FailureCode::CONFLICT),
        (cloud, FailureCode::INVALID_REQUEST),
        (unknown, FailureCode::INVALID_REQUEST),
        (unnamed, FailureCode::INVALID_REQUEST),
        (local(8, 0, 0), FailureCode::INVALID_REQUEST),
        (knowledge(9, "nomic", 100_000_000), FailureCode::PAYMENT_REQUIRED),
        (knowledge(10, "nomic", u64::MAX), FailureCode::INVALID_REQUEST),
    ];
    let before = relay.balance("acme").await;
    for (wanted, code) in cases {
        assert_eq!(record(&client, &wanted).await, Err(code), "{wanted:?}");
    }
    assert_eq!(relay.balance("acme").await, before);
    // A request with a record's id, from the other side.
    let mut request = client.prompt("Hi");
    request.request_id = RequestId([2; 16]);
    assert_eq!(client.send(request).await.failed.unwrap().code, FailureCode::CONFLICT);
    let admin = relay.relay().admin();
    admin.set_budget(&tenant("acme"), Scope::Tenant, Measure::SpendDay, Some(1)).await.unwrap();
    assert_eq!(record(&client, &knowledge(11, "nomic", 1000)).await, Err(FailureCode::PAYMENT_REQUIRED));
    assert!(record(&client, &local(12, 5, 5)).await.is_ok(), "what costs nothing is recorded whatever there is");
    admin.set_budget(&tenant("acme"), Scope::Tenant, Measure::RequestsMinute, Some(1)).await.unwrap();
    assert!(record(&client, &local(13, 5, 5)).await.is_ok());
    assert_eq!(record(&client, &local(14, 5, 5)).await, Err(FailureCode::RATE_LIMITED));
    assert!(record(&client, &local(13, 5, 5)).await.is_ok(), "a repetition is no request");
    relay.verify().await;
    relay.stop().await;
    // Without a price, knowledge is refused.
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    assert_eq!(record(&client, &knowledge(1, "nomic", 1)).await, Err(FailureCode::NO_PRICE));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_book_is_told_whole_and_from_any_entry() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    for number in 0..600 {
        let operation = Some(format!("credit-{number}"));
        let admin = relay.relay().admin();
        admin.operate(&tenant("acme"), Operation::Credit, NanoUsd(1), operation, None).await.unwrap();
    }
    let lines = statement(&client).await;
    assert!(lines.iter().map(|line| line.entry).eq(1..=601));
    assert_eq!(lines.last().unwrap().balance, NanoUsd(5_000_000_600));
    let mut few = vec![];
    let seen = client.client.statement((0, 1_000_000), PATIENCE, |line| {
        few.push(line.entry);
        few.len() < 3
    });
    assert_eq!((seen.await.unwrap(), few), (3, vec![1, 2, 3]), "who has had enough gets no more");
    let mut rows = 0;
    client
        .client
        .statement((0, 10), PATIENCE, |_| {
            rows += 1;
            true
        })
        .await
        .unwrap();
    assert_eq!(rows, 0, "none in 1970");
    let error = client.client.statement((5, 5), PATIENCE, |_| true).await.expect_err("no days").to_string();
    assert!(error.contains("from 5 up to 5"), "{error}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_says_what_is_paid_with_and_how_far() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    let admin = relay.relay().admin();
    let change = TermsChange { ceiling: Some(NanoUsd(7)), tier: Some(Tier::Byok), ..TermsChange::default() };
    admin.change_terms(&tenant("acme"), change).await.unwrap();
    admin.grant(&tenant("acme"), NanoUsd(11), u64::MAX >> 2, None, None).await.unwrap();
    let balance = client.client.balance(PATIENCE).await.unwrap();
    assert_eq!((balance.pays_with, balance.ceiling, balance.credits), (PaysWith::BYOK, NanoUsd(7), NanoUsd(11)));
    // Nobody gets money on his word.
    let refused = client.client.top_up(NanoUsd(1_000_000_000), PATIENCE).await.expect_err("no page to pay at");
    assert!(refused.to_string().contains("belayd tenant credit acme 20"), "{refused}");
    assert_eq!(client.client.balance(PATIENCE).await.unwrap().balance, balance.balance);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_billing_stream_asks_that_nobody_knows_is_refused() {
    let relay = TestRelay::start("").await;
    let client = relay.client().await;
    let unknown = [
        client.client.usage(Span::Period(UsagePeriod(77)), UsageBy::DAY, PATIENCE).await.expect_err("no such period"),
        client.client.usage(EVER, UsageBy(77), PATIENCE).await.expect_err("no such grouping"),
        client.client.usage(Span::Days(3, 2), UsageBy::DAY, PATIENCE).await.expect_err("no days"),
    ];
    for error in unknown {
        let belay_client::ClientError::Failed(failed) = error else { panic!("{error}") };
        assert_eq!(failed.code, FailureCode::INVALID_REQUEST, "{}", failed.message);
    }
    assert!(client.send(EscalationRequest { model: "auto".into(), ..client.prompt("Hi") }).await.end.is_some());
    relay.stop().await;
}

#[test]
fn the_commands_show_what_the_book_says() {
    let mut relay =
        Belayd::start("[billing]\ntopup_url = \"https://pay.example.org/?for={tenant}&usd={amount}\"\n").unwrap();
    let home = relay.dir().join("home");
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let invite = relay.run(&["invite", "acme"]).unwrap()["invite"].as_str().unwrap().to_owned();
    let belay = |args: &[&str]| run(Command::new(binary("belay")).arg("--home").arg(&home).args(args)).unwrap();
    assert_eq!(belay(&["join", &invite]).code, Some(0));
    for (input, output) in [("1000", "500"), ("7", "3")] {
        let ran = belay(&["record", "local", "--model", "llama3", "--input", input, "--output", output, "--json"]);
        assert_eq!(ran.json().unwrap()["cost_nano_usd"], 0);
    }
    let usage = belay(&["usage", "--json"]).json().unwrap();
    assert_eq!((&usage["total"]["requests"], &usage["groups"][0]["name"]), (&2.into(), &"local/llama3".into()));
    assert_eq!((&usage["total"]["input_tokens"], &usage["total"]["output_tokens"]), (&1007.into(), &503.into()));
    let shown = belay(&["usage", "--period", "all", "--by", "class"]).stdout;
    assert!(shown.starts_with("$0.00 since the book began, 2 requests\n"), "{shown}");
    assert!(shown.contains("CLASS  REQUESTS  INPUT  CACHED  OUTPUT   COST\n"), "{shown}");
    let csv = belay(&["statement", "--csv"]).stdout;
    let rows: Vec<&str> = csv.lines().collect();
    assert!(rows[0].starts_with("entry,time,kind,from,to,amount_nano_usd,balance_nano_usd"), "{csv}");
    assert!(rows[1].contains(",credit,relay:funding,tenant:prepaid,5000000000,5000000000,"), "{csv}");
    assert_eq!(rows.len(), 1 + 5);
    let lines = belay(&["statement", "--json"]).stdout;
    assert_eq!(lines.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count(), 5);
    assert!(belay(&["statement"]).stdout.contains("opening-acme, opening credit"));
    assert!(belay(&["statement", "--from", "2020-01-01", "--until", "2020-01-02"]).stdout.contains("no entries"));
    assert_eq!(belay(&["statement", "--from", "2020-02-30"]).code, Some(2));
    assert_eq!(belay(&["topup", "20.5"]).stdout, "https://pay.example.org/?for=acme&usd=20.50\n");
    assert_eq!(belay(&["topup"]).stdout, "https://pay.example.org/?for=acme&usd=\n");
    // The page is opened if that is asked for; the browser here is a note of what it was given.
    let (browsers, opened) = (relay.dir().join("browsers"), relay.dir().join("opened"));
    std::fs::create_dir(&browsers).unwrap();
    let opens = |path: &str| {
        let mut command = Command::new(binary("belay"));
        run(command.env("PATH", path).arg("--home").arg(&home).args(["topup", "4", "--open"])).unwrap()
    };
    let none = opens(browsers.to_str().unwrap());
    assert_eq!(none.code, Some(1));
    assert!(none.stdout.ends_with("usd=4.00\n") && none.stderr.contains("open the page yourself"), "{none:?}");
    let browser = browsers.join("xdg-open");
    std::fs::write(&browser, format!("#!/bin/sh\nprintf %s \"$1\" > {0}.new && mv {0}.new {0}\n", opened.display()))
        .unwrap();
    std::fs::set_permissions(&browser, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(opens(&format!("{}:/usr/bin:/bin", browsers.display())).code, Some(0));
    let began = std::time::Instant::now();
    while !opened.exists() {
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "nothing is opened");
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read_to_string(&opened).unwrap(), "https://pay.example.org/?for=acme&usd=4.00");
    // At a terminal it waits by itself, and says that it does.
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pty/chat.py");
    let mut at_terminal = Command::new("python3");
    at_terminal.arg(&script).arg("[]").arg(binary("belay")).arg("--home").arg(&home);
    let shown = run(at_terminal.args(["topup", "3", "--wait-for-money", "2"])).unwrap().stdout;
    assert!(shown.contains("waiting for the payment"), "{shown:?}");
    // One that waits, until the money has come.
    let mut waits = Command::new(binary("belay"));
    waits.arg("--home").arg(&home).args(["--json", "topup", "3", "--wait-for-money", "30"]);
    let mut waits = waits.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waits.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let json = |line: Option<String>| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap();
    assert!(json(lines.next())["url"].as_str().unwrap().ends_with("usd=3.00"));
    relay.run(&["tenant", "credit", "acme", "3"]).unwrap();
    let came = json(lines.next());
    assert_eq!(
        (&came["credited_nano_usd"], &came["balance_nano_usd"]),
        (&3_000_000_000i64.into(), &8_000_000_000i64.into())
    );
    assert!(waits.wait().unwrap().success());
    let late = belay(&["topup", "3", "--wait-for-money", "1"]);
    assert_eq!(late.code, Some(1));
    assert!(late.stderr.contains("no money has come yet"), "{}", late.stderr);
    relay.terminate().unwrap();
}
