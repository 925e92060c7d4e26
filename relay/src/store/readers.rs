//! Reads that may be long: on threads and connections of their own, so that no settlement waits behind them,
//! and each for so long at the most.

use super::StoreError;
use super::executor::Db;
use rusqlite::{Connection, OpenFlags};
use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::error;

/// Questions at once.
const QUESTIONS: usize = 2;
/// How long one may take.
const LONGEST: Duration = Duration::from_secs(2);
/// Steps of SQLite between two looks at the clock.
const STEPS: i32 = 10_000;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that read, one job of a database at a time each: a tenant that asks much waits for itself, and for nobody else.
pub(super) struct Readers {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something came, or something is done.
    news: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(Db, Job)>,
    /// Of these one runs.
    busy: HashSet<Db>,
    is_closed: bool,
}

impl Readers {
    /// For questions, which have little time.
    pub(super) fn for_questions() -> Self {
        Self::start("read", QUESTIONS)
    }

    /// For what goes through a whole database.
    pub(super) fn for_long() -> Self {
        Self::start("long", 1)
    }

    fn start(name: &str, count: usize) -> Self {
        let queue = Arc::<Queue>::default();
        let mut threads = vec![];
        for number in 0..count {
            let queue = Arc::clone(&queue);
            match std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || queue.serve()) {
                Ok(thread) => threads.push(thread),
                // Others, or nobody, read: whoever asks is told that the store is closed.
                Err(error) => error!(%error, "cannot start a reading thread"),
            }
        }
        if threads.is_empty() {
            queue.lock().is_closed = true;
        }
        Self { queue, threads: Mutex::new(threads) }
    }

    /// Hands a job over; it is dropped where nobody reads any more.
    pub(super) fn run(&self, of: &Db, job: Job) {
        let mut waiting = self.queue.lock();
        if !waiting.is_closed {
            waiting.jobs.push_back((of.clone(), job));
            self.queue.news.notify_one();
        }
    }

    /// Waits for what runs; what waits is dropped with the queue.
    pub(super) fn close(&self) {
        let dropped = {
            let mut waiting = self.queue.lock();
            waiting.is_closed = true;
            std::mem::take(&mut waiting.jobs)
        };
        drop(dropped);
        self.queue.news.notify_all();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                error!("a reading thread panicked");
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut waiting = self.lock();
        while !waiting.is_closed {
            let next = waiting.jobs.iter().position(|(of, _)| !waiting.busy.contains(of));
            let Some((of, job)) = next.and_then(|at| waiting.jobs.remove(at)) else {
                waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.busy.insert(of.clone());
            drop(waiting);
            // Whoever waits for the answer sees the end of its sender.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                error!(?of, "a read panicked");
            }
            waiting = self.lock();
            waiting.busy.remove(&of);
            // The next of that database may run, also by another thread.
            self.news.notify_one();
        }
    }
}

/// Asks a database that is there. Errors: `TooLong` after [`LONGEST`]; writing fails.
pub(super) fn ask<T>(
    path: &Path,
    question: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    question(&open(path, Some(LONGEST))?)
}

/// The same for what takes as long as it takes. Errors: writing fails.
pub(super) fn go_through<T>(
    path: &Path,
    look: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let connection = open(path, None)?;
    // All of it as it is at one moment.
    connection.execute_batch("BEGIN")?;
    look(&connection)
}

/// Opens a database that is there, to read, for so long.
fn open(path: &Path, longest: Option<Duration>) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Failed { operation: "open to read", why: error.to_string() };
    // Not read-only: a reader of a write-ahead log takes its part in keeping the log's index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(1)).map_err(failed)?;
    if let Some(until) = longest.map(|longest| Instant::now() + longest) {
        connection.progress_handler(STEPS, Some(move || Instant::now() > until)).map_err(failed)?;
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::{self, Durability, Kind};

    #[test]
    fn a_question_has_a_time_and_writes_nothing() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("t.db");
        let book = schema::open(&path, Kind::Tenant, Durability::None).expect("made");
        let count =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT count(*) FROM n";
        let ask = |longest, most: i64| -> Result<i64, StoreError> {
            Ok(open(&path, Some(longest))?.query_row(count, [most], |row| row.get(0))?)
        };
        assert_eq!(ask(LONGEST, 1000).expect("short"), 1000);
        let endless = ask(Duration::from_millis(20), i64::MAX).expect_err("has a time");
        assert!(matches!(endless, StoreError::TooLong), "{endless}");
        let written = open(&path, None).expect("opened").execute("UPDATE session_size SET bytes = 7", []);
        assert!(written.is_err());
        // What is written meanwhile is seen by the next one.
        book.execute("UPDATE session_size SET bytes = 8", []).expect("written");
        let size = |read: &Connection| -> Result<i64, StoreError> {
            Ok(read.query_row("SELECT bytes FROM session_size", [], |row| row.get(0))?)
        };
        assert_eq!(super::ask(&path, size).expect("read"), 8);
    }

    #[test]
    fn a_tenant_that_asks_much_waits_for_itself_alone() {
        let readers = Readers::for_questions();
        let (told, heard) = std::sync::mpsc::channel();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let of = |name: &str| Db::Tenant(name.parse().expect("a name"));
        let mut wait = Some(wait);
        for number in 0..5 {
            let (told, first) = (told.clone(), wait.take());
            readers.run(
                &of("much"),
                Box::new(move || {
                    // The first takes its time.
                    let _ = first.map(|wait| wait.recv());
                    told.send(("much", number)).expect("heard");
                }),
            );
        }
        let told_of_little = told.clone();
        readers.run(&of("little"), Box::new(move || told_of_little.send(("little", 0)).expect("heard")));
        assert_eq!(heard.recv().expect("told"), ("little", 0), "it does not wait for the other's");
        go_on.send(()).expect("waited for");
        let rest: Vec<_> = heard.iter().take(5).map(|(_, number)| number).collect();
        assert_eq!(rest, [0, 1, 2, 3, 4], "one after the other");
        readers.close();
        // Nobody reads any more: what is handed over is dropped.
        readers.run(&of("much"), Box::new(move || told.send(("much", 9)).expect("heard")));
        assert!(heard.recv().is_err());
    }
}
