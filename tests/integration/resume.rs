//! Answers that go on after their reader was lost.

use crate::scripted::Scripted;
use belay_client::escalation::{Collected, Escalation, EscalationRequest};
use belay_client::{Answer, Client, ClientError, Options};
use belay_protocol::dialect::answer::event_text;
use belay_protocol::error::CloseCode;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, FailureCode, Outcome};
use belay_relay::Overrides;
use belay_relay::providers::{Provider, Providers};
use belay_tests::link::{self, Direction, Link};
use belay_tests::relay::{PATIENCE, TestClient, TestRelay, eventually};
use belay_transport::env::Env;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const PACED: &str = "[providers.demo]\nkind = \"demo\"\npace_ms = 5\n";
const ASK: &str = r#"{"model":"x","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

fn overrides(provider: &Arc<Scripted>) -> Overrides {
    let provider: Arc<dyn Provider> = provider.clone();
    Overrides { providers: Providers::from([("demo".to_owned(), provider)]), ..Overrides::default() }
}

fn openai(client: &TestClient) -> EscalationRequest {
    EscalationRequest::new(client.client.request_id(), Dialect::OPENAI_CHAT, "auto", ASK)
}

/// The same computer again, as after a restart of its program.
fn restarted(client: &TestClient) -> Client {
    let (identity, key) = client.state.load().unwrap();
    let options = Options { state: Some(client.state.clone()), ..Options::default() };
    Client::start(Env::system(), identity, &key, options).unwrap()
}

/// Reads so many events.
async fn read(escalation: &mut Escalation, events: usize) -> Vec<Bytes> {
    let mut read = vec![];
    while read.len() < events {
        match timeout(PATIENCE, escalation.next()).await.expect("goes on").expect("no error") {
            Some(Answer::Event(event)) => read.push(event),
            Some(Answer::Head(_) | Answer::Interrupted { .. } | Answer::Resumed { .. }) => {}
            other => panic!("{} events, then {other:?}", read.len()),
        }
    }
    read
}

async fn rest(escalation: Escalation) -> Collected {
    timeout(PATIENCE, escalation.collect()).await.expect("ends").expect("no error")
}

fn text(events: &[Bytes]) -> String {
    events.iter().map(|event| event_text(Dialect::OPENAI_CHAT, event)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_over_another_tunnel_with_nothing_missing_or_twice() {
    let relay = TestRelay::start(PACED).await;
    let client = relay.client().await;
    let straight = client.ask("Why is the sky blue?").await;
    let before = relay.balance("acme").await;
    let mut running = client.client.escalate(client.prompt("Why is the sky blue?"), PATIENCE).await.unwrap();
    let (mut events, mut interrupted, mut resumed) = (vec![], 0, 0);
    let end = loop {
        match timeout(PATIENCE, running.next()).await.expect("goes on").expect("no error") {
            Some(Answer::Event(event)) => {
                events.push(event);
                if events.len() % 25 == 0 {
                    let tunnel = client.client.tunnel(PATIENCE).await.unwrap();
                    tunnel.connection().close(CloseCode::DONE, "test");
                }
            }
            Some(Answer::Interrupted { .. }) => interrupted += 1,
            Some(Answer::Resumed { content, .. }) => {
                assert_eq!(content, Content::REPLAYED);
                resumed += 1;
            }
            Some(Answer::Head(_)) => {}
            Some(Answer::End(end)) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(text(&events), straight.text);
    assert_eq!((end.outcome, end.events), (Outcome::COMPLETE, events.len() as u64));
    // The last close may have come with the last words.
    assert!(interrupted >= 3 && resumed >= interrupted - 1, "{interrupted} interruptions, {resumed} resumed");
    assert_eq!(before - relay.balance("acme").await, end.cost.0, "charged once");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_client_reads_the_rest() {
    let relay = TestRelay::start(PACED).await;
    let client = relay.client().await;
    let straight = client.ask("Why is the sky blue?").await;
    let before = relay.balance("acme").await;
    let mut killed = restarted(&client);
    let request = client.prompt("Why is the sky blue?");
    let id = request.request_id;
    let mut running = killed.escalate(request, PATIENCE).await.unwrap();
    let mut events = vec![];
    for _ in 0..3 {
        events.extend(read(&mut running, 20).await);
        // As if killed: the tunnel goes without a word about the request. The last event was given
        // out, and nobody has said that it was read.
        killed.close().await;
        drop(running);
        events.pop();
        assert_eq!(client.state.pending().list(0).unwrap()[0].next, events.len() as u64);
        killed = restarted(&client);
        running = killed.resume(id, PATIENCE).await.unwrap();
    }
    let rest = rest(running).await;
    assert_eq!(rest.head.expect("replayed").content, Content::REPLAYED);
    events.extend(rest.events);
    let end = rest.end.expect("settled");
    assert_eq!((text(&events), end.events), (straight.text, events.len() as u64));
    assert_eq!(before - relay.balance("acme").await, end.cost.0, "charged once");
    assert_eq!(client.state.pending().list(0).unwrap(), vec![], "nothing is left to be resumed");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_answer_waits_for_its_reader_and_is_given_once() {
    let relay = TestRelay::start(PACED).await;
    let client = relay.client().await;
    let leaving = restarted(&client);
    let request = client.prompt("Why is the sky blue?");
    let id = request.request_id;
    let mut running = leaving.escalate(request.clone(), PATIENCE).await.unwrap();
    let mut events = read(&mut running, 20).await;
    leaving.close().await;
    drop(running);
    events.pop();
    let status = || relay.relay().admin().status();
    eventually("the answer is finished and waits", async || status().waiting_answers == 1).await;
    assert_eq!(status().running_requests, 0);
    relay.verify().await;
    let plain = status().event_log_bytes;
    eventually("it is compressed", async || status().event_log_bytes < plain / 2).await;

    let back = restarted(&client);
    // One that looks and leaves takes nothing away.
    let mut looking = back.resume(id, PATIENCE).await.unwrap();
    read(&mut looking, 3).await;
    back.close().await;
    drop(looking);
    let back = restarted(&client);
    let again = rest(back.resume(id, PATIENCE).await.unwrap()).await;
    assert_eq!(again.head.expect("kept").content, Content::REPLAYED);
    // Two of the three were read: the third was given out last.
    let end = again.end.expect("settled");
    assert_eq!(end.events - again.events.len() as u64, events.len() as u64 + 2);
    let is_forgotten = async || (status().waiting_answers, status().event_log_bytes) == (0, 0);
    eventually("it is forgotten once it was read", is_forgotten).await;

    let repeated = rest(back.resume(id, PATIENCE).await.unwrap()).await;
    assert_eq!(repeated.head.expect("of the book").content, Content::GONE);
    assert_eq!((repeated.events.len(), repeated.end.expect("recorded")), (0, end.clone()));
    let repeated = client.send(request).await;
    assert_eq!((repeated.head.expect("of the book").content, repeated.end), (Content::GONE, Some(end)));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_reader_stays_away_is_ended_and_settled() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("[timeouts]\nresume_window_ms = 500\ndrain_ms = 3000\n", overrides(&provider)).await;
    let client = relay.client().await;
    let leaving = restarted(&client);
    let request = openai(&client);
    let id = request.request_id;
    let mut running = leaving.escalate(request, PATIENCE).await.unwrap();
    read(&mut running, 10).await;
    leaving.close().await;
    drop(running);
    timeout(PATIENCE, provider.left(1)).await.expect("the provider is left");
    let back = restarted(&client);
    let answer = rest(back.resume(id, PATIENCE).await.unwrap()).await;
    let end = answer.end.expect("settled");
    assert_eq!(end.outcome, Outcome::CANCELLED);
    assert!(end.message.contains("nobody came back"), "{}", end.message);
    // What it produced meanwhile is charged, and was kept.
    assert_eq!(answer.head.expect("kept").first_event + answer.events.len() as u64, end.events);
    assert!(end.events > 50, "{end:?}");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_be_cancelled_while_its_reader_is_between_two_tunnels() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let link = Link::start(relay.address(), link::seed(), Direction::default()).unwrap();
    let client = relay.client_through(link.address()).await;
    let mut running = client.client.escalate(openai(&client), PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    link.blackhole(true);
    client.client.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DONE, "test");
    loop {
        match timeout(PATIENCE, running.next()).await.expect("told").unwrap() {
            Some(Answer::Interrupted { .. }) => break,
            Some(_) => {}
            None => panic!("over"),
        }
    }
    running.cancel("enough").await.unwrap();
    link.blackhole(false);
    let end = rest(running).await.end.expect("settled");
    assert_eq!((end.outcome, end.message.as_str()), (Outcome::CANCELLED, "enough"));
    provider.left(1).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_loses_the_requests_that_run_without_it() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let client = relay.client().await;
    let leaving = restarted(&client);
    let mut running = leaving.escalate(openai(&client), PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    leaving.close().await;
    client.client.close().await;
    drop(running);
    eventually("no tunnel is left", async || relay.relay().admin().status().tunnels.is_empty()).await;
    assert_eq!(relay.relay().admin().status().running_requests, 1);
    let began = Instant::now();
    relay.relay().admin().revoke(&client.client.identity().device, "test").await.unwrap();
    provider.left(1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "the provider was read for {:?}", began.elapsed());
    eventually("it is settled", async || relay.relay().admin().status().running_requests == 0).await;
    eventually("and kept for nobody", async || relay.relay().admin().status().event_log_bytes == 0).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_was_cannot_be_resumed_and_another_device_cannot_resume() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let (client, other) = (relay.client().await, relay.client().await);
    let unknown = rest(client.client.resume(RequestId([7; 16]), PATIENCE).await.unwrap()).await;
    assert_eq!(unknown.failed.expect("refused").code, FailureCode::UNKNOWN_REQUEST);

    let request = openai(&client);
    let mut running = client.client.escalate(request.clone(), PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    let stranger = rest(other.client.resume(request.request_id, PATIENCE).await.unwrap()).await;
    assert_eq!(stranger.failed.expect("refused").code, FailureCode::UNKNOWN_REQUEST);
    let stranger = other.send(request.clone()).await;
    assert_eq!(stranger.failed.expect("refused").code, FailureCode::CONFLICT);
    read(&mut running, 5).await;

    // Its own device may, and takes it over.
    let instance = restarted(&client);
    let mut second = instance.resume(request.request_id, PATIENCE).await.unwrap();
    read(&mut second, 5).await;
    let superseded = loop {
        match timeout(PATIENCE, running.next()).await.expect("told") {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(superseded, Err(ClientError::Superseded)), "{superseded:?}");
    second.cancel("enough").await.unwrap();
    assert_eq!(rest(second).await.end.expect("settled").outcome, Outcome::CANCELLED);
    let over = rest(other.client.resume(request.request_id, PATIENCE).await.unwrap()).await;
    assert_eq!(over.failed.expect("refused").code, FailureCode::UNKNOWN_REQUEST);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_read_on_for_an_absent_reader_up_to_the_limit() {
    let limits = "[limits]\nunread_events_mib = 1\nrequests_per_minute = 1000\n\
                  [timeouts]\nbetween_events_ms = 300\ndrain_ms = 3000\n";
    let provider = Scripted::endless(Duration::ZERO);
    let relay = TestRelay::with(limits, overrides(&provider)).await;
    let client = relay.client().await;
    let leaving = restarted(&client);
    let request = openai(&client);
    let id = request.request_id;
    let mut running = leaving.escalate(request, PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    leaving.close().await;
    drop(running);
    let bytes = || relay.relay().admin().status().event_log_bytes;
    eventually("the log is full", async || bytes() >= 1 << 20).await;
    let full = bytes();
    // Far longer than a provider may be silent: its silence is not its own.
    let still = timeout(Duration::from_millis(900), provider.left(1)).await;
    assert!(still.is_err() && bytes() == full && full < 3 << 19, "{full} bytes, then {}", bytes());
    let back = restarted(&client);
    let mut running = back.resume(id, PATIENCE).await.unwrap();
    read(&mut running, 20_000).await;
    running.cancel("enough").await.unwrap();
    let end = rest(running).await.end.expect("settled");
    assert!(end.events > 20_000, "it went on: {end:?}");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_wait_give_way_to_those_that_run() {
    let limits = "[limits]\nunread_events_mib = 1\nevent_logs_mib = 1\nrequests_per_minute = 1000\n";
    let relay = TestRelay::start(&format!("{limits}{PACED}")).await;
    let client = relay.client().await;
    let leaving = restarted(&client);
    let (mut ids, mut left) = (vec![], vec![]);
    // Each has some 20 KiB of events: too much together.
    for number in 0..100 {
        let request = client.prompt(&format!("Question {number}?"));
        ids.push(request.request_id);
        let mut running = leaving.escalate(request, PATIENCE).await.unwrap();
        read(&mut running, 2).await;
        left.push(running);
    }
    leaving.close().await;
    drop(left);
    let status = || relay.relay().admin().status();
    eventually("all are finished", async || status().running_requests == 0).await;
    eventually("the budget is kept", async || status().event_log_bytes <= 1 << 20).await;
    assert!(status().waiting_answers > 0 && status().waiting_answers < ids.len(), "{}", status().waiting_answers);
    // Those that went are in the book with their ends; the others are whole.
    let (mut gone, mut kept) = (0, 0);
    for id in ids {
        let answer = rest(client.client.resume(id, PATIENCE).await.unwrap()).await;
        let (head, end) = (answer.head.unwrap(), answer.end.unwrap());
        assert_eq!(end.outcome, Outcome::COMPLETE);
        match head.content {
            Content::GONE => gone += 1,
            content => {
                assert_eq!((content, head.first_event + answer.events.len() as u64), (Content::REPLAYED, end.events));
                kept += 1;
            }
        }
    }
    assert!(gone > 0 && kept > 0, "{gone} gone, {kept} kept");
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_memory_new_work_is_overloaded_and_running_work_goes_on() {
    // A megabyte: one tunnel and fifteen requests, as they are counted.
    let provider = Scripted::events(&[r#"{"choices":[{"index":0,"delta":{"content":"hi"}}]}"#, "[DONE]"]);
    let limits = "[limits]\nmemory_mib = 1\nrequests_per_minute = 1000\nrequests_at_once = 1000\n";
    let relay = TestRelay::with(limits, overrides(&provider)).await;
    let client = relay.client().await;
    provider.pause();
    let mut running = vec![];
    for _ in 0..14 {
        running.push(client.client.escalate(openai(&client), PATIENCE).await.unwrap());
    }
    provider.called(14).await;
    let refused = async || client.send(openai(&client)).await.failed;
    eventually("there is room for no more", async || refused().await.is_some()).await;
    let failed = refused().await.expect("refused");
    assert_eq!((failed.code, failed.retry_after_ms), (FailureCode::OVERLOADED, Some(1000)));
    let listed = client.client.session_list(false, String::new(), 0, PATIENCE).await;
    assert!(
        matches!(&listed, Err(ClientError::Failed(failed)) if failed.code == FailureCode::OVERLOADED),
        "{listed:?}"
    );
    let other = restarted(&client);
    let mut status = other.status();
    let waiting = status.wait_for(
        |status| matches!(&status.phase, belay_client::Phase::Waiting { reason, .. } if reason.contains("overloaded")),
    );
    timeout(PATIENCE, waiting).await.expect("told").unwrap();

    provider.resume();
    for one in running {
        assert!(rest(one).await.end.is_some());
    }
    assert!(rest(other.escalate(openai(&client), PATIENCE).await.unwrap()).await.end.is_some(), "let in again");
    client.client.close().await;
    other.close().await;
    eventually("all is given back", async || relay.relay().admin().status().memory_bytes == 0).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_so_many_streams_and_no_more() {
    let provider = Scripted::events(&[r#"{"choices":[{"index":0,"delta":{"content":"hi"}}]}"#, "[DONE]"]);
    let relay = TestRelay::with("[limits]\nstreams_per_tenant = 3\n", overrides(&provider)).await;
    let (client, other) = (relay.client().await, relay.client().await);
    provider.pause();
    let mut running = vec![];
    for one in [&client, &client, &other] {
        running.push(one.client.escalate(openai(one), PATIENCE).await.unwrap());
    }
    provider.called(3).await;
    let failed = client.send(openai(&client)).await.failed.expect("refused");
    assert_eq!((failed.code, failed.retry_after_ms), (FailureCode::LIMIT, Some(1000)));
    provider.resume();
    for one in running {
        assert!(rest(one).await.end.is_some());
    }
    eventually("there is room again", async || client.send(openai(&client)).await.end.is_some()).await;
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_come_back_is_given_up_after_the_resume_window() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let link = Link::start(relay.address(), link::seed(), Direction::default()).unwrap();
    let client = relay.client_through(link.address()).await;
    let (identity, key) = client.state.load().unwrap();
    let state = Some(client.state.clone());
    let options = Options { state, resume_window: Some(Duration::from_millis(700)), ..Options::default() };
    let impatient = Client::start(Env::system(), identity, &key, options).unwrap();
    let request = openai(&client);
    let id = request.request_id;
    let mut running = impatient.escalate(request, PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    link.blackhole(true);
    impatient.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DONE, "test");
    let began = Instant::now();
    let error = loop {
        match timeout(PATIENCE, running.next()).await.expect("given up") {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(error, Err(ClientError::Lost(_))), "{error:?}");
    assert!(began.elapsed() >= Duration::from_millis(700) && began.elapsed() < Duration::from_secs(5));
    drop(running);
    // Nothing is lost: another client of this computer can go on.
    link.blackhole(false);
    assert_eq!(client.state.pending().list(0).unwrap()[0].request_id, id);
    let back = restarted(&client);
    let mut running = back.resume(id, PATIENCE).await.unwrap();
    read(&mut running, 5).await;
    running.cancel("enough").await.unwrap();
    assert_eq!(rest(running).await.end.expect("settled").outcome, Outcome::CANCELLED);
    relay.verify().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_comes_back_after_another_is_told_what_it_missed_and_the_request_lives() {
    let provider = Scripted::endless(Duration::from_millis(2));
    let relay = TestRelay::with("", overrides(&provider)).await;
    let link = Link::start(relay.address(), link::seed(), Direction::default()).unwrap();
    let first = relay.client_through(link.address()).await;
    let request = openai(&first);
    let id = request.request_id;
    let mut running = first.client.escalate(request, PATIENCE).await.unwrap();
    let read_before = read(&mut running, 5).await.len();
    link.blackhole(true);
    first.client.tunnel(PATIENCE).await.unwrap().connection().close(CloseCode::DONE, "test");
    loop {
        match timeout(PATIENCE, running.next()).await.expect("told").unwrap() {
            Some(Answer::Interrupted { .. }) => break,
            Some(Answer::Event(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    // The same computer by another way, which reads on and acknowledges.
    let (identity, key) = first.state.load().unwrap();
    let options = Options { addresses: Some(vec![relay.address().to_string()]), ..Options::default() };
    let second = Client::start(Env::system(), identity, &key, options).unwrap();
    let mut other = second.resume(id, PATIENCE).await.unwrap();
    read(&mut other, 200).await;
    link.blackhole(false);
    let missed = loop {
        match timeout(PATIENCE, running.next()).await.expect("told").expect("no error") {
            Some(Answer::Resumed { missed, .. }) => break missed,
            Some(Answer::Event(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(missed > 0 && missed + read_before as u64 >= 128, "{missed} missed");
    read(&mut running, 20).await;
    running.cancel("enough").await.unwrap();
    assert_eq!(rest(running).await.end.expect("settled").message, "enough");
    relay.verify().await;
    relay.stop().await;
}
