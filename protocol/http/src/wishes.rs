//! What a caller says beside its body, and what must be known of the body itself.

use crate::refusal::Refusal;
use belay_certs::sha256;
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use belay_protocol::trace::{TRACEPARENT, TraceContext};
use http::StatusCode;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use serde::Deserialize;
use std::borrow::Cow;

/// Headers of a caller that a provider gets to see.
const PASSED_ON: [&str; 3] = ["anthropic-version", "anthropic-beta", "openai-beta"];
/// The longest key that names a request, in bytes.
const MAX_KEY: usize = 255;

/// What a caller says in its headers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Names the request, so that its caller may come back to it.
    pub idempotency_key: Option<String>,
    /// The number of the last event that it has. Only with a key.
    pub last_event: Option<u64>,
    /// The most that the request may cost.
    pub cost_cap: Option<NanoUsd>,
    /// The answer may be shorter than asked for, where the balance does not reach.
    pub may_reduce: bool,
    /// The request ends after so long.
    pub deadline_ms: Option<u32>,
    /// Where it stands in its caller's trace; a header that says nothing of the kind is as none.
    pub trace: Option<TraceContext>,
}

impl Wishes {
    /// Reads them. Errors: one is not understood, or the body is encoded.
    pub fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name: &str| match headers.get(name).map(HeaderValue::to_str) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.trim())),
            Some(Err(_)) => Err(Refusal::bad_request(format!("the header {name} is no text"))),
        };
        let wrong = |name: &str, value: &str, wanted: &str| {
            Refusal::bad_request(format!("the header {name} is {value:?}; it must be {wanted}"))
        };
        let mut wishes = Self::default();
        if let Some(key) = text("idempotency-key")?.filter(|key| !key.is_empty()) {
            if key.len() > MAX_KEY {
                return Err(Refusal::bad_request("the header idempotency-key has more than 255 characters"));
            }
            wishes.idempotency_key = Some(key.to_owned());
        }
        if let Some(last) = text("last-event-id")?.filter(|last| !last.is_empty()) {
            if wishes.idempotency_key.is_none() {
                let why = "the header last-event-id needs the idempotency-key that the request was first sent with";
                return Err(Refusal::bad_request(why));
            }
            let wanted = "the number that an event of the answer came with";
            wishes.last_event = Some(last.parse().map_err(|_| wrong("last-event-id", last, wanted))?);
        }
        if let Some(cap) = text("belay-cost-cap")? {
            let dollars = cap.parse().ok().filter(|dollars: &NanoUsd| *dollars >= NanoUsd::ZERO);
            let wanted = "an amount of dollars such as 0.05";
            wishes.cost_cap = Some(dollars.ok_or_else(|| wrong("belay-cost-cap", cap, wanted))?);
        }
        wishes.may_reduce = match text("belay-may-reduce")? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(wrong("belay-may-reduce", other, "true or false")),
        };
        if let Some(ms) = text("belay-deadline-ms")? {
            let parsed = ms.parse().ok().filter(|ms| *ms > 0);
            wishes.deadline_ms = Some(parsed.ok_or_else(|| wrong("belay-deadline-ms", ms, "a whole number above 0"))?);
        }
        wishes.trace = TraceContext::of(headers.get(TRACEPARENT).map(HeaderValue::as_bytes));
        plain(headers)?;
        Ok(wishes)
    }
}

/// Errors: the body is encoded.
pub fn plain(headers: &HeaderMap) -> Result<(), Refusal> {
    let encoding = headers.get(CONTENT_ENCODING).map(|encoding| encoding.to_str().unwrap_or("?"));
    if let Some(shown) = encoding.filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        let message = format!("a body with content-encoding {shown:?} is not served; send it as it is");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", message));
    }
    Ok(())
}

/// What a provider gets to see of a caller's headers.
#[must_use]
pub fn passed_on(headers: &HeaderMap) -> Vec<(String, String)> {
    let seen = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    PASSED_ON.into_iter().filter_map(seen).collect()
}

/// What must be known of a body here; the relay reads the rest.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct Peek<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
}

/// The model that a body names, and whether it wants a stream. Errors: it is no JSON.
pub fn peek(body: &[u8]) -> Result<(String, bool), Refusal> {
    let peek: Peek<'_> = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the request body is not understood: {error}")))?;
    Ok((peek.model.unwrap_or_default().into_owned(), peek.stream.unwrap_or(false)))
}

/// The request that a caller's key stands for, for ever: of this caller alone, since others may choose the same.
#[must_use]
pub fn named(tenant: &str, caller: &str, key: &str) -> RequestId {
    let name = format!("idempotency\n{tenant}\n{caller}\n{key}");
    let mut id = [0; 16];
    id.copy_from_slice(&sha256(name.as_bytes())[..16]);
    RequestId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<Wishes, String> {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        Wishes::read(&headers.collect()).map_err(|refusal| refusal.message.into())
    }

    #[test]
    fn wishes_are_read_and_nonsense_is_named() {
        let all = [
            ("idempotency-key", " k "),
            ("last-event-id", "7"),
            ("belay-cost-cap", "0.05"),
            ("belay-may-reduce", "true"),
            ("belay-deadline-ms", "900"),
        ];
        let wishes = Wishes {
            idempotency_key: Some("k".into()),
            last_event: Some(7),
            cost_cap: Some(NanoUsd(50_000_000)),
            may_reduce: true,
            deadline_ms: Some(900),
            trace: None,
        };
        assert_eq!(read(&all), Ok(wishes));
        let place = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let with = |place| read(&[("traceparent", place)]).map(|wishes| wishes.trace.map(|trace| trace.to_string()));
        assert_eq!((with(place), with("00-xyz-01")), (Ok(Some(place.to_owned())), Ok(None)));
        assert_eq!(read(&[("idempotency-key", ""), ("content-encoding", "Identity")]), Ok(Wishes::default()));
        for (headers, part) in [
            (&[("last-event-id", "7")][..], "needs the idempotency-key"),
            (&[("idempotency-key", "k"), ("last-event-id", "x")], "the number that an event"),
            (&[("belay-cost-cap", "-1")], "an amount of dollars"),
            (&[("belay-may-reduce", "yes")], "true or false"),
            (&[("belay-deadline-ms", "0")], "above 0"),
            (&[("content-encoding", "gzip")], "is not served"),
        ] {
            let refused = read(headers).expect_err(part);
            assert!(refused.contains(part), "{refused}");
        }
    }
}
