//! Real sockets and processes, and everything that can happen to them in the middle of an answer.

use crate::counted::{Seen, count, read};
use crate::programs::{DEADLINE, Running, Site, belay, demo_config, exits, run};
use crate::scripted::Scripted;
use crate::tcp::Ways;
use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, Options, Phase, enrol};
use belay_protocol::message::{Dialect, Outcome};
use belay_relay::Overrides;
use belay_relay::providers::{Provider, Providers};
use belay_tests::counting::Counting;
use belay_tests::fault::{Fault, scaled};
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestRelay, eventually};
use belay_transport::connection::Path as Carrier;
use belay_transport::env::Env;
use rustix::process::Signal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Fails unless the book says what the ends say, and nothing is charged twice.
async fn charged(relay: &TestRelay, before: i64, readers: &[Seen]) {
    relay.verify().await;
    let charged: i64 = readers.iter().map(|seen| seen.end.cost.0).sum();
    assert_eq!(before - relay.balance("acme").await, charged);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_tokens_cross_a_bad_line() {
    let counting = Counting { events: 1000, pace: Duration::from_millis(5) };
    let relay = TestRelay::with("", counting.overrides()).await;
    let bad = Direction {
        jitter: Duration::from_millis(30),
        loss: 0.05,
        duplicate: 0.02,
        reorder: 0.02,
        reorder_by: Duration::from_millis(20),
        ..Direction::delay(Duration::from_millis(50))
    };
    let link = Link::start(relay.address(), link::seed(), bad).unwrap();
    let client = Arc::new(relay.client_through(link.address()).await);
    let before = relay.balance("acme").await;
    let mut readers = JoinSet::new();
    for _ in 0..20 {
        readers.spawn(read(Arc::clone(&client), count(&client.client), 2 * PATIENCE));
    }
    charged(&relay, before, &readers.join_all().await).await;
    assert_eq!(client.client.status().borrow().reconnects, 0, "{link:?}");
    Fault::kept("bad-line", 20_000, "every token once, no reconnect").tell();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_address_changes_cost_no_reconnect() {
    let counting = Counting { events: 1500, pace: Duration::from_millis(5) };
    let relay = TestRelay::with("", counting.overrides()).await;
    let link = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(5))).unwrap();
    let client = Arc::new(relay.client_through(link.address()).await);
    let before = relay.balance("acme").await;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        readers.spawn(read(Arc::clone(&client), count(&client.client), PATIENCE));
    }
    let changes = 100;
    for _ in 0..changes {
        // What is tested is that they come while the streams run, and not all at once.
        sleep(Duration::from_millis(60)).await;
        link.change_address().unwrap();
    }
    assert!(!readers.is_empty(), "the streams were over before");
    charged(&relay, before, &readers.join_all().await).await;
    assert_eq!(client.client.status().borrow().reconnects, 0, "{link:?}");
    Fault::kept("address-changed", changes, "every token once, no reconnect").tell();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_gone_for_up_to_a_minute_cost_no_event_and_no_cent() {
    let counting = Counting { events: 750, pace: Duration::from_millis(100) };
    let relay = TestRelay::with("[timeouts]\nheartbeat_ms = 10000\ndrain_ms = 3000\n", counting.overrides()).await;
    let before = relay.balance("acme").await;
    let mut readers = JoinSet::new();
    for number in 0..30 {
        let link = Link::start(relay.address(), link::seed(), Direction::delay(Duration::from_millis(10))).unwrap();
        let client = Arc::new(relay.client_through(link.address()).await);
        let gone = [1, 10, 60][number % 3];
        readers.spawn(async move {
            let reading = read(Arc::clone(&client), count(&client.client), Duration::from_secs(180));
            let breaking = async {
                sleep(Duration::from_millis(500 + 113 * number as u64)).await;
                link.blackhole(true);
                sleep(Duration::from_secs(gone)).await;
                link.blackhole(false);
            };
            tokio::join!(reading, breaking).0
        });
    }
    charged(&relay, before, &readers.join_all().await).await;
    Fault::kept("path-gone", 30, "every token once, every cent once").tell();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_readers_that_stand_still_cost_nobody_else_anything() {
    forty_readers_stand_still(Carrier::Quic).await;
}

/// Over that path, beside one that reads.
pub(crate) async fn forty_readers_stand_still(path: Carrier) {
    let provider = Scripted::endless(Duration::ZERO);
    let endless: Arc<dyn Provider> = provider.clone();
    let paced: Arc<dyn Provider> = Arc::new(Counting { events: 200, pace: Duration::from_millis(10) });
    let providers = Providers::from([("demo".to_owned(), endless), ("paced".to_owned(), paced)]);
    let model = "[models.paced]\nprovider = \"paced\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
                 price = { input = \"3\", output = \"15\" }\n[providers.paced]\nkind = \"demo\"\n\
                 [timeouts]\nheartbeat_ms = 100\ndrain_ms = 1000\n[limits]\nunread_events_mib = 1\nrequests_at_once = 100\n";
    let relay = TestRelay::with(model, Overrides { providers, ..Overrides::default() }).await;
    let ways = Ways::to(&relay).await;
    ways.udp.blackhole(path == Carrier::Tcp);
    let client = Arc::new(relay.client_through(ways.udp.address()).await);
    let mut stalled = vec![];
    for _ in 0..40 {
        let mut running = client.client.escalate(count(&client.client), PATIENCE).await.unwrap();
        running.next().await.unwrap();
        stalled.push(running);
    }
    provider.called(40).await;
    let request = EscalationRequest { model: "paced".into(), ..count(&client.client) };
    let seen = read(Arc::clone(&client), request, PATIENCE).await;
    // At the provider's own pace, 2 s, or nearly so.
    assert!(seen.end.total_ms < 4000, "{:?}", seen.end);
    assert!(seen.longest_gap < Duration::from_secs(1), "a gap of {:?}", seen.longest_gap);
    let heard = || relay.relay().admin().status().tunnels[0].heartbeats;
    let before = heard();
    eventually("heartbeats are heard", async || heard() > before + 5).await;
    let status = client.client.status().borrow().clone();
    assert_eq!((status.path, status.reconnects), (path.name(), 0));
    drop(stalled);
    provider.left(40).await;
    relay.stop().await;
}

/// A computer of a site, with a client in this process.
async fn computer(invite: &str) -> (Client, TempDir) {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::at(home.path());
    enrol::join(&Env::system(), &state, &Invite::decode(invite).unwrap(), "fault").await.unwrap();
    let (identity, key) = state.load().unwrap();
    let client = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
    client.tunnel(DEADLINE).await.unwrap();
    (client, home)
}

async fn until_up(client: &Client) {
    let mut status = client.status();
    timeout(DEADLINE, status.wait_for(|status| status.phase == Phase::Up)).await.expect("up").unwrap();
}

/// So many kills of one relay, each with requests under way.
async fn kill(times: u64) -> (Vec<Duration>, Vec<Duration>) {
    let mut site = tokio::task::block_in_place(|| Site::start(50));
    let (client, _home) = computer(&site.invite("acme")).await;
    let (mut noticed, mut back) = (vec![], vec![]);
    let mut charged = 0;
    for round in 0..times {
        let request = EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", r#"{"query":"Why?"}"#);
        let mut running = client.escalate(request, DEADLINE).await.unwrap();
        let mut events = 0;
        while events < 1 + round % 10 {
            events += u64::from(matches!(running.next().await.unwrap(), Some(Answer::Event(_))));
        }
        tokio::task::block_in_place(|| site.relay.kill9().unwrap());
        let killed = Instant::now();
        loop {
            match timeout(DEADLINE, running.next()).await.expect("told").unwrap() {
                Some(Answer::Interrupted { .. }) => break,
                Some(Answer::Event(_)) => events += 1,
                other => panic!("{other:?}"),
            }
        }
        noticed.push(killed.elapsed());
        tokio::task::block_in_place(|| site.relay.restart().unwrap());
        let returned = Instant::now();
        let (mut end, mut head) = (None, None);
        while let Some(answer) = timeout(DEADLINE, running.next()).await.expect("ends").unwrap() {
            match answer {
                Answer::Resumed { content, .. } => {
                    head = Some(content);
                    back.push(returned.elapsed());
                }
                Answer::End(new) => end = Some(new),
                other => panic!("{other:?}"),
            }
        }
        let end = end.expect("settled");
        // It says how it ended, what was delivered and what is charged.
        assert_eq!((end.outcome, end.estimated), (Outcome::RELAY_DIED, true));
        assert_eq!(head, Some(belay_protocol::message::Content::GONE));
        assert!(end.events + 12 >= events && end.cost.0 > 0, "{events} read, {end:?}");
        charged += end.cost.0;
    }
    let tenant = site.tenant("acme");
    assert_eq!(tenant["charged_nano_usd"], charged, "nothing is charged twice");
    site.books_are_clean();
    client.close().await;
    (noticed, back)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_is_noticed_and_found_again_fifty_times() {
    let mut sites = JoinSet::new();
    let each = scaled(10, 200);
    for _ in 0..5 {
        sites.spawn(kill(each));
    }
    let (mut noticed, mut back) = (vec![], vec![]);
    for (one, other) in sites.join_all().await {
        noticed.extend(one);
        back.extend(other);
    }
    noticed.sort();
    back.sort();
    let (half, last) = (noticed.len() / 2, noticed.len() - 1);
    eprintln!("noticed after {:?} to {:?}, back after {:?} to {:?}", noticed[0], noticed[last], back[0], back[last]);
    // 1.5 s and 1 s are promised. Five relays, their clients and the other tests share two cores here,
    // so the middle one is held to that, and the worst to twice as much.
    assert!(noticed[half] <= Duration::from_millis(1500) && noticed[last] <= Duration::from_secs(3), "{noticed:?}");
    assert!(back[half] <= Duration::from_secs(1) && back[last] <= Duration::from_secs(2), "{back:?}");
    Fault::kept("relay-killed-and-found", 5 * each, "noticed in 1.5 s, back 1 s after it is, nothing charged twice")
        .worst(format!(
            "noticed {:?}, back {:?}; half of them {:?}, {:?}",
            noticed[last], back[last], noticed[half], back[half]
        ))
        .tell();
}

/// A relay is drained under streams of half and of three times its grace, so many times.
async fn drain(times: u64) -> Vec<Duration> {
    // The whole answer takes 114 × 30 ms: three times the grace and some.
    let config = demo_config(30).replace("drain_ms = 3000", "drain_ms = 1000");
    let mut site = tokio::task::block_in_place(|| Site::with(&config, &[]));
    let (client, _home) = computer(&site.invite("acme")).await;
    let client = Arc::new(client);
    let mut without = vec![];
    for _ in 0..times {
        let mut asked = JoinSet::new();
        for cap in [Some(16), None] {
            let mut request =
                EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", r#"{"query":"Why?"}"#);
            request.max_output_tokens = cap;
            let mut running = client.escalate(request, DEADLINE).await.unwrap();
            running.next().await.unwrap();
            asked.spawn(async move { (cap, running.collect().await.unwrap()) });
        }
        let began = Instant::now();
        assert!(tokio::task::block_in_place(|| site.relay.terminate().unwrap()).success());
        tokio::task::block_in_place(|| site.relay.restart().unwrap());
        until_up(&client).await;
        client.balance(DEADLINE).await.unwrap();
        without.push(began.elapsed());
        for (cap, answer) in asked.join_all().await {
            let end = answer.end.expect("settled");
            let outcome = if cap.is_some() { Outcome::COMPLETE } else { Outcome::DRAINED };
            assert_eq!(end.outcome, outcome, "{end:?}");
            assert_eq!(answer.events.len() as u64, end.events, "nothing that was charged is lost");
        }
    }
    site.books_are_clean();
    client.close().await;
    without
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_drained_under_running_streams_twenty_times() {
    let mut sites = JoinSet::new();
    let each = scaled(5, 25);
    for _ in 0..4 {
        sites.spawn(drain(each));
    }
    let mut without: Vec<_> = sites.join_all().await.into_iter().flatten().collect();
    without.sort();
    // From SIGTERM: the grace of a second, the restart, and what the relay asked its clients to wait.
    let (half, last) = (without[without.len() / 2], without[without.len() - 1]);
    eprintln!("without service for {:?} to {last:?}, in the middle {half:?}", without[0]);
    Fault::kept("relay-drained", 4 * each, "what runs may end, nothing that was charged is lost")
        .worst(format!("{last:?} without service, half of them {half:?}"))
        .tell();
}

/// What a killed `belay ask` and the one that goes on have printed, twenty times for one computer.
fn kill_and_resume(home: &Path, whole: &str, rounds: u32) {
    for round in 0..rounds {
        let asked = Running::start(&mut belay(home, &["ask", "Why is the sky blue?"]), "");
        let wanted = 1 + (round as usize * 37) % (whole.len() - 20);
        asked.wait_for("some text", |text| text.len() >= wanted);
        asked.signal(Signal::KILL);
        let printed = asked.end().stdout;
        assert!(whole.starts_with(&printed), "{printed:?}");
        let resumed = run(&mut belay(home, &["ask", "--resume"]));
        if printed == whole {
            // It was through before the signal came; whether it had said so is left to chance.
            assert!([0, 2].contains(&resumed.code.unwrap()), "{}", resumed.stderr);
            continue;
        }
        exits(&resumed, 0);
        // The token that was printed last may come again: it was not yet said to be read.
        let overlap = printed.len() + resumed.stdout.trim_end().len() - whole.len();
        assert!(whole.ends_with(resumed.stdout.trim_end()) && overlap < 20, "{printed:?} then {:?}", resumed.stdout);
    }
}

#[test]
fn a_client_is_killed_and_started_again_a_hundred_times() {
    let site = Site::start(3);
    let whole = {
        let home = site.join("first", "acme");
        let ran = run(&mut belay(&home, &["ask", "Why is the sky blue?"]));
        exits(&ran, 0);
        ran.stdout.trim_end().to_owned()
    };
    let one = site.tenant("acme")["charged_nano_usd"].as_i64().unwrap();
    let each = u32::try_from(scaled(25, 250)).unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let whole = &whole;
            let home = site.join(&format!("computer-{number}"), "acme");
            scope.spawn(move || kill_and_resume(&home, whole, each));
        }
    });
    site.books_are_clean();
    // Each was charged once, and whole: the relay read on.
    assert_eq!(site.tenant("acme")["charged_nano_usd"], (1 + 4 * i64::from(each)) * one);
    Fault::kept("client-killed", 4 * u64::from(each), "every token printed, each paid once").tell();
}

#[test]
fn a_computer_that_slept_goes_on_within_two_seconds_of_waking() {
    // The relay gives a silent tunnel up after four seconds.
    let site = Site::start(100);
    let home = site.join("laptop", "acme");
    let asked = Running::start(belay(&home, &["ask", "Why is the sky blue?"]).env("BELAY_LOG", "debug,quinn=info"), "");
    let before = asked.wait_for("some text", |text| text.len() > 20).len();
    asked.signal(Signal::STOP);
    let gone = Instant::now();
    while !site.relay.run(&["status"]).unwrap()["tunnels"].as_array().unwrap().is_empty() {
        assert!(gone.elapsed() < DEADLINE, "the relay keeps a tunnel that sleeps");
        std::thread::sleep(Duration::from_millis(100));
    }
    asked.signal(Signal::CONT);
    let woken = Instant::now();
    // What was under way when it fell asleep is printed at once; the rest comes over a new tunnel.
    asked.wait_for("new text", |text| text.len() > before + 60);
    assert!(woken.elapsed() < Duration::from_secs(2), "{:?}", woken.elapsed());
    let ran = asked.end();
    exits(&ran, 0);
    site.books_are_clean();
}
