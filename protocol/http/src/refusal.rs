//! Belay's own errors, in the words and with the status that a caller's SDK expects.

use crate::api::Api;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Dialect, Failed, FailureCode, Outcome};
use belay_protocol::money::NanoUsd;
use belay_protocol::trace::{TRACEPARENT, TraceContext};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// A stable name, for programs.
    pub code: &'static str,
    /// What was wrong, for people.
    pub message: Box<str>,
    /// What to do about it, for people; may be empty.
    pub remedy: Box<str>,
    /// Worth trying again after so long.
    pub retry_after_ms: Option<u64>,
    /// The money that is missing.
    pub missing: Option<NanoUsd>,
    /// The request, as the relay knows it.
    pub request_id: Option<Box<str>>,
    /// What those who collect spans know the request by.
    pub trace_id: Option<Box<RequestId>>,
}

impl Refusal {
    /// With a stable code for programs and a sentence for people.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into().into(),
            remedy: "".into(),
            retry_after_ms: None,
            missing: None,
            request_id: None,
            trace_id: None,
        }
    }

    /// What was sent makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, FailureCode::INVALID_REQUEST.name(), message)
    }

    /// The content is not kept any more.
    #[must_use]
    pub fn gone() -> Self {
        let why = "this request was answered before, and its content is no longer kept; it is not run twice";
        Self::new(StatusCode::GONE, "content_gone", why)
    }

    /// The server ends, and with it what runs in it.
    #[must_use]
    pub fn stopped() -> Self {
        let mut refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", "belay is stopping");
        refusal.retry_after_ms = Some(1000);
        refusal
    }

    /// An answer that was settled without being complete.
    #[must_use]
    pub fn incomplete(outcome: Outcome, message: &str, cost: NanoUsd) -> Self {
        let status = match outcome {
            Outcome::TIMED_OUT => StatusCode::GATEWAY_TIMEOUT,
            Outcome::REVOKED => StatusCode::FORBIDDEN,
            Outcome::DRAINED | Outcome::RELAY_DIED => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        let why = if message.is_empty() { outcome.name() } else { message };
        Self::new(
            status,
            outcome.name(),
            format!("the answer is not complete: {why}; {cost} was charged for what came"),
        )
    }

    /// Names the request, unless it is named already.
    #[must_use]
    pub fn with_request(mut self, id: impl std::fmt::Display) -> Self {
        self.request_id.get_or_insert_with(|| id.to_string().into());
        self
    }

    /// Of a request whose caller may have said in which trace it is: whatever stood in its way, it is found there.
    #[must_use]
    pub fn in_trace_of(self, headers: &HeaderMap) -> Self {
        match TraceContext::of(headers.get(TRACEPARENT).map(HeaderValue::as_bytes)) {
            Some(trace) => self.with_trace(trace.trace_id()),
            None => self,
        }
    }

    /// Names the trace, unless it is named already.
    #[must_use]
    pub fn with_trace(mut self, trace: RequestId) -> Self {
        self.trace_id.get_or_insert_with(|| trace.into());
        self
    }

    /// The kind of error that a caller's SDK knows.
    fn kind(&self, api: Api) -> &'static str {
        match (api, self.status) {
            (_, StatusCode::UNAUTHORIZED) => "authentication_error",
            (_, StatusCode::FORBIDDEN) => "permission_error",
            (Api::OpenAi, StatusCode::PAYMENT_REQUIRED) => "insufficient_quota",
            (Api::Anthropic, StatusCode::PAYMENT_REQUIRED) => "billing_error",
            (Api::Anthropic, StatusCode::NOT_FOUND) => "not_found_error",
            (Api::Anthropic, StatusCode::PAYLOAD_TOO_LARGE) => "request_too_large",
            (_, StatusCode::TOO_MANY_REQUESTS) => "rate_limit_error",
            (Api::Anthropic, StatusCode::GATEWAY_TIMEOUT) => "timeout_error",
            (Api::Anthropic, StatusCode::SERVICE_UNAVAILABLE) => "overloaded_error",
            (Api::OpenAi, status) if status.is_server_error() => "server_error",
            (Api::Anthropic, status) if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// What was wrong and what to do about it.
    #[must_use]
    pub fn words(&self) -> String {
        match &*self.remedy {
            "" => self.message.to_string(),
            remedy => format!("{}; {remedy}", self.message),
        }
    }

    /// In belay's own words, for callers that speak neither API.
    #[must_use]
    pub fn own_json(&self) -> Value {
        json!({ "error": {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "request_id": self.request_id,
            "trace_id": self.trace(),
            "retry_after_ms": self.retry_after_ms,
            "missing_nano_usd": self.missing.map(|missing| missing.0),
        }})
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<Box<str>>) -> Self {
        self.remedy = remedy.into();
        self
    }

    fn trace(&self) -> Option<String> {
        self.trace_id.as_ref().map(|trace| trace.to_string())
    }

    fn json(&self, api: Api) -> Value {
        let belay = json!({
            "code": self.code,
            "trace_id": self.trace(),
            "missing_nano_usd": self.missing.map(|missing| missing.0),
            "retry_after_ms": self.retry_after_ms,
        });
        let kind = self.kind(api);
        match api {
            Api::OpenAi => {
                let code = match self.code {
                    "unknown_model" => "model_not_found",
                    "payment_required" => "insufficient_quota",
                    "rate_limited" => "rate_limit_exceeded",
                    code => code,
                };
                let param = (self.code == "unknown_model").then_some("model");
                json!({ "error": { "message": self.words(), "type": kind, "param": param, "code": code, "belay": belay } })
            }
            Api::Anthropic => json!({
                "type": "error",
                "error": { "type": kind, "message": self.words(), "belay": belay },
                "request_id": self.request_id,
            }),
        }
    }

    /// As an HTTP answer.
    #[must_use]
    pub fn answer(&self, api: Api) -> Response<Bytes> {
        self.respond(&self.json(api))
    }

    /// As an HTTP answer in belay's own words.
    #[must_use]
    pub fn own_answer(&self) -> Response<Bytes> {
        self.respond(&self.own_json())
    }

    fn respond(&self, body: &Value) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, ms.div_ceil(1000).into());
            headers.insert(HeaderName::from_static("retry-after-ms"), ms.into());
        }
        if let Some(id) = self.request_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(HeaderName::from_static("request-id"), id.clone());
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        response
    }

    /// As the last event of a stream. `sequence` is the number of events before it.
    #[must_use]
    pub fn event(&self, dialect: Dialect, sequence: u64) -> Vec<u8> {
        match dialect {
            Dialect::PROMPT => format!("event: error\ndata: {}\n\n", self.own_json()),
            Dialect::ANTHROPIC => format!("event: error\ndata: {}\n\n", self.json(Api::Anthropic)),
            Dialect::OPENAI_RESPONSES => {
                let mut event = self.json(Api::OpenAi);
                event["type"] = "error".into();
                event["code"] = self.code.into();
                event["message"] = self.words().into();
                event["param"] = Value::Null;
                event["sequence_number"] = sequence.into();
                format!("event: error\ndata: {event}\n\n")
            }
            _ => format!("data: {}\n\n", self.json(Api::OpenAi)),
        }
        .into_bytes()
    }
}

impl From<&Failed> for Refusal {
    fn from(failed: &Failed) -> Self {
        let status = match failed.code {
            FailureCode::UNKNOWN_MODEL | FailureCode::UNKNOWN_REQUEST | FailureCode::NOT_FOUND => StatusCode::NOT_FOUND,
            FailureCode::DELETED => StatusCode::GONE,
            FailureCode::PAYMENT_REQUIRED => StatusCode::PAYMENT_REQUIRED,
            FailureCode::RATE_LIMITED => StatusCode::TOO_MANY_REQUESTS,
            // Somebody else has it for a moment.
            FailureCode::CONFLICT if failed.retry_after_ms.is_some() => StatusCode::CONFLICT,
            // Not 409: SDKs take that for a lock that will pass, and ask again.
            FailureCode::CONFLICT => StatusCode::UNPROCESSABLE_ENTITY,
            FailureCode::IN_PROGRESS => StatusCode::CONFLICT,
            FailureCode::PROVIDER_UNAVAILABLE => StatusCode::BAD_GATEWAY,
            FailureCode::TIMED_OUT => StatusCode::GATEWAY_TIMEOUT,
            FailureCode::SUSPENDED | FailureCode::REVOKED => StatusCode::FORBIDDEN,
            FailureCode::UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
            FailureCode::LIMIT if failed.retry_after_ms.is_some() => StatusCode::TOO_MANY_REQUESTS,
            FailureCode::LIMIT => StatusCode::PAYLOAD_TOO_LARGE,
            FailureCode::OVERLOADED | FailureCode::DRAINING | FailureCode::STORE_UNAVAILABLE => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FailureCode::INTERNAL | FailureCode::PROVIDER_REFUSED | FailureCode::CANCELLED => StatusCode::BAD_GATEWAY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self {
            status,
            code: failed.code.name(),
            message: failed.message.as_str().into(),
            remedy: failed.remedy.as_str().into(),
            retry_after_ms: failed.retry_after_ms,
            missing: failed.missing,
            request_id: failed.request_id.map(|id| id.to_string().into()),
            trace_id: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: FailureCode) -> Refusal {
        Refusal::from(&Failed {
            code,
            message: "no".into(),
            remedy: "pay".into(),
            request_id: None,
            retry_after_ms: (code != FailureCode::CONFLICT).then_some(1500),
            missing: Some(NanoUsd(7)),
        })
        .with_request("abc")
    }

    #[test]
    fn every_failure_has_a_status_and_a_kind_that_sdks_know() {
        for code in FailureCode::ALL {
            let refusal = failed(*code);
            assert!(refusal.status.is_client_error() || refusal.status.is_server_error(), "{code}");
            for api in [Api::OpenAi, Api::Anthropic] {
                let json = refusal.json(api);
                assert_eq!(json["error"]["message"], "no; pay");
                assert_eq!(json["error"]["belay"]["code"], code.name());
                let retries = refusal.status.is_server_error() || [408, 409, 429].contains(&refusal.status.as_u16());
                let passes = json["error"]["type"].as_str().is_some_and(|kind| {
                    ["rate_limit_error", "server_error", "api_error", "overloaded_error", "timeout_error"]
                        .contains(&kind)
                });
                assert_eq!(retries && refusal.status != StatusCode::CONFLICT, passes, "{code}: {json}");
            }
        }
    }

    #[test]
    fn money_that_is_missing_is_402_with_the_amount_and_the_times_are_in_the_headers() {
        let answer = failed(FailureCode::PAYMENT_REQUIRED).answer(Api::OpenAi);
        assert_eq!(answer.status(), 402);
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(
            (header("retry-after"), header("retry-after-ms"), header("x-request-id")),
            ("2".into(), "1500".into(), "abc".into())
        );
        let json = failed(FailureCode::PAYMENT_REQUIRED).json(Api::Anthropic);
        assert_eq!(
            (&json["error"]["type"], &json["error"]["belay"]["missing_nano_usd"]),
            (&json!("billing_error"), &json!(7))
        );
        assert_eq!(json["request_id"], "abc");
    }

    #[test]
    fn errors_in_a_stream_have_their_dialects_form() {
        let refusal = failed(FailureCode::TIMED_OUT);
        let event = |dialect| String::from_utf8(refusal.event(dialect, 4)).expect("text");
        assert!(event(Dialect::OPENAI_CHAT).starts_with("data: {\"error\":{"));
        assert!(event(Dialect::ANTHROPIC).starts_with("event: error\ndata: {\"error\":{"));
        assert!(event(Dialect::OPENAI_RESPONSES).contains("\"sequence_number\":4,\"type\":\"error\"}"));
        for dialect in [Dialect::OPENAI_CHAT, Dialect::ANTHROPIC, Dialect::OPENAI_RESPONSES] {
            assert!(event(dialect).ends_with("}\n\n"));
        }
    }
}
