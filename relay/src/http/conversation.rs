//! A whole conversation, read and as a file.

use super::Http;
use super::access::Admitted;
use super::inside::{answer, broken, chunks, next, open, read};
use super::reply::{Asked, counted, json, room};
use super::sessions::named;
use super::shapes::Problems;
use crate::store::central::keys::KeyScope;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_protocol::frame::FrameType;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{Session, SessionGet, SessionMessage};
use belay_protocol::transcript;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Messages of one answer, and the bytes of their text, about.
pub(super) const PAGE_MESSAGES: usize = 500;
pub(super) const PAGE_BYTES: usize = 4 << 20;

pub(super) fn pairs(said: &[(SessionMessage, String)]) -> impl Iterator<Item = transcript::Said<'_>> {
    said.iter().map(|(message, text)| (message, text.as_str()))
}

/// Reads a conversation; with bounds (messages, bytes), as much as these allow. Errors: without, it is too large.
pub(super) async fn conversation(
    http: &Http,
    admitted: &Admitted,
    question: &SessionGet,
    bounds: Option<(usize, usize)>,
) -> Result<(Session, Vec<(SessionMessage, String)>, bool), Refusal> {
    let mut side = open(&http.shared, &admitted.caller, StreamKind::Session);
    side.writer.send(question).await.map_err(|error| broken(&error))?;
    side.writer.finish();
    let session: Session = answer(&mut side.reader).await?;
    let (mut said, mut bytes): (Vec<(SessionMessage, String)>, usize) = (vec![], 0);
    // Twice: as it is read, and as it is written.
    let mut charges = vec![];
    loop {
        let frame = next(&mut side.reader).await?;
        if frame.kind == FrameType::SessionsDone {
            return Ok((session, said, true));
        }
        let message: SessionMessage = read(&frame)?;
        bytes += message.text_len as usize;
        charges.push(room(http, 2 * message.text_len as usize)?);
        match bounds {
            // One at least, however long it is.
            Some((messages, most)) if !said.is_empty() && (said.len() == messages || bytes > most) => {
                return Ok((session, said, false));
            }
            None if bytes > http.max_body() => {
                let message = format!("the conversation has more than {} bytes", http.max_body());
                let refusal = Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "limit", message);
                return Err(refusal.remedy("read it page by page: /v1/sessions/get"));
            }
            _ => {}
        }
        let text = chunks(&mut side.reader, message.text_len as usize).await?;
        said.push((message, String::from_utf8_lossy(&text).into_owned()));
    }
}

/// How a conversation is exported.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// Its name.
    #[serde(alias = "session_id")]
    session: String,
    /// `markdown` (the default) or `json`.
    #[serde(default)]
    format: Option<String>,
}

/// A whole conversation as a file.
#[utoipa::path(get, path = "/v1/sessions/export", tag = "sessions", params(ExportQuery),
    responses((status = 200, content((String = "text/markdown"), (Object = "application/json"))), Problems),
    security(("key" = [])))]
pub(super) async fn export(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, ExportQuery) = asked.queried(&http, KeyScope::Read).await?;
        let question = SessionGet { session: named(query.session)?, after: 0, last: 0 };
        let as_json = match query.format.as_deref() {
            None | Some("markdown") => false,
            Some("json") => true,
            Some(other) => {
                return Err(Refusal::bad_request(format!("format is {other:?}; it must be markdown or json")));
            }
        };
        let (session, said, _) = conversation(&http, &admitted, &question, None).await?;
        if as_json {
            return counted(&http, json(&transcript::json(&session, pairs(&said)))?);
        }
        let mut response = Response::new(Body::from(transcript::markdown(&session, pairs(&said))));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/markdown; charset=utf-8"));
        counted(&http, response)
    }
    .await;
    asked.done(&http, answered).await
}
