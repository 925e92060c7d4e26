//! Looking through the messages of a body, without building them.

use super::{BodyError, KeyText};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// What stands in a list of messages or items.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Seen {
    /// An object has a `type` that is not known to be text. Errs on the side of "yes": that only makes
    /// the hold larger.
    pub(super) non_text: bool,
    /// Something is named that the provider keeps.
    pub(super) refers: bool,
}

/// Looks through all objects below.
pub(super) fn scan(raw: &RawValue) -> Result<Seen, BodyError> {
    let mut seen = Seen::default();
    let mut json = serde_json::Deserializer::from_str(raw.get());
    Scan { seen: &mut seen, is_type: false }
        .deserialize(&mut json)
        .map_err(|error| BodyError::NotAnObject(format!("messages: {error}")))?;
    Ok(seen)
}

/// Types of objects whose tokens their bytes bound.
const TEXT: [&str; 21] = [
    "text",
    // Of OpenAI Responses.
    "message",
    "input_text",
    "output_text",
    "reasoning",
    "reasoning_text",
    "summary_text",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "local_shell_call",
    "local_shell_call_output",
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
    "function",
    "custom",
    "ephemeral",
    "refusal",
];

/// A value: that of a `type`, or any other.
struct Scan<'f> {
    seen: &'f mut Seen,
    is_type: bool,
}

impl Scan<'_> {
    fn below(&mut self, is_type: bool) -> Scan<'_> {
        Scan { seen: self.seen, is_type }
    }
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.seen.non_text |= self.is_type;
        while let Some(KeyText(name)) = map.next_key()? {
            match name.as_ref() {
                "file_id" | "file_ids" => self.seen.refers |= map.next_value::<Option<IgnoredAny>>()?.is_some(),
                name => map.next_value_seed(self.below(name == "type"))?,
            }
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.seen.non_text |= self.is_type;
        while seq.next_element_seed(self.below(false))?.is_some() {}
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.is_type {
            self.seen.refers |= text == "item_reference";
            self.seen.non_text |= !TEXT.contains(&text);
        }
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
