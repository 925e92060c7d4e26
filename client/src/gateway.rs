//! The local gateway: an HTTP server on loopback that speaks the APIs of OpenAI and Anthropic, and sends
//! every request through the tunnel. It is a pipe: bodies and events pass through as they are, and the
//! relay decides everything that costs.
//!
//! A connection is a task; a request's events go from the tunnel's stream into its socket inside that
//! task. A caller that goes away cancels its request, unless it had sent an `Idempotency-Key`: then it may
//! come back to its answer. The gateway never sees a provider's key, and does not pass on what callers
//! call theirs.

mod api;
mod body;
mod forward;
mod guard;
mod lanes;
mod local;
mod models;
mod own;
mod recent;
mod relayed;
mod room;

use crate::client::Client;
use api::{Endpoint, endpoints};
use belay_http::api::{Api, Llm};
use belay_http::patient::Patient;
use belay_http::refusal::Refusal;
use belay_http::upload::Upload;
use body::Body;
use http::header::{ALLOW, CONNECTION, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lanes::Lanes;
use recent::Recent;
use room::Bodies;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// The header that shows the secret.
const SECRET: &str = "belay-secret";
/// Bytes of headers at the most.
const HEADER_BYTES: usize = 64 << 10;
/// How long running answers may go on once the gateway is to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// And then, how long its caller may take to be told.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often readers of the feed are told how far running requests are.
const PROGRESS: Duration = Duration::from_millis(250);
/// After a failure to accept a connection, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What callers have to show.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// True if that is it; takes as long for every guess.
    fn is(&self, given: &str) -> bool {
        given.as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self(token.to_owned())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(****)")
    }
}

/// What may be set for a gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Callers have to show it. `None`: whoever reaches the address may ask.
    pub token: Option<Token>,
    /// Whoever shows it may end the gateway, and use the tunnel as a `belay` command. `None`: nobody may.
    pub secret: Option<Token>,
    /// Names beside `localhost` and the address itself that callers may call this computer by.
    pub hosts: Vec<String>,
    /// Origins whose pages may ask, such as `app://obsidian.md`.
    pub origins: Vec<String>,
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// How long a request waits for the tunnel.
    pub wait: Duration,
    /// How long a caller may take to send a request's headers, and its connection be idle.
    pub header_timeout: Duration,
    /// After so long without a word, a caller that streams gets a sign of life.
    pub keep_alive: Duration,
    /// A caller that takes nothing of its answer for so long has left.
    pub patience: Duration,
    /// Remember the beginning of what is asked, for the page.
    pub show_prompts: bool,
}

impl Settings {
    /// True for who can read the secret of this client's directory.
    fn is_own_command(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(SECRET).and_then(|secret| secret.to_str().ok()).unwrap_or_default();
        self.secret.as_ref().is_some_and(|secret| secret.is(given))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token: None,
            secret: None,
            hosts: vec![],
            origins: vec![],
            max_body: 32 << 20,
            connections: 1024,
            wait: Duration::from_secs(15),
            header_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            patience: Duration::from_secs(300),
            show_prompts: false,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    client: Arc<Client>,
    lanes: Lanes,
    settings: Settings,
    recent: Arc<Recent>,
    local: SocketAddr,
    since_ms: u64,
    /// What runs for callers.
    tasks: TaskTracker,
    /// Places for other commands that use the tunnel.
    commands: Arc<Semaphore>,
    bodies: Bodies,
    /// Cancelled when it is to end.
    stop: CancellationToken,
    /// Cancelled when it waits no longer for answers that run.
    end: CancellationToken,
}

/// A gateway that can be run.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    listener: TcpListener,
}

impl Gateway {
    /// A gateway on that listener. Errors: the listener has no address.
    pub fn new(client: Arc<Client>, settings: Settings, listener: TcpListener) -> std::io::Result<Self> {
        let local = listener.local_addr()?;
        let since_ms = client.now_ms();
        let lanes = Lanes::new(Arc::clone(&client));
        let shared = Arc::new(Shared {
            client,
            lanes,
            settings,
            recent: Recent::new(),
            local,
            since_ms,
            tasks: TaskTracker::new(),
            commands: Arc::new(Semaphore::new(local::COMMANDS)),
            bodies: Bodies::new(),
            stop: CancellationToken::new(),
            end: CancellationToken::new(),
        });
        Ok(Self { shared, listener })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Cancelled, it ends the gateway, as somebody with the secret may.
    #[must_use]
    pub fn stopper(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Serves until it is stopped; then takes no more requests and gives running answers a few seconds.
    pub async fn run(self) {
        let Self { shared, listener } = self;
        let stop = shared.stop.clone();
        let tasks = shared.tasks.clone();
        tasks.spawn(tell_progress(Arc::clone(&shared)));
        let places = Arc::new(Semaphore::new(shared.settings.connections));
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = accept(&listener, &places) => accepted,
            };
            let Some((stream, place)) = accepted else {
                sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                serve(shared, stream).await;
                drop(place);
            });
        }
        drop(listener);
        tasks.close();
        if timeout(LAST_WORDS, tasks.wait()).await.is_err() {
            // What still runs is told so, and cancelled by being dropped.
            shared.end.cancel();
            tasks.wait().await;
        }
        for client in shared.lanes.others() {
            client.close().await;
        }
    }
}

/// The next connection, with a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // It is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            warn!(%error, "cannot accept a connection");
            None
        }
    }
}

/// One connection, until its caller closes it or the gateway ends.
async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let (stop, end) = (shared.stop.clone(), shared.end.clone());
    // Tokens are small, and each is wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot send small pieces at once");
    }
    let header_timeout = shared.settings.header_timeout;
    let stream = Patient::new(stream, shared.settings.patience);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(handle(&shared, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = end.cancelled() => match timeout(FAREWELL, connection).await {
                    Ok(ended) => ended,
                    // Its caller does not read.
                    Err(_) => return,
                },
            }
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        debug!(%error, "a caller's connection ended");
    }
}

/// Tells readers of the feed how far running requests are, and how the tunnel is.
async fn tell_progress(shared: Arc<Shared>) {
    let mut status = shared.client.status();
    let mut tick = interval(PROGRESS);
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = own::status(&shared);
                shared.recent.tell("status", &now);
            }
            _ = tick.tick() => {
                for client in shared.lanes.idle() {
                    client.close().await;
                }
                if shared.recent.has_readers() {
                    shared.recent.tell_progress();
                }
            }
        }
    }
}

/// One request.
async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    let mut upload = Upload::new(body, &head.headers);
    let endpoint = Endpoint::of(head.uri.path());
    let api = match &endpoint {
        Some(Endpoint::Llm(Llm::Forward(forward))) => forward.api(),
        _ => Api::of(&head.headers),
    };
    let answered = match guard::check(&shared.settings, shared.local, endpoint.as_ref(), &head) {
        Ok(()) => answer(shared, endpoint, api, &mut head, &mut upload).await,
        Err(refusal) => Err(refusal),
    };
    let mut response =
        answered.unwrap_or_else(|refusal| refusal.in_trace_of(&head.headers).answer(api).map(Body::whole));
    response.headers_mut().extend(guard::cors(&shared.settings, &head.headers));
    if !upload.discard(shared.settings.max_body).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(
    shared: &Arc<Shared>,
    endpoint: Option<Endpoint>,
    api: Api,
    head: &mut http::request::Parts,
    upload: &mut Upload<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let path = head.uri.path();
    let Some(endpoint) = endpoint else {
        let shown: String = path.chars().take(80).collect();
        let message = format!("there is no {} {shown} here; there is {}", head.method, endpoints());
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message));
    };
    let method = endpoint.method();
    if head.method == Method::OPTIONS && !guard::cors(&shared.settings, &head.headers).is_empty() {
        let mut response = Response::new(Body::whole(""));
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let is_allowed = head.method == method || (method == Method::GET && head.method == Method::HEAD);
    if !is_allowed {
        let message = format!("{path} is asked with {method}, not with {}", head.method);
        let mut response =
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message).answer(api).map(Body::whole);
        if let Ok(value) = HeaderValue::from_str(method.as_str()) {
            response.headers_mut().insert(ALLOW, value);
        }
        return Ok(response);
    }
    match endpoint {
        Endpoint::Llm(Llm::Forward(forward)) => forward::forward(shared, forward, head, upload).await,
        Endpoint::Llm(Llm::Models(one)) => models::answer(shared, api, one.as_deref()).await,
        Endpoint::Tunnel => local::let_in(shared, head),
        Endpoint::Own(own) => own::answer(shared, own, head.uri.query().unwrap_or_default(), &head.headers).await,
    }
}

/// A whole answer in JSON.
fn json(value: &serde_json::Value) -> Response<Body> {
    typed("application/json", value.to_string())
}

/// A whole answer.
fn typed(content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
