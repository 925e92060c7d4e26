//! Reading objects whose every field has to be accounted for.

use super::Untranslatable;
use crate::message::Dialect;
use serde_json::{Map, Value};

/// An object, and which of its fields have been read. A field that is null is not there.
pub(super) struct Fields<'a> {
    path: String,
    to: Dialect,
    object: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, path: impl Into<String>, to: Dialect) -> Result<Self, Untranslatable> {
        let path = path.into();
        match value.as_object() {
            Some(object) => Ok(Self { path, to, object, known: vec![] }),
            None => Err(Untranslatable::Malformed { field: path, expected: "an object" }),
        }
    }

    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    pub(super) fn malformed(&self, field: &str, expected: &'static str) -> Untranslatable {
        Untranslatable::Malformed { field: self.name(field), expected }
    }

    pub(super) fn refused(&self, field: &str, why: &'static str) -> Untranslatable {
        Untranslatable::Field { field: self.name(field), to: self.to, why }
    }

    /// A field's value, if it is there.
    pub(super) fn take(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// A field that says nothing that the other side would have to know.
    pub(super) fn pass(&mut self, fields: &[&'static str]) {
        self.known.extend_from_slice(fields);
    }

    /// A field that may only have one of these values.
    pub(super) fn only(
        &mut self,
        field: &'static str,
        values: &[Value],
        why: &'static str,
    ) -> Result<(), Untranslatable> {
        match self.take(field) {
            Some(value) if !values.contains(value) => Err(self.refused(field, why)),
            _ => Ok(()),
        }
    }

    pub(super) fn text(&mut self, field: &'static str) -> Result<Option<&'a str>, Untranslatable> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.malformed(field, "a string")),
        }
    }

    pub(super) fn must_text(&mut self, field: &'static str) -> Result<&'a str, Untranslatable> {
        self.text(field)?.ok_or_else(|| self.malformed(field, "a string"))
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<Option<bool>, Untranslatable> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.malformed(field, "true or false")),
        }
    }

    pub(super) fn number(&mut self, field: &'static str) -> Result<Option<Value>, Untranslatable> {
        match self.take(field) {
            None => Ok(None),
            Some(number @ Value::Number(_)) => Ok(Some(number.clone())),
            Some(_) => Err(self.malformed(field, "a number")),
        }
    }

    pub(super) fn count(&mut self, field: &'static str) -> Result<Option<u32>, Untranslatable> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
                Some(count) => Ok(Some(count)),
                None => Err(self.malformed(field, "a whole number")),
            },
        }
    }

    pub(super) fn list(&mut self, field: &'static str) -> Result<&'a [Value], Untranslatable> {
        match self.take(field) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(self.malformed(field, "a list")),
        }
    }

    /// All fields have been read. Errors: one that has not, and is there.
    pub(super) fn end(self) -> Result<(), Untranslatable> {
        let unread = self.object.iter().find(|(name, value)| !value.is_null() && !self.known.contains(&name.as_str()));
        match unread {
            Some((name, _)) => Err(self.refused(&name.chars().take(80).collect::<String>(), "")),
            None => Ok(()),
        }
    }
}
