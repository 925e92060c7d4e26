//! Which path is answered by what, and the document that says so.

use super::{Http, compat, conversation, health, money, page, payments, prompt, sessions, stripe, sync};
use crate::http::shapes::{LlmProblems, Problems};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use std::sync::Arc;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(
    info(title = "belay", description = "The HTTP side of a belay relay. Amounts are exact: nano-dollars (10^-9 USD) \
        as integers, and cents with every decimal."),
    modifiers(&Keys),
    components(schemas(super::sync_shapes::KindName)),
    tags(
        (name = "router", description = "How the relay is, and how a tenant stands with it"),
        (name = "escalation", description = "Questions in belay's own words"),
        (name = "compatible", description = "The APIs of OpenAI and Anthropic, for their SDKs as they are"),
        (name = "billing", description = "Money"),
        (name = "sessions", description = "Conversations"),
        (name = "sync", description = "What a tenant's computers have in common"),
    )
)]
struct Document;

struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// Everything that is answered.
pub(super) fn router(http: Arc<Http>) -> Router {
    let (router, document) = documented();
    let json = Bytes::from(document.to_json().unwrap_or_default());
    let page = Bytes::from(page::page(&serde_json::from_slice(&json).unwrap_or_default()));
    let style = Bytes::from_static(page::STYLE.as_bytes());
    router
        .route("/openapi.json", get(async move || described("application/json", json.clone())))
        .route("/docs", get(async move || described("text/html; charset=utf-8", page.clone())))
        .route("/docs.css", get(async move || described("text/css; charset=utf-8", style.clone())))
        .route("/webhooks/stripe", post(stripe::webhook))
        .fallback(compat::elsewhere)
        .with_state(http)
}

/// The document that describes it.
fn documented() -> (Router<Arc<Http>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::status))
        .routes(routes!(money::router_usage))
        .routes(routes!(prompt::escalate))
        .routes(routes!(prompt::stream))
        .routes(routes!(money::balance))
        .routes(routes!(money::usage))
        .routes(routes!(money::statement))
        .routes(routes!(payments::record))
        .routes(routes!(payments::topup))
        .routes(routes!(payments::flush))
        .routes(routes!(stripe::auto_topup, stripe::set_auto_topup))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::get))
        .routes(routes!(sessions::add_message))
        .routes(routes!(sessions::update_context))
        .routes(routes!(sessions::rename))
        .routes(routes!(sessions::delete))
        .routes(routes!(sessions::restore))
        .routes(routes!(sessions::clear))
        .routes(routes!(conversation::export))
        .routes(routes!(sync::push))
        .routes(routes!(sync::pull))
        .routes(routes!(sync::content))
        .routes(routes!(sync::status))
        .routes(routes!(sync::lock))
        .routes(routes!(sync::unlock))
        .routes(routes!(chat))
        .routes(routes!(responses))
        .routes(routes!(embeddings))
        .routes(routes!(messages))
        .routes(routes!(count_tokens))
        .routes(routes!(models))
        .routes(routes!(model))
        .split_for_parts()
}

fn described(kind: &'static str, body: Bytes) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if kind.starts_with("text/html") {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
    }
    response
}

/// OpenAI Chat Completions; see OpenAI's reference for body and answer.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "compatible", request_body = Object,
    responses((status = 200, body = Object), Problems, LlmProblems), security(("key" = [])))]
async fn chat(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::forward(&http, compat::CHAT, request).await
}

/// OpenAI Responses; see OpenAI's reference for body and answer.
#[utoipa::path(post, path = "/v1/responses", tag = "compatible", request_body = Object,
    responses((status = 200, body = Object), Problems, LlmProblems), security(("key" = [])))]
async fn responses(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::forward(&http, compat::RESPONSES, request).await
}

/// OpenAI Embeddings; see OpenAI's reference for body and answer.
#[utoipa::path(post, path = "/v1/embeddings", tag = "compatible", request_body = Object,
    responses((status = 200, body = Object), Problems, LlmProblems), security(("key" = [])))]
async fn embeddings(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::forward(&http, compat::EMBEDDINGS, request).await
}

/// Anthropic Messages; see Anthropic's reference for body and answer.
#[utoipa::path(post, path = "/v1/messages", tag = "compatible", request_body = Object,
    responses((status = 200, body = Object), Problems, LlmProblems), security(("key" = [])))]
async fn messages(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::forward(&http, compat::MESSAGES, request).await
}

/// Anthropic's count of tokens, which costs nothing.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "compatible", request_body = Object,
    responses((status = 200, body = Object), Problems, LlmProblems), security(("key" = [])))]
async fn count_tokens(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::forward(&http, compat::COUNT_TOKENS, request).await
}

/// The models, in the form of OpenAI's or Anthropic's list (with the header `anthropic-version`).
#[utoipa::path(get, path = "/v1/models", tag = "compatible",
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
async fn models(State(http): State<Arc<Http>>, request: Request) -> Response {
    compat::models(&http, None, request).await
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{name}", tag = "compatible", params(("name" = String, Path)),
    responses((status = 200, body = Object), Problems), security(("key" = [])))]
async fn model(State(http): State<Arc<Http>>, Path(name): Path<String>, request: Request) -> Response {
    compat::models(&http, Some(name), request).await
}
