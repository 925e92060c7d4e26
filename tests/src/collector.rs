//! A collector of OpenTelemetry, for what relays and clients tell of requests: OTLP over HTTP, read with the types that
//! OpenTelemetry publishes.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A span as it arrived, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// `service.name` of who sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Hexadecimal.
    pub trace: String,
    /// Hexadecimal.
    pub id: String,
    /// Hexadecimal; empty: it has none.
    pub parent: String,
    /// As a number of the format: 1 internal, 2 server, 3 client.
    pub kind: i32,
    /// Nanoseconds since 1970.
    pub began: u64,
    /// Nanoseconds since 1970.
    pub ended: u64,
    /// It failed.
    pub failed: bool,
    /// What it says of itself.
    pub says: BTreeMap<String, String>,
    /// What happened in it, in order.
    pub events: Vec<String>,
}

#[derive(Debug, Default)]
struct Taken {
    spans: Vec<Told>,
    bytes: Vec<u8>,
    headers: Vec<HeaderMap>,
    /// What is answered in place of a good word.
    refuses: Option<StatusCode>,
    /// So many spans of each request are said to be rejected.
    rejects: i64,
}

/// A running collector. Dropping it closes it.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    taken: Arc<Mutex<Taken>>,
    task: JoinHandle<()>,
}

impl Collector {
    /// On a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(Mutex::new(Taken::default()));
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, taken, task }
    }

    /// Its address, as it stands in a configuration.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses what comes from now on.
    pub fn refuse(&self, status: Option<StatusCode>) {
        self.lock().refuses = status;
    }

    /// Rejects so many spans of each request from now on, and takes the request.
    pub fn reject(&self, spans: i64) {
        self.lock().rejects = spans;
    }

    /// Forgets all spans so far.
    pub fn forget(&self) {
        self.lock().spans.clear();
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Told> {
        self.lock().spans.clone()
    }

    /// Those of a service and a name.
    #[must_use]
    pub fn of(&self, service: &str, name: &str) -> Vec<Told> {
        self.spans().into_iter().filter(|span| span.service == service && span.name == name).collect()
    }

    /// All bytes so far, good or refused.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// A header of every request so far.
    #[must_use]
    pub fn headers(&self, name: &str) -> Vec<String> {
        let texts = |headers: &HeaderMap| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        self.lock().headers.iter().filter_map(texts).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(taken): State<Arc<Mutex<Taken>>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    taken.bytes.extend_from_slice(&body);
    taken.headers.push(headers);
    if let Some(status) = taken.refuses {
        return (status, vec![]);
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return (StatusCode::BAD_REQUEST, vec![]) };
    for of_service in request.resource_spans {
        let about = said(&of_service.resource.unwrap_or_default().attributes);
        let service = about.get("service.name").cloned().unwrap_or_default();
        for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            taken.spans.push(Told {
                service: service.clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind,
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
                failed: span.status.is_some_and(|status| status.code == 2),
                says: said(&span.attributes),
                events: span.events.into_iter().map(|event| event.name).collect(),
            });
        }
    }
    let partial_success = (taken.rejects > 0)
        .then(|| ExportTracePartialSuccess { rejected_spans: taken.rejects, error_message: "no".into() });
    (StatusCode::OK, ExportTraceServiceResponse { partial_success }.encode_to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|said| (said.key.clone(), text(said.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
