//! The requests that a reader can come back to: those that run, and those that are over and whose
//! answer waits to be fetched.
//!
//! Each is owned by its own task; here is only how to reach it. A task that ends takes its entry
//! out (a [`Registration`] is dropped), and a reader that came too late is told to ask again.

use super::log::LogBudget;
use super::{ClientStream, failed, send_failed};
use crate::ops::memory::Memory;
use belay_protocol::id::{DeviceId, RequestId, TenantId};
use belay_protocol::message::FailureCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Readers of one request come at least so far apart; sooner ones are told to ask again.
const BETWEEN_READERS: Duration = Duration::from_millis(50);
/// Readers of one request that wait to be taken over at once; more are told to ask again.
const READERS: usize = 4;

/// A stream that wants to go on reading.
#[derive(Debug)]
pub(super) struct Attach {
    pub(super) stream: ClientStream,
    /// The number of the next event that it wants.
    pub(super) next: u64,
}

/// Why a stream could not be handed over; it comes back.
#[derive(Debug)]
pub(super) enum NotAttached {
    /// There is no such request here.
    Unknown(Box<ClientStream>),
    /// It is another device's.
    OtherDevice(Box<ClientStream>),
    /// Too many readers at once, or it is just ending.
    Busy(Box<ClientStream>),
}

type Key = (TenantId, RequestId);

#[derive(Debug)]
struct Entry {
    device: DeviceId,
    digest: [u8; 32],
    readers: mpsc::Sender<Attach>,
    revoked: CancellationToken,
    /// When a reader was last handed over.
    attached: Option<Instant>,
    /// Over, and kept only for a reader that may come back.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: u64,
    evicted: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Key, Entry>,
    /// Entries that only wait.
    waiting: usize,
    /// Counts answers that began to wait: the lowest has waited longest.
    waits: u64,
    /// One has been told to go and has not given its memory back yet.
    evicting: bool,
}

/// All requests that can be resumed.
#[derive(Debug)]
pub struct Flights {
    inner: Mutex<Inner>,
    /// Memory for their events.
    pub(crate) budget: Arc<LogBudget>,
}

/// What a new request finds under its id.
pub(super) enum Entered {
    /// It may run.
    New(Registration),
    /// It is here already.
    Known,
    /// Another one is.
    Conflict,
}

impl Flights {
    /// None yet. All event logs together may hold `max_bytes` of the process's memory.
    #[must_use]
    pub fn new(max_bytes: usize, memory: Arc<Memory>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), budget: LogBudget::new(max_bytes, memory) })
    }

    /// Cuts off everything that a device runs or has waiting.
    pub fn revoke_device(&self, device: &DeviceId) {
        self.lock().entries.values().filter(|entry| entry.device == *device).for_each(|entry| entry.revoked.cancel());
    }

    /// The same for a whole tenant.
    pub fn revoke_tenant(&self, tenant: &TenantId) {
        let inner = self.lock();
        inner.entries.iter().filter(|((id, _), _)| id == tenant).for_each(|(_, entry)| entry.revoked.cancel());
    }

    /// Requests that run.
    #[must_use]
    pub fn running(&self) -> usize {
        let inner = self.lock();
        inner.entries.len() - inner.waiting
    }

    /// Answers that wait for their reader.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Bytes that all event logs hold.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.budget.used()
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        tenant: &TenantId,
        id: RequestId,
        device: &DeviceId,
        digest: [u8; 32],
    ) -> Entered {
        let key = (tenant.clone(), id);
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get(&key) {
            let same = entry.device == *device && entry.digest == digest;
            return if same { Entered::Known } else { Entered::Conflict };
        }
        let (sender, readers) = mpsc::channel(READERS);
        let revoked = CancellationToken::new();
        let entry = Entry {
            device: device.clone(),
            digest,
            readers: sender,
            revoked: revoked.clone(),
            attached: None,
            waiting: None,
        };
        inner.entries.insert(key.clone(), entry);
        Entered::New(Registration { flights: Arc::clone(self), key, readers, revoked })
    }

    /// Hands a stream to the request's task.
    pub(super) fn attach(
        &self,
        tenant: &TenantId,
        id: RequestId,
        device: &DeviceId,
        attach: Attach,
    ) -> Result<(), NotAttached> {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&(tenant.clone(), id)) else {
            return Err(NotAttached::Unknown(Box::new(attach.stream)));
        };
        if entry.device != *device {
            return Err(NotAttached::OtherDevice(Box::new(attach.stream)));
        }
        // Each costs a replay.
        let now = Instant::now();
        if entry.attached.is_some_and(|last| now.duration_since(last) < BETWEEN_READERS) {
            return Err(NotAttached::Busy(Box::new(attach.stream)));
        }
        entry.attached = Some(now);
        entry.readers.try_send(attach).map_err(|error| NotAttached::Busy(Box::new(error.into_inner().stream)))
    }

    /// Lets the answer go that has waited longest for its reader. One at a time: when it has given
    /// its memory back, the next one is looked for, until the budget is kept or none is left.
    pub(super) fn evict(&self) {
        let mut inner = self.lock();
        if inner.evicting {
            return;
        }
        let waiting = inner.entries.values().filter_map(|entry| entry.waiting.as_ref());
        if let Some(oldest) = waiting.min_by_key(|waiting| waiting.since) {
            oldest.evicted.cancel();
            inner.evicting = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place; dropping it takes the request out.
#[derive(Debug)]
pub(super) struct Registration {
    flights: Arc<Flights>,
    key: Key,
    /// Streams that want to read on.
    pub(super) readers: mpsc::Receiver<Attach>,
    /// Cancelled when the device or its tenant loses access.
    pub(super) revoked: CancellationToken,
}

impl Registration {
    /// The request is over and its answer waits. The returned token is cancelled when its memory is
    /// needed for others.
    pub(super) fn wait(&self) -> CancellationToken {
        let evicted = CancellationToken::new();
        let mut inner = self.flights.lock();
        inner.waits += 1;
        let waiting = Waiting { since: inner.waits, evicted: evicted.clone() };
        if let Some(entry) = inner.entries.get_mut(&self.key)
            && entry.waiting.replace(waiting).is_none()
        {
            inner.waiting += 1;
        }
        drop(inner);
        if self.flights.budget.is_exceeded() {
            self.flights.evict();
        }
        evicted
    }

    /// A reader is here: the answer does not wait any more.
    pub(super) fn serve(&self) {
        let mut inner = self.flights.lock();
        let waited = inner.entries.get_mut(&self.key).and_then(|entry| entry.waiting.take());
        inner.waiting -= usize::from(waited.is_some());
        // Its reader came just when it was told to go: another one has to.
        if waited.is_some_and(|waiting| waiting.evicted.is_cancelled()) {
            inner.evicting = false;
        }
    }

    /// Takes the request out; readers that came meanwhile are told to ask again.
    pub(super) async fn close(mut self) {
        self.take_out();
        self.readers.close();
        while let Ok(mut late) = self.readers.try_recv() {
            send_failed(&mut late.stream, &ask_again(self.key.1)).await;
        }
    }

    fn take_out(&self) {
        let mut inner = self.flights.lock();
        let waited = inner.entries.remove(&self.key).and_then(|entry| entry.waiting);
        inner.waiting -= usize::from(waited.is_some());
        if waited.is_some_and(|waiting| waiting.evicted.is_cancelled()) {
            inner.evicting = false;
            drop(inner);
            if self.flights.budget.is_exceeded() {
                self.flights.evict();
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // After `close`, another run of the same id may stand there.
        if !self.readers.is_closed() {
            self.take_out();
        }
    }
}

/// For a reader that cannot be served at this moment.
pub(super) fn ask_again(id: RequestId) -> belay_protocol::message::Failed {
    let mut failure = failed(
        id,
        FailureCode::IN_PROGRESS,
        "the request is busy with another reader or just ending",
        "ask again after retry_after_ms",
    );
    failure.retry_after_ms = Some(50);
    failure
}
