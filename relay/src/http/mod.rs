//! HTTP, for callers without a tunnel: the APIs of OpenAI and Anthropic, belay's own, and what the deployment before
//! had.
//!
//! It is thin. A connection is a task ([`listener`]); a request shows who it is ([`access`]), its body is read
//! within the relay's budget for bodies, and it becomes a stream to the handlers that tunnels have ([`inside`]). An
//! LLM request runs in a task of its own, as one from a tunnel does: it is settled whatever becomes of its caller.
//! What is said of a failure is one JSON shape ([`reply`]), or that of the caller's own API.

mod access;
pub(crate) mod callers;
mod compat;
mod content;
#[expect(unused_qualifications, reason = "what utoipa writes is qualified")]
mod conversation;
mod front;
mod health;
mod inside;
mod jwt;
mod listener;
#[expect(unused_qualifications, reason = "what utoipa writes is qualified")]
mod money;
mod page;
mod payments;
mod prompt;
mod reply;
mod routes;
mod run;
mod session_shapes;
#[expect(unused_qualifications, reason = "what utoipa writes is qualified")]
mod sessions;
#[expect(unused_qualifications, reason = "what utoipa writes is qualified")]
mod shapes;
mod stripe;
mod sync;
mod sync_shapes;
mod tls;

pub(crate) use listener::HttpListener;

/// Why there is no HTTP side.
#[derive(Debug, thiserror::Error)]
pub enum HttpStartError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The keys that tokens are checked with cannot be used.
    #[error(transparent)]
    Jwt(#[from] jwt::JwtKeysError),
    /// The address cannot be bound.
    #[error("the address cannot be bound")]
    Bind(#[from] std::io::Error),
}

use crate::config;
use crate::connection::Shared;
use access::Access;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Http {
    shared: Arc<Shared>,
    access: Access,
    config: config::Http,
    /// Places for events of strangers.
    hooks: Semaphore,
    /// Cancelled when it waits no longer for answers that run.
    end: CancellationToken,
}

impl Http {
    pub(crate) fn new(shared: Arc<Shared>, config: config::Http) -> Result<Arc<Self>, HttpStartError> {
        let escalator = &shared.escalator;
        let (store, env) = (escalator.store.clone(), escalator.env.clone());
        let access = Access::new(&config, store, Arc::clone(&shared.registry), env)?;
        let hooks = Semaphore::new(stripe::AT_ONCE);
        Ok(Arc::new(Self { access, config, hooks, end: CancellationToken::new(), shared }))
    }

    /// The largest request body, in bytes.
    fn max_body(&self) -> usize {
        self.shared.escalator.config.limits.request_body as usize
    }

    fn now_ms(&self) -> u64 {
        self.shared.escalator.env.clock.now_ms()
    }
}
