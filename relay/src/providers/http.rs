//! Providers over HTTP: Anthropic Messages, OpenAI Chat Completions and everything compatible.

use super::addresses::PublicOnly;
use super::{Answer, AnswerBody, Call, CallFuture, LookFuture, Looked, Provider, ProviderError, WarmFuture};
use crate::config::{ProviderConfig, ProviderKind, Timeouts};
use axum::body::HttpBody;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use belay_protocol::calendar;
use belay_protocol::message::{Dialect, Operation};
use belay_protocol::trace::TRACEPARENT;
use bytes::Bytes;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// The Anthropic API version where the caller names none.
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// How long a provider may take to answer ahead of a request.
const WARM: Duration = Duration::from_secs(10);
/// And how often it is asked.
const WARM_ATTEMPTS: usize = 2;
/// Caller's headers that a provider gets to see.
const REQUEST_HEADERS: [&str; 3] = ["anthropic-version", "anthropic-beta", "openai-beta"];
/// Provider's headers that a caller gets to see, and prefixes of more.
const ANSWER_HEADERS: [&str; 7] = [
    "content-type",
    "request-id",
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "openai-processing-ms",
    "openai-version",
];
const ANSWER_PREFIXES: [&str; 2] = ["anthropic-ratelimit-", "x-ratelimit-"];

/// The HTTP client of providers: warm connections, no proxy, no redirects, no Nagle. Their certificates
/// are signed by `authorities`, or else by those that the system trusts; their names lead to public addresses, unless
/// they may be `private`.
pub fn client(
    timeouts: &Timeouts,
    authorities: Option<&[reqwest::Certificate]>,
    private: bool,
) -> Result<reqwest::Client, String> {
    let builder = match authorities {
        Some(authorities) => reqwest::Client::builder().tls_certs_only(authorities.iter().cloned()),
        None => reqwest::Client::builder(),
    };
    let builder = if private { builder } else { builder.dns_resolver(Arc::new(PublicOnly)) };
    builder
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeouts.first_event.min(Duration::from_secs(10)))
        .pool_idle_timeout(Duration::from_secs(90))
        .user_agent(concat!("belay/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| {
            format!(
                "no TLS to providers can be set up ({}); has this machine certificates of authorities (Debian: the package \
                 ca-certificates)?",
                error_chain(&error)
            )
        })
}

/// One provider.
#[derive(Debug)]
pub struct Http {
    client: reqwest::Client,
    kind: ProviderKind,
    /// Where each operation is asked for; those that are not named, at the first place.
    places: Vec<(Operation, Url)>,
    models: Url,
    /// What every request has, with the relay's own key.
    common: HeaderMap,
    /// It is told where a request stands in a trace.
    tells_trace: bool,
}

impl Http {
    /// A provider that sends through `client`.
    /// Errors: its address is none.
    pub fn new(client: reqwest::Client, config: &ProviderConfig) -> Result<Self, String> {
        // A base URL may be given with or without the version, as SDKs take it.
        let base = config.url.strip_suffix("/v1").unwrap_or(&config.url);
        let at = |path: &str| Url::parse(&format!("{base}{path}")).map_err(|error| format!("url {base:?}: {error}"));
        let paths: &[_] = match config.kind {
            ProviderKind::Anthropic => {
                &[(Operation::MESSAGES, "/v1/messages"), (Operation::COUNT_TOKENS, "/v1/messages/count_tokens")]
            }
            _ => &[
                (Operation::CHAT, "/v1/chat/completions"),
                (Operation::RESPONSES, "/v1/responses"),
                (Operation::EMBEDDINGS, "/v1/embeddings"),
            ],
        };
        let places =
            paths.iter().map(|(operation, path)| Ok((*operation, at(path)?))).collect::<Result<_, String>>()?;
        let mut common = HeaderMap::new();
        common.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if config.kind == ProviderKind::Anthropic {
            common.insert("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
        }
        authorise(config.kind, &mut common, &config.key);
        let (kind, tells_trace) = (config.kind, config.trace_context);
        Ok(Self { client, kind, places, models: at("/v1/models")?, common, tells_trace })
    }

    fn url(&self, operation: Operation) -> Url {
        let place = self.places.iter().find(|(known, _)| *known == operation).unwrap_or(&self.places[0]);
        place.1.clone()
    }

    fn headers(&self, call: &Call) -> HeaderMap {
        let mut headers = self.common.clone();
        for (name, value) in &call.headers {
            let name = name.to_ascii_lowercase();
            if !REQUEST_HEADERS.contains(&name.as_str()) {
                continue;
            }
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        if let Some(trace) = call.trace.filter(|_| self.tells_trace) {
            headers.extend(
                HeaderValue::try_from(trace.to_string()).map(|place| (HeaderName::from_static(TRACEPARENT), place)),
            );
        }
        if let Some(key) = &call.key {
            authorise(self.kind, &mut headers, key);
        }
        headers
    }
}

/// Puts a key in place of the one that is there.
fn authorise(kind: ProviderKind, headers: &mut HeaderMap, key: &SecretString) {
    let (name, prefix) = match kind {
        ProviderKind::Anthropic => (HeaderName::from_static("x-api-key"), ""),
        ProviderKind::OpenAi | ProviderKind::Demo => (header::AUTHORIZATION, "Bearer "),
    };
    headers.remove(&name);
    let key = key.expose_secret();
    if key.is_empty() {
        return;
    }
    // It was checked when it was set that the key can stand in a header.
    if let Ok(mut value) = HeaderValue::try_from(format!("{prefix}{key}")) {
        value.set_sensitive(true);
        headers.insert(name, value);
    }
}

impl Provider for Http {
    fn dialect(&self) -> Dialect {
        self.kind.dialect()
    }

    fn warm(&self) -> WarmFuture {
        // Whatever it answers, to this method at this place it is not an LLM request. The connection
        // goes back to the pool once the answer is read.
        let (client, url) = (self.client.clone(), self.url(Operation::CHAT));
        Box::pin(async move {
            for _ in 0..WARM_ATTEMPTS {
                let answer = client.head(url.clone()).timeout(WARM).send().await;
                // A connection that the provider has just closed may still have been in the pool.
                let Ok(answer) = answer else { continue };
                if answer.bytes().await.is_ok() {
                    return true;
                }
            }
            false
        })
    }

    fn look(&self) -> LookFuture {
        let mut headers = self.common.clone();
        headers.remove(header::CONTENT_TYPE);
        let request = self.client.get(self.models.clone()).headers(headers).timeout(WARM);
        Box::pin(async move {
            let answer = request.send().await;
            let answer = answer.map_err(|error| ProviderError::Unreachable(error_chain(&error.without_url())))?;
            let date = answer.headers().get(header::DATE).and_then(|date| http_date_ms(date.to_str().ok()?));
            Ok(Looked { status: answer.status().as_u16(), date_ms: date })
        })
    }

    fn call(&self, call: Call) -> CallFuture {
        let request = self.client.post(self.url(call.operation)).headers(self.headers(&call)).body(call.body);
        Box::pin(async move {
            let response = request.send().await.map_err(|error| {
                let never_sent = error.is_connect() || error.is_builder();
                let text = error_chain(&error.without_url());
                if never_sent { ProviderError::Unreachable(text) } else { ProviderError::Broken(text) }
            })?;
            let response = Response::<reqwest::Body>::from(response);
            let (head, body) = response.into_parts();
            let headers = head
                .headers
                .iter()
                .filter(|(name, _)| {
                    let name = name.as_str();
                    ANSWER_HEADERS.contains(&name) || ANSWER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                })
                .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
                .collect();
            Ok(Answer { status: head.status.as_u16(), headers, body: Box::new(Body(body)) })
        })
    }
}

/// A date of HTTP (RFC 9110, 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`), milliseconds since 1970.
fn http_date_ms(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)?;
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let day = calendar::from_civil(year.parse().ok()?, i64::try_from(month).ok()? + 1, day.parse().ok()?);
    Some(calendar::day_start_ms(day) + ((hours * 60 + minutes) * 60 + seconds) * 1000)
}

/// A piece that is smaller is copied: it lies in a buffer of at least 8 KiB, which it would keep from being
/// used again for as long as a reader has not acknowledged it, and which nobody would have counted.
const SMALL: usize = 4 << 10;

struct Body(reqwest::Body);

impl AnswerBody for Body {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ProviderError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
            return Poll::Ready(match frame {
                None => None,
                Some(Err(error)) => Some(Err(ProviderError::Broken(error_chain(&error.without_url())))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) if data.len() < SMALL => Some(Ok(Bytes::copy_from_slice(&data))),
                    Ok(data) => Some(Ok(data)),
                    // Trailers say nothing that anybody needs.
                    Err(_) => continue,
                },
            });
        }
    }
}

/// An error with its causes; reqwest's own text hides them.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
