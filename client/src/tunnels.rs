//! Where a client finds its tunnel: the one that is up, or why there is none.
//!
//! The keeper (`reconnect`) puts tunnels in; calls and requests take them out. A request that lost
//! its tunnel waits here for the next one.

use crate::error::ClientError;
use crate::status::{Phase, TunnelStatus};
use crate::tunnel::Tunnel;
use crate::vitals::Sensors;
use belay_protocol::error::CloseCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// How long a tunnel that is closed waits until the relay knows which requests are cancelled.
const LAST_CANCELS: Duration = Duration::from_secs(1);

/// Shared by a client, its keeper and its requests.
#[derive(Debug)]
pub(crate) struct Tunnels {
    pub(crate) status: watch::Sender<TunnelStatus>,
    current: watch::Sender<Option<Arc<Tunnel>>>,
    refused: Mutex<Option<CloseCode>>,
    /// Requests that wait for an answer: while there are any, a silent path is soon suspected.
    outstanding: watch::Sender<usize>,
    /// Of these, those that wait for a tunnel.
    queued: AtomicUsize,
    /// Users that are no request and wait for a tunnel.
    wanted: watch::Sender<usize>,
    /// What heartbeats say beside being heard.
    pub(crate) signs: Signs,
    /// Certificates that were made then or before are to be renewed soon; 0: none.
    pub(crate) renew_since_ms: watch::Sender<u64>,
    /// Requests that nobody waits for, until the relay knows.
    pub(crate) leaving: TaskTracker,
    /// Where the relay should be, for people.
    addresses: String,
    pub(crate) stop: CancellationToken,
}

impl Tunnels {
    pub(crate) fn new(now_ms: u64, addresses: String, signs: Signs) -> Arc<Self> {
        Arc::new(Self {
            status: watch::Sender::new(TunnelStatus::starting(now_ms)),
            current: watch::Sender::new(None),
            refused: Mutex::new(None),
            outstanding: watch::Sender::new(0),
            wanted: watch::Sender::new(0),
            queued: AtomicUsize::new(0),
            signs,
            renew_since_ms: watch::Sender::new(0),
            leaving: TaskTracker::new(),
            addresses,
            stop: CancellationToken::new(),
        })
    }

    /// A tunnel is up, or none is any more.
    pub(crate) fn set(&self, tunnel: Option<Arc<Tunnel>>) {
        self.current.send_replace(tunnel);
    }

    /// What callers are told instead of waiting for a tunnel, until there is one.
    pub(crate) fn refuse(&self, code: Option<CloseCode>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = code;
    }

    /// The relay asks for the renewal of certificates that were made then or before.
    pub(crate) fn asked_to_renew(&self, since_ms: u64) {
        self.renew_since_ms.send_if_modified(|known| std::mem::replace(known, since_ms) != since_ms);
    }

    /// The relay's refusal, if it stands.
    fn refusal(&self) -> Option<ClientError> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).map(ClientError::Closed)
    }

    /// How many requests wait for a tunnel.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// See [`crate::Client::tunnel`]. Dropping the future loses nothing.
    pub(crate) async fn tunnel(&self, until: Instant) -> Result<Arc<Tunnel>, ClientError> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(&self.queued);
        let mut current = self.current.subscribe();
        let mut status = self.status.subscribe();
        let began = Instant::now();
        let waited = timeout_at(until, async {
            loop {
                status.mark_unchanged();
                // A relay that is going away takes no new streams: the next tunnel will.
                if let Some(tunnel) = current.borrow_and_update().clone()
                    && tunnel.takes_streams()
                {
                    return Ok(tunnel);
                }
                if let Some(refused) = self.refusal() {
                    return Err(refused);
                }
                if self.stop.is_cancelled() || status.borrow().phase == Phase::Closed {
                    return Err(ClientError::Stopped);
                }
                // Neither ends: `self` has the senders.
                let _ = tokio::select! {
                    // In order, so that a simulation repeats.
                    biased;
                    changed = current.changed() => changed,
                    changed = status.changed() => changed,
                };
            }
        });
        waited.await.unwrap_or_else(|_| {
            let why = self.status.borrow().last_failure.clone();
            let why = why.unwrap_or_else(|| format!("no answer within {} s", began.elapsed().as_secs()));
            Err(ClientError::Unreachable { addresses: self.addresses.clone(), why })
        })
    }

    /// The same with a duration.
    pub(crate) async fn tunnel_within(&self, within: Duration) -> Result<Arc<Tunnel>, ClientError> {
        self.tunnel(Instant::now() + within).await
    }

    /// Waits, shortly, until the relay knows of every request that nobody waits for: a connection's end says
    /// nothing of the kind. To be called before a tunnel is closed for good.
    pub(crate) async fn last_cancels(&self) {
        self.leaving.close();
        if timeout(LAST_CANCELS, self.leaving.wait()).await.is_err() {
            debug!("closing before the relay has confirmed that requests are cancelled");
        }
    }

    /// Somebody waits for a tunnel until this is dropped: the next attempt comes soon.
    pub(crate) fn wants(self: &Arc<Self>) -> Wanted {
        self.wanted.send_modify(|count| *count += 1);
        Wanted(Arc::clone(self))
    }

    /// True while somebody waits for an answer, or for a tunnel.
    pub(crate) fn is_waited_for(&self) -> bool {
        *self.outstanding.borrow() > 0 || *self.wanted.borrow() > 0
    }

    /// Ready once that is so.
    pub(crate) async fn waited_for(&self) {
        let (mut outstanding, mut wanted) = (self.outstanding.subscribe(), self.wanted.subscribe());
        // Neither ends: `self` has the senders.
        tokio::select! {
            biased;
            _ = outstanding.wait_for(|count| *count > 0) => {}
            _ = wanted.wait_for(|count| *count > 0) => {}
        }
    }

    /// How many requests wait for an answer, to follow.
    pub(crate) fn outstanding(&self) -> watch::Receiver<usize> {
        self.outstanding.subscribe()
    }

    /// Another request waits, until the guard is dropped.
    pub(crate) fn wait_for_answer(self: &Arc<Self>) -> Outstanding {
        self.outstanding.send_modify(|count| *count += 1);
        Outstanding(Arc::clone(self))
    }
}

/// See [`Tunnels::wants`].
#[derive(Debug)]
pub(crate) struct Wanted(Arc<Tunnels>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|count| *count -= 1);
    }
}

struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What heartbeats say beside being heard.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    pub(crate) sensors: Option<Arc<dyn Sensors>>,
    /// The model that the computer has loaded itself.
    pub(crate) loaded_model: Option<String>,
    /// The model that requests will probably ask for.
    pub(crate) prewarm_model: String,
    /// Somebody wants the relay to be pre-warmed.
    pub(crate) prewarm: Notify,
}

/// A request that waits for an answer.
#[derive(Debug)]
pub(crate) struct Outstanding(Arc<Tunnels>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.send_modify(|count| *count -= 1);
    }
}
