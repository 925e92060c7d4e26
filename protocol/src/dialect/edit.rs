//! The closed list of edits to a request body: the model's name, the output cap, and (OpenAI)
//! the wish for usage figures. Every other byte reaches the provider as the caller wrote it.

use super::body::BodyFacts;
use crate::message::Dialect;
use bytes::{BufMut, Bytes, BytesMut};
use std::ops::Range;

/// What the relay wants the provider to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits<'a> {
    /// The provider's name of the model.
    pub model: &'a str,
    /// The output cap in tokens, always sent; `None` where there is no output.
    pub max_output_tokens: Option<u32>,
    /// The field that names the cap at the provider.
    pub cap_field: &'a str,
}

/// Applies the edits. `facts` must be those of this `body`. Returns the body itself if nothing
/// changes.
#[must_use]
pub fn apply(dialect: Dialect, body: &Bytes, facts: &BodyFacts, edits: &Edits<'_>) -> Bytes {
    let mut splices: Vec<(Range<usize>, String)> = Vec::with_capacity(3);
    let mut inserted = String::new();
    let model = json_string(edits.model);
    match &facts.model {
        Some(found) if found.value == edits.model => {}
        Some(found) => splices.push((found.span.clone(), model)),
        None => inserted += &format!("\"model\":{model},"),
    }
    if let Some(cap) = edits.max_output_tokens {
        match &facts.cap_span {
            Some(_) if facts.max_output_tokens == Some(cap) => {}
            Some(span) => splices.push((span.clone(), cap.to_string())),
            None => inserted += &format!("\"{}\":{cap},", edits.cap_field),
        }
    }
    if let Some(name) = facts.cap_name.as_ref().filter(|name| {
        // A name that the provider does not know would be a cap that it does not keep.
        edits.max_output_tokens.is_some() && name.value != edits.cap_field
    }) {
        splices.push((name.span.clone(), json_string(edits.cap_field)));
    }
    if dialect == Dialect::OPENAI_CHAT && facts.stream && !facts.include_usage {
        match &facts.stream_options {
            Some(span) => splices.push((span.clone(), with_usage(&body[span.clone()]))),
            None => inserted += "\"stream_options\":{\"include_usage\":true},",
        }
    }
    if !inserted.is_empty() {
        splices.push((insertion_point(body, &mut inserted), inserted));
    }
    splice(body, splices)
}

/// Just behind the opening brace; an object without fields takes no trailing comma.
fn insertion_point(body: &[u8], inserted: &mut String) -> Range<usize> {
    let open = memchr::memchr(b'{', body).map_or(0, |at| at + 1);
    let empty = body[open..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    if empty {
        inserted.pop();
    }
    open..open
}

fn splice(body: &Bytes, mut splices: Vec<(Range<usize>, String)>) -> Bytes {
    if splices.is_empty() {
        return body.clone();
    }
    splices.sort_by_key(|(span, _)| span.start);
    let added: usize = splices.iter().map(|(_, text)| text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + added);
    let mut at = 0;
    for (span, text) in splices {
        out.put_slice(&body[at..span.start]);
        out.put_slice(text.as_bytes());
        at = span.end;
    }
    out.put_slice(&body[at..]);
    out.freeze()
}

/// A `stream_options` object with `include_usage` true, its other fields kept.
fn with_usage(options: &[u8]) -> String {
    // `inspect` has seen that it is an object or null; null becomes an object.
    let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(options).unwrap_or_default();
    object.insert("include_usage".into(), true.into());
    serde_json::Value::Object(object).to_string()
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::body::inspect;
    use super::*;

    fn edited(dialect: Dialect, body: &str, cap: u32) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let facts = inspect(dialect, &body).expect("valid");
        let edits = Edits { model: "real", max_output_tokens: Some(cap), cap_field: "max_tokens" };
        let out = apply(dialect, &body, &facts, &edits);
        String::from_utf8(out.to_vec()).expect("utf-8")
    }

    #[test]
    fn only_the_listed_fields_change() {
        let body = r#"{ "z" : 1e5 ,"model": "alias", "max_tokens":900,"messages":[ "\u00e9" ]  }"#;
        assert_eq!(
            edited(Dialect::ANTHROPIC, body, 50),
            r#"{ "z" : 1e5 ,"model": "real", "max_tokens":50,"messages":[ "\u00e9" ]  }"#
        );
    }

    #[test]
    fn the_cap_goes_under_the_name_that_the_provider_takes() {
        let body = r#"{"model":"real", "max_completion_tokens" : 10,"stream":false}"#;
        assert_eq!(edited(Dialect::OPENAI_CHAT, body, 10), r#"{"model":"real", "max_tokens" : 10,"stream":false}"#);
        let escaped = "{\"max_compl\\u0065tion_tokens\":900,\"model\":\"real\"}";
        assert_eq!(edited(Dialect::OPENAI_CHAT, escaped, 10), r#"{"max_tokens":10,"model":"real"}"#);
        // Of Anthropic's bodies it is no name of a cap.
        let other = r#"{"model":"real","max_completion_tokens":9}"#;
        assert_eq!(
            edited(Dialect::ANTHROPIC, other, 10),
            r#"{"max_tokens":10,"model":"real","max_completion_tokens":9}"#
        );
    }

    #[test]
    fn missing_fields_are_inserted_once() {
        assert_eq!(edited(Dialect::ANTHROPIC, "{}", 5), r#"{"model":"real","max_tokens":5}"#);
        assert_eq!(
            edited(Dialect::OPENAI_CHAT, r#" {"stream":true}"#, 5),
            r#" {"model":"real","max_tokens":5,"stream_options":{"include_usage":true},"stream":true}"#
        );
        assert_eq!(
            edited(
                Dialect::OPENAI_CHAT,
                r#"{"model":"real","max_tokens":5,"stream":true,"stream_options":{"x":1}}"#,
                5
            ),
            r#"{"model":"real","max_tokens":5,"stream":true,"stream_options":{"include_usage":true,"x":1}}"#
        );
    }

    #[test]
    fn a_body_that_is_right_already_is_not_copied() {
        let body = Bytes::from_static(br#"{"model":"real","max_tokens":5}"#);
        let facts = inspect(Dialect::ANTHROPIC, &body).expect("valid");
        let edits = Edits { model: "real", max_output_tokens: Some(5), cap_field: "max_tokens" };
        assert_eq!(apply(Dialect::ANTHROPIC, &body, &facts, &edits).as_ptr(), body.as_ptr());
    }

    #[test]
    fn a_null_cap_is_replaced_by_a_single_field() {
        // `"max_tokens":null` is legal; a second field of that name would be ambiguous.
        let out = edited(Dialect::OPENAI_CHAT, r#"{"model":"real","max_tokens":null}"#, 5);
        assert_eq!(out.matches("max_tokens").count(), 1, "{out}");
    }
}
