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
    TypeScan { seen: &mut seen }
        .deserialize(&mut json)
        .map_err(|error| BodyError::NotAnObject(format!("messages: {error}")))?;
    Ok(seen)
}

struct TypeScan<'f> {
    seen: &'f mut Seen,
}

impl<'de> DeserializeSeed<'de> for TypeScan<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TypeScan<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(KeyText(name)) = map.next_key()? {
            match name.as_ref() {
                "type" => map.next_value_seed(TypeValue { seen: self.seen })?,
                "file_id" | "file_ids" => self.seen.refers |= map.next_value::<Option<IgnoredAny>>()?.is_some(),
                _ => map.next_value_seed(TypeScan { seen: self.seen })?,
            }
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(TypeScan { seen: self.seen })?.is_some() {}
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
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The value of a `type` key.
struct TypeValue<'f> {
    seen: &'f mut Seen,
}

impl<'de> DeserializeSeed<'de> for TypeValue<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TypeValue<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_str<E>(self, kind: &str) -> Result<(), E> {
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
        self.seen.refers |= kind == "item_reference";
        self.seen.non_text |= !TEXT.contains(&kind);
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.seen.non_text = true;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.seen.non_text = true;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
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
