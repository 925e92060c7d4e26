//! Bodies of requests: what is read out of them, edited in them, and carried over.

use crate::sse::DIALECTS;
use belay_protocol::dialect::body::inspect;
use belay_protocol::dialect::edit::{Edits, apply};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::dialect::translate::{self, Sending};
use belay_protocol::message::Dialect;
use bytes::Bytes;
use serde_json::Value;

/// The first byte says whose the rest is.
pub(crate) fn bodies(bytes: &[u8]) {
    let Some((whose, body)) = bytes.split_first() else { return };
    let from = DIALECTS[usize::from(*whose) % 4];
    let body = Bytes::copy_from_slice(body);
    if let Ok(facts) = inspect(from, &body) {
        let cap_field = if from == Dialect::OPENAI_RESPONSES { "max_output_tokens" } else { "max_tokens" };
        let edits = Edits { model: "a-model", max_output_tokens: Some(77), cap_field };
        let edited = apply(from, &body, &facts, &edits);
        // What was JSON is JSON, and says what was meant.
        if serde_json::from_slice::<Value>(&body).is_ok() {
            let value: Value = serde_json::from_slice(&edited).expect("it was JSON before");
            assert_eq!(value["model"], "a-model");
            let facts = inspect(from, &edited).expect("it could be read before");
            assert_eq!(facts.max_output_tokens, Some(77));
            let twice = apply(from, &edited, &facts, &edits);
            assert_eq!(twice, edited, "edited twice is edited once");
        }
    }
    let sending = Sending { model: "a-model", cap: Some(77), cap_field: "max_tokens" };
    for to in DIALECTS {
        if let Ok(asked) = translate::request(from, to, &body) {
            let written = translate::write(&asked, to, &sending);
            inspect(to, &written).expect("what is carried over can be read");
        }
    }
    let _ = translate::is_responses_body(&body);
    let _ = translate::responses_as_chat("m", &body);
    let _ = serde_json::from_slice::<Prompt>(&body);
}
