//! What a TCP connection's handles, streams and driver share.

use crate::connection::{Ended, Traffic};
use belay_protocol::error::CloseCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

#[derive(Debug)]
pub(super) struct Shared {
    /// This side wants it closed: with what, and why.
    close: watch::Sender<Option<(CloseCode, String)>>,
    /// It is over.
    ended: watch::Sender<Option<Ended>>,
    /// Wants a PING to be sent.
    pub(super) ping: Notify,
    /// In microseconds; 0 before the first.
    rtt_us: AtomicU64,
    /// The client may have all its streams.
    granted: AtomicBool,
    traffic: Mutex<Traffic>,
    /// The socket took not all that it was given.
    full: AtomicBool,
    /// Streams that somebody holds.
    streams: watch::Sender<usize>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            close: watch::Sender::new(None),
            ended: watch::Sender::new(None),
            ping: Notify::new(),
            rtt_us: AtomicU64::new(0),
            granted: AtomicBool::new(false),
            traffic: Mutex::default(),
            full: AtomicBool::new(false),
            streams: watch::Sender::new(0),
        }
    }

    /// The first reason stands.
    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        self.close.send_if_modified(|close| {
            let first = close.is_none();
            if first {
                *close = Some((code, reason.to_owned()));
            }
            first
        });
    }

    /// Waits until this side wants it closed.
    pub(super) async fn wanted_closed(&self) -> (CloseCode, String) {
        let mut close = self.close.subscribe();
        // The sender is `self`: it does not go while this waits.
        match close.wait_for(Option::is_some).await {
            Ok(close) => close.clone().unwrap_or((CloseCode::DONE, String::new())),
            Err(_) => (CloseCode::DONE, String::new()),
        }
    }

    pub(super) fn end(&self, ended: Ended) {
        self.ended.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(ended);
            first
        });
    }

    pub(super) async fn closed(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
        ended.ok().flatten().unwrap_or(Ended { code: None, why: "closed".into() })
    }

    /// Over, or about to be by this side's own wish.
    pub(super) fn ended(&self) -> Option<Ended> {
        let ended = self.ended.borrow().clone();
        ended.or_else(|| self.close.borrow().as_ref().map(|(_, reason)| ended_here(reason)))
    }

    pub(super) fn grant(&self) {
        self.granted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_granted(&self) -> bool {
        self.granted.load(Ordering::Relaxed)
    }

    pub(super) fn measured(&self, rtt: Duration) {
        self.rtt_us.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        let us = self.rtt_us.load(Ordering::Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    pub(super) fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn received(&self, bytes: usize) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.arrivals += 1;
        traffic.bytes_received += bytes as u64;
    }

    /// Room in a socket that was full comes of the peer's acknowledgements: a sign of life, as good as
    /// anything that arrives. While much is sent, nothing else may for long.
    pub(super) fn sent(&self, bytes: usize) {
        let was_full = self.full.swap(false, Ordering::Relaxed);
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.bytes_sent += bytes as u64;
        traffic.arrivals += u64::from(was_full);
    }

    pub(super) fn found_full(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Waits until no more than `most` streams are held.
    pub(super) async fn streams_end(&self, most: usize) {
        // The sender is `self`.
        let _ = self.streams.subscribe().wait_for(|streams| *streams <= most).await;
    }
}

/// A stream that somebody holds, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenStream(Arc<Shared>);

impl OpenStream {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.streams.send_modify(|streams| *streams += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.send_modify(|streams| *streams -= 1);
    }
}

/// Closed by this side.
pub(super) fn ended_here(reason: &str) -> Ended {
    Ended { code: None, why: format!("closed here ({reason})") }
}
