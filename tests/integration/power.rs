//! A relay's power is cut, at any moment of a life that was recorded: what it had acknowledged is there, and its books are
//! clean.

use belay_client::escalation::EscalationRequest;
use belay_client::{Client, Options};
use belay_protocol::id::{RequestId, SessionId};
use belay_protocol::message::Outcome;
use belay_relay::{Config, Overrides, Relay};
use belay_tests::fault::{Fault, scaled, seed};
use belay_tests::power::disk::Disk;
use belay_tests::power::record::{Op, Step, steps};
use belay_tests::procs::Belayd;
use belay_tests::python::{require_all, target_dir};
use belay_tests::relay::{PATIENCE, TestClient, config_text, eventually, tenant};
use belay_tests::synced::{Synced, noise};
use belay_transport::env::Env;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;

const CONFIG: &str = "[state]\nidle_close_s = 1\nstore_threads = 2\n[timeouts]\ndrain_ms = 3000\n[billing]\nflush_at = \"0.001\"\n\
     [limits]\nrequests_per_minute = 100000\n[providers.demo]\nkind = \"demo\"\npace_ms = 1\n[models.demo]\n\
     provider = \"demo\"\nname = \"demo-1\"\ncontext_tokens = 32000\nmax_output_tokens = 4096\n\
     price = { input = \"3\", output = \"15\" }\n[aliases]\nauto = \"demo\"\n";
/// What each credit adds.
const CREDIT: i64 = 1_000_000_000;

/// Something that the relay has said is done.
#[derive(Debug, Clone)]
enum Done {
    Tenant(String),
    Credit,
    Device(String),
    Revoked(String),
    Key(String),
    Suspended(String),
    /// Settled for so much, with so many messages in its session.
    Ended(RequestId, i64, i64),
    Document(String, Vec<u8>),
}

/// All that was acknowledged, each with how long the recordings were then.
#[derive(Debug, Clone)]
struct Said {
    done: Arc<Mutex<Vec<(u64, Done)>>>,
    /// The recording, and how long those before it are.
    log: Arc<Mutex<(PathBuf, u64)>>,
}

impl Said {
    fn note(&self, done: Done) {
        let (log, before) = self.log.lock().unwrap().clone();
        let at = before + fs::metadata(log).unwrap().len();
        self.done.lock().unwrap().push((at, done));
    }

    /// Another recording follows.
    fn goes_on(&self, log: &Path) {
        let mut known = self.log.lock().unwrap();
        let so_far = known.1 + fs::metadata(&known.0).unwrap().len();
        *known = (log.to_owned(), so_far);
    }
}

/// The recorded lives of a relay: one that was killed, and one that came after it.
struct Recording {
    logs: Vec<PathBuf>,
    state: PathBuf,
    said: Vec<(u64, Done)>,
    /// A device that has nothing yet of what is synced.
    empty: TestClient,
    _dir: (Belayd, TempDir),
}

/// Asks again and again, until the relay is gone or `rounds` are over.
async fn asks(client: Arc<TestClient>, said: Said, number: usize, rounds: usize) {
    for round in 0..rounds {
        let session = (round % 3 == 0).then(|| format!("talk-{number}-{}", round % 6));
        let request = EscalationRequest {
            session: session.as_deref().map(|name| name.parse::<SessionId>().unwrap()),
            max_output_tokens: Some(20),
            ..client.prompt(&format!("question {round} of {number}"))
        };
        let id = request.request_id;
        let Ok(mut running) = client.client.escalate(request, PATIENCE).await else { return };
        // Some are given up in the middle.
        if round % 7 == 6 {
            let _ = running.next().await;
            let _ = running.cancel("enough").await;
        }
        let Ok(answer) = running.collect().await else { return };
        let Some(end) = answer.end else { return };
        let messages = if session.is_some() && end.outcome == Outcome::COMPLETE { 2 } else { 0 };
        // What a session keeps of an answer that was broken off is not this test's.
        if session.is_none() || messages == 2 {
            said.note(Done::Ended(id, end.cost.0, messages));
        }
    }
}

/// All of a recording is written, whose program is gone: nothing more comes for a while.
async fn is_over(log: &Path) {
    let (mut before, mut still) = (0, 0);
    eventually("the recording is over", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = fs::metadata(log).unwrap().len();
        still = if std::mem::replace(&mut before, now) == now { still + 1 } else { 0 };
        still == 5
    })
    .await;
}

/// Has a relay live for a while, be killed, and live again. `None`: there is no strace.
async fn record(rounds: usize) -> Option<Recording> {
    let dir = tempfile::tempdir().unwrap();
    let logs: Vec<PathBuf> = ["first", "second"].iter().map(|name| dir.path().join(name)).collect();
    let mut relay = Belayd::start_recorded(CONFIG, &logs[0]).unwrap()?;
    let said = Said { done: Arc::default(), log: Arc::new(Mutex::new((logs[0].clone(), 0))) };
    let run = |relay: &Belayd, args: &[&str]| tokio::task::block_in_place(|| relay.run(args).unwrap());
    let join = async |relay: &Belayd| {
        let invite = run(relay, &["invite", "acme"])["invite"].as_str().unwrap().to_owned();
        let client = TestClient::join(&invite).await;
        said.note(Done::Device(client.client.identity().device.to_string()));
        client
    };
    run(&relay, &["tenant", "create", "acme", "--credit", "1"]);
    said.note(Done::Tenant("acme".into()));
    said.note(Done::Credit);
    let empty = join(&relay).await;
    let synced = Synced::of(join(&relay).await);
    let asking = async |relay: &Belayd, rounds: usize| {
        let mut tasks = JoinSet::new();
        for number in 0..3 {
            tasks.spawn(asks(Arc::new(join(relay).await), said.clone(), number, rounds));
        }
        tasks
    };
    let tasks = asking(&relay, rounds).await;
    for round in 0..rounds / 4 {
        run(&relay, &["tenant", "credit", "acme", "1"]);
        said.note(Done::Credit);
        let name = format!("tenant-{round}");
        run(&relay, &["tenant", "create", &name]);
        said.note(Done::Tenant(name.clone()));
        run(&relay, &["tenant", "suspend", &name]);
        said.note(Done::Suspended(name));
        let key = run(&relay, &["key", "create", "acme", "--scope", "read"])["id"].as_str().unwrap().to_owned();
        said.note(Done::Key(key));
        let goes = join(&relay).await.client.identity().device.to_string();
        run(&relay, &["device", "revoke", &goes]);
        said.note(Done::Revoked(goes));
        // One in the book, one in a file of its own.
        for size in [500, 40_000] {
            let (key, content) = (format!("{size}/{}.bin", round % 5), noise(size, seed(1) + round as u64));
            synced.write(&key, &content);
            synced.sync_all().await;
            said.note(Done::Document(key, content));
        }
    }
    tasks.join_all().await;
    // Killed with requests in it, and started again: it recovers, and goes on.
    let mut running = asking(&relay, 1000).await;
    let count = || said.done.lock().unwrap().len();
    let before = count();
    eventually("requests come and go", async || count() >= before + 20).await;
    tokio::task::block_in_place(|| relay.kill9().unwrap());
    running.abort_all();
    while running.join_next().await.is_some() {}
    is_over(&logs[0]).await;
    said.goes_on(&logs[1]);
    tokio::task::block_in_place(|| relay.restart_recorded(&logs[1]).unwrap());
    asking(&relay, rounds / 3).await.join_all().await;
    run(&relay, &["tenant", "credit", "acme", "1"]);
    said.note(Done::Credit);
    // Books that nobody uses are closed.
    let log = relay.state().join("tenants/acme/tenant.db-wal");
    eventually("the book is closed", async || !log.exists()).await;
    tokio::task::block_in_place(|| {
        assert!(relay.terminate().unwrap().success(), "{}", relay.log());
    });
    is_over(&logs[1]).await;
    let state = relay.state();
    let said = said.done.lock().unwrap().clone();
    Some(Recording { logs, state, said, empty, _dir: (relay, dir) })
}

/// What must be there after a cut, and what may.
#[derive(Debug, Default)]
struct Owed<'a> {
    tenants: BTreeSet<&'a str>,
    suspended: BTreeSet<&'a str>,
    devices: BTreeSet<&'a str>,
    revoked: BTreeSet<&'a str>,
    keys: BTreeSet<&'a str>,
    credits: i64,
    ended: BTreeMap<RequestId, (i64, i64)>,
    /// All that each has been, the newest last.
    documents: BTreeMap<&'a str, Vec<&'a [u8]>>,
}

impl<'a> Owed<'a> {
    fn of(said: &'a [(u64, Done)], until: u64) -> Self {
        let mut owed = Self::default();
        for (_, done) in said.iter().filter(|(at, _)| *at <= until) {
            match done {
                Done::Tenant(name) => drop(owed.tenants.insert(name)),
                Done::Suspended(name) => drop(owed.suspended.insert(name)),
                Done::Credit => owed.credits += 1,
                Done::Device(id) => drop(owed.devices.insert(id)),
                Done::Revoked(id) => drop(owed.revoked.insert(id)),
                Done::Key(id) => drop(owed.keys.insert(id)),
                Done::Ended(id, cost, messages) => drop(owed.ended.insert(*id, (*cost, *messages))),
                Done::Document(key, content) => owed.documents.entry(key).or_default().push(content),
            }
        }
        owed
    }
}

/// What is wrong with what a cut has left.
async fn problems(state: &Path, owed: &Owed<'_>, all: &Owed<'_>, empty: Option<&TestClient>) -> Vec<String> {
    let config = Config::parse(&config_text(state, ""), "cut").unwrap();
    let relay = match Relay::start(config, Env::system(), Overrides::default()).await {
        Ok(relay) => relay,
        Err(error) => return vec![format!("it does not start: {error}: {:?}", std::error::Error::source(&error))],
    };
    let mut wrong = vec![];
    let admin = Arc::clone(relay.admin());
    let tenants = admin.tenants().await.unwrap();
    let there: BTreeSet<&str> = tenants.iter().map(|info| info.id.as_str()).collect();
    wrong.extend(owed.tenants.difference(&there).map(|name| format!("tenant {name} is lost")));
    let is_suspended = |name: &&str| tenants.iter().any(|info| info.id.as_str() == *name && info.terms.suspended);
    wrong.extend(
        owed.suspended.iter().filter(|name| !is_suspended(name)).map(|name| format!("{name} is not suspended")),
    );
    let devices = admin.devices(None).await.unwrap();
    let device = |id: &str| devices.iter().find(|info| info.device.id.as_str() == id);
    wrong.extend(owed.devices.iter().filter(|id| device(id).is_none()).map(|id| format!("device {id} is lost")));
    let is_back = |id: &&&str| device(id).is_none_or(|info| info.device.revoked_ms.is_none());
    wrong.extend(owed.revoked.iter().filter(is_back).map(|id| format!("device {id} is revoked no more")));
    let keys = admin.keys(None).await.unwrap();
    let is_lost = |id: &&&str| !keys.iter().any(|key| key.id == **id);
    wrong.extend(owed.keys.iter().filter(is_lost).map(|id| format!("key {id} is lost")));
    // Holds of a life that is over are settled.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let books = loop {
        let books = admin.verify(None).await.unwrap();
        if books.iter().all(|book| book.report.open == 0) || tokio::time::Instant::now() > deadline {
            break books;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    for book in books {
        wrong.extend(book.report.problems.iter().map(|problem| format!("book of {}: {problem}", book.tenant)));
        if book.report.open > 0 {
            wrong.push(format!("book of {}: {} holds stay open", book.tenant, book.report.open));
        }
    }
    if there.contains("acme") {
        let balance =
            admin.tenants().await.unwrap().iter().find(|info| info.id == tenant("acme")).unwrap().balance_nano_usd;
        wrong.extend(book_of_acme(state, balance, owed, all));
    }
    if let Some(empty) = empty.filter(|_| there.contains("acme")) {
        wrong.extend(documents(&relay, empty, owed, all).await);
    }
    tokio::time::timeout(PATIENCE, relay.shutdown()).await.expect("it stops");
    wrong
}

fn book_of_acme(state: &Path, balance: i64, owed: &Owed<'_>, all: &Owed<'_>) -> Vec<String> {
    let mut wrong = vec![];
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let book = rusqlite::Connection::open_with_flags(state.join("tenants/acme/tenant.db"), flags).unwrap();
    book.busy_timeout(PATIENCE).unwrap();
    let mut rows = book.prepare("SELECT request_id, cost_nano, end IS NOT NULL FROM request").unwrap();
    let rows = rows.query_map([], |row| Ok((RequestId(row.get(0)?), (row.get::<_, i64>(1)?, row.get::<_, bool>(2)?))));
    let requests: BTreeMap<RequestId, (i64, bool)> = rows.unwrap().map(Result::unwrap).collect();
    for (id, (cost, messages)) in &owed.ended {
        match requests.get(id) {
            Some((charged, true)) if charged == cost => {}
            other => wrong.push(format!("request {id} was settled for {cost}; now: {other:?}")),
        }
        let said = "SELECT count(*) FROM message WHERE request_id = ?1";
        let found: i64 = book.query_row(said, [id.0], |row| row.get(0)).unwrap();
        if found != *messages {
            wrong.push(format!("request {id} has {found} messages in its session, not {messages}"));
        }
    }
    // What was paid in is what is left and what was charged.
    let paid = balance + requests.values().map(|(cost, _)| cost).sum::<i64>();
    if paid < owed.credits * CREDIT || paid > (all.credits + 1) * CREDIT || paid % CREDIT != 0 {
        wrong.push(format!("{paid} was paid in; at least {} times {CREDIT} is known", owed.credits));
    }
    wrong
}

/// What another device finds.
async fn documents(relay: &Relay, empty: &TestClient, owed: &Owed<'_>, all: &Owed<'_>) -> Vec<String> {
    let (identity, key) = empty.state.load().unwrap();
    if !owed.devices.contains(identity.device.as_str()) {
        return vec![];
    }
    let options = Options { addresses: Some(vec![relay.local_addr().to_string()]), ..Options::default() };
    let client = Client::start(Env::system(), identity, &key, options).unwrap();
    let synced = Synced::of(empty.with(client));
    let (report, _) = synced.sync().await;
    let mut wrong: Vec<String> = report.problems.iter().map(|problem| format!("sync: {problem:?}")).collect();
    let found = synced.documents();
    for (key, contents) in &owed.documents {
        let newest = contents.len() - 1;
        // One that came on top of it, unacknowledged, is as good.
        let may_be = &all.documents[key][newest..];
        if !found.get(*key).is_some_and(|found| may_be.contains(&found.as_slice())) {
            wrong.push(format!("document {key} is not what it was: {:?} bytes", found.get(*key).map(Vec::len)));
        }
    }
    synced.client.client.close().await;
    wrong
}

/// Plays a recording up to each of some points, cuts, and looks.
async fn try_cuts(recording: &Recording, cuts: u64) -> (u64, usize) {
    let log: Vec<u8> = recording.logs.iter().flat_map(|log| fs::read(log).unwrap()).collect();
    let steps = steps(&log, &recording.state);
    drop(log);
    it_is_as_it_was(&steps, recording);
    let mut random = StdRng::seed_from_u64(seed(44));
    // Most of what can go wrong lies around what makes sure.
    let syncs: Vec<usize> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| matches!(step.op, Op::Sync(..) | Op::SyncDir(..) | Op::Rename(..) | Op::Unlink(_)))
        .map(|(at, _)| at)
        .collect();
    let mut points: Vec<(usize, u64)> = (0..cuts)
        .map(|number| {
            let at = if number % 2 == 0 {
                random.random_range(0..steps.len())
            } else {
                syncs[random.random_range(0..syncs.len())].saturating_sub(random.random_range(0..2))
            };
            (at, random.random())
        })
        .collect();
    points.sort_unstable();
    let all = Owed::of(&recording.said, u64::MAX);
    let (mut disk, mut played) = (Disk::default(), 0);
    let mut with_acknowledged = 0;
    for (number, (at, seed)) in points.iter().enumerate() {
        while played <= *at {
            disk.step(&steps[played]);
            played += 1;
        }
        let dir = tempfile::Builder::new().prefix("cut-").tempdir_in(fast_disk()).unwrap();
        let state = dir.path().join("state");
        disk.cut(*seed, &recording.state, &state);
        let owed = Owed::of(&recording.said, steps[*at].ends);
        with_acknowledged += u64::from(!owed.ended.is_empty());
        let empty = (number % 10 == 0).then_some(&recording.empty);
        let wrong = problems(&state, &owed, &all, empty).await;
        if !wrong.is_empty() {
            let kept = target_dir().join("power-cut");
            let _ = fs::remove_dir_all(&kept);
            fs::create_dir_all(&kept).unwrap();
            disk.cut(*seed, &recording.state, &kept.join("state"));
            panic!(
                "after step {at} of {} ({:?}), seed {seed}: {wrong:#?}\nwhat the cut has left: {}",
                steps.len(),
                steps[*at].op.shown(),
                kept.display()
            );
        }
    }
    (with_acknowledged, steps.len())
}

/// The model has lost nothing of what the program did.
fn it_is_as_it_was(steps: &[Step], recording: &Recording) {
    let mut disk = Disk::default();
    steps.iter().for_each(|step| disk.step(step));
    let modelled = disk.contents();
    assert!(modelled.len() > 10, "{:?}", modelled.keys());
    let on_disk = files(&recording.state);
    let is_index = |path: &Path| path.to_string_lossy().ends_with("-shm");
    // An index is SQLite's in shared memory, and made anew. A socket is no file.
    let names =
        |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().filter(|path| !is_index(path)).cloned().collect::<Vec<_>>();
    assert_eq!(names(&modelled), names(&on_disk));
    for (path, content) in modelled.iter().filter(|(path, _)| !is_index(path)) {
        assert!(&on_disk[path] == content, "{} is not modelled right", path.display());
    }
    assert!(!recording.said.is_empty());
}

/// All files below a directory, by their whole paths.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            all.extend(files(&entry.path()));
        } else if kind.is_file() {
            all.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// In memory where there is such a place: what was cut is written ten thousand times.
fn fast_disk() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_loses_power_keeps_what_it_has_acknowledged() {
    let cuts = scaled(150, 10_000);
    let Some(recording) = record(24).await else {
        assert!(!require_all(), "strace is not here");
        eprintln!("SKIPPED: power cuts: strace is not here (apt-get install strace)");
        return;
    };
    let (with_acknowledged, steps) = try_cuts(&recording, cuts).await;
    // Most of a life lies after its first acknowledgement.
    assert!(with_acknowledged * 2 > cuts, "{with_acknowledged} of {cuts}");
    let bar = "what was acknowledged is there, books are clean, it starts";
    Fault::kept("power-cut", cuts, bar).worst(format!("{steps} calls recorded")).tell();
}
