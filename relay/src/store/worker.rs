//! A worker: one thread that owns connections and runs the commands for their databases.

use super::StoreError;
use super::commit::{Command, MAX_BATCH, transact};
use super::executor::{BOOK, CENTRAL, Db, StoreConfig, tenant_dir};
use super::schema::{self, Kind};
use super::watch::Watchers;
use crate::ops::metrics::StoreMetrics;
use rusqlite::Connection;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::warn;

/// How often an idle worker looks for databases to checkpoint and close.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// A write-ahead log above this is checkpointed as soon as nobody waits.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// A write-ahead log above this is checkpointed even while commands wait.
const CHECKPOINT_NOW_BYTES: u64 = 64 << 20;

/// What a worker is told.
pub(super) enum Job {
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

/// Whether a tenant's directory without a book has had one: something lies there.
fn is_used(dir: &std::path::Path) -> bool {
    let is_something =
        |entry: std::fs::DirEntry| !entry.file_name().to_str().is_some_and(belay_certs::file::is_temporary);
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_something))
}

/// Owns connections; lives on one thread.
pub(super) struct Worker {
    pub(super) config: StoreConfig,
    pub(super) open: HashMap<Db, Open>,
    pub(super) commits: Arc<AtomicU64>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) metrics: StoreMetrics,
    /// Of its logs, as it saw them last.
    pub(super) wal_bytes: i64,
    pub(super) commits_since_look: u32,
}

pub(super) struct Open {
    connection: Connection,
    path: PathBuf,
    used: Instant,
}

impl Worker {
    pub(super) fn serve(mut self, jobs: &Receiver<Job>) {
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
    pub(super) fn run_batch(
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

    pub(super) fn close_idle(&mut self, look: bool) {
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

    pub(super) fn close_all(&mut self) {
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
