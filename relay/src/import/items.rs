//! Settings, documents and adapters.

use super::names;
use super::objects::Objects;
use super::report::Left;
use crate::store::old::{Cell, Field, KNOWLEDGE_DOCUMENTS, Row, USER_LORAS, USER_SETTINGS};
use belay_protocol::adapter::{self, HEADER_REGION};
use belay_protocol::item::{ItemKey, ItemKind, META_BYTES};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

/// Where the content of an item is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum From {
    /// It was deleted there.
    Nowhere,
    Here(Vec<u8>),
    File(PathBuf, u64),
}

impl From {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Nowhere => 0,
            Self::Here(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

/// An item that comes over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) table: &'static str,
    pub(super) id: String,
    pub(super) kind: ItemKind,
    pub(super) key: ItemKey,
    pub(super) content: From,
    pub(super) meta: String,
    pub(super) modified_ms: u64,
}

fn left(table: &'static str, user: &str, id: &str, why: impl Into<String>) -> Left {
    Left { table, user: user.into(), id: id.into(), why: why.into() }
}

/// When it was changed last; 0: nobody knows.
fn modified(row: &Row) -> u64 {
    let time = |field| row.time_ms(field).ok().flatten();
    time(Field::Updated).or_else(|| time(Field::Created)).unwrap_or(0)
}

/// What may be as large as its kind may be.
fn fits(item: Item, user: &str) -> Result<Item, Left> {
    let (size, most) = (item.content.size(), item.kind.most_bytes());
    if size <= most {
        return Ok(item);
    }
    Err(left(item.table, user, &item.id, format!("it has {size} bytes; a {} has at most {most}", item.kind)))
}

/// The settings of a row, which has one of them or all.
pub(super) fn settings(user: &str, row: &Row) -> Vec<Result<Item, Left>> {
    let table = USER_SETTINGS.name;
    let one = |name: &str, value: String| {
        let key = names::item(name, name).ok_or_else(|| left(table, user, name, "it cannot be a setting's name"))?;
        let (content, meta) = (From::Here(value.into_bytes()), String::new());
        let modified_ms = modified(row);
        fits(Item { table, id: name.into(), kind: ItemKind::SETTING, key, content, meta, modified_ms }, user)
    };
    let mut found = vec![];
    if let Some(name) = row.text(Field::Key) {
        // As it was written: a number keeps its digits. What is no JSON is a text.
        let value = match row.cell(Field::Value) {
            Cell::Null => "null".to_owned(),
            Cell::Text(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => text.clone(),
            Cell::Text(text) => Value::String(text.clone()).to_string(),
            _ => row.json(Field::Value).unwrap_or_default().to_string(),
        };
        found.push(one(&name, value));
    }
    match row.json(Field::All) {
        None => {}
        Some(Value::Object(all)) => found.extend(all.iter().map(|(name, value)| one(name, value.to_string()))),
        Some(_) => found.push(Err(left(table, user, "", "its settings are no JSON object"))),
    }
    found
}

/// One that was deleted there.
fn gone(table: &'static str, row: &Row, kind: ItemKind, (id, key): (&str, &ItemKey)) -> Option<Item> {
    let item = || Item {
        table,
        id: id.into(),
        kind,
        key: key.clone(),
        content: From::Nowhere,
        meta: String::new(),
        modified_ms: modified(row),
    };
    row.is_set(Field::Deleted).then(item)
}

/// What files of a kind end with.
fn ending(mime: &str) -> &'static str {
    match mime.split(';').next().unwrap_or_default().trim() {
        "application/pdf" => "pdf",
        "text/plain" => "txt",
        "text/html" => "html",
        "text/csv" => "csv",
        "application/json" => "json",
        _ => "md",
    }
}

/// A document. Errors: it cannot be kept.
pub(super) fn document(user: &str, row: &Row, objects: Option<&mut Objects>) -> Result<Item, Left> {
    let table = KNOWLEDGE_DOCUMENTS.name;
    let id = row.text(Field::Id).unwrap_or_default();
    let modified_ms = modified(row);
    let mut name = row.text(Field::Name).unwrap_or_else(|| id.clone());
    let has_ending = name.rsplit('/').next().and_then(|name| name.rsplit_once('.')).is_some_and(|(stem, ending)| {
        !stem.is_empty() && (1..=8).contains(&ending.len()) && ending.chars().all(|c| c.is_ascii_alphanumeric())
    });
    if !has_ending {
        name = format!("{name}.{}", ending(&row.text(Field::Kind).unwrap_or_default()));
    }
    let key = names::item(&name, &id).ok_or_else(|| left(table, user, &id, "it has no name that a file can have"))?;
    if let Some(item) = gone(table, row, ItemKind::DOCUMENT, (&id, &key)) {
        return Ok(item);
    }
    let content = match (row.text(Field::Object), row.bytes(Field::Content)) {
        (Some(key), here) => match (object(objects, &key), here) {
            (Ok(content), _) => content,
            (Err(_), Some(bytes)) if !bytes.is_empty() => From::Here(bytes),
            (Err(why), _) => return Err(left(table, user, &id, why)),
        },
        (None, Some(bytes)) => From::Here(bytes),
        (None, None) => return Err(left(table, user, &id, "it has neither content nor an object")),
    };
    let meta = String::new();
    fits(Item { table, id, kind: ItemKind::DOCUMENT, key, content, meta, modified_ms }, user)
}

fn object(objects: Option<&mut Objects>, key: &str) -> Result<From, String> {
    let objects =
        objects.ok_or_else(|| format!("its content is the object {key:?}: name their directory with --r2"))?;
    objects.find(key).map(|(path, size)| From::File(path, size))
}

/// An adapter, looked at as the relay looks at every adapter. Errors: it cannot be kept.
pub(super) fn adapter(user: &str, row: &Row, objects: Option<&mut Objects>) -> Result<Item, Left> {
    let table = USER_LORAS.name;
    let id = row.text(Field::Id).unwrap_or_default();
    let no = |why: String| left(table, user, &id, why);
    let modified_ms = modified(row);
    let name = row.text(Field::Name).unwrap_or_else(|| id.clone());
    let key = names::item(&name, &id).ok_or_else(|| no("it has no name that a file can have".into()))?;
    if let Some(item) = gone(table, row, ItemKind::ADAPTER, (&id, &key)) {
        return Ok(item);
    }
    let weights = row.text(Field::Object).ok_or_else(|| no("it names no object with its weights".into()))?;
    let mut objects = objects;
    let content = object(objects.as_deref_mut(), &weights).map_err(no)?;
    let meta = config(row, objects).map_err(no)?;
    let (From::File(path, size), true) = (&content, meta.len() <= META_BYTES) else {
        return Err(no("its configuration has more than 64 KiB".into()));
    };
    let mut start = vec![];
    let read = File::open(path).and_then(|file| file.take(HEADER_REGION).read_to_end(&mut start));
    read.map_err(|error| no(format!("its object {weights:?} cannot be read: {error}")))?;
    adapter::check(&start, *size, &meta).map_err(|error| no(error.to_string()))?;
    fits(Item { table, id: id.clone(), kind: ItemKind::ADAPTER, key, content, meta, modified_ms }, user)
}

/// The configuration of an adapter: as it is, as an object, or put together from what the row says.
fn config(row: &Row, objects: Option<&mut Objects>) -> Result<String, String> {
    if let Some(text) = row.text(Field::Config) {
        return Ok(text);
    }
    if let Some(key) = row.text(Field::ConfigObject) {
        let From::File(path, size) = object(objects, &key)? else { return Err("its configuration is no file".into()) };
        if size > META_BYTES as u64 {
            return Err("its configuration has more than 64 KiB".into());
        }
        return fs::read_to_string(path).map_err(|error| format!("its object {key:?} cannot be read: {error}"));
    }
    let rank = row.count(Field::Rank).map_err(|error| error.to_string())?;
    let mut config = json!({ "peft_type": "LORA", "base_model_name_or_path": row.text(Field::Base), "r": rank });
    if let Some(alpha) = row.json(Field::Alpha) {
        config["lora_alpha"] = alpha;
    }
    if let Some(modules) = row.json(Field::Modules) {
        config["target_modules"] = modules;
    }
    Ok(config.to_string())
}
