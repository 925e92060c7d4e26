//! Who runs commands: threads with group commit, or, in a simulation, the caller itself.
//!
//! A database is owned by one worker. A worker takes all commands that wait (at most
//! `MAX_BATCH`), groups them by database, and runs each group, with what comes meanwhile, in one
//! `BEGIN IMMEDIATE` transaction. One that fails takes no neighbour with it: if it had written something,
//! which is rare, the transaction is undone and run again with a savepoint per command (savepoints for all
//! would copy every page that a command writes to). Replies leave after the commit. If the commit fails the
//! outcome is unknown: the connection is dropped, everyone in the group is told so, and the next command opens
//! the file anew.
//!
//! The queue to a worker is bounded by its callers: each awaits the reply to its command, so there
//! are never more commands in it than running operations.

use super::StoreError;
use super::readers::{self, Readers};
use super::schema::{self, Durability, Kind};
use super::watch::Watchers;
use super::{central, copy, erase};
use crate::ops::metrics::StoreMetrics;
use belay_protocol::id::TenantId;
use rusqlite::Connection;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};

/// The relay-wide database, in the state directory.
pub const CENTRAL: &str = "central.db";
/// A tenant's database, in its directory.
pub const BOOK: &str = "tenant.db";
/// Files that were written so long ago look different after another write.
const SETTLED: Duration = Duration::from_secs(2);

/// The most commands that share a commit.
const MAX_BATCH: usize = 256;
/// How often an idle worker looks for databases to checkpoint and close.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// A write-ahead log above this is checkpointed as soon as nobody waits.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// A write-ahead log above this is checkpointed even while commands wait.
const CHECKPOINT_NOW_BYTES: u64 = 64 << 20;

/// Names a database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Db {
    /// The relay-wide one.
    Central,
    /// A tenant's.
    Tenant(TenantId),
}

/// How the store runs.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The state directory.
    pub dir: PathBuf,
    /// Worker threads; 0 runs every command at once on the calling thread (simulation).
    pub threads: usize,
    /// How commits are written.
    pub durability: Durability,
    /// A database that nobody used for so long is closed.
    pub idle_close: Duration,
    /// The most databases that one worker keeps open.
    pub max_open: usize,
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    mode: Mode,
    commits: Arc<AtomicU64>,
    watchers: Arc<Watchers>,
    metrics: StoreMetrics,
}

enum Mode {
    Threads { senders: Vec<Sender<Job>>, threads: Mutex<Vec<JoinHandle<()>>>, readers: Readers },
    Inline(Box<Mutex<Worker>>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.dir.display())
    }
}

/// A command for one database, waiting for its commit.
trait Command: Send {
    /// Runs inside the transaction, and again if that had to be undone. `Err`: undo what it wrote.
    fn apply(&mut self, connection: &Connection) -> Result<(), ()>;
    /// Tells the caller, after the commit or its failure.
    fn reply(self: Box<Self>, committed: Result<(), StoreError>);
}

enum Job {
    Run {
        db: Db,
        command: Box<dyn Command>,
    },
    /// Answered as soon as the worker looks, whatever it has to do.
    Hello(oneshot::Sender<()>),
    /// Something is about to come.
    Soon,
    Stop,
}

struct Typed<T, E, F> {
    run: F,
    result: Option<Result<T, E>>,
    sender: Option<oneshot::Sender<Result<T, E>>>,
}

impl<T, E, F> Command for Typed<T, E, F>
where
    T: Send,
    E: From<StoreError> + Send,
    F: FnMut(&Connection) -> Result<T, E> + Send,
{
    fn apply(&mut self, connection: &Connection) -> Result<(), ()> {
        let result = (self.run)(connection);
        let applied = result.as_ref().map(|_| ()).map_err(|_| ());
        self.result = Some(result);
        applied
    }

    fn reply(mut self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.result.take()) {
            (Ok(()), Some(result)) => result,
            // A refusal stands whether or not its neighbours' commit did.
            (Err(_), Some(Err(refusal))) => Err(refusal),
            (Err(error), _) => Err(error.into()),
            (Ok(()), None) => Err(StoreError::Closed.into()),
        };
        if let Some(sender) = self.sender.take() {
            // The caller may have gone; the commit stands all the same.
            let _ = sender.send(result);
        }
    }
}

impl Store {
    /// Starts the workers. Files are made when they are first used.
    #[must_use]
    pub fn start(config: &StoreConfig) -> Self {
        Self::start_with(config, StoreMetrics::default())
    }

    /// The same, and tells how it does.
    #[must_use]
    pub fn start_with(config: &StoreConfig, metrics: StoreMetrics) -> Self {
        let (commits, watchers) = (Arc::<AtomicU64>::default(), Arc::<Watchers>::default());
        let worker = || Worker {
            config: config.clone(),
            open: HashMap::new(),
            commits: Arc::clone(&commits),
            watchers: Arc::clone(&watchers),
            metrics: metrics.clone(),
            wal_bytes: 0,
            commits_since_look: 0,
        };
        let mode = if config.threads == 0 {
            Mode::Inline(Box::new(Mutex::new(worker())))
        } else {
            let mut senders = Vec::new();
            let mut threads = Vec::new();
            for number in 0..config.threads {
                let (sender, receiver) = channel();
                let worker = worker();
                let spawned =
                    std::thread::Builder::new().name(format!("store-{number}")).spawn(move || worker.serve(&receiver));
                match spawned {
                    Ok(thread) => threads.push(thread),
                    // The sender then answers every command with `Closed`.
                    Err(error) => error!(%error, "cannot start a store thread"),
                }
                senders.push(sender);
            }
            Mode::Threads { senders, threads: Mutex::new(threads), readers: Readers::start() }
        };
        Self { inner: Arc::new(Inner { dir: config.dir.clone(), mode, commits, watchers, metrics }) }
    }

    /// Commits since the start; commands that wait together share one.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner.commits.load(Ordering::Relaxed)
    }

    /// Runs `command` in a transaction of `db` and returns its result once that is durable.
    ///
    /// An `Err` of the command undoes what it wrote. It may be run more than once, the last time counts. The
    /// command is on its way when this returns; dropping the future does not stop it.
    pub fn run<T, E, F>(&self, db: Db, command: F) -> impl Future<Output = Result<T, E>> + Send + use<T, E, F>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let command = Box::new(Typed { run: command, result: None, sender: Some(sender) });
        match &self.inner.mode {
            Mode::Threads { senders, .. } => {
                self.inner.metrics.queued.inc();
                // A worker that has gone drops the command, and with it the sender of its reply.
                if senders[worker_index(&db, senders.len())].send(Job::Run { db, command }).is_err() {
                    self.inner.metrics.queued.dec();
                }
            }
            Mode::Inline(worker) => {
                let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
                worker.run_batch(&db, vec![command], Vec::new);
                worker.close_idle(false);
            }
        }
        async move { receiver.await.unwrap_or_else(|_| Err(StoreError::Closed.into())) }
    }

    /// Runs a question that may take long, beside the thread that writes to `tenant`'s book. It sees what is
    /// durable by then. Errors: `TooLong`; writing is an error, too.
    pub async fn read<T, F>(&self, tenant: &TenantId, mut question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let Mode::Threads { readers, .. } = &self.inner.mode else {
            return self.run(Db::Tenant(tenant.clone()), question).await;
        };
        // So that the file is there, with the newest schema.
        self.run(Db::Tenant(tenant.clone()), |_| Ok::<_, StoreError>(())).await?;
        let (sender, receiver) = oneshot::channel();
        let path = tenant_dir(&self.inner.dir, tenant).join(BOOK);
        readers.run(Box::new(move || {
            let answer = readers::ask(&path, |connection| question(connection));
            // Whoever asked may have gone.
            let _ = sender.send(answer);
        }));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Wakes the worker of a tenant's book: a command for it is about to come. A thread that sleeps takes as long to wake
    /// as a small command takes to run.
    pub fn expect(&self, tenant: &TenantId) {
        if let Mode::Threads { senders, .. } = &self.inner.mode {
            let _ = senders[worker_of(tenant, senders.len())].send(Job::Soon);
        }
    }

    /// Copies a database into a new file, as it is at one moment; its worker goes on meanwhile.
    pub async fn copy(&self, db: &Db, to: PathBuf) -> Result<(), StoreError> {
        // One that is lost must not be made new, and take the place of a good copy.
        if !self.has(db) {
            return Err(StoreError::Lost { path: self.path(db).display().to_string() });
        }
        // With the newest schema.
        self.run(db.clone(), |_| Ok::<_, StoreError>(())).await?;
        let from = self.path(db);
        let Mode::Threads { readers, .. } = &self.inner.mode else { return copy::copy(&from, &to) };
        let (sender, receiver) = oneshot::channel();
        readers.run(Box::new(move || {
            // Whoever asked may have gone.
            let _ = sender.send(copy::copy(&from, &to));
        }));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes a database anew, so that nothing of what was deleted is left in its file. What else is asked of it waits.
    pub async fn compact(&self, db: &Db) -> Result<(), StoreError> {
        let path = self.path(db);
        let Mode::Threads { readers, .. } = &self.inner.mode else { return erase::compact(&path) };
        let (sender, receiver) = oneshot::channel();
        readers.run(Box::new(move || {
            // Whoever asked may have gone.
            let _ = sender.send(erase::compact(&path));
        }));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// What tells one state of a database's files from another. `None`: they were written so lately that the next write
    /// may look the same.
    #[must_use]
    pub fn stamp(&self, db: &Db) -> Option<String> {
        let path = self.path(db);
        let mut stamp = String::new();
        for path in [path.clone(), path.with_extension("db-wal")] {
            let Ok(meta) = std::fs::metadata(path) else { continue };
            let age = meta.modified().ok()?.elapsed().ok()?;
            if age < SETTLED {
                return None;
            }
            let written = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
            stamp += &format!("{written}-{} ", meta.len());
        }
        Some(stamp)
    }

    fn path(&self, db: &Db) -> PathBuf {
        match db {
            Db::Central => self.inner.dir.join(CENTRAL),
            Db::Tenant(tenant) => self.tenant_dir(tenant).join(BOOK),
        }
    }

    /// Follows the number of the last change of a tenant's items, from the next commit on.
    #[must_use]
    pub fn watch(&self, tenant: &TenantId) -> watch::Receiver<u64> {
        self.inner.watchers.watch(tenant)
    }

    /// The directory of a tenant's files.
    #[must_use]
    pub fn tenant_dir(&self, tenant: &TenantId) -> PathBuf {
        tenant_dir(&self.inner.dir, tenant)
    }

    /// How many workers there are, and how many of them look at their queue within that time.
    pub async fn answering(&self, patience: Duration) -> (usize, usize) {
        let Mode::Threads { senders, .. } = &self.inner.mode else { return (0, 0) };
        let mut asked = vec![];
        for sender in senders {
            let (asker, answer) = oneshot::channel();
            let _ = sender.send(Job::Hello(asker));
            asked.push(answer);
        }
        let until = tokio::time::Instant::now() + patience;
        let mut answering = 0;
        for answer in asked {
            answering += usize::from(matches!(tokio::time::timeout_at(until, answer).await, Ok(Ok(()))));
        }
        (senders.len(), answering)
    }

    /// Up to which entry central knows a tenant's book as sealed.
    pub async fn sealed(&self, tenant: Option<&TenantId>) -> Result<Option<i64>, StoreError> {
        let Some(tenant) = tenant.cloned() else { return Ok(None) };
        self.run(Db::Central, move |connection| central::usage::sealed(connection, &tenant)).await.map(Some)
    }

    /// Whether a database is there already.
    #[must_use]
    pub fn has(&self, db: &Db) -> bool {
        self.path(db).exists()
    }

    /// Finishes what is queued, checkpoints and closes every file. Blocks; later commands get
    /// `Closed`.
    pub fn close(&self) {
        match &self.inner.mode {
            Mode::Threads { senders, threads, readers } => {
                readers.close();
                for sender in senders {
                    let _ = sender.send(Job::Stop);
                }
                let mut threads = threads.lock().unwrap_or_else(PoisonError::into_inner);
                for thread in threads.drain(..) {
                    if thread.join().is_err() {
                        error!("a store thread panicked");
                    }
                }
            }
            Mode::Inline(worker) => worker.lock().unwrap_or_else(PoisonError::into_inner).close_all(),
        }
    }
}

/// Central has the first worker to itself where there are several.
fn worker_index(db: &Db, workers: usize) -> usize {
    match db {
        Db::Central => 0,
        Db::Tenant(tenant) => worker_of(tenant, workers),
    }
}

fn worker_of(tenant: &TenantId, workers: usize) -> usize {
    if workers == 1 {
        return 0;
    }
    let hash = tenant
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    1 + usize::try_from(hash % (workers as u64 - 1)).unwrap_or(0)
}

/// Whether a tenant's directory without a book has had one: something lies there.
fn is_used(dir: &std::path::Path) -> bool {
    let is_something =
        |entry: std::fs::DirEntry| !entry.file_name().to_str().is_some_and(belay_certs::file::is_temporary);
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_something))
}

/// The directory of a tenant's files below a state directory.
#[must_use]
pub fn tenant_dir(state: &std::path::Path, tenant: &TenantId) -> PathBuf {
    state.join("tenants").join(tenant.as_str())
}

/// Owns connections; lives on one thread.
struct Worker {
    config: StoreConfig,
    open: HashMap<Db, Open>,
    commits: Arc<AtomicU64>,
    watchers: Arc<Watchers>,
    metrics: StoreMetrics,
    /// Of its logs, as it saw them last.
    wal_bytes: i64,
    commits_since_look: u32,
}

struct Open {
    connection: Connection,
    path: PathBuf,
    used: Instant,
}

impl Worker {
    fn serve(mut self, jobs: &Receiver<Job>) {
        loop {
            let first = match jobs.recv_timeout(HOUSEKEEPING) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.checkpoint_large(CHECKPOINT_BYTES);
                    self.close_idle(true);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut waiting = Waiting::default();
            waiting.take(first);
            waiting.take_all(jobs);
            while let Some((db, group)) = waiting.groups.pop_front() {
                let done = self.run_batch(&db, group, || waiting.more(&db, jobs));
                self.metrics.queued.dec_by(done);
            }
            let stop = waiting.stop;
            self.commits_since_look += 1;
            if self.commits_since_look >= 512 {
                self.commits_since_look = 0;
                self.checkpoint_large(CHECKPOINT_NOW_BYTES);
            }
            if stop {
                break;
            }
        }
        self.close_all();
    }

    /// How many commands that were.
    fn run_batch(
        &mut self,
        db: &Db,
        mut group: Vec<Box<dyn Command>>,
        more: impl FnMut() -> Vec<Box<dyn Command>>,
    ) -> i64 {
        let began = Instant::now();
        let watchers = Arc::clone(&self.watchers);
        let committed = match self.connection(db) {
            Ok(connection) => transact(connection, &mut group, more).inspect(|()| {
                if let Db::Tenant(tenant) = db {
                    watchers.committed(tenant, connection);
                }
            }),
            Err(error) => Err((error, false)),
        };
        self.commits.fetch_add(1, Ordering::Relaxed);
        let committed = committed.map_err(|(error, broken)| {
            if broken {
                warn!(?db, %error, "a commit failed; its database is opened anew");
                self.open.remove(db);
            }
            error
        });
        let done = i64::try_from(group.len()).unwrap_or(i64::MAX);
        for command in group {
            command.reply(committed.clone());
        }
        // Nobody waits for these.
        self.metrics.batch.observe(done as f64);
        self.metrics.commit.observe(began.elapsed().as_secs_f64());
        done
    }

    fn connection(&mut self, db: &Db) -> Result<&Connection, StoreError> {
        if !self.open.contains_key(db) {
            if self.open.len() >= self.config.max_open {
                self.close_least_used();
            }
            let (path, kind) = match db {
                Db::Central => (self.config.dir.join(CENTRAL), Kind::Central),
                Db::Tenant(tenant) => {
                    let dir = tenant_dir(&self.config.dir, tenant);
                    belay_certs::file::create_private_dir(&dir).map_err(|error| StoreError::Failed {
                        operation: "make the tenant's directory",
                        why: error.to_string(),
                    })?;
                    let book = dir.join(BOOK);
                    if !book.exists() && is_used(&dir) {
                        return Err(StoreError::Lost { path: book.display().to_string() });
                    }
                    (book, Kind::Tenant)
                }
            };
            let connection = schema::open(&path, kind, self.config.durability)?;
            self.open.insert(db.clone(), Open { connection, path, used: Instant::now() });
        }
        match self.open.get_mut(db) {
            Some(open) => {
                open.used = Instant::now();
                Ok(&open.connection)
            }
            None => Err(StoreError::Closed),
        }
    }

    /// Moves large write-ahead logs into their databases.
    fn checkpoint_large(&mut self, above: u64) {
        let mut left = 0;
        for open in self.open.values() {
            let wal = open.path.with_extension("db-wal");
            let len = std::fs::metadata(&wal).map_or(0, |meta| meta.len());
            if len > above {
                checkpoint(&open.connection, "TRUNCATE");
            } else {
                left += i64::try_from(len).unwrap_or(0);
            }
        }
        self.metrics.wal.inc_by(left - self.wal_bytes);
        self.wal_bytes = left;
    }

    fn close_idle(&mut self, look: bool) {
        if !look && self.open.len() < self.config.max_open {
            return;
        }
        let idle = self.config.idle_close;
        self.open.retain(|_, open| {
            let keep = open.used.elapsed() < idle;
            if !keep {
                checkpoint(&open.connection, "TRUNCATE");
            }
            keep
        });
    }

    fn close_least_used(&mut self) {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(db, _)| db.clone());
        if let Some(open) = oldest.and_then(|db| self.open.remove(&db)) {
            checkpoint(&open.connection, "TRUNCATE");
        }
    }

    fn close_all(&mut self) {
        for (_, open) in self.open.drain() {
            checkpoint(&open.connection, "TRUNCATE");
        }
    }
}

fn checkpoint(connection: &Connection, mode: &str) {
    // A reader that stands in the log must not hold up everybody's commands: then it is moved the next time.
    let result = connection.busy_timeout(Duration::ZERO).and_then(|()| {
        let moved = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
        connection.busy_timeout(schema::BUSY).and(moved)
    });
    if let Err(error) = result {
        // Nothing is lost: the log is replayed at the next open.
        warn!(%error, "a checkpoint failed");
    }
}

/// Commands that wait, in order of arrival per database; few databases wait at once.
#[derive(Default)]
struct Waiting {
    groups: VecDeque<(Db, Vec<Box<dyn Command>>)>,
    stop: bool,
}

impl Waiting {
    fn take(&mut self, job: Job) {
        match job {
            Job::Stop => self.stop = true,
            Job::Soon => {}
            // Whoever asked may have gone.
            Job::Hello(asker) => drop(asker.send(())),
            Job::Run { db, command } => match self.groups.iter_mut().find(|(known, _)| *known == db) {
                Some((_, group)) => group.push(command),
                None => self.groups.push_back((db, vec![command])),
            },
        }
    }

    fn take_all(&mut self, jobs: &Receiver<Job>) {
        jobs.try_iter().take(MAX_BATCH - 1).for_each(|job| self.take(job));
    }

    /// What has come for a database since.
    fn more(&mut self, db: &Db, jobs: &Receiver<Job>) -> Vec<Box<dyn Command>> {
        self.take_all(jobs);
        let at = self.groups.iter().position(|(known, _)| known == db);
        at.and_then(|at| self.groups.remove(at)).map(|(_, group)| group).unwrap_or_default()
    }
}

/// Runs a group in one transaction, and with it what `more` has come meanwhile: a commit is dear, and
/// whoever comes a moment later would have to wait for the next. `Err((error, broken))`: nothing is known
/// to be kept; `broken` says that the connection must not be used again.
fn transact(
    connection: &Connection,
    group: &mut Vec<Box<dyn Command>>,
    mut more: impl FnMut() -> Vec<Box<dyn Command>>,
) -> Result<(), (StoreError, bool)> {
    run(connection, "BEGIN IMMEDIATE").map_err(failed)?;
    let mut done = 0;
    while done < group.len() {
        for command in &mut group[done..] {
            let before = connection.total_changes();
            let is_refused = command.apply(connection).is_err();
            still_open(connection)?;
            if is_refused && connection.total_changes() != before {
                run(connection, "ROLLBACK").map_err(failed)?;
                return transact_apart(connection, group);
            }
        }
        done = group.len();
        if done < MAX_BATCH {
            group.extend(more());
        }
    }
    run(connection, "COMMIT").map_err(unknown)
}

/// The same for commands of which one has to be undone alone.
fn transact_apart(connection: &Connection, group: &mut [Box<dyn Command>]) -> Result<(), (StoreError, bool)> {
    run(connection, "BEGIN IMMEDIATE").map_err(failed)?;
    for command in group {
        run(connection, "SAVEPOINT command").map_err(failed)?;
        let is_refused = command.apply(connection).is_err();
        still_open(connection)?;
        if is_refused {
            run(connection, "ROLLBACK TO command").map_err(failed)?;
        }
        run(connection, "RELEASE command").map_err(failed)?;
    }
    run(connection, "COMMIT").map_err(unknown)
}

/// Errors: SQLite has undone the whole transaction by itself, as it does when the disk fails or is full. Whatever came
/// next would be durable statement by statement.
fn still_open(connection: &Connection) -> Result<(), (StoreError, bool)> {
    if !connection.is_autocommit() {
        return Ok(());
    }
    let why = "the disk failed or is full, and the transaction was undone".to_owned();
    Err((StoreError::Failed { operation: "write", why }, true))
}

fn run(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(|_| ())
}

fn failed(error: rusqlite::Error) -> (StoreError, bool) {
    (StoreError::Failed { operation: "begin", why: error.to_string() }, true)
}

fn unknown(error: rusqlite::Error) -> (StoreError, bool) {
    (StoreError::Unknown { why: error.to_string() }, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &std::path::Path, threads: usize) -> Store {
        Store::start(&StoreConfig {
            dir: dir.to_owned(),
            threads,
            durability: Durability::None,
            idle_close: Duration::from_secs(60),
            max_open: 2,
        })
    }

    fn put(key: &'static str) -> impl Fn(&Connection) -> Result<(), StoreError> {
        move |connection| {
            connection.execute("INSERT INTO budget (scope, measure, amount) VALUES (?1, '', 0)", [key])?;
            Ok(())
        }
    }

    fn count(connection: &Connection) -> Result<i64, StoreError> {
        Ok(connection.query_row("SELECT count(*) FROM budget", [], |row| row.get(0))?)
    }

    #[tokio::test]
    async fn a_command_that_fails_takes_no_neighbour_with_it() {
        for threads in [0, 2] {
            let dir = tempfile::tempdir().expect("made");
            let store = store(dir.path(), threads);
            let db = || Db::Tenant("acme".parse().expect("name"));
            let (a, b, c) = tokio::join!(
                store.run(db(), put("one")),
                store.run(db(), |connection: &Connection| {
                    put("two")(connection)?;
                    put("two")(connection)
                }),
                store.run(db(), put("three")),
            );
            assert!(a.is_ok() && b.is_err() && c.is_ok(), "{a:?} {b:?} {c:?}");
            assert_eq!(store.run(db(), count).await.expect("counted"), 2);
            store.close();
            if threads > 0 {
                assert!(matches!(store.run(db(), count).await, Err(StoreError::Closed)));
            }
        }
    }

    #[test]
    fn only_what_has_written_before_it_failed_makes_others_run_again() {
        let dir = tempfile::tempdir().expect("made");
        let connection = schema::open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
        let runs: Arc<[AtomicU64; 3]> = Arc::default();
        let counted = |at: usize, command: fn(&Connection) -> Result<(), StoreError>| -> Box<dyn Command> {
            let runs = Arc::clone(&runs);
            let run = move |connection: &Connection| {
                runs[at].fetch_add(1, Ordering::Relaxed);
                command(connection)
            };
            Box::new(Typed { run, result: None, sender: None })
        };
        let told = || runs.iter().map(|runs| runs.swap(0, Ordering::Relaxed)).collect::<Vec<_>>();
        let refuse = |_: &Connection| Err(StoreError::Closed);
        let mut group = vec![counted(0, |on| put("a")(on)), counted(1, refuse), counted(2, |on| put("b")(on))];
        transact(&connection, &mut group, Vec::new).expect("committed");
        assert_eq!((told(), count(&connection).expect("counted")), (vec![1, 1, 1], 2));
        let twice = |on: &Connection| put("d")(on).and_then(|()| put("d")(on));
        let mut group = vec![counted(0, |on| put("c")(on)), counted(1, twice)];
        let mut late = vec![counted(2, |on| put("e")(on))];
        transact(&connection, &mut group, || std::mem::take(&mut late)).expect("committed");
        assert_eq!((told(), count(&connection).expect("counted")), (vec![2, 2, 0], 3));
        // Who came meanwhile was not asked for yet, and waits for the next transaction.
        assert_eq!(late.len(), 1);
    }

    #[tokio::test]
    async fn where_the_disk_undoes_a_transaction_nothing_of_the_group_is_kept() {
        let dir = tempfile::tempdir().expect("made");
        let connection = schema::open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
        let command = |run: fn(&Connection) -> Result<(), StoreError>| -> Box<dyn Command> {
            Box::new(Typed { run, result: None, sender: None })
        };
        // What SQLite does by itself where a page cannot be written; the command may not even notice.
        let undone = |on: &Connection| Ok(on.execute_batch("ROLLBACK")?);
        let unnoticed: fn(&Connection) -> Result<(), StoreError> = undone;
        let noticed =
            |on: &Connection| on.execute_batch("ROLLBACK").map_err(StoreError::from).and(Err(StoreError::Closed));
        for fault in [unnoticed, noticed] {
            let mut group = vec![command(|on| put("a")(on)), command(fault), command(|on| put("b")(on))];
            let (error, is_broken) = transact(&connection, &mut group, Vec::new).expect_err("undone");
            assert!(is_broken && error.may_pass(), "{error}");
            assert_eq!(count(&connection).expect("counted"), 0);
            let (_, is_broken) = transact_apart(&connection, &mut group).expect_err("undone");
            assert!(is_broken);
            assert_eq!(count(&connection).expect("counted"), 0);
        }
    }

    #[tokio::test]
    async fn no_more_files_stay_open_than_allowed_and_nothing_is_lost_by_closing() {
        let dir = tempfile::tempdir().expect("made");
        let store = store(dir.path(), 0);
        for name in ["a", "b", "c", "d", "e"] {
            store.run(Db::Tenant(name.parse().expect("name")), put("x")).await.expect("stored");
        }
        let Mode::Inline(worker) = &store.inner.mode else { panic!("inline") };
        assert!(worker.lock().expect("alone").open.len() <= 2);
        for name in ["a", "b", "c", "d", "e"] {
            assert_eq!(store.run(Db::Tenant(name.parse().expect("name")), count).await.expect("counted"), 1);
        }
    }
}
