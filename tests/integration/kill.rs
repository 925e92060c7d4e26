//! SIGKILL of the relay in the middle of its work: what it had acknowledged is there afterwards,
//! nothing is charged twice, and no hold stays open.

use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, Options, Phase, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, End, Outcome};
use belay_tests::procs::Belayd;
use belay_tests::relay::{PATIENCE, config_text};
use belay_transport::env::Env;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;

const DEVICES: usize = 5;
const REQUESTS: usize = 50;
const ROUNDS: usize = 5;
const CREDIT: i64 = 5_000_000_000;

/// What a client knows of a request when the relay is gone.
#[derive(Debug)]
struct Seen {
    device: usize,
    request: EscalationRequest,
    /// Events that arrived.
    events: u64,
    end: Option<End>,
}

fn request(client: &Client) -> EscalationRequest {
    let body = serde_json::to_vec(&Prompt::new("Why is the sky blue?")).unwrap();
    EscalationRequest::new(client.request_id(), Dialect::PROMPT, "auto", body)
}

async fn devices(relay: &Belayd, home: &TempDir) -> Vec<Arc<Client>> {
    relay.run(&["tenant", "create", "acme", "--credit", "5"]).unwrap();
    let mut clients = Vec::new();
    for number in 0..DEVICES {
        let invite = relay.run(&["invite", "acme"]).unwrap();
        let invite = Invite::decode(invite["invite"].as_str().unwrap()).unwrap();
        let state = StateDir::at(home.path().join(number.to_string()));
        enrol::join(&Env::system(), &state, &invite, "test").await.unwrap();
        let (identity, key) = state.load().unwrap();
        clients.push(Arc::new(Client::start(Env::system(), identity, &key, Options::default()).unwrap()));
    }
    clients
}

/// Reads an answer until it ends or the tunnel is lost.
async fn watch(
    client: Arc<Client>,
    device: usize,
    request: EscalationRequest,
    begun: tokio::sync::mpsc::Sender<()>,
) -> Seen {
    let mut seen = Seen { device, request: request.clone(), events: 0, end: None };
    let Ok(mut escalation) = client.escalate(request, PATIENCE).await else { return seen };
    loop {
        match tokio::time::timeout(PATIENCE, escalation.next()).await.expect("an answer or a loss in time") {
            Ok(Some(Answer::Event(_))) => {
                seen.events += 1;
                let _ = begun.try_send(());
            }
            Ok(Some(Answer::End(end))) => {
                seen.end = Some(end);
                return seen;
            }
            Ok(Some(Answer::Head(_) | Answer::Chunk(_))) => {}
            Ok(Some(Answer::Failed(failed))) => panic!("refused: {failed:?}"),
            Ok(None) => panic!("no end"),
            Err(_) => return seen,
        }
    }
}

/// The book, as soon as no hold is open.
async fn settled_book(relay: &Belayd) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let books = relay.run(&["ledger", "verify"]).unwrap();
        assert_eq!(books[0]["problems"], Value::Array(vec![]), "{books}");
        if books[0]["open"] == 0 {
            return books[0].clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "holds stay open: {books}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn again(client: &Client, request: EscalationRequest) -> (Option<Content>, Option<End>) {
    let asked = async { client.escalate(request, PATIENCE).await.unwrap().collect().await.unwrap() };
    let collected = tokio::time::timeout(PATIENCE, asked).await.expect("answered in time");
    assert_eq!(collected.failed, None);
    (collected.head.map(|head| head.content), collected.end)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_running_requests_survive_a_kill_with_the_books_clean() {
    let home = tempfile::tempdir().unwrap();
    let config = config_text(
        &home.path().join("unused"),
        "[listen]\n[state]\n[providers.demo]\nkind = \"demo\"\npace_ms = 10\n[timeouts]\nheartbeat_ms = 200\n",
    );
    let mut relay = Belayd::start(&config).unwrap();
    let clients = devices(&relay, &home).await;
    let mut charged: BTreeMap<RequestId, End> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut running = JoinSet::new();
        let (begun, mut beginnings) = tokio::sync::mpsc::channel(1);
        for number in 0..REQUESTS {
            let (device, client) = (number % DEVICES, Arc::clone(&clients[number % DEVICES]));
            let mut asked = request(&client);
            // Some are over when the kill comes, some in the middle.
            asked.max_output_tokens = Some(if number % 3 == 0 { 5 } else { 100 });
            running.spawn(watch(client, device, asked, begun.clone()));
        }
        // From the very first event of the first rounds to well into the answers of the last.
        for _ in 0..(1 + round * 60) {
            tokio::time::timeout(PATIENCE, beginnings.recv()).await.expect("answers come").unwrap();
        }
        relay.kill9().unwrap();
        relay.restart().unwrap();
        drop(beginnings);
        let seen: Vec<Seen> = tokio::time::timeout(PATIENCE * 2, running.join_all()).await.expect("all notice");
        settled_book(&relay).await;
        let mut repeated = JoinSet::new();
        for seen in seen {
            let client = Arc::clone(&clients[seen.device]);
            repeated.spawn(async move {
                let answer = again(&client, seen.request.clone()).await;
                (seen, answer)
            });
        }
        while let Some(repeated) = repeated.join_next().await {
            let (seen, (content, end)) = repeated.unwrap();
            let id = seen.request.request_id;
            let end = end.expect("settled");
            match &seen.end {
                // Byte for byte what the client saw: the message is a pure function of its bytes.
                Some(before) => assert_eq!((content, &end), (Some(Content::GONE), before), "round {round}"),
                // It ran into the kill: settled by estimate, or never dispatched and run anew.
                None if end.outcome == Outcome::RELAY_DIED => {
                    assert!(end.estimated && content == Some(Content::GONE), "{end:?}");
                    assert!(seen.events == 0 || end.cost.0 > 0, "{end:?}");
                }
                None => assert!(seen.events == 0 && content == Some(Content::LIVE), "{seen:?} {end:?}"),
            }
            assert_eq!(charged.insert(id, end), None);
        }
        let book = settled_book(&relay).await;
        assert_eq!(book["settled"], charged.len(), "one charge per request, round {round}");
        let left = relay.run(&["tenant", "list"]).unwrap()[0]["balance_nano_usd"].as_i64().unwrap();
        assert_eq!(left, CREDIT - charged.values().map(|end| end.cost.0).sum::<i64>(), "round {round}");
    }
    let died = charged.values().filter(|end| end.outcome == Outcome::RELAY_DIED).count();
    let complete = charged.values().filter(|end| end.outcome == Outcome::COMPLETE).count();
    eprintln!("{} requests: {complete} complete, {died} cut by a kill", charged.len());
    assert!(died > ROUNDS * 5, "the kills came in the middle: {died}");
    for client in &clients {
        let status = client.status().borrow().clone();
        assert!(status.phase == Phase::Up && status.reconnects >= ROUNDS as u64, "{status:?}");
        client.close().await;
    }
    assert!(relay.terminate().unwrap().success(), "{}", relay.log());
    assert!(relay.run(&["ledger", "verify"]).is_ok(), "and the stopped book is clean too");
}
