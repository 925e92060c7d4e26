//! What the gateway tells of itself: tunnel, money, requests, and the page that shows them.

use super::api::Own;
use super::body::{Body, Feed};
use super::recent::event_of;
use super::{Shared, json, typed};
use crate::billing::{Span, balance_json, usage_json};
use belay_http::refusal::Refusal;
use belay_protocol::message::{UsageBy, UsagePeriod};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// The page runs its own files and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn answer(
    shared: &Shared,
    own: Own,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    match own {
        Own::Page => {
            let mut page = typed("text/html; charset=utf-8", include_str!("page/page.html"));
            page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            Ok(page)
        }
        Own::Script => Ok(typed("text/javascript; charset=utf-8", include_str!("page/page.js"))),
        Own::Style => Ok(typed("text/css; charset=utf-8", include_str!("page/page.css"))),
        Own::Icon => Ok(typed("image/svg+xml", include_str!("page/icon.svg"))),
        Own::Status => Ok(json(&status(shared))),
        Own::Balance => balance(shared).await,
        Own::Usage => usage(shared, query).await,
        Own::Requests(None) => {
            let requests: Vec<Value> = shared.recent.list().iter().map(|live| live.json()).collect();
            Ok(json(&json!({ "requests": requests })))
        }
        Own::Requests(Some(id)) => match shared.recent.list().iter().find(|live| live.asked.id.to_string() == id) {
            Some(live) => Ok(json(&live.json())),
            None => {
                let message = "no such request is among the last 200 of this gateway";
                Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_request", message))
            }
        },
        Own::Events => Ok(events(shared)),
        Own::Stop => {
            if !shared.settings.is_own_command(headers) {
                let message = "only who can read this computer's state may end it; run: belay down";
                return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
            }
            shared.stop.cancel();
            Ok(json(&json!({ "ends": true })))
        }
    }
}

/// The tunnel, who we are, and the gateway.
pub(super) fn status(shared: &Shared) -> Value {
    let tunnel = shared.client.status().borrow().clone();
    let identity = shared.client.identity();
    json!({
        "tunnel": tunnel,
        "tenant": identity.tenant,
        "device": identity.device,
        "certificate_expires_ms": shared.client.certificate_ends_ms(),
        "now_ms": shared.client.now_ms(),
        "gateway": {
            "version": env!("CARGO_PKG_VERSION"),
            "listen": shared.local.to_string(),
            "since_ms": shared.since_ms,
            "running": shared.recent.running(),
            "tunnels": shared.lanes.count(),
            "process": std::process::id(),
        },
    })
}

async fn balance(shared: &Shared) -> Result<Response<Body>, Refusal> {
    let asked = shared.client.balance(shared.settings.wait).await;
    Ok(json(&balance_json(&asked.map_err(|error| Refusal::from(&error))?)))
}

async fn usage(shared: &Shared, query: &str) -> Result<Response<Body>, Refusal> {
    let (mut period, mut by) = (UsagePeriod::MONTH, UsageBy::MODEL);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |names: String| Refusal::bad_request(format!("{name} is {value:?}; it must be one of {names}"));
        match name {
            "period" => {
                let known = UsagePeriod::from_name(value).filter(|period| *period != UsagePeriod::DAYS);
                period = known.ok_or_else(|| wrong("day, week, month, all".into()))?;
            }
            "by" => {
                let names: Vec<&str> = UsageBy::ALL.iter().map(|by| by.name()).collect();
                by = UsageBy::from_name(value).ok_or_else(|| wrong(names.join(", ")))?;
            }
            _ => return Err(Refusal::bad_request(format!("there is no parameter {name:?}; there is period and by"))),
        }
    }
    let wait = shared.settings.wait;
    let ask = |by| shared.client.usage(Span::Period(period), by, wait);
    let (total, groups) = (ask(UsageBy::TOTAL).await, ask(by).await);
    let refused = |error| Refusal::from(&error);
    Ok(json(&usage_json(&total.map_err(refused)?, by, &groups.map_err(refused)?)))
}

/// Changes as they come, after the state as it is.
fn events(shared: &Shared) -> Response<Body> {
    // Subscribed first: what changes meanwhile is told twice, not never.
    let receiver = shared.recent.feed();
    let first = event_of("status", &status(shared));
    let mut response = Response::new(Body::Feed(Box::new(Feed::new(first, receiver, shared.stop.clone()))));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
