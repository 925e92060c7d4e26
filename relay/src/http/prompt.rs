//! `/v1/escalate` and `/v1/stream`: a question with what its asker knows, in the words of the deployment before.

use super::Http;
use super::access::Admitted;
use super::inside::Piped;
use super::reply::{Asked, json, parse};
use super::run::request;
use super::session_shapes::KnowledgeBody;
use super::shapes::{Cents, LlmProblems, Problems, Tokens};
use crate::config::{Config, ProviderKind};
use crate::ops::memory::BodyPermit;
use crate::store::central::keys::KeyScope;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::answer::{Piece, Source, respond};
use belay_http::api::Forward;
use belay_http::refusal::Refusal;
use belay_http::wishes::Wishes;
use belay_protocol::dialect::answer::{body_text, event_text};
use belay_protocol::dialect::prompt::{Knowledge, Preferences, Prompt, Turn};
use belay_protocol::id::{RequestId, SessionId};
use belay_protocol::message::{Content, Dialect, End, EscalateRequest, Operation, Outcome, SessionKnowledge};
use belay_protocol::trace::TraceContext;
use bytes::{BufMut, Bytes, BytesMut};
use http::request::Parts;
use serde::{Deserialize, Serialize};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use utoipa::ToSchema;

/// The longest name of a request, in bytes.
const MAX_NAME: usize = 255;

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"request_id": "test-123", "query": "What is 2+2?", "max_tokens": 100}))]
pub(super) struct Question {
    /// Names the request, for this key: asked again with the same body, streamed or not as before, it is the same
    /// request, answered once and charged once.
    #[serde(default)]
    request_id: Option<String>,
    /// What is asked.
    query: String,
    /// What goes with it.
    #[serde(default)]
    context: Option<Surroundings>,
    /// `claude`, `gpt4`, `auto`, or the name of a model.
    #[serde(default)]
    model_preference: Option<String>,
    /// The most output tokens.
    #[serde(default)]
    max_tokens: Option<u32>,
    /// Answer with events.
    #[serde(default)]
    stream: bool,
    /// The conversation that it goes on with.
    #[serde(default)]
    session_id: Option<String>,
    /// How the answer should read.
    #[serde(default)]
    #[schema(value_type = Option<Object>, example = json!({"language": "en", "verbosity": "brief", "tone": "friendly"}))]
    preferences: Preferences,
}

/// What goes with a question.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Surroundings {
    /// How the asker wants to be met.
    framing: Option<String>,
    /// What the asker's computer knows about it: texts, or texts with their source and how well they fit.
    knowledge: Vec<KnowledgeBody>,
    /// What the answer must respect.
    constraints: Vec<String>,
    /// The conversation so far, oldest first.
    #[schema(value_type = Vec<HistoryItem>)]
    history: Vec<Turn>,
}

/// One message of the conversation so far.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct HistoryItem {
    /// `user` or `assistant`.
    #[schema(pattern = "^(user|assistant)$")]
    role: String,
    content: String,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PromptAnswer {
    /// As it was given, or the relay's own.
    request_id: String,
    content: String,
    #[serde(flatten)]
    account: Account,
}

/// An event of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct StreamEvent {
    /// `content`, `done` or `error`.
    event: String,
    /// JSON: `{"content": "…"}`, the account of the answer, or what was wrong.
    data: String,
    /// Its number, where the question has a `request_id`.
    id: Option<String>,
}

/// What an answer was and cost; the closing event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Account {
    /// The provider's model.
    model_used: String,
    provider: String,
    /// Input and output together.
    tokens_used: u64,
    tokens: Tokens,
    cost_cents: Cents,
    cost_nano_usd: i64,
    balance_cents: Cents,
    balance_nano_usd: i64,
    /// The provider did not tell its usage; it was estimated from what was seen.
    estimated: bool,
    /// From the moment that the money was set aside to the end.
    latency_ms: u32,
    first_token_ms: Option<u32>,
}

impl Account {
    fn of(end: &End) -> Self {
        let tokens = Tokens::of(end);
        Self {
            model_used: end.model.clone(),
            provider: end.provider.clone(),
            tokens_used: tokens.total(),
            tokens,
            cost_cents: Cents(end.cost),
            cost_nano_usd: end.cost.0,
            balance_cents: Cents(end.balance),
            balance_nano_usd: end.balance.0,
            estimated: end.estimated,
            latency_ms: end.total_ms,
            first_token_ms: end.first_event_ms,
        }
    }
}

/// Asks a model, and waits for the whole answer (with `"stream": true`: as `/v1/stream`).
#[utoipa::path(post, path = "/v1/escalate", tag = "escalation", request_body = Question,
    responses((status = 200, body = PromptAnswer), Problems, LlmProblems), security(("key" = [])))]
pub(super) async fn escalate(State(http): State<Arc<Http>>, request: Request) -> Response {
    serve(&http, request, false).await
}

/// Asks a model, and is answered with events: `content` with a piece of the answer each, then `done` with the
/// account, or `error`. Events have ids; asked again with the same `request_id` and the header `last-event-id`,
/// the answer goes on after that one.
#[utoipa::path(post, path = "/v1/stream", tag = "escalation", request_body = Question,
    responses((status = 200, content_type = "text/event-stream", body = StreamEvent), Problems, LlmProblems),
    security(("key" = [])))]
pub(super) async fn stream(State(http): State<Arc<Http>>, request: Request) -> Response {
    serve(&http, request, true).await
}

async fn serve(http: &Http, request: Request, stream: bool) -> Response {
    let mut asked = Asked::new(request);
    let answered = async {
        let admitted = asked.admit(http, KeyScope::Escalate).await?;
        let body = asked.body(http, &admitted).await?;
        answer(http, &admitted, &asked.head, body, stream).await
    }
    .await;
    asked.done(http, answered).await
}

async fn answer(
    http: &Http,
    admitted: &Admitted,
    head: &Parts,
    (body, permit): (Bytes, BodyPermit),
    stream: bool,
) -> Result<Response, Refusal> {
    let question: Question = parse(&body)?;
    let key = header(head, "idempotency-key").filter(|key| !key.trim().is_empty());
    let name = question.request_id.clone().or(key);
    let stream = stream || question.stream;
    let mut headers = head.headers.clone();
    match name.as_deref() {
        Some(name)
            if name.trim() != name
                || name.is_empty()
                || name.len() > MAX_NAME
                || name.chars().any(char::is_control) =>
        {
            let why =
                format!("request_id must have 1 to {MAX_NAME} bytes, no control characters and no blanks at its ends");
            return Err(Refusal::bad_request(why));
        }
        // The one names the request as the other does.
        Some(_) => drop(headers.insert("idempotency-key", http::HeaderValue::from_static("named"))),
        None => {}
    }
    let wishes = Wishes::read(&headers)?;
    let id = http.request_id(&admitted.caller, name.as_deref().map(|name| ("question", name)));
    let shown = name.clone().unwrap_or_else(|| id.to_string());
    let session_id = match &question.session_id {
        Some(session) => {
            let checked = session.parse::<SessionId>().map_err(|error| Refusal::bad_request(error.to_string()))?;
            Some(checked.into())
        }
        None => None,
    };
    let model = preferred(&http.shared.escalator.config(), question.model_preference.as_deref());
    let max_output_tokens = question.max_tokens;
    let prompt = Bytes::from(
        serde_json::to_vec(&question.into_prompt())
            .map_err(|error| Refusal::bad_request(format!("the question cannot be passed on: {error}")))?,
    );
    let kind = (Operation::CHAT, Dialect::PROMPT);
    let request =
        EscalateRequest { session_id, max_output_tokens, ..request(id, kind, (model, stream), &wishes, &prompt) };
    let piped = http.run(admitted, request, (prompt, permit), name.is_some())?;
    let trace = TraceContext::name(wishes.trace, id);
    let refused = |refusal: Refusal| refusal.with_request(&shown).with_trace(trace);
    if stream {
        let told = Told { piped, dialect: Dialect::PROMPT, is_refused: false, last: None };
        let forward = Forward { operation: kind.0, dialect: kind.1 };
        return Ok(respond(told, forward, true, http.terms(&wishes)).await.map_err(refused)?.map(Body::new));
    }
    let (content, end) = whole(piped).await.map_err(refused)?;
    json(&PromptAnswer { request_id: shown, content, account: Account::of(&end) })
}

fn header(head: &Parts, name: &str) -> Option<String> {
    head.headers.get(name)?.to_str().ok().map(str::to_owned)
}

impl Question {
    fn into_prompt(self) -> Prompt {
        let context = self.context.unwrap_or_default();
        let knowledge = context.knowledge.into_iter().map(|item| {
            let SessionKnowledge { source, relevance, text } = item.into();
            Knowledge { source, relevance, text }
        });
        Prompt {
            query: self.query,
            framing: context.framing,
            knowledge: knowledge.collect(),
            constraints: context.constraints,
            history: context.history,
            preferences: self.preferences,
        }
    }
}

/// The model that is meant: a name of this relay, or the first of the provider that the old names stand for.
fn preferred(config: &Config, wanted: Option<&str>) -> String {
    let wanted = wanted.unwrap_or("auto");
    if config.aliases.contains_key(wanted) || config.models.contains_key(wanted) {
        return wanted.to_owned();
    }
    let first_of = |kind| {
        let of_kind = |name: &String| config.providers.get(name).is_some_and(|provider| provider.kind == kind);
        config.models.iter().find(|(_, model)| of_kind(&model.provider)).map(|(name, _)| name.clone())
    };
    let found = match wanted {
        "claude" => first_of(ProviderKind::Anthropic),
        "gpt4" if config.aliases.contains_key("gpt") => Some("gpt".to_owned()),
        "gpt4" => first_of(ProviderKind::OpenAi),
        _ => None,
    };
    found.unwrap_or_else(|| wanted.to_owned())
}

/// Waits for a whole answer. Errors: there is none, or not all of one.
async fn whole(mut piped: Piped) -> Result<(String, End), Refusal> {
    let (mut dialect, mut body, mut is_gone) = (Dialect::PROMPT, BytesMut::new(), false);
    loop {
        match poll_fn(|cx| piped.poll_next(cx)).await? {
            Some(Piece::Head(head)) => {
                dialect = head.dialect;
                is_gone |= head.content == Content::GONE;
            }
            Some(Piece::Chunk(chunk) | Piece::Event(chunk)) => body.put(chunk),
            Some(Piece::Gone) => is_gone = true,
            Some(Piece::Failed(failed)) => return Err(Refusal::from(&failed)),
            Some(Piece::End(_)) if is_gone => return Err(Refusal::gone()),
            Some(Piece::End(end)) if end.outcome == Outcome::COMPLETE => return Ok((body_text(dialect, &body), end)),
            Some(Piece::End(end)) => return Err(Refusal::incomplete(end.outcome, &end.message, end.cost)),
            None => return Err(Refusal::stopped()),
        }
    }
}

/// A provider's answer, told in belay's own events: as many as there are of the provider's, so that both have the
/// same numbers; those without text are empty.
#[derive(Debug)]
struct Told {
    piped: Piped,
    dialect: Dialect,
    /// The provider has refused; its words are not the caller's.
    is_refused: bool,
    /// What comes after the closing event.
    last: Option<End>,
}

impl Source for Told {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Refusal>> {
        if let Some(end) = self.last.take() {
            return Poll::Ready(Ok(Some(Piece::End(end))));
        }
        loop {
            let Some(piece) = ready!(self.piped.poll_next(cx))? else { return Poll::Ready(Ok(None)) };
            let piece = match piece {
                Piece::Head(head) if head.stream || head.content == Content::GONE => {
                    self.dialect = head.dialect;
                    Piece::Head(head)
                }
                Piece::Head(_) => {
                    self.is_refused = true;
                    continue;
                }
                Piece::Chunk(_) if self.is_refused => continue,
                Piece::Event(event) => match event_text(self.dialect, &event) {
                    text if text.is_empty() => Piece::Event(Bytes::new()),
                    text => Piece::Event(content(&text)),
                },
                Piece::End(end) if end.outcome == Outcome::COMPLETE && !self.is_refused => {
                    let done = serde_json::to_string(&Account::of(&end)).unwrap_or_default();
                    self.last = Some(end);
                    Piece::Event(format!("event: done\ndata: {done}\n\n").into())
                }
                piece => piece,
            };
            return Poll::Ready(Ok(Some(piece)));
        }
    }

    fn id(&self) -> RequestId {
        self.piped.id()
    }

    fn trace_id(&self) -> RequestId {
        self.piped.trace_id()
    }

    fn refused(&mut self, status: u16, why: &str) {
        self.piped.refused(status, why);
    }
}

fn content(text: &str) -> Bytes {
    // A JSON text has no line breaks of its own.
    format!("event: content\ndata: {}\n\n", serde_json::json!({ "content": text })).into()
}
