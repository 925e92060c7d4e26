//! What stands in requests and answers, for programs and for the document that describes them.

use belay_protocol::message::{End, UnitKind};
use belay_protocol::money::NanoUsd;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

/// An amount in cents, every decimal of it: a nano-dollar is a ten-millionth of a cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cents(pub(super) NanoUsd);

/// Nano-dollars in a cent.
pub(super) const CENT: i64 = 10_000_000;

impl Cents {
    fn text(self) -> String {
        let (sign, nanos) = (if self.0.is_negative() { "-" } else { "" }, self.0.0.unsigned_abs());
        let decimals = format!("{:07}", nanos % CENT.unsigned_abs());
        match decimals.trim_end_matches('0') {
            "" => format!("{sign}{}", nanos / CENT.unsigned_abs()),
            kept => format!("{sign}{}.{kept}", nanos / CENT.unsigned_abs()),
        }
    }
}

impl Serialize for Cents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A number, but never by way of a binary fraction.
        RawValue::from_string(self.text()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl PartialSchema for Cents {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::Number).description(Some("Cents, exact")).into()
    }
}

impl ToSchema for Cents {}

/// Why something was not done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    pub(super) error: ProblemDetails,
}

/// What was wrong, and what to do about it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "code": "payment_required", "message": "the balance of $0.00 does not cover this request; $0.01 is missing",
    "remedy": "top up, ask for fewer output tokens, or allow a smaller answer", "request_id": null, "trace_id": null,
    "retry_after_ms": null, "missing_nano_usd": 10000000
}))]
pub(super) struct ProblemDetails {
    /// A stable name, for programs.
    pub(super) code: String,
    /// What was wrong, for people.
    pub(super) message: String,
    /// What to do about it, for people; may be empty.
    pub(super) remedy: String,
    /// The request, as the relay knows it.
    pub(super) request_id: Option<String>,
    /// What those who collect spans know it by: the trace of its caller's `traceparent`, or the request's own.
    pub(super) trace_id: Option<String>,
    /// Worth trying again after so long.
    pub(super) retry_after_ms: Option<u64>,
    /// The money that is missing, in nano-dollars.
    pub(super) missing_nano_usd: Option<i64>,
}

/// How any request may be refused.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) enum Problems {
    /// It makes no sense; the message names what is wrong.
    #[response(status = 400)]
    BadRequest(#[to_schema] Problem),
    /// Nobody is known by that key.
    #[response(status = 401)]
    Unauthenticated(#[to_schema] Problem),
    /// The key is not for this, or its tenant is suspended.
    #[response(status = 403)]
    Forbidden(#[to_schema] Problem),
    /// There is nothing of that name.
    #[response(status = 404)]
    NotFound(#[to_schema] Problem),
    /// The body did not arrive in time.
    #[response(status = 408)]
    TimedOut(#[to_schema] Problem),
    /// Something else stands against it at this moment.
    #[response(status = 409)]
    Conflict(#[to_schema] Problem),
    /// It was deleted, or its content is no longer kept.
    #[response(status = 410)]
    Gone(#[to_schema] Problem),
    /// Too large.
    #[response(status = 413)]
    TooLarge(#[to_schema] Problem),
    /// The body is encoded in a way that is not served.
    #[response(status = 415)]
    Encoded(#[to_schema] Problem),
    /// It was asked before with something else.
    #[response(status = 422)]
    Different(#[to_schema] Problem),
    /// Too often, or too many at once.
    #[response(status = 429)]
    TooMany(#[to_schema] Problem),
    /// No room, or the relay is going down; try again.
    #[response(status = 503)]
    Unavailable(#[to_schema] Problem),
}

/// How a request for an LLM may be refused beside that.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) enum LlmProblems {
    /// The balance, a budget or the cost cap does not cover it; with the missing amount.
    #[response(status = 402)]
    PaymentRequired(#[to_schema] Problem),
    /// The provider failed, or could not be reached.
    #[response(status = 502)]
    Provider(#[to_schema] Problem),
    /// The provider sent nothing in time.
    #[response(status = 504)]
    Late(#[to_schema] Problem),
}

/// What was used, by kind of token.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cache_read: u64,
    pub(super) cache_write: u64,
    pub(super) reasoning: u64,
}

impl Tokens {
    pub(super) fn of(end: &End) -> Self {
        Self {
            input: end.units(UnitKind::INPUT),
            output: end.units(UnitKind::OUTPUT),
            cache_read: end.units(UnitKind::CACHE_READ),
            cache_write: end.units(UnitKind::CACHE_WRITE_5M) + end.units(UnitKind::CACHE_WRITE_1H),
            reasoning: end.units(UnitKind::REASONING),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cents_have_every_decimal_and_are_numbers() {
        for (nanos, text) in [
            (10_815_000, "1.0815"),
            (0, "0"),
            (10_000_000, "1"),
            (1, "0.0000001"),
            (-15_000_000, "-1.5"),
            (i64::MAX, "922337203685.4775807"),
            (i64::MIN, "-922337203685.4775808"),
        ] {
            assert_eq!(serde_json::to_string(&Cents(NanoUsd(nanos))).expect("written"), text);
        }
    }
}
