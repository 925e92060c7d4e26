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
pub(crate) use tls::{Accepts, Certificates};

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
use crate::store::central::is_readable;
use crate::store::executor::Db;
use access::Access;
use jwt::Tokens;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A configuration that is ready to be in force.
pub(crate) struct Next {
    config: config::Http,
    tls: Option<Accepts>,
    issuers: Option<(Tokens, Vec<config::Issuer>)>,
}

/// What all requests share.
pub(crate) struct Http {
    shared: Arc<Shared>,
    access: Access,
    config: RwLock<Arc<config::Http>>,
    /// What new connections are shown; `None`: the port is plain.
    tls: RwLock<Option<Accepts>>,
    certificates: Certificates,
    /// Places for events of strangers.
    hooks: Semaphore,
    /// Whether the books could be read when somebody asked last.
    books: Mutex<Option<(Instant, bool)>>,
    /// Cancelled when it waits no longer for answers that run.
    end: CancellationToken,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Http {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: config::Http,
        certificates: Certificates,
    ) -> Result<Arc<Self>, HttpStartError> {
        let escalator = &shared.escalator;
        let (store, env) = (escalator.store.clone(), escalator.env.clone());
        let access = Access::new(&config, store, Arc::clone(&shared.registry), env)?;
        let hooks = Semaphore::new(stripe::AT_ONCE);
        let tls = RwLock::new(certificates.acceptor(&config.tls)?);
        let config = RwLock::new(Arc::new(config));
        let (books, end) = (Mutex::default(), CancellationToken::new());
        Ok(Arc::new(Self { access, config, tls, certificates, hooks, books, end, shared }))
    }

    /// Whether the books can be read, as of a second ago at the most: strangers may ask as often as they like.
    async fn can_read_books(&self) -> bool {
        let known = *self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, can)) = known.filter(|(at, _)| at.elapsed() < Duration::from_secs(1)) {
            return can;
        }
        let can = self.shared.escalator.store.run(Db::Central, is_readable).await.is_ok();
        *self.books.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), can));
        can
    }

    fn config(&self) -> Arc<config::Http> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|accepts| accepts.acceptor.clone())
    }

    /// When the certificate ends that it shows, milliseconds since 1970.
    pub(crate) fn certificate_ends_ms(&self) -> Option<u64> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|accepts| accepts.ends_ms)
    }

    fn show(&self, tls: Option<Accepts>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// Makes another configuration ready; nothing has changed until it is [taken](Next::take). Errors: its certificate or
    /// the keys of an issuer cannot be used.
    pub(crate) fn prepare(&self, config: config::Http) -> Result<Next, HttpStartError> {
        Ok(Next { tls: self.certificates.acceptor(&config.tls)?, issuers: self.access.prepare(&config)?, config })
    }

    /// Puts it in force, for all that comes from now on.
    pub(crate) fn take(&self, next: Next) {
        self.show(next.tls);
        self.access.take(next.issuers);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next.config);
    }

    /// The largest request body, in bytes.
    fn max_body(&self) -> usize {
        self.shared.escalator.config().limits.request_body as usize
    }

    fn now_ms(&self) -> u64 {
        self.shared.escalator.env.clock.now_ms()
    }
}
