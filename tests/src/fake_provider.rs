//! A scriptable LLM provider on 127.0.0.1: OpenAI Chat Completions, Responses and Embeddings, Anthropic
//! Messages and its counting of tokens.
//!
//! It answers as the real ones do (role chunk, deltas, finish, usage only at the end, pings) and
//! misbehaves as they do, by a [`Script`]: the one in the request's last user message
//! (`{"fake":{"tokens":50,"pace_ms":2}}`), else the next of those queued with
//! [`push_script`](FakeProvider::push_script), else the one set with
//! [`set_script`](FakeProvider::set_script).
//!
//! It keeps every request (path, headers, body bytes) and counts what becomes of it: a caller that
//! goes away before the end is noticed at once, since hyper drops an answer's body with its
//! connection. Tests wait for counts with a deadline ([`wait_until`](FakeProvider::wait_until)).
//!
//! One task accepts and owns the connections' tasks; all end when the [`FakeProvider`] is dropped.

mod dialect;
mod play;
mod responses;
mod script;

pub use script::{Script, Usage};

use bytes::Bytes;
use dialect::{Api, Writer};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use play::Playing;
use script::{Asked, read_body};
use std::collections::VecDeque;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// What has happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_open: u64,
    /// Requests that arrived whole.
    pub requests: u64,
    /// Requests that are being answered now.
    pub running: u64,
    /// Requests whose script was played to its end, a cut that it asks for included.
    pub finished: u64,
    /// Requests whose caller went away before that.
    pub cancelled: u64,
    /// Events begun, all requests together.
    pub events: u64,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Counted from 1.
    pub number: u64,
    /// The path.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Bytes,
}

impl Received {
    /// The body as JSON; `Null` if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A running fake provider. Dropping it closes its connections.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Scripts {
    standing: Script,
    queued: VecDeque<Script>,
}

#[derive(Debug)]
struct Shared {
    counts: watch::Sender<Counts>,
    scripts: Mutex<Scripts>,
    received: Mutex<Vec<Received>>,
}

impl FakeProvider {
    /// Listens on a free port of 127.0.0.1. Errors: the port cannot be bound.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Listens on a certain address, so that one can come back where another was.
    pub async fn start_at(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            counts: watch::Sender::new(Counts::default()),
            scripts: Mutex::default(),
            received: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The base URL for a relay's configuration.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What to do with requests that say nothing themselves, from now on.
    pub fn set_script(&self, script: Script) {
        lock(&self.shared.scripts).standing = script;
    }

    /// What to do with the next request that says nothing itself, once.
    pub fn push_script(&self, script: Script) {
        lock(&self.shared.scripts).queued.push_back(script);
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// All requests so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The latest request. Panics if there was none.
    #[must_use]
    pub fn last(&self) -> Received {
        lock(&self.shared.received).last().cloned().expect("no request has reached the fake provider")
    }

    /// Waits until the counts are as wanted and returns them. Panics after `deadline`, saying
    /// `what` was waited for and what the counts are.
    pub async fn wait_until(&self, what: &str, deadline: Duration, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        match timeout(deadline, counts.wait_for(wanted)).await {
            // The sender lives as long as `self`.
            Ok(counts) => *counts.expect("the provider is there"),
            Err(_) => panic!("{what}: not within {deadline:?}; the fake provider has {:?}", self.counts()),
        }
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Ended connections first, so that their number stays that of the open ones.
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve_connection(stream, Arc::clone(&shared))); }
                // Out of file descriptors: others will be closed meanwhile.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    shared.counts.send_modify(|counts| {
        counts.connections += 1;
        counts.connections_open += 1;
    });
    let serving = Arc::clone(&shared);
    let service = service_fn(move |request| serve(Arc::clone(&serving), request));
    // A connection that ends in an error was left by its caller or dropped by its script.
    let _ = http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), service).await;
    shared.counts.send_modify(|counts| counts.connections_open -= 1);
}

/// A connection is to be closed without an answer.
#[derive(Debug)]
struct Died;

impl std::fmt::Display for Died {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the script closes the connection here")
    }
}

impl std::error::Error for Died {}

async fn serve(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Playing>, Died> {
    let (head, body) = request.into_parts();
    // A caller that leaves while it still sends has asked nothing.
    let body = body.collect().await.map_err(|_| Died)?.to_bytes();
    let guard = RunningGuard::new(&shared);
    let path = head.uri.path().to_owned();
    let number = {
        let mut received = lock(&shared.received);
        let number = received.len() as u64 + 1;
        received.push(Received { number, path: path.clone(), headers: head.headers, body: body.clone() });
        number
    };
    shared.counts.send_modify(|counts| counts.requests += 1);
    let api = Api::of_path(&path);
    let read = match api {
        None => Err((404, format!("there is no {path} here"))),
        Some(_) if head.method != Method::POST => Err((405, "only POST is served here".to_owned())),
        Some(_) => read_body(&body).map_err(|why| (400, why)),
    };
    let (asked, script) = match read {
        Ok(asked) => {
            let script = asked.script.clone().unwrap_or_else(|| shared.next_script());
            (asked, script)
        }
        Err((status, why)) => {
            let body = api.unwrap_or(Api::OpenAiChat).refusal(status, &why);
            (Asked::default(), Script { status, body: Some(body), ..Script::default() })
        }
    };
    let mut script = script;
    if script.refusals > 0 {
        let same = lock(&shared.received).iter().filter(|one| one.body == body).count() as u64;
        if same <= script.refusals {
            script = Script::refusal(503, Some(0));
        }
    }
    if script.die {
        guard.finish();
        return Err(Died);
    }
    if script.hang {
        pending::<()>().await;
    }
    if script.head_ms > 0 {
        sleep(Duration::from_millis(script.head_ms)).await;
    }
    Ok(answer(Writer { api: api.unwrap_or(Api::OpenAiChat), number, asked, script }, guard).await)
}

/// Status, headers and the body that plays the rest.
async fn answer(writer: Writer, guard: RunningGuard) -> Response<Playing> {
    let script = &writer.script;
    let streams = script.status == 200 && script.body.is_none() && writer.asked.stream && writer.api.streams();
    let mut head = HeaderMap::new();
    head.insert(CONTENT_TYPE, HeaderValue::from_static(if streams { EVENTS } else { "application/json" }));
    let usual = writer.api.headers(writer.number).into_iter().map(|(name, value)| (name.to_owned(), value));
    for (name, value) in usual.chain(script.headers.clone()) {
        // A script is written by a test: what cannot stand in a header is its mistake.
        let name: HeaderName = name.parse().expect("a header name");
        head.insert(name, HeaderValue::from_str(&value).expect("a header value"));
    }
    let status = StatusCode::from_u16(script.status).expect("an HTTP status");
    let body = if streams {
        Playing::stream(writer, guard)
    } else if let Some(body) = script.body.clone() {
        Playing::whole(writer, body, guard)
    } else if script.status == 200 {
        let cap = writer.asked.cap.filter(|_| !script.ignore_cap).unwrap_or(u64::MAX);
        let tokens = script.tokens.min(cap);
        // All of it is ready at once, as late as a stream would have ended.
        let pauses = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        sleep(script.first_token() + script.pace() * pauses).await;
        let body = writer.whole(&script.whole_text(tokens), tokens, script.tokens > tokens);
        Playing::whole(writer, body, guard)
    } else {
        let body = writer.api.refusal(script.status, "the script refuses this request");
        Playing::whole(writer, body, guard)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = head;
    response
}

const EVENTS: &str = "text/event-stream; charset=utf-8";

impl Shared {
    fn next_script(&self) -> Script {
        let mut scripts = lock(&self.scripts);
        let queued = scripts.queued.pop_front();
        queued.unwrap_or_else(|| scripts.standing.clone())
    }
}

/// Counts a request as running until it is dropped: as finished if it was told so, else as left by
/// its caller.
#[derive(Debug)]
struct RunningGuard {
    shared: Arc<Shared>,
    finished: bool,
}

impl RunningGuard {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.counts.send_modify(|counts| counts.running += 1);
        Self { shared: Arc::clone(shared), finished: false }
    }

    fn finish(mut self) {
        self.finished = true;
    }

    fn counter(&self) -> EventCounter {
        EventCounter(Arc::clone(&self.shared))
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.shared.counts.send_modify(|counts| {
            counts.running -= 1;
            *(if self.finished { &mut counts.finished } else { &mut counts.cancelled }) += 1;
        });
    }
}

/// Counts events.
#[derive(Debug)]
struct EventCounter(Arc<Shared>);

impl EventCounter {
    fn event(&self) {
        self.0.counts.send_modify(|counts| counts.events += 1);
    }
}

#[cfg(test)]
mod tests;
