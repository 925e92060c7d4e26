//! Reading a request body: what decides its price, and where it stands in the bytes.

mod scan;

use crate::message::Dialect;
use scan::scan;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use thiserror::Error;

/// Why a body is not acceptable. Blame: the caller; the text names the field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BodyError {
    /// Not JSON, or not an object.
    #[error("the request body is not a JSON object: {0}")]
    NotAnObject(String),
    /// A field stands twice: which one the provider would take is anybody's guess.
    #[error("the field {0:?} stands twice in the request body")]
    Duplicate(String),
    /// A field has a value of the wrong type or range.
    #[error("the field {field:?} must be {expected}")]
    WrongType {
        /// Which field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A field would change the price without bound.
    #[error("{field}: {why}")]
    Unpriced {
        /// Which field, with its value where that matters.
        field: String,
        /// Why it cannot be served.
        why: &'static str,
    },
    /// The dialect is not one that is read here.
    #[error("bodies of dialect {0} are not served")]
    Dialect(Dialect),
}

/// A value and where its bytes stand in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its bytes.
    pub span: Range<usize>,
}

/// What must be known of a body before it may run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BodyFacts {
    /// The `model` field.
    pub model: Option<Spanned<String>>,
    /// Whether a stream of events is asked for.
    pub stream: bool,
    /// The output cap, from whichever field of the dialect names it.
    pub max_output_tokens: Option<u32>,
    /// Where the output cap stands, also when it is null.
    pub cap_span: Option<Range<usize>>,
    /// The name that it stands under, quotes included.
    pub cap_name: Option<Spanned<String>>,
    /// How many answers are asked for (`n`).
    pub choices: u32,
    /// OpenAI: `stream_options.include_usage`.
    pub include_usage: bool,
    /// OpenAI: where `stream_options` stands, also when it is null.
    pub stream_options: Option<Range<usize>>,
    /// Output that is billed beyond the cap at the most, in tokens (a predicted output).
    pub extra_output_tokens: u64,
    /// There is content whose tokens its bytes do not bound (images, documents, references).
    pub non_text: bool,
    /// Tools are offered to the model.
    pub tools: bool,
    /// It refers to something that the provider keeps, by this field: whose it is, only the key says.
    pub refers: Option<&'static str>,
    /// Length of the body in bytes: an upper bound of its text's tokens.
    pub len: usize,
}

/// Reads a body. Errors: all of [`BodyError`].
pub fn inspect(dialect: Dialect, body: &[u8]) -> Result<BodyFacts, BodyError> {
    if !matches!(dialect, Dialect::OPENAI_CHAT | Dialect::OPENAI_RESPONSES | Dialect::ANTHROPIC) {
        return Err(BodyError::Dialect(dialect));
    }
    let fields = fields(body)?;
    let mut facts = BodyFacts { choices: 1, len: body.len(), ..BodyFacts::default() };
    for field in &fields {
        let raw = field.raw;
        match field.name.as_ref() {
            "model" => facts.model = Some(field.spanned("model", "a string")?),
            "stream" => facts.stream = field.nullable("stream", "true or false")?.unwrap_or(false),
            name if cap_fields(dialect).contains(&name) => {
                if facts.cap_span.is_some() {
                    return Err(BodyError::Duplicate("max_tokens and max_completion_tokens".into()));
                }
                facts.cap_span = Some(field.span.clone());
                facts.cap_name = Some(Spanned { value: field.name.to_string(), span: field.name_span(body) });
                facts.max_output_tokens = field.nullable("max_tokens", "a positive whole number")?;
                if facts.max_output_tokens == Some(0) {
                    return Err(BodyError::WrongType { field: "max_tokens", expected: "at least 1" });
                }
            }
            "n" | "best_of" => {
                let count = field.nullable::<u32>("n", "a whole number from 1 to 128")?.unwrap_or(1);
                if !(1..=128).contains(&count) {
                    return Err(BodyError::WrongType { field: "n", expected: "a whole number from 1 to 128" });
                }
                facts.choices = facts.choices.max(count);
            }
            "stream_options" => {
                facts.stream_options = Some(field.span.clone());
                facts.include_usage = include_usage(raw)?;
            }
            "prediction" => facts.extra_output_tokens = raw.get().len() as u64,
            "tools" | "functions" => facts.tools = !matches!(raw.get(), "null" | "[]"),
            "messages" | "system" | "input" => {
                let seen = scan(raw)?;
                facts.non_text |= seen.non_text;
                if seen.refers {
                    facts.refers = Some("a file or an item by its id");
                }
            }
            name @ ("previous_response_id" | "conversation" | "prompt")
                if dialect == Dialect::OPENAI_RESPONSES && raw.get() != "null" =>
            {
                facts.refers = ["prompt", "conversation", "previous_response_id"].into_iter().find(|one| *one == name);
            }
            _ => {}
        }
        refuse_unpriced(field)?;
    }
    Ok(facts)
}

/// What bodies of a dialect call the output cap.
fn cap_fields(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::ANTHROPIC => &["max_tokens"],
        Dialect::OPENAI_RESPONSES => &["max_output_tokens"],
        _ => &["max_tokens", "max_completion_tokens"],
    }
}

/// Names that decide what is read here, and what a request costs. Some servers take them in any case of letters.
const DECIDING: [&str; 33] = [
    "model",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "stream_options",
    "prediction",
    "tools",
    "functions",
    "messages",
    "system",
    "input",
    "previous_response_id",
    "conversation",
    "prompt",
    "service_tier",
    "speed",
    "inference_geo",
    "web_search_options",
    "mcp_servers",
    "container",
    "background",
    "audio",
    "modalities",
    "models",
    "route",
    "provider",
    "plugins",
    "search_parameters",
    "web_search",
    "enable_search",
];

/// Refuses fields that change the price in a way that no price list bounds.
fn refuse_unpriced(field: &Field<'_>) -> Result<(), BodyError> {
    let text = field.raw.get();
    let unpriced = |why| Err(BodyError::Unpriced { field: clip(&field.name, text), why });
    match field.name.as_ref() {
        "service_tier" if !matches!(text, "null" | r#""auto""# | r#""default""# | r#""standard_only""#) => {
            unpriced("this service tier has no price here; leave it out")
        }
        "speed" | "inference_geo" if text != "null" => {
            unpriced("this changes the price and has none here; leave it out")
        }
        "web_search_options" | "mcp_servers" | "container" if text != "null" => {
            unpriced("tools that the provider runs have no price here; leave them out")
        }
        "background" if text != "null" && text != "false" => {
            unpriced("nobody would wait for the answer and its price; leave it out")
        }
        "audio" if text != "null" => unpriced("audio output has no price here; leave it out"),
        "modalities" if !matches!(text.split_whitespace().collect::<String>().as_str(), "null" | r#"["text"]"#) => {
            unpriced("answers of sound or pictures have no price here; ask for text")
        }
        // Aggregators take other models, providers and paid searches from the body.
        "models" | "route" | "provider" if text != "null" => {
            unpriced("this lets the provider choose another model at another price; leave it out")
        }
        "plugins" | "search_parameters" | "web_search" | "enable_search" if !matches!(text, "null" | "false") => {
            unpriced("searches that the provider runs have no price here; leave them out")
        }
        "tools" => match provider_side(field.raw)? {
            None => Ok(()),
            Some(kind) => Err(BodyError::Unpriced {
                field: format!("tools: {:?}", clip("type", &kind)),
                why: "tools that the provider runs have no price here; leave them out",
            }),
        },
        _ => Ok(()),
    }
}

/// Tools that the caller runs. All others run at the provider and cost extra.
fn is_client_side(kind: &str) -> bool {
    const CLIENT_SIDE: [&str; 11] = [
        "function",
        "custom",
        "namespace",
        "local_shell",
        "shell",
        "apply_patch",
        "bash_",
        "text_editor_",
        "computer_",
        "memory_",
        "tool_search_tool_",
    ];
    CLIENT_SIDE.iter().any(|known| match known.strip_suffix('_') {
        Some(_) => kind.starts_with(known),
        None => kind == *known,
    })
}

fn clip(name: &str, text: &str) -> String {
    let shown: String = text.chars().take(40).collect();
    format!("{name}: {shown}")
}

/// A field of the top-level object.
struct Field<'a> {
    name: Cow<'a, str>,
    raw: &'a RawValue,
    span: Range<usize>,
}

impl Field<'_> {
    /// Where its name stands in `body`: there is nothing but blanks and a colon between the two.
    fn name_span(&self, body: &[u8]) -> Range<usize> {
        let end = body[..self.span.start].iter().rposition(|byte| *byte == b'"').unwrap_or(0);
        // A name that is known here has no quotes in it, however it is written.
        let start = body[..end].iter().rposition(|byte| *byte == b'"').unwrap_or(0);
        start..end + 1
    }

    fn nullable<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, BodyError> {
        serde_json::from_str(self.raw.get()).map_err(|_| BodyError::WrongType { field, expected })
    }

    fn spanned<T: serde::de::DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Spanned<T>, BodyError> {
        let value = serde_json::from_str(self.raw.get()).map_err(|_| BodyError::WrongType { field, expected })?;
        Ok(Spanned { value, span: self.span.clone() })
    }
}

/// The fields of the object in `body` with their spans. Errors: `NotAnObject`, `Duplicate`.
fn fields(body: &[u8]) -> Result<Vec<Field<'_>>, BodyError> {
    let text = std::str::from_utf8(body).map_err(|error| BodyError::NotAnObject(error.to_string()))?;
    let raw = raw_fields(text).map_err(|error| BodyError::NotAnObject(error.to_string()))?;
    let base = text.as_ptr() as usize;
    let mut fields: Vec<Field<'_>> = Vec::with_capacity(raw.len());
    // A body may have as many fields as it has room for: each is looked up, not compared with all others.
    let mut known = HashSet::with_capacity(raw.len());
    for (name, raw) in &raw {
        let folded = folded(name);
        if !known.insert(folded.clone()) {
            return Err(BodyError::Duplicate(name.chars().take(80).collect()));
        }
        if folded != *name && DECIDING.contains(&folded.as_ref()) {
            return Err(BodyError::Unpriced {
                field: name.to_string(),
                why: "some servers would take it for the field in lower case; write it so, or leave it out",
            });
        }
        // The raw value borrows from `text`, so its address tells where it stands.
        let start = raw.get().as_ptr() as usize - base;
        fields.push(Field { name: name.clone(), raw, span: start..start + raw.get().len() });
    }
    Ok(fields)
}

/// A name in small letters, and with the two signs that become such in Unicode.
fn folded(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(name);
    }
    let letter = |letter: char| match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    };
    Cow::Owned(name.chars().map(letter).collect())
}

fn raw_fields(text: &str) -> Result<Vec<(Cow<'_, str>, &RawValue)>, serde_json::Error> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(KeyText(name)) = map.next_key()? {
                // A hostile body of a million tiny fields would make the duplicate check quadratic.
                if fields.len() == MAX_FIELDS {
                    return Err(serde::de::Error::custom("more than 256 fields"));
                }
                fields.push((name, map.next_value()?));
            }
            Ok(fields)
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = json.deserialize_map(Fields)?;
    json.end()?;
    Ok(fields)
}

const MAX_FIELDS: usize = 256;

/// A key, borrowed where it has no escapes.
struct KeyText<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for KeyText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl<'de> Visitor<'de> for Key {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Key).map(KeyText)
    }
}

fn include_usage(raw: &RawValue) -> Result<bool, BodyError> {
    #[derive(serde::Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    serde_json::from_str::<Option<Options>>(raw.get())
        .map(|options| options.and_then(|options| options.include_usage).unwrap_or(false))
        .map_err(|_| BodyError::WrongType {
            field: "stream_options",
            expected: "an object with include_usage true or false",
        })
}

/// The first tool that the provider would run, those in a namespace included.
fn provider_side(raw: &RawValue) -> Result<Option<String>, BodyError> {
    #[derive(serde::Deserialize)]
    struct Tool {
        r#type: Option<String>,
        /// Where a shell runs: here, unless a container of the provider's is named. Of other tools it is a word.
        environment: Option<Value>,
        tools: Option<Vec<Tool>>,
    }
    fn first(tools: Vec<Tool>) -> Option<String> {
        tools.into_iter().find_map(|tool| {
            let place =
                tool.environment.filter(Value::is_object).map(|at| at["type"].as_str().unwrap_or("?").to_owned());
            let elsewhere = place.filter(|kind| kind != "local");
            let foreign = tool.r#type.filter(|kind| !is_client_side(kind));
            foreign.or(elsewhere).or_else(|| first(tool.tools.unwrap_or_default()))
        })
    }
    let tools = serde_json::from_str::<Option<Vec<Tool>>>(raw.get());
    let tools = tools.map_err(|_| BodyError::WrongType { field: "tools", expected: "a list of tools" })?;
    Ok(first(tools.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tools_run_here_or_are_refused_and_names_are_known_in_any_letters() {
        let with = |field: &str| inspect(Dialect::OPENAI_RESPONSES, format!("{{\"input\":\"hi\",{field}}}").as_bytes());
        for good in [
            r#""tools":[{"type":"shell"},{"type":"shell","environment":{"type":"local"}}]"#,
            r#""tools":[{"type":"computer_use_preview","environment":"browser","display_width":1}]"#,
            r#""tools":[{"type":"namespace","tools":[{"type":"function"}]},{"type":"function","tools":null}]"#,
            r#""topK":3"#,
        ] {
            assert!(with(good).is_ok(), "{good}: {:?}", with(good));
        }
        for bad in [
            r#""tools":[{"type":"shell","environment":{"type":"container_auto"}}]"#,
            r#""tools":[{"type":"shell","environment":{"image":"x"}}]"#,
            r#""tools":[{"type":"namespace","tools":[{"type":"web_search"}]}]"#,
            r#""Max_Output_Tokens":100000"#,
            "\"max_output_to\u{212a}en\u{17f}\":100000",
            r#""Service_Tier":"priority""#,
        ] {
            assert!(matches!(with(bad), Err(BodyError::Unpriced { .. })), "{bad}: {:?}", with(bad));
        }
        assert!(matches!(with(r#""extra":1,"Extra":2"#), Err(BodyError::Duplicate(_))));
    }

    #[test]
    fn facts_and_spans_of_an_openai_body() {
        let body = br#"{ "model" : "gpt-x", "stream":true, "max_completion_tokens": 77, "n":2,
            "stream_options":{"include_usage":true}, "messages":[{"role":"user","content":"hi"}], "new_field":{"a":[1]} }"#;
        let facts = inspect(Dialect::OPENAI_CHAT, body).expect("valid");
        let model = facts.model.expect("named");
        assert_eq!(model.value, "gpt-x");
        assert_eq!(&body[model.span], br#""gpt-x""#);
        assert_eq!(facts.max_output_tokens, Some(77));
        assert_eq!(&body[facts.cap_span.expect("named")], b"77");
        assert!(facts.stream && facts.include_usage && !facts.non_text);
        assert_eq!(facts.choices, 2);
    }

    #[test]
    fn content_that_bytes_do_not_bound_is_seen() {
        for (content, non_text) in [
            (r#"[{"type":"text","text":"a"}]"#, false),
            (r#"[{"type":"image","source":{"type":"url","url":"https://x"}}]"#, true),
            (r#"[{"type":"image_url","image_url":{"url":"data:"}}]"#, true),
            (r#"[{"t\u0079pe":"document"}]"#, true),
            (r#""plain""#, false),
        ] {
            let body = format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#);
            let facts = inspect(Dialect::ANTHROPIC, body.as_bytes()).expect("valid");
            assert_eq!(facts.non_text, non_text, "{content}");
        }
    }

    #[test]
    fn what_would_change_the_price_without_bound_is_refused() {
        for body in [
            r#"{"service_tier":"priority"}"#,
            r#"{"web_search_options":{}}"#,
            r#"{"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#,
            r#"{"speed":"fast"}"#,
            r#"{"audio":{"voice":"x"}}"#,
            r#"{"modalities":["text","audio"]}"#,
            r#"{"models":["dear/one"]}"#,
            r#"{"provider":{"order":["dear"]}}"#,
            r#"{"route":"fallback"}"#,
            r#"{"plugins":[{"id":"web"}]}"#,
            r#"{"search_parameters":{"mode":"on"}}"#,
            r#"{"enable_search":true}"#,
        ] {
            let error = inspect(Dialect::ANTHROPIC, body.as_bytes()).expect_err(body);
            assert!(matches!(error, BodyError::Unpriced { .. }), "{body}: {error}");
        }
        for body in [
            r#"{"service_tier":"auto","tools":[{"name":"f","input_schema":{}},{"type":"function","function":{}}]}"#,
            r#"{"tools":[{"type":"bash_20250124","name":"bash"}],"tools_other":null}"#,
            r#"{"tools":null,"service_tier":null,"enable_search":false,"modalities":[ "text" ]}"#,
        ] {
            assert!(inspect(Dialect::ANTHROPIC, body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn ambiguous_and_wrong_bodies_are_refused() {
        for body in [
            "",
            "[]",
            "{",
            r#"{"max_tokens":1,"max_tokens":2}"#,
            r#"{"max_tokens":1,"m\u0061x_tokens":2}"#,
            r#"{"max_tokens":1,"max_completion_tokens":2}"#,
            r#"{"max_tokens":-1}"#,
            r#"{"max_tokens":0}"#,
            r#"{"max_tokens":1.5}"#,
            r#"{"model":7}"#,
            r#"{"n":0}"#,
            r#"{"n":1000}"#,
            r#"{"stream":"yes"}"#,
            r#"{} {}"#,
        ] {
            assert!(inspect(Dialect::OPENAI_CHAT, body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn inspecting_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), json in "[{}\\[\\]\":,a-z0-9 ]{0,80}") {
            let _ = inspect(Dialect::OPENAI_CHAT, &bytes);
            let _ = inspect(Dialect::ANTHROPIC, json.as_bytes());
        }
    }
}
