//! The threads that touch the disk. Pieces that wait together are written together.

use super::disk::Disk;
use super::{BlobError, TEMPORARY};
use belay_protocol::item::Part;
use belay_protocol::message::Encoding;
use belay_protocol::packing::unpack_part;
use bytes::Bytes;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use tracing::error;

/// Threads. Their queue is bounded by its callers: each awaits its answer.
const THREADS: usize = 2;
/// The most pieces that share their syncs.
const MAX_GROUP: usize = 32;

/// A piece to be kept.
pub(super) struct Write {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) part: Part,
    pub(super) encoding: Encoding,
    pub(super) bytes: Bytes,
    pub(super) done: oneshot::Sender<Result<(), BlobError>>,
}

/// Anything else that touches the disk.
pub(super) type Work = Box<dyn FnOnce(&dyn Disk) + Send>;

pub(super) enum Job {
    Keep(Box<Write>),
    Other(Work),
}

pub(super) struct Threads {
    disk: Arc<dyn Disk>,
    /// `None`: the caller does the work.
    sender: Option<Mutex<Option<Sender<Job>>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Threads({:?})", self.disk)
    }
}

impl Threads {
    pub(super) fn start(disk: Arc<dyn Disk>, inline: bool) -> Self {
        if inline {
            return Self { disk, sender: None, threads: Mutex::default() };
        }
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = vec![];
        for number in 0..THREADS {
            let (receiver, disk) = (Arc::clone(&receiver), Arc::clone(&disk));
            let work = move || serve(&receiver, &*disk);
            match std::thread::Builder::new().name(format!("blob-{number}")).spawn(work) {
                Ok(thread) => threads.push(thread),
                // The other one, or nobody, works: whoever asks is told that the relay is closed.
                Err(error) => error!(%error, "cannot start a thread for blobs"),
            }
        }
        Self { disk, sender: Some(Mutex::new(Some(sender))), threads: Mutex::new(threads) }
    }

    /// Hands a job over; it is dropped where nobody works any more.
    pub(super) fn run(&self, job: Job) {
        match &self.sender {
            None => work(&*self.disk, vec![job]),
            Some(sender) => {
                if let Some(sender) = &*sender.lock().unwrap_or_else(PoisonError::into_inner) {
                    let _ = sender.send(job);
                }
            }
        }
    }

    pub(super) fn close(&self) {
        if let Some(sender) = &self.sender {
            sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                error!("a thread for blobs panicked");
            }
        }
    }
}

fn serve(receiver: &Mutex<Receiver<Job>>, disk: &dyn Disk) {
    loop {
        let jobs = {
            let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(first) = receiver.recv() else { return };
            // The other thread has its part too.
            let more = receiver.try_iter().take(MAX_GROUP - 1);
            std::iter::once(first).chain(more).collect::<Vec<_>>()
        };
        work(disk, jobs);
    }
}

fn work(disk: &dyn Disk, jobs: Vec<Job>) {
    let mut groups: HashMap<PathBuf, Vec<Write>> = HashMap::new();
    for job in jobs {
        match job {
            Job::Other(work) => work(disk),
            Job::Keep(write) => match unpack_part(write.encoding, write.bytes.clone(), &write.part) {
                Some(_) => groups.entry(write.dir.clone()).or_default().push(*write),
                None => answer(*write, Err(BlobError::Mismatch)),
            },
        }
    }
    for (dir, writes) in groups {
        keep(disk, &dir, writes);
    }
}

fn answer(write: Write, result: Result<(), BlobError>) {
    // Whoever sent it may have gone: then no row names the file, and it goes.
    let _ = write.done.send(result);
}

/// Writes, syncs, renames, and syncs the directory.
fn keep(disk: &dyn Disk, dir: &std::path::Path, writes: Vec<Write>) {
    if let Err(error) = disk.make_dir(dir) {
        let error = BlobError::from(error);
        writes.into_iter().for_each(|write| answer(write, Err(error.clone())));
        return;
    }
    let temporary = |write: &Write| dir.join(format!("{}{TEMPORARY}", write.name));
    let files: Vec<_> = writes.iter().map(|write| (temporary(write), &*write.bytes)).collect();
    let written = disk.write(&files);
    let mut renamed = vec![];
    for (write, written) in writes.into_iter().zip(written) {
        let (new, path) = (temporary(&write), dir.join(&write.name));
        match written.and_then(|()| disk.rename(&new, &path)) {
            Ok(()) => renamed.push(write),
            Err(error) => {
                // It may not be there at all; what is left goes after a day.
                let _ = disk.remove(&new);
                answer(write, Err(error.into()));
            }
        }
    }
    if renamed.is_empty() {
        return;
    }
    let synced = disk.sync_dir(dir).map_err(BlobError::from);
    renamed.into_iter().for_each(|write| answer(write, synced.clone()));
}
