//! Real sockets over bad paths.

use crate::counted::count;
use belay_client::escalation::EscalationRequest;
use belay_client::{Answer, Client, Options, Phase};
use belay_protocol::message::{Dialect, Outcome};
use belay_tests::counting::Counting;
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually};
use belay_transport::env::Env;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn loss_jitter_reordering_and_duplication_change_no_token() {
    let relay = TestRelay::start("").await;
    let straight = relay.client().await.ask("Why is the sky blue?").await;
    let bad = Direction {
        jitter: Duration::from_millis(15),
        loss: 0.05,
        duplicate: 0.05,
        reorder: 0.05,
        reorder_by: Duration::from_millis(10),
        ..Direction::delay(Duration::from_millis(20))
    };
    let link = Link::start(relay.address(), link::seed(), bad).unwrap();
    let client = relay.client_through(link.address()).await;
    for _ in 0..5 {
        let answer = client.ask("Why is the sky blue?").await;
        assert_eq!(answer.text, straight.text, "{link:?}");
        assert_eq!(answer.end.expect("settled").outcome, Outcome::COMPLETE, "{link:?}");
    }
    relay.verify().await;
    relay.stop().await;
}

/// Packets to the client per token of an answer with a token every 12 ms.
async fn packets_per_token(client: &TestClient, link: &Link) -> f64 {
    let before = link.stats().down.came;
    let answer = client.ask("Why is the sky blue?").await;
    let end = answer.end.expect("settled");
    assert_eq!(end.outcome, Outcome::COMPLETE, "{link:?}");
    (link.stats().down.came - before) as f64 / end.events as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn lone_tokens_are_sent_twice_where_the_line_loses_packets_and_once_where_it_does_not() {
    let relay =
        TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 12\n[timeouts]\nheartbeat_ms = 200\n").await;
    let line = || Direction::delay(Duration::from_millis(5));
    let link = Link::start(relay.address(), link::seed(), line()).unwrap();
    let client = relay.client_through(link.address()).await;
    let once = packets_per_token(&client, &link).await;
    assert!(once < 1.2, "{once} packets per token");
    link.set(link::Way::Down, Direction { loss: 0.1, ..line() });
    // Until the relay knows the line.
    eventually("lone tokens are sent twice", async || packets_per_token(&client, &link).await > 1.6 * once).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_change_in_the_middle_of_a_stream_costs_no_reconnect() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 10\n").await;
    let link = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(5))).unwrap();
    let client = relay.client_through(link.address()).await;
    let mut running = client.client.escalate(client.prompt("Why is the sky blue?"), PATIENCE).await.unwrap();
    let mut events = 0;
    let end = loop {
        match running.next().await.unwrap_or_else(|error| panic!("{error} {link:?}")) {
            Some(Answer::Event(_)) => {
                events += 1;
                if events % 30 == 0 {
                    link.change_address().unwrap();
                }
            }
            Some(Answer::End(end)) => break end,
            Some(_) => {}
            None => panic!("no end"),
        }
    };
    assert_eq!((end.outcome, end.events), (Outcome::COMPLETE, events));
    assert_eq!(client.client.status().borrow().reconnects, 0);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_goes_dead_is_noticed_and_the_tunnel_comes_back() {
    let relay = TestRelay::start("[timeouts]\nheartbeat_ms = 100\ndrain_ms = 100\n").await;
    let link = Link::start(relay.address(), link::seed(), Direction::default()).unwrap();
    let client = relay.client_through(link.address()).await;
    let mut status = client.client.status();
    link.blackhole(true);
    let down = status.wait_for(|status| status.phase != Phase::Up);
    tokio::time::timeout(Duration::from_secs(5), down).await.expect("three missed heartbeats").unwrap();
    eventually("the relay notices too", async || relay.relay().admin().status().tunnels.is_empty()).await;
    link.blackhole(false);
    let back = status.wait_for(|status| status.phase == Phase::Up);
    tokio::time::timeout(PATIENCE, back).await.expect("back").unwrap();
    assert!(client.ask("Still there?").await.end.is_some());
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_swallows_large_packets_from_now_on_carries_smaller_ones() {
    let relay = TestRelay::start("").await;
    let wide = Direction::delay(Duration::from_millis(5));
    let link = Link::start(relay.address(), link::seed(), wide.clone()).unwrap();
    let client = relay.client_through(link.address()).await;
    // Large enough that both sides have found out that large packets get through.
    let large = |client: &TestClient| {
        let filler = "x".repeat(300_000);
        let body = format!(r#"{{"model":"x","stream":true,"messages":[{{"role":"user","content":"{filler}"}}]}}"#);
        EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "auto", body)
    };
    let answer = client.send(large(&client)).await;
    assert_eq!(answer.end.expect("settled").outcome, Outcome::COMPLETE, "{:?}", answer.failed);
    assert_eq!(link.stats().up.blackholed, 0);
    link.set_both(Direction { largest: 1250, ..wide });
    let began = std::time::Instant::now();
    let answer = client.send(large(&client)).await;
    assert_eq!(answer.end.expect("settled").outcome, Outcome::COMPLETE, "{:?}", answer.failed);
    assert!(link.stats().up.blackholed > 0, "no packet was larger: {link:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}, {link:?}", began.elapsed());
    let short = client.ask("Why is the sky blue?").await;
    assert_eq!(short.end.expect("settled").outcome, Outcome::COMPLETE);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_on_another_network_moves_its_tunnel_to_a_new_socket() {
    let relay = TestRelay::start("[providers.demo]\nkind = \"demo\"\npace_ms = 10\n").await;
    let link = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(5))).unwrap();
    let client = relay.client_through(link.address()).await;
    let before = link.stats().clients;
    let mut running = client.client.escalate(client.prompt("Why is the sky blue?"), PATIENCE).await.unwrap();
    running.next().await.unwrap();
    client.client.network_changed();
    eventually("packets come from another socket", async || link.stats().clients > before).await;
    let rest = running.collect().await.unwrap();
    assert_eq!(rest.end.expect("settled").outcome, Outcome::COMPLETE);
    assert_eq!((rest.resumed, client.client.status().borrow().reconnects), (0, 0));
    relay.stop().await;
}

/// A client that cannot run reads what has come as late as it looks: that says nothing of the path.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_itself_late_does_not_take_that_for_a_dead_path() {
    const BLOCKED: Duration = Duration::from_millis(1_150);
    let relay = TestRelay::with("", Counting { events: 6, pace: Duration::from_secs(3) }.overrides()).await;
    let link = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(60))).unwrap();
    let first = relay.client_through(link.address()).await;
    let (identity, key) = first.state.load().unwrap();
    first.client.close().await;
    let runs = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
            let mut running = client.escalate(count(&client), PATIENCE).await.unwrap();
            let reader = tokio::spawn(async move {
                let mut interruptions = 0;
                while let Some(answer) = running.next().await.expect("no error") {
                    interruptions += usize::from(matches!(answer, Answer::Interrupted { .. }));
                }
                interruptions
            });
            let mut longest = Duration::ZERO;
            // At every moment of a probe and its answer.
            for number in 0..8 {
                tokio::time::sleep(Duration::from_millis(600 + 67 * number)).await;
                let begun = std::time::Instant::now();
                std::thread::sleep(BLOCKED);
                longest = longest.max(begun.elapsed());
            }
            (reader.await.unwrap(), longest)
        })
    });
    let (interruptions, longest) = tokio::task::spawn_blocking(|| runs.join().unwrap()).await.unwrap();
    // Above two seconds it counts as sleep, and the path is looked at anew.
    assert!(interruptions == 0 || longest > Duration::from_millis(1_700), "{interruptions}, {longest:?}, {link:?}");
    relay.verify().await;
    relay.stop().await;
}
