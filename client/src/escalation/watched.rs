//! When the keeper is to look after the path for a request.

use crate::tunnels::{Outstanding, Tunnels};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// A request that has waited so long is one for which the path is watched.
const WATCH_AFTER: Duration = Duration::from_millis(200);
/// Whether the keeper looks after the path for this request. It does once the request has waited for
/// a while: it is not to be woken in the way of a first token.
#[derive(Debug)]
pub(super) enum Watched {
    Soon(Pin<Box<Sleep>>),
    Now(#[expect(dead_code, reason = "held")] Outstanding),
    Over,
}

impl Watched {
    /// For a request that is just sent.
    pub(super) fn soon() -> Self {
        Self::Soon(Box::pin(sleep(WATCH_AFTER)))
    }

    /// It waits for its answer.
    pub(super) fn poll(&mut self, tunnels: &Arc<Tunnels>, cx: &mut Context<'_>) {
        if let Self::Soon(wait) = self
            && wait.as_mut().poll(cx).is_ready()
        {
            self.now(tunnels);
        }
    }

    /// It has lost its stream, or waited long enough.
    pub(super) fn now(&mut self, tunnels: &Arc<Tunnels>) {
        if let Self::Soon(_) = self {
            *self = Self::Now(tunnels.wait_for_answer());
        }
    }
}
