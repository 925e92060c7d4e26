//! Who runs commands: threads with group commit, or, in a simulation, the caller itself.
//!
//! A database is owned by one worker (`worker`). A worker takes all commands that wait, groups them by database, and runs
//! each group, with what comes meanwhile, in one `BEGIN IMMEDIATE` transaction (`commit`).
//!
//! The queue to a worker is bounded by its callers: each awaits the reply to its command, so there
//! are never more commands in it than running operations.

use super::commit::{Command, Typed};
use super::readers::Readers;
use super::schema::Durability;
use super::seat::{Job, Seat};
use super::watch::Watchers;
use super::worker::Worker;
use super::{StoreError, central};
use crate::ops::metrics::StoreMetrics;
use belay_protocol::id::TenantId;
use rusqlite::Connection;
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tracing::error;

/// The relay-wide database, in the state directory.
pub const CENTRAL: &str = "central.db";
/// A tenant's database, in its directory.
pub const BOOK: &str = "tenant.db";

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
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) dir: PathBuf,
    pub(super) mode: Mode,
    commits: Arc<AtomicU64>,
    watchers: Arc<Watchers>,
    metrics: StoreMetrics,
}

pub(super) enum Mode {
    Threads {
        seats: Vec<Seat>,
        threads: Mutex<Vec<JoinHandle<()>>>,
        /// For questions.
        readers: Readers,
        /// For what goes through a whole database.
        long: Readers,
    },
    Inline(Box<Mutex<Worker>>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.inner.dir.display())
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
            longest_log: 0,
            slowest: Duration::ZERO,
            is_closed: false,
            broken: vec![],
        };
        let mode = if config.threads == 0 {
            Mode::Inline(Box::new(Mutex::new(worker())))
        } else {
            let mut seats = Vec::new();
            let mut threads = Vec::new();
            for number in 0..config.threads {
                let (seat, spawned) = Seat::start(worker(), format!("store-{number}"));
                match spawned {
                    Ok(thread) => threads.push(thread),
                    Err(error) => error!(%error, "cannot start a store thread"),
                }
                seats.push(seat);
            }
            let (readers, long) = (Readers::for_questions(), Readers::for_long());
            Mode::Threads { seats, threads: Mutex::new(threads), readers, long }
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
        let (command, answer) = typed(command);
        self.queue(db, command);
        answer
    }

    /// The same, but on the calling thread, which sleeps meanwhile, if nobody else needs that (`is_alone`), the database's
    /// worker has nothing to do and its disk is quick: two threads less have to wake, which takes as long as the command.
    pub fn run_here_if<T, E, F>(
        &self,
        is_alone: bool,
        db: Db,
        command: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<T, E, F>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (command, answer) = typed(command);
        let left = match &self.inner.mode {
            Mode::Threads { seats, .. } if is_alone => seats[worker_index(&db, seats.len())].run_here(&db, command),
            _ => Err(command),
        };
        if let Err(command) = left {
            self.queue(db, command);
        }
        answer
    }

    fn queue(&self, db: Db, command: Box<dyn Command>) {
        match &self.inner.mode {
            Mode::Threads { seats, .. } => {
                self.inner.metrics.queued.inc();
                // A worker that has gone drops the command, and with it the sender of its reply.
                if !seats[worker_index(&db, seats.len())].queue(db, command) {
                    self.inner.metrics.queued.dec();
                }
            }
            Mode::Inline(worker) => {
                let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
                worker.run_batch(&db, vec![command], Vec::new);
                worker.close_idle(false);
            }
        }
    }

    /// Wakes the worker of a tenant's book: a command for it is about to come. A thread that sleeps takes as long to wake
    /// as a small command takes to run. `is_alone`: it would run on the calling thread, if it can.
    pub fn expect(&self, tenant: &TenantId, is_alone: bool) {
        let Mode::Threads { seats, .. } = &self.inner.mode else { return };
        let seat = &seats[worker_of(tenant, seats.len())];
        if !(is_alone && seat.can_run_here()) {
            seat.tell(Job::Soon);
        }
    }

    pub(super) fn path(&self, db: &Db) -> PathBuf {
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
        let Mode::Threads { seats, .. } = &self.inner.mode else { return (0, 0) };
        let mut asked = vec![];
        for seat in seats {
            let (asker, answer) = oneshot::channel();
            seat.tell(Job::Hello(asker));
            asked.push(answer);
        }
        let until = tokio::time::Instant::now() + patience;
        let mut answering = 0;
        for answer in asked {
            answering += usize::from(matches!(tokio::time::timeout_at(until, answer).await, Ok(Ok(()))));
        }
        (seats.len(), answering)
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
            Mode::Threads { seats, threads, readers, long } => {
                readers.close();
                long.close();
                for seat in seats {
                    seat.tell(Job::Stop);
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

/// A command, and its answer.
fn typed<T, E, F>(command: F) -> (Box<dyn Command>, impl Future<Output = Result<T, E>> + Send + use<T, E, F>)
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: FnMut(&Connection) -> Result<T, E> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let command = Box::new(Typed { run: command, result: None, sender: Some(sender) });
    (command, async move { receiver.await.unwrap_or_else(|_| Err(StoreError::Closed.into())) })
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

/// The directory of a tenant's files below a state directory.
#[must_use]
pub fn tenant_dir(state: &std::path::Path, tenant: &TenantId) -> PathBuf {
    state.join("tenants").join(tenant.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{count, put};

    fn store(dir: &std::path::Path, threads: usize) -> Store {
        Store::start(&StoreConfig {
            dir: dir.to_owned(),
            threads,
            durability: Durability::None,
            idle_close: Duration::from_secs(60),
            max_open: 2,
        })
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
