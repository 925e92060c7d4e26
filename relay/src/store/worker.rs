//! A worker: owns connections and runs the commands for their databases.

use super::commit::{Command, Committed, Group, transact, transact_at_once};
use super::executor::{BOOK, CENTRAL, Db, StoreConfig, tenant_dir};
use super::schema::{self, Kind};
use super::watch::Watchers;
use super::{StoreError, log};
use crate::ops::metrics::StoreMetrics;
use rusqlite::Connection;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::warn;

/// A disk whose commits take longer than this is waited for by the worker's own thread alone.
const QUICK: Duration = Duration::from_millis(1);

/// Whether a tenant's directory without a book has had one: something lies there.
fn is_used(dir: &std::path::Path) -> bool {
    let is_something =
        |entry: std::fs::DirEntry| !entry.file_name().to_str().is_some_and(belay_certs::file::is_temporary);
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_something))
}

/// Owns connections; lives on one thread, and is lent to others while that sleeps.
pub(super) struct Worker {
    pub(super) config: StoreConfig,
    pub(super) open: HashMap<Db, Open>,
    pub(super) commits: Arc<AtomicU64>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) metrics: StoreMetrics,
    /// Of its logs, as it saw them last.
    pub(super) wal_bytes: i64,
    /// In pages.
    pub(super) longest_log: u32,
    /// The longest of its last commits; those of before count less and less.
    pub(super) slowest: Duration,
    pub(super) is_closed: bool,
    /// Connections that are of no use: to close one may take long, and is left to the worker's own thread.
    pub(super) broken: Vec<Open>,
}

pub(super) struct Open {
    connection: Connection,
    path: PathBuf,
    used: Instant,
    /// Pages of its log that are not in the database yet.
    log: u32,
}

impl Worker {
    /// Opens the database if need be, and runs a group with what `more` has come for it meanwhile. How many commands that
    /// were.
    pub(super) fn run_batch(&mut self, db: &Db, mut group: Group, more: impl FnMut() -> Group) -> usize {
        let began = Instant::now();
        let committed = match self.connection(db) {
            Ok(connection) => transact(connection, &mut group, more),
            Err(error) => Err((error, false)),
        };
        let done = self.over(db, group, committed, began);
        self.broken.clear();
        done
    }

    pub(super) fn is_quick(&self) -> bool {
        self.slowest < QUICK && !self.is_closed
    }

    /// Runs a command if that will take no longer than one quick commit; else it comes back.
    pub(super) fn run_quickly(&mut self, db: &Db, command: Box<dyn Command>) -> Result<(), Box<dyn Command>> {
        let began = Instant::now();
        if !self.is_quick() {
            return Err(command);
        }
        let Some(open) = self.open.get_mut(db) else { return Err(command) };
        let (group, committed) = transact_at_once(&open.connection, command)?;
        open.used = began;
        self.over(db, group, committed, began);
        Ok(())
    }

    /// Answers a group that was committed, or was not. How many commands that were.
    fn over(&mut self, db: &Db, group: Group, committed: Committed, began: Instant) -> usize {
        let pages = log::told();
        if let (Ok(()), Some(open)) = (&committed, self.open.get_mut(db)) {
            open.log = pages.unwrap_or(open.log);
            self.longest_log = self.longest_log.max(open.log);
            if let Db::Tenant(tenant) = db {
                self.watchers.committed(tenant, &open.connection);
            }
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        let committed = committed.map_err(|(error, broken)| {
            if broken {
                warn!(?db, %error, "a commit failed; its database is opened anew");
                self.broken.extend(self.open.remove(db));
            }
            error
        });
        let took = began.elapsed();
        self.slowest = took.max(self.slowest - self.slowest / 16);
        let done = group.len();
        for command in group {
            command.reply(committed.clone());
        }
        // Nobody waits for these.
        self.metrics.batch.observe(done as f64);
        self.metrics.commit.observe(took.as_secs_f64());
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
            self.open.insert(db.clone(), Open { connection, path, used: Instant::now(), log: 0 });
        }
        match self.open.get_mut(db) {
            Some(open) => {
                open.used = Instant::now();
                Ok(&open.connection)
            }
            None => Err(StoreError::Closed),
        }
    }

    /// Moves logs that are longer than so many pages into their databases.
    pub(super) fn move_logs(&mut self, above: u32) {
        if self.longest_log <= above {
            return;
        }
        self.longest_log = 0;
        for open in self.open.values_mut() {
            if open.log > above && log::was_moved(&open.connection, open.log) {
                open.log = 0;
            }
            self.longest_log = self.longest_log.max(open.log);
        }
    }

    pub(super) fn measure_logs(&mut self) {
        let len = |open: &Open| std::fs::metadata(open.path.with_extension("db-wal")).map_or(0, |meta| meta.len());
        let sum = self.open.values().map(len).sum::<u64>();
        let sum = i64::try_from(sum).unwrap_or(i64::MAX);
        self.metrics.wal.inc_by(sum - self.wal_bytes);
        self.wal_bytes = sum;
    }

    pub(super) fn close_idle(&mut self, look: bool) {
        if !look && self.open.len() < self.config.max_open {
            return;
        }
        let idle = self.config.idle_close;
        self.open.retain(|_, open| {
            let keep = open.used.elapsed() < idle;
            if !keep {
                log::end(&open.connection);
            }
            keep
        });
    }

    fn close_least_used(&mut self) {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(db, _)| db.clone());
        if let Some(open) = oldest.and_then(|db| self.open.remove(&db)) {
            log::end(&open.connection);
        }
    }

    /// Closes everything as it is; what was begun is undone.
    pub(super) fn give_up(&mut self) {
        self.is_closed = true;
        self.open.clear();
        self.broken.clear();
    }

    pub(super) fn close_all(&mut self) {
        self.is_closed = true;
        self.broken.clear();
        for (_, open) in self.open.drain() {
            log::end(&open.connection);
        }
    }
}
