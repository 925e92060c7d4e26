//! Upstream LLM APIs. A provider knows no tenants and no prices: it takes a body and gives an
//! answer as bytes. [`http`] is every real one (they differ in path and headers only), [`demo`]
//! the built-in one that needs no key.

pub(crate) mod addresses;
pub mod demo;
pub mod http;

use crate::config::{Config, ProviderConfig, ProviderKind};
use crate::settings::Settings;
use belay_protocol::message::{Dialect, Operation};
use belay_protocol::trace::TraceContext;
use bytes::Bytes;
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use thiserror::Error;

/// Why a provider gave no answer, or no more of it.
#[derive(Debug, Clone, Error)]
pub enum ProviderError {
    /// No connection: the provider never saw the request, it costs nothing.
    #[error("cannot reach the provider: {0}")]
    Unreachable(String),
    /// The connection failed after the request was sent: it may have cost something.
    #[error("the provider's connection failed: {0}")]
    Broken(String),
}

/// One request to a provider.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is asked for: it decides the path.
    pub operation: Operation,
    /// The body, final.
    pub body: Bytes,
    /// Caller's headers that are on the allow-list.
    pub headers: Vec<(String, String)>,
    /// The tenant's own key, in place of the relay's.
    pub key: Option<SecretString>,
    /// Where the call stands in a trace.
    pub trace: Option<TraceContext>,
}

/// The bytes of an answer, in the pieces in which they came.
pub trait AnswerBody: Send {
    /// The next piece; `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>>;
}

/// A provider's answer. Dropping it ends the request at the provider.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers that are on the allow-list.
    pub headers: Vec<(String, String)>,
    /// The rest.
    pub body: Box<dyn AnswerBody>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Answer {
    /// The next piece; `None` at the end. Dropping the future loses nothing.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, ProviderError>> {
        poll_fn(|cx| self.body.poll_chunk(cx)).await
    }

    /// True if the body is a stream of server-sent events.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("text/event-stream"))
    }
}

/// Ready when a provider is reached, or not: true if it answered.
pub type WarmFuture = Pin<Box<dyn Future<Output = bool> + Send>>;

/// What a look at a provider comes to.
pub type LookFuture = Pin<Box<dyn Future<Output = Result<Looked, ProviderError>> + Send>>;

/// What a provider answers to whom wants to know its models, which costs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looked {
    /// HTTP status; 0: it is in this process.
    pub status: u16,
    /// What time it has, milliseconds since 1970.
    pub date_ms: Option<u64>,
}

/// What a call comes to.
pub type CallFuture = Pin<Box<dyn Future<Output = Result<Answer, ProviderError>> + Send>>;

/// An upstream LLM API.
pub trait Provider: Send + Sync + fmt::Debug {
    /// The dialect of its bodies.
    fn dialect(&self) -> Dialect;
    /// Sends a request once it is polled, not before. Dropping the future gives it up.
    fn call(&self, call: Call) -> CallFuture;
    /// Looks whether it can be reached and takes the relay's key.
    fn look(&self) -> LookFuture {
        Box::pin(std::future::ready(Ok(Looked::default())))
    }
    /// Sees to it that a connection stands when a request comes. Costs nothing at the provider.
    fn warm(&self) -> WarmFuture {
        Box::pin(std::future::ready(true))
    }
}

/// Providers, by name.
pub type Providers = BTreeMap<String, Arc<dyn Provider>>;

/// The configured providers, for whoever only looks at them. Errors: the TLS set-up failed.
pub fn configured(config: &Config) -> Result<Providers, String> {
    from_config(config, None)
}

/// Makes the configured providers; those of which nothing has changed are the ones that there were `before`. Errors: the
/// TLS set-up failed.
pub(crate) fn from_config(config: &Config, before: Option<&Settings>) -> Result<Providers, String> {
    let before = before.filter(|before| before.config.timeouts.first_event == config.timeouts.first_event);
    let kept = |name: &str, wanted: &ProviderConfig| {
        let before = before?;
        before.config.providers.get(name).filter(|known| known.is_same(wanted))?;
        before.providers.get(name).cloned()
    };
    let common = http::client(&config.timeouts, None, false)?;
    let mut made = Providers::new();
    for (name, provider) in &config.providers {
        if let Some(kept) = kept(name, provider) {
            made.insert(name.clone(), kept);
            continue;
        }
        let client = match (&provider.authorities, provider.private) {
            (None, false) => common.clone(),
            (authorities, private) => http::client(&config.timeouts, authorities.as_deref(), private)?,
        };
        let provider: Arc<dyn Provider> = match provider.kind {
            ProviderKind::Demo => Arc::new(demo::Demo::new(provider.pace)),
            ProviderKind::Anthropic | ProviderKind::OpenAi => Arc::new(http::Http::new(client, provider)?),
        };
        made.insert(name.clone(), provider);
    }
    Ok(made)
}
