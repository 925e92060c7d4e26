//! How a collector is spoken to: what OpenTelemetry's exporter has encoded goes out by the client of everything else here,
//! and waits on the runtime's timers. The exporter's own retries are off: they would put the thread to sleep that
//! everybody's tokens are on.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// So often it is tried again.
const AGAIN: u32 = 3;
/// After the first failure, and twice as long each time; as long as a collector wants, up to [`LONGEST`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);
/// A collector's answer may be so long.
const ANSWER: usize = 64 << 10;
/// What was answered, in text.
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Speaks to one collector.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) client: reqwest::Client,
    /// They win over what the exporter has found in its environment.
    pub(crate) headers: HeaderMap,
    /// Nobody listens in on the way: only then it is shown what the environment has for it.
    pub(crate) is_safe: bool,
    /// Spans that a collector has taken the request with and rejected.
    pub(crate) rejected: Arc<AtomicU64>,
}

/// What came of one attempt.
enum Tried {
    Answered(Response<Bytes>),
    /// It may go better after so long, if the collector says how long.
    Again(String, Option<Duration>),
}

impl Post {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        if !self.is_safe {
            head.headers.clear();
        }
        head.headers.remove(USER_AGENT);
        head.headers.extend(self.headers.clone());
        head.headers.insert(CONTENT_TYPE, PROTOBUF);
        let mut wait = FIRST_WAIT;
        for attempt in 0..=AGAIN {
            let why = match self.attempt(Request::from_parts(head.clone(), body.clone())).await? {
                Tried::Answered(answer) => return Ok(answer),
                Tried::Again(why, wanted) => {
                    wait = wanted.unwrap_or(wait).min(LONGEST);
                    why
                }
            };
            if attempt == AGAIN {
                return Err(why.into());
            }
            sleep(wait).await;
            wait *= 2;
        }
        Err("it was not tried".into())
    }

    async fn attempt(&self, request: Request<Bytes>) -> Result<Tried, HttpError> {
        let answer = match self.client.execute(request.try_into()?).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Tried::Again(error.without_url().to_string(), None)),
        };
        let status = answer.status();
        // Those that the protocol says may pass.
        if matches!(status.as_u16(), 429 | 502..=504) {
            let wanted = answer.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
            return Ok(Tried::Again(format!("status {status}"), wanted.map(Duration::from_secs)));
        }
        let body = whole(answer).await?;
        if status.is_success() {
            let rejected = ExportTraceServiceResponse::decode(body.clone())?.partial_success;
            let rejected = rejected.map_or(0, |partial| partial.rejected_spans.max(0).unsigned_abs());
            self.rejected.fetch_add(rejected, Ordering::Relaxed);
        }
        Ok(Tried::Answered(Response::builder().status(status).body(body)?))
    }
}

/// The whole of an answer. Errors: it is too long for one, or broke off.
async fn whole(mut answer: reqwest::Response) -> Result<Bytes, HttpError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > ANSWER {
            return Err("its answer is too long for a collector's".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

impl HttpClient for Post {
    // As `async_trait` writes it.
    fn send_bytes<'life, 'out>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'out>>
    where
        'life: 'out,
        Self: 'out,
    {
        Box::pin(self.send(request))
    }
}

/// Headers as they are configured. Errors: the name of one that is none.
pub(crate) fn headers<'a>(all: impl Iterator<Item = (&'a str, &'a str)>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        let wrong = || name.to_owned();
        let named = HeaderName::try_from(name).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(named, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What a collector gets to see of a request that the exporter has put the environment's headers into.
    async fn seen(is_safe: bool) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}/v1/traces", listener.local_addr().expect("bound"));
        let client = reqwest::Client::builder().no_proxy().user_agent("belay").build().expect("built");
        let headers = headers([("x-key", "configured")].into_iter()).expect("good");
        let post = Post { client, headers, is_safe, rejected: Arc::default() };
        let request = Request::post(url)
            .header("x-key", "environment")
            .header("authorization", "environment")
            .header(CONTENT_TYPE, "text/plain")
            .body(Bytes::new())
            .expect("good");
        let answers = async {
            let (mut socket, _) = listener.accept().await.expect("accepted");
            let mut head = vec![0; 4096];
            let len = socket.read(&mut head).await.expect("read");
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("written");
            String::from_utf8_lossy(&head[..len]).to_lowercase()
        };
        let (head, answered) = tokio::join!(answers, post.send(request));
        assert!(answered.expect("answered").status().is_success());
        head
    }

    #[tokio::test]
    async fn what_is_configured_wins_and_what_others_could_read_is_not_sent() {
        let near = seen(true).await;
        for line in ["x-key: configured\r", "authorization: environment\r", "content-type: application/x-protobuf\r"] {
            assert!(near.contains(line), "{near}");
        }
        assert!(near.contains("user-agent: belay\r") && !near.contains("x-key: environment"), "{near}");
        let far = seen(false).await;
        assert!(far.contains("x-key: configured\r") && !far.contains("environment"), "{far}");
    }
}
