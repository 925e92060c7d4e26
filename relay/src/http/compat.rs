//! The APIs of OpenAI and Anthropic, for their SDKs as they are.

use super::Http;
use super::reply::{Asked, counted, json, own};
use super::run::request;
use crate::store::central::keys::KeyScope;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::answer::respond;
use belay_http::api::{Api, Forward, Llm};
use belay_http::models;
use belay_http::refusal::Refusal;
use belay_http::wishes::{Wishes, passed_on, peek};
use belay_protocol::message::{Dialect, Operation};
use http::StatusCode;
use std::sync::Arc;

/// One LLM request.
pub(super) async fn forward(http: &Http, forward: Forward, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered = forwarded(http, forward, &mut asked).await;
    asked.told(http, answered, |refusal| refusal.answer(forward.api()).map(Body::from)).await
}

async fn forwarded(http: &Http, forward: Forward, asked: &mut Asked) -> Result<Response, Refusal> {
    let admitted = asked.admit(http, KeyScope::Escalate).await?;
    let wishes = Wishes::read(&asked.head.headers)?;
    let (body, permit) = asked.body(http, &admitted).await?;
    let (model, stream) = peek(&body)?;
    let id = http.request_id(&admitted.caller, wishes.idempotency_key.as_deref().map(|key| ("llm", key)));
    let kind = (forward.operation, forward.dialect);
    let mut request = request(id, kind, (model, stream), &wishes, &body);
    request.headers.extend(passed_on(&asked.head.headers));
    let piped = http.run(&admitted, request, (body, permit), wishes.idempotency_key.is_some())?;
    let response = respond(piped, forward, stream, http.terms(&wishes)).await?.map(Body::new);
    if stream { Ok(response) } else { counted(http, response) }
}

/// The models, all or one.
pub(super) async fn models(http: &Http, one: Option<String>, request: Request) -> Response {
    let api = Api::of(request.headers());
    let mut asked = Asked::new(request);
    let answered = offered(http, api, one.as_deref(), &mut asked).await;
    asked.told(http, answered, |refusal| refusal.answer(api).map(Body::from)).await
}

async fn offered(http: &Http, api: Api, one: Option<&str>, asked: &mut Asked) -> Result<Response, Refusal> {
    let admitted = http.access.admit(&asked.head).await?;
    if !admitted.may(KeyScope::Read) {
        admitted.needs(KeyScope::Escalate)?;
    }
    let offers = http.shared.escalator.config().offers(http.now_ms());
    json(&match one {
        None => models::list(api, &offers),
        Some(name) => models::one(api, &offers, name)?,
    })
}

/// What no route was made for: an endpoint of either API under a base URL that was written another way, or nothing.
pub(super) async fn elsewhere(State(http): State<Arc<Http>>, request: Request) -> Response {
    let api = Api::of(request.headers());
    let path = request.uri().path();
    let method = request.method().clone();
    match Llm::of(path) {
        Some(Llm::Forward(found)) if method == http::Method::POST => forward(&http, found, request).await,
        Some(Llm::Models(one)) if method == http::Method::GET => models(&http, one, request).await,
        _ => {
            let shown: String = path.chars().take(80).collect();
            let message = format!("there is no {method} {shown} here");
            let refusal = Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message).remedy("see /openapi.json");
            let told = |refusal: &Refusal| match api {
                Api::Anthropic => refusal.answer(api).map(Body::from),
                Api::OpenAi => own(refusal),
            };
            Asked::new(request).told(&http, Err(refusal), told).await
        }
    }
}

const fn of(operation: Operation, dialect: Dialect) -> Forward {
    Forward { operation, dialect }
}

/// OpenAI Chat Completions.
pub(super) const CHAT: Forward = of(Operation::CHAT, Dialect::OPENAI_CHAT);
/// OpenAI Responses.
pub(super) const RESPONSES: Forward = of(Operation::RESPONSES, Dialect::OPENAI_RESPONSES);
/// OpenAI Embeddings.
pub(super) const EMBEDDINGS: Forward = of(Operation::EMBEDDINGS, Dialect::OPENAI_CHAT);
/// Anthropic Messages.
pub(super) const MESSAGES: Forward = of(Operation::MESSAGES, Dialect::ANTHROPIC);
/// Anthropic's count of tokens.
pub(super) const COUNT_TOKENS: Forward = of(Operation::COUNT_TOKENS, Dialect::ANTHROPIC);
