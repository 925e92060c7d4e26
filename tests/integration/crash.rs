//! `belayd` is killed in the middle of everything, and comes back; and it is told to leave.
//!
//! The relay is a process of its own, the clients live in the test.

use crate::programs::{DEADLINE, Site, demo_config};
use belay_certs::invite::Invite;
use belay_client::escalation::EscalationRequest;
use belay_client::state::StateDir;
use belay_client::{Answer, Client, ClientError, Options, Phase, enrol};
use belay_protocol::codec::Message;
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, Dialect, End, Outcome, UnitKind};
use belay_tests::fault::{Fault, scaled};
use belay_transport::env::Env;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Time between two tokens: the whole answer takes two and a half seconds.
const PACE_MS: u32 = 20;
const DEVICES: usize = 5;
const REQUESTS: usize = 50;
const ROUNDS: u64 = 5;

struct Computer {
    client: Client,
    _home: TempDir,
}

impl Computer {
    async fn join(invite: &str) -> Arc<Self> {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::at(home.path());
        let invite = Invite::decode(invite).unwrap();
        enrol::join(&Env::system(), &state, &invite, "crash").await.unwrap();
        let (identity, key) = state.load().unwrap();
        let client = Client::start(Env::system(), identity, &key, Options::default()).unwrap();
        client.tunnel(DEADLINE).await.unwrap();
        Arc::new(Self { client, _home: home })
    }

    fn request(&self, cap: Option<u32>) -> EscalationRequest {
        let body = serde_json::to_vec(&Prompt::new("Why is the sky blue?")).unwrap();
        let mut request = EscalationRequest::new(self.client.request_id(), Dialect::PROMPT, "auto", body);
        request.max_output_tokens = cap;
        request
    }
}

/// What a client saw of a request.
#[derive(Debug, Clone, Default)]
struct Seen {
    sent: bool,
    events: u64,
    end: Option<End>,
    resumed: bool,
    /// What was not read is lost.
    gone: bool,
}

/// A request that runs in a task of its own, and what is seen of it.
struct Asked {
    computer: Arc<Computer>,
    request: EscalationRequest,
    seen: watch::Receiver<Seen>,
}

fn ask(tasks: &mut JoinSet<()>, computer: &Arc<Computer>, cap: Option<u32>) -> Asked {
    let request = computer.request(cap);
    let (sender, seen) = watch::channel(Seen::default());
    let (running, sent) = (Arc::clone(computer), request.clone());
    tasks.spawn(async move {
        // A lost relay is an interruption and not an error.
        follow(&running, sent, &sender).await.unwrap();
    });
    Asked { computer: Arc::clone(computer), request, seen }
}

async fn follow(
    computer: &Computer,
    request: EscalationRequest,
    seen: &watch::Sender<Seen>,
) -> Result<(), ClientError> {
    let mut running = computer.client.escalate(request, DEADLINE).await?;
    seen.send_modify(|seen| seen.sent = true);
    while let Some(answer) = running.next().await? {
        match answer {
            Answer::Event(_) => seen.send_modify(|seen| seen.events += 1),
            Answer::End(end) => seen.send_modify(|seen| seen.end = Some(end)),
            Answer::Head(head) => seen.send_modify(|seen| seen.gone = head.content == Content::GONE),
            Answer::Interrupted { .. } => seen.send_modify(|seen| seen.resumed = true),
            Answer::Resumed { content, .. } => seen.send_modify(|seen| seen.gone = content == Content::GONE),
            other => panic!("not in the plan: {other:?}"),
        }
    }
    Ok(())
}

/// Waits until so many requests are as wanted.
async fn until(what: &str, asked: &[Asked], count: usize, wanted: impl Fn(&Seen) -> bool) {
    let waited = timeout(DEADLINE, async {
        while asked.iter().filter(|asked| wanted(&asked.seen.borrow())).count() < count {
            // Any of them may be the next; all move on every few milliseconds.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come true in time"));
}

/// A row of the book.
struct Row {
    state: i64,
    held: i64,
    cost: i64,
    estimated: bool,
    end: Option<Vec<u8>>,
}

/// Reads the requests of `acme` as they stand on disk.
fn book(site: &Site) -> HashMap<RequestId, Row> {
    let path = site.relay.dir().join("state/tenants/acme/tenant.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    connection.busy_timeout(DEADLINE).unwrap();
    let mut statement =
        connection.prepare("SELECT request_id, state, held_nano, cost_nano, estimated, end FROM request").unwrap();
    let rows = statement.query_map([], |row| {
        let (state, held, cost, estimated) = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        Ok((RequestId(row.get(0)?), Row { state, held, cost, estimated, end: row.get(5)? }))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

async fn no_hold_is_open(site: &Site) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while site.tenant("acme")["open_holds"] != 0 {
        assert!(tokio::time::Instant::now() < deadline, "holds stay open: {}", site.tenant("acme"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a round's requests came to, for the proof that the rounds had something to tell.
#[derive(Debug, Default)]
struct Tally {
    complete: usize,
    /// Sent again to the relay that came back, since the dead one had not begun it.
    again: usize,
    died: usize,
    died_unseen: usize,
    settled_unseen: usize,
}

/// Every client is told what became of its request, and the book says the same.
fn check(asked: &Asked, row: Option<&Row>, tally: &mut Tally) {
    let seen = asked.seen.borrow().clone();
    let id = asked.request.request_id;
    let end = seen.end.as_ref().unwrap_or_else(|| panic!("{id}: no end was seen: {seen:?}"));
    let row = row.unwrap_or_else(|| panic!("{id}: an End was shown that is not in the book"));
    assert_eq!((row.state, row.cost), (1, end.cost.0), "{id}");
    assert_eq!(row.end.as_deref(), Some(&*end.encode_body().unwrap()), "{id}: another End stands in the book");
    if end.outcome == Outcome::COMPLETE {
        assert!(!end.estimated, "{id}");
        // Settled just before the kill, its End unseen until the relay was back: the text may be lost,
        // and the client is told. Otherwise every event was seen.
        assert!(seen.events == end.events || seen.gone && seen.events < end.events, "{id}: {seen:?}");
        tally.complete += 1;
        tally.again += usize::from(seen.resumed && !seen.gone);
        tally.settled_unseen += usize::from(seen.gone);
        return;
    }
    assert_eq!((end.outcome, end.estimated, row.estimated), (Outcome::RELAY_DIED, true, true), "{id}");
    // By estimate: the input at least, what had been produced, and far from what was held.
    assert!(row.cost > 0 && row.cost < row.held, "{id}: {} of {} held", row.cost, row.held);
    assert!(end.units(UnitKind::INPUT) > 0, "{id}: {end:?}");
    // Progress is noted every 100 ms, which is five events; a cut one may bring its neighbour.
    assert!(end.events + 12 >= seen.events, "{id}: {} events were seen, {} are charged", seen.events, end.events);
    if end.events > 20 {
        assert!(end.units(UnitKind::OUTPUT) > 0, "{id}: {end:?}");
    }
    tally.died += 1;
    tally.died_unseen += usize::from(seen.events == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_fifty_requests_five_times() {
    let mut site = tokio::task::block_in_place(|| Site::with(&demo_config(PACE_MS), &[]));
    site.relay.run(&["tenant", "credit", "acme", "1000"]).unwrap();
    let mut computers = Vec::new();
    for _ in 0..DEVICES {
        computers.push(Computer::join(&site.invite("acme")).await);
    }
    let mut tally = Tally::default();
    let rounds = scaled(ROUNDS, 200);
    for round in 1..=rounds {
        let mut tasks = JoinSet::new();
        let mut asked: Vec<Asked> = Vec::new();
        // Twenty are to end before the kill, twenty to be in the middle, ten to be just on their way.
        for number in 0..40 {
            let cap = (number % 2 == 0).then_some(3);
            asked.push(ask(&mut tasks, &computers[number % DEVICES], cap));
        }
        until("twenty ends", &asked, 20, |seen| seen.end.is_some()).await;
        until("twenty in the middle", &asked, 20, |seen| seen.events > 25 && seen.end.is_none()).await;
        for number in 40..REQUESTS {
            asked.push(ask(&mut tasks, &computers[number % DEVICES], None));
        }
        // How far the last ones come is left to chance, which differs by round.
        until("the last ones", &asked, 40 + usize::try_from(1 + (round - 1) % 9).unwrap(), |seen| seen.sent).await;
        tokio::task::block_in_place(|| site.relay.kill9().unwrap());
        tokio::task::block_in_place(|| site.relay.restart().unwrap());

        let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
        timeout(DEADLINE, all).await.expect("every client learns that its request is over");
        no_hold_is_open(&site).await;
        site.books_are_clean();

        for computer in &computers {
            // By itself: nothing was asked of it.
            let mut status = computer.client.status();
            let up = status.wait_for(|status| status.phase == Phase::Up && status.reconnects >= round);
            timeout(DEADLINE, up).await.expect("the tunnel comes back").unwrap();
        }
        let book = book(&site);
        for one in &asked {
            check(one, book.get(&one.request.request_id), &mut tally);
        }
        repeat_all(&asked, &book).await;
        for computer in &computers {
            let again = computer.client.escalate(computer.request(Some(3)), DEADLINE).await.unwrap();
            let end = timeout(DEADLINE, again.collect()).await.unwrap().unwrap().end.unwrap();
            assert_eq!(end.outcome, Outcome::COMPLETE);
        }
    }
    // Nothing that was repeated was charged again, and the book adds up when all is told.
    site.books_are_clean();
    let tenant = site.tenant("acme");
    let charged: i64 = book(&site).values().map(|row| row.cost).sum();
    assert_eq!(tenant["charged_nano_usd"], charged);
    assert_eq!(tenant["balance_nano_usd"], 1_005_000_000_000 - charged);
    eprintln!("{rounds} rounds: {tally:?}");
    let requests = rounds * REQUESTS as u64;
    Fault::kept("relay-killed-in-requests", rounds, "nothing settled is lost, nothing is charged twice")
        .worst(format!("{requests} requests, {} died and were charged for what was seen", tally.died))
        .tell();
    let rounds = usize::try_from(rounds).unwrap();
    assert!(tally.complete >= 20 * rounds && tally.died >= 20 * rounds, "{tally:?}");
    for computer in computers {
        computer.client.close().await;
    }
    assert!(tokio::task::block_in_place(|| site.relay.terminate().unwrap()).success());
}

/// The same ids again: what is settled is answered from the book, byte for byte, without content.
async fn repeat_all(asked: &[Asked], book: &HashMap<RequestId, Row>) {
    let settled = asked.iter().filter_map(|asked| {
        let end = book.get(&asked.request.request_id)?.end.clone()?;
        Some((asked, end))
    });
    for (asked, end) in settled {
        let again = asked.computer.client.escalate(asked.request.clone(), DEADLINE).await.unwrap();
        let again = timeout(DEADLINE, again.collect()).await.unwrap().unwrap();
        let id = asked.request.request_id;
        assert_eq!(again.head.unwrap().content, Content::GONE, "{id}");
        assert_eq!(again.end.unwrap().encode_body().unwrap(), end, "{id}: another End than the recorded one");
        assert!(again.text.is_empty() && again.events.is_empty() && again.failed.is_none(), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_short_requests_finish_and_drains_long_ones() {
    // The whole answer takes six seconds, a short one a quarter of one.
    let config = demo_config(50).replace("drain_ms = 3000", "drain_ms = 1500");
    let mut site = tokio::task::block_in_place(|| Site::with(&config, &[]));
    let computer = Computer::join(&site.invite("acme")).await;
    let mut tasks = JoinSet::new();
    let long: Vec<Asked> = (0..5).map(|_| ask(&mut tasks, &computer, None)).collect();
    until("the long ones", &long, 5, |seen| seen.events > 3).await;
    let short: Vec<Asked> = (0..5).map(|_| ask(&mut tasks, &computer, Some(4))).collect();
    until("the short ones", &short, 5, |seen| seen.events > 0).await;
    assert!(short.iter().any(|asked| asked.seen.borrow().end.is_none()), "the short ones have ended already");
    let left = tokio::task::spawn_blocking(move || {
        let status = site.relay.terminate().unwrap();
        (site, status)
    });
    let (site, status) = timeout(DEADLINE, left).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{}", site.relay.log());
    let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    timeout(DEADLINE, all).await.expect("every request ends");

    let book = book(&site);
    for (asked, outcome) in
        short.iter().map(|a| (a, Outcome::COMPLETE)).chain(long.iter().map(|a| (a, Outcome::DRAINED)))
    {
        let seen = asked.seen.borrow();
        let end = seen.end.as_ref().unwrap_or_else(|| panic!("no end: {seen:?}"));
        assert_eq!((end.outcome, end.estimated), (outcome, outcome == Outcome::DRAINED), "{end:?}");
        let row = &book[&asked.request.request_id];
        assert_eq!((row.state, row.cost), (1, end.cost.0));
        assert_eq!(row.end.as_deref(), Some(&*end.encode_body().unwrap()));
        assert!(end.cost.0 > 0 && end.cost.0 < row.held, "{end:?}");
        if outcome == Outcome::DRAINED {
            assert!(end.message.contains("shut down"), "{end:?}");
            assert_eq!(end.events, seen.events, "events were lost on the way");
        }
    }
    // It has left in order: nothing is open, and no log is left to be replayed.
    site.books_are_clean();
    for file in ["admin.sock", "central.db-wal", "tenants/acme/tenant.db-wal"] {
        assert!(!site.relay.dir().join("state").join(file).exists(), "{file} is left behind");
    }
    computer.client.close().await;
}
