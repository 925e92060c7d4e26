//! Reads that may be long: on threads and connections of their own, so that no settlement waits behind them,
//! and each for so long at the most.

use super::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::error;

/// Reads at once.
const THREADS: usize = 2;
/// How long one may take.
const LONGEST: Duration = Duration::from_secs(2);
/// Steps of SQLite between two looks at the clock.
const STEPS: i32 = 10_000;

type Job = Box<dyn FnOnce() + Send>;

/// The threads that read.
pub(super) struct Readers {
    sender: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    pub(super) fn start() -> Self {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = vec![];
        for number in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            match std::thread::Builder::new().name(format!("read-{number}")).spawn(move || serve(&receiver)) {
                Ok(thread) => threads.push(thread),
                // The other one, or nobody, reads: whoever asks is told that the store is closed.
                Err(error) => error!(%error, "cannot start a reading thread"),
            }
        }
        Self { sender: Mutex::new(Some(sender)), threads: Mutex::new(threads) }
    }

    /// Hands a job over; it is dropped where nobody reads any more.
    pub(super) fn run(&self, job: Job) {
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = sender.send(job);
        }
    }

    /// Waits for what runs; what waits is dropped with the queue.
    pub(super) fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                error!("a reading thread panicked");
            }
        }
    }
}

fn serve(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

/// Asks a database that is there. Errors: `TooLong` after [`LONGEST`]; writing fails.
pub(super) fn ask<T>(
    path: &Path,
    question: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    question(&open(path, LONGEST)?)
}

/// Opens a database that is there, to read, for so long.
fn open(path: &Path, longest: Duration) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Failed { operation: "open to read", why: error.to_string() };
    // Not read-only: a reader of a write-ahead log takes its part in keeping the log's index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(1)).map_err(failed)?;
    let until = Instant::now() + longest;
    connection.progress_handler(STEPS, Some(move || Instant::now() > until)).map_err(failed)?;
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
            Ok(open(&path, longest)?.query_row(count, [most], |row| row.get(0))?)
        };
        assert_eq!(ask(LONGEST, 1000).expect("short"), 1000);
        let endless = ask(Duration::from_millis(20), i64::MAX).expect_err("has a time");
        assert!(matches!(endless, StoreError::TooLong), "{endless}");
        let written = open(&path, LONGEST).expect("opened").execute("UPDATE session_size SET bytes = 7", []);
        assert!(written.is_err());
        // What is written meanwhile is seen by the next one.
        book.execute("UPDATE session_size SET bytes = 8", []).expect("written");
        let size = |read: &Connection| -> Result<i64, StoreError> {
            Ok(read.query_row("SELECT bytes FROM session_size", [], |row| row.get(0))?)
        };
        assert_eq!(super::ask(&path, size).expect("read"), 8);
    }
}
