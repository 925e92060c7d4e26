//! What stands before every handler: strictness, headers for browsers, and the count of what runs.

use super::{Http, compat, routes};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use belay_http::api::Llm;
use belay_http::refusal::Refusal;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH,
    CONTENT_SECURITY_POLICY, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// What browsers may ask with, and see of an answer.
const METHODS: &str = "GET, POST, PUT";
const HEADERS: &str = "authorization, x-api-key, content-type, idempotency-key, last-event-id, anthropic-version, \
     anthropic-beta, openai-beta, traceparent, belay-cost-cap, belay-may-reduce, belay-deadline-ms";
/// A page that somebody makes of an answer loads nothing; the relay's own says what it loads.
const POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Where a caller comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The front of all connections.
#[derive(Debug, Clone)]
pub(super) struct Front {
    http: Arc<Http>,
    router: Router,
    is_secure: bool,
}

/// The front of one connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    front: Front,
    peer: Peer,
    running: Arc<Running>,
}

/// Requests of a connection that have no whole answer yet.
#[derive(Debug, Default)]
struct Running {
    count: AtomicUsize,
    begun: Notify,
    ended: Notify,
}

/// Counts a request until its answer has gone out.
#[derive(Debug)]
struct Count {
    running: Arc<Running>,
    _leaves: TaskTrackerToken,
}

impl Drop for Count {
    fn drop(&mut self) {
        self.running.count.fetch_sub(1, Ordering::Relaxed);
        self.running.ended.notify_one();
    }
}

impl Front {
    pub(super) fn new(http: Arc<Http>, is_secure: bool) -> Self {
        let router = routes::router(Arc::clone(&http));
        Self { http, router, is_secure }
    }

    pub(super) fn of(&self, peer: Peer) -> Connection {
        Connection { front: self.clone(), peer, running: Arc::default() }
    }
}

impl Connection {
    pub(super) fn service(&self) -> Handler {
        Handler(self.clone())
    }

    /// Ready when nothing has run for so long.
    pub(super) async fn idle_for(&self, idle: Duration) {
        loop {
            while self.running.count.load(Ordering::Relaxed) > 0 {
                self.running.ended.notified().await;
            }
            if timeout(idle, self.running.begun.notified()).await.is_err()
                && self.running.count.load(Ordering::Relaxed) == 0
            {
                return;
            }
        }
    }

    async fn handle(self, mut request: Request<Incoming>) -> Response {
        self.running.count.fetch_add(1, Ordering::Relaxed);
        self.running.begun.notify_one();
        // A relay that leaves waits for it, as for a stream of a tunnel.
        let count = Count { running: Arc::clone(&self.running), _leaves: self.front.http.shared.streams.token() };
        let cors = self.cors(request.headers());
        let response = match strict(&request) {
            Err(refusal) => {
                let mut response = super::reply::own(&refusal);
                // Where its request ends, nobody knows.
                if request.version() <= Version::HTTP_11 {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
            // A browser asks before it shows any key.
            Ok(()) if request.method() == Method::OPTIONS && !cors.is_empty() => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Ok(()) => {
                let caller = self.caller(request.headers());
                request.extensions_mut().insert(caller);
                // The way of a token: nothing is looked up that need not be.
                if let (&Method::POST, Some(Llm::Forward(forward))) = (request.method(), Llm::of(request.uri().path()))
                {
                    let answered = compat::forward(&self.front.http, forward, request.map(Body::new)).await;
                    return self.finished(answered, cors, count);
                }
                let router = TowerToHyperService::new(self.front.router.clone());
                match router.call(request).await {
                    // It has the header that says which methods there are, and no words.
                    Ok(response) if response.status() == StatusCode::METHOD_NOT_ALLOWED => in_words(&response),
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        };
        self.finished(response, cors, count)
    }

    /// What every answer has.
    fn finished(&self, mut response: Response, cors: Vec<(HeaderName, HeaderValue)>, count: Count) -> Response {
        self.front.http.shared.escalator.metrics.answered_over_http(response.status().as_u16());
        let headers = response.headers_mut();
        headers.extend(cors);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
        if self.front.is_secure {
            headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
        }
        response.map(|body| Body::new(Counted { body, _count: count }))
    }

    /// Where a request comes from: behind a proxy that is trusted, what it says.
    fn caller(&self, headers: &HeaderMap) -> Peer {
        let config = self.front.http.config();
        let trusted = &config.trusted_proxies;
        let Peer(remote) = self.peer;
        if !trusted.contains(&remote.ip().to_canonical()) {
            return self.peer;
        }
        let named = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let mut named: Vec<IpAddr> =
            named.flat_map(|all| all.split(',')).filter_map(|one| one.trim().parse().ok()).collect();
        // The last one that no proxy of ours has: whatever stands before it is the caller's own word.
        while named.last().is_some_and(|last| trusted.contains(&last.to_canonical())) {
            named.pop();
        }
        named.pop().map_or(self.peer, |ip| Peer(SocketAddr::new(ip, 0)))
    }

    /// The headers that let a page of an allowed origin read the answer; none for all others.
    fn cors(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let config = self.front.http.config();
        let allowed = &config.origins;
        let is_allowed = |origin: &str| allowed.iter().any(|one| one.eq_ignore_ascii_case(origin));
        let Some(origin) = headers.get(ORIGIN).filter(|origin| origin.to_str().is_ok_and(is_allowed)) else {
            return vec![];
        };
        vec![
            (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
            (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS)),
            (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS)),
            (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*")),
            (ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
            (VARY, HeaderValue::from_static("origin")),
        ]
    }
}

/// The answer to a method that a path does not have.
fn in_words(bare: &Response) -> Response {
    let allowed = bare.headers().get(ALLOW);
    let methods = allowed.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let message = format!("this is asked with {methods}");
    let mut response = super::reply::own(&Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message));
    if let Some(allowed) = allowed {
        response.headers_mut().insert(ALLOW, allowed.clone());
    }
    response
}

/// What two servers could read differently is read by none.
fn strict<B>(request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    if headers.contains_key(TRANSFER_ENCODING) && lengths > 0 || lengths > 1 {
        return Err(Refusal::bad_request("the request says more than once how long it is"));
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || request.version() == Version::HTTP_11 && hosts == 0 {
        return Err(Refusal::bad_request("the request must name one host"));
    }
    Ok(())
}

/// A connection's handler.
#[derive(Debug, Clone)]
pub(super) struct Handler(Connection);

impl Service<Request<Incoming>> for Handler {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let connection = self.0.clone();
        Box::pin(async move { Ok(connection.handle(request).await) })
    }
}

/// An answer whose request runs until it has gone out.
#[derive(Debug)]
struct Counted {
    body: Body,
    _count: Count,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
