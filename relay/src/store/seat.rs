//! A worker's seat: its queue, its thread, and when the worker is lent to another one.
//!
//! A lone command that waits for a thread to wake, and whose caller's thread has to wake for the answer, waits as long for
//! that as for all of its statements. So its caller may run it, and sleep while the disk writes.

use super::commit::{Command, MAX_BATCH};
use super::executor::Db;
use super::log;
use super::worker::Worker;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::error;

/// How often an idle worker looks for databases to close.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

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

/// A worker with its queue and its thread.
pub(super) struct Seat {
    jobs: Sender<Job>,
    /// Commands that were sent and have no answer yet.
    waiting: Arc<AtomicUsize>,
    /// With its thread while that works. Poisoned: it panicked.
    worker: Arc<Mutex<Worker>>,
}

impl Seat {
    /// Starts the thread. Without it every command is answered with `Closed`.
    pub(super) fn start(worker: Worker, name: String) -> (Self, std::io::Result<JoinHandle<()>>) {
        let (sender, jobs) = channel();
        let (worker, waiting) = (Arc::new(Mutex::new(worker)), Arc::<AtomicUsize>::default());
        let seat = Self { jobs: sender, waiting: Arc::clone(&waiting), worker: Arc::clone(&worker) };
        let thread = std::thread::Builder::new().name(name).spawn(move || serve(&worker, &jobs, &waiting));
        (seat, thread)
    }

    /// False: the worker has gone, and the job with it.
    pub(super) fn tell(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }

    /// Hands a command to the worker's thread. False: it has gone, and the command with it.
    pub(super) fn queue(&self, db: Db, command: Box<dyn Command>) -> bool {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let is_there = self.tell(Job::Run { db, command });
        if !is_there {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        is_there
    }

    /// Whether a command that came now would run on the calling thread.
    pub(super) fn can_run_here(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0 && self.worker.try_lock().is_ok_and(|worker| worker.is_quick())
    }

    /// Runs a command on the calling thread, if nobody is before it and the disk is quick. It comes back where that
    /// cannot be.
    pub(super) fn run_here(&self, db: &Db, command: Box<dyn Command>) -> Result<(), Box<dyn Command>> {
        // Whoever runs here must not overtake what the same caller has queued.
        if self.waiting.load(Ordering::Acquire) > 0 {
            return Err(command);
        }
        match self.worker.try_lock() {
            Ok(mut worker) => worker.run_quickly(db, command),
            Err(_) => Err(command),
        }
    }
}

/// The worker's thread.
fn serve(worker: &Mutex<Worker>, jobs: &Receiver<Job>, queued: &AtomicUsize) {
    let mut patience = HOUSEKEEPING;
    loop {
        let first = jobs.recv_timeout(patience);
        let mut worker = match worker.lock() {
            Ok(worker) => worker,
            Err(poisoned) => {
                // Who knows what it left: nothing is committed any more, and the watchdog sees that nobody answers.
                error!("a command panicked on its caller's thread");
                return poisoned.into_inner().give_up();
            }
        };
        worker.broken.clear();
        let first = match first {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                patience = HOUSEKEEPING;
                worker.move_logs(log::WHILE_QUIET);
                worker.close_idle(true);
                worker.measure_logs();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => Job::Stop,
        };
        let mut waiting = Waiting::default();
        waiting.take(first);
        waiting.take_all(jobs);
        while let Some((db, group)) = waiting.groups.pop_front() {
            let done = worker.run_batch(&db, group, || waiting.more(&db, jobs));
            queued.fetch_sub(done, Ordering::AcqRel);
            worker.metrics.queued.dec_by(i64::try_from(done).unwrap_or(i64::MAX));
        }
        let is_free = queued.load(Ordering::Acquire) == 0;
        worker.move_logs(if is_free { log::WHILE_FREE } else { log::AT_ONCE });
        if worker.longest_log > log::WHILE_QUIET {
            patience = log::QUIET;
        }
        if waiting.stop {
            worker.close_all();
            return;
        }
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

#[cfg(test)]
mod tests {
    use crate::store::StoreError;
    use crate::store::executor::{Db, Store, StoreConfig};
    use crate::store::schema::Durability;
    use crate::store::testing::{count, put};
    use rusqlite::Connection;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn only_a_lone_command_for_an_idle_worker_with_a_quick_disk_runs_on_its_callers_thread() {
        let dir = tempfile::tempdir().expect("made");
        let store = Store::start(&StoreConfig {
            dir: dir.path().to_owned(),
            threads: 2,
            durability: Durability::None,
            idle_close: Duration::from_secs(60),
            max_open: 2,
        });
        let db = || Db::Tenant("acme".parse().expect("name"));
        let ran_here = async |is_alone| {
            let mine = std::thread::current().id();
            let command = move |_: &Connection| Ok::<_, StoreError>(std::thread::current().id() == mine);
            store.run_here_if(is_alone, db(), command).await.expect("run")
        };
        // Once the worker has answered, and looked after its files, and the disk is believed.
        let runs_here = async || {
            let until = Instant::now() + Duration::from_secs(30);
            while !ran_here(true).await {
                assert!(Instant::now() < until, "it never runs here");
                store.run(db(), count).await.expect("counted");
            }
        };
        // The file is not open yet.
        assert!(!ran_here(true).await);
        runs_here().await;
        assert!(!ran_here(false).await);
        // What was queued before comes before.
        let (queued, after) = (store.run(db(), put("one")), store.run_here_if(true, db(), count));
        assert_eq!(after.await.expect("counted"), 1);
        queued.await.expect("stored");
        runs_here().await;
        // Somebody else writes the file: the worker's thread waits for that.
        let other = Connection::open(store.path(&db())).expect("opened");
        other.execute_batch("BEGIN IMMEDIATE").expect("begun");
        let mut waits = std::pin::pin!(store.run_here_if(true, db(), put("two")));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut waits).await.is_err());
        other.execute_batch("COMMIT").expect("over");
        waits.await.expect("stored");
        // That commit was slow: it takes a while until the disk is believed again.
        assert!(!ran_here(true).await);
        runs_here().await;
        store.close();
        let closed = store.run_here_if(true, db(), count).await;
        assert!(matches!(closed, Err(StoreError::Closed)), "{closed:?}");
    }
}
