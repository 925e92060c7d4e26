//! The key-value store of the old deployment, as JSON: a list of `{"key": …, "value": …}`, or one object. An entry whose
//! key begins with the name of something that is known stands for a row of it: `session:USER:ID`.

use super::row::{Cell, Row};
use super::tables::{self, Field, Table};
use super::{CHAT_SESSIONS, OldError, USER_SETTINGS, USERS};
use data_encoding::BASE64;
use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Where its entries are kept meanwhile.
pub(super) const TABLE: &str = "belay_kv_entry";
/// Their places are far behind those of rows.
const FIRST: i64 = 1 << 60;
/// The longest beginning of a key that is told: others may be secrets.
const LONGEST: usize = 32;
/// So many beginnings are told apart.
const MOST_TOLD: usize = 100;

pub(super) fn prepare(connection: &Connection) -> Result<(), OldError> {
    Ok(connection.execute_batch(&format!(
        "CREATE TABLE {TABLE} (id INTEGER PRIMARY KEY, of TEXT, owner TEXT, name TEXT, row TEXT);
         CREATE INDEX {TABLE}_of ON {TABLE} (of, owner)"
    ))?)
}

/// Takes a file of entries in, and counts those that are not known.
pub(super) fn load(connection: &Connection, path: &Path, unknown: &mut Vec<(String, u64)>) -> Result<(), OldError> {
    let wrong = |why: String| OldError::Json { path: path.into(), why };
    let file = File::open(path).map_err(|error| OldError::File { path: path.into(), error })?;
    let all: Value = serde_json::from_reader(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    let entries: Vec<(String, Option<Value>)> =
        match all {
            Value::Object(entries) => entries.into_iter().map(|(key, value)| (key, Some(value))).collect(),
            Value::Array(entries) => entries.into_iter().map(entry).collect::<Option<Vec<_>>>().ok_or_else(|| {
                wrong("a list of entries has objects with \"key\" and \"value\"; one has none".into())
            })?,
            _ => return Err(wrong("it is neither a list of entries nor an object".into())),
        };
    let transaction = connection.unchecked_transaction()?;
    let sql = format!("INSERT INTO {TABLE} (of, owner, name, row) VALUES (?1, ?2, ?3, ?4)");
    let mut insert = connection.prepare(&sql)?;
    let mut places: HashMap<String, usize> = unknown.iter().map(|(name, _)| name.clone()).zip(0..).collect();
    for (key, value) in entries {
        if let Some((table, owner, row)) = value.and_then(|value| known(&key, value)) {
            let name = row.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
            insert.execute(params![table.name, owner, name, Value::Object(row).to_string()])?;
            continue;
        }
        let prefix = key.split_once([':', '/']).map_or("", |(prefix, _)| prefix);
        let prefix = if prefix.len() > LONGEST || unknown.len() >= MOST_TOLD { "" } else { prefix };
        let place = *places.entry(prefix.to_owned()).or_insert_with(|| {
            unknown.push((prefix.to_owned(), 0));
            unknown.len() - 1
        });
        unknown[place].1 += 1;
    }
    drop(insert);
    Ok(transaction.commit()?)
}

/// `{"key": …, "value": …, "base64": true}`, as tools write them. What is no text is of no use here.
fn entry(entry: Value) -> Option<(String, Option<Value>)> {
    let Value::Object(mut entry) = entry else { return None };
    let key = entry.get("key").or_else(|| entry.get("name"))?.as_str()?.to_owned();
    let value = entry.remove("value")?;
    let is_base64 = entry.get("base64").and_then(Value::as_bool).unwrap_or(false);
    let value = match value {
        Value::String(text) if is_base64 => {
            let bytes = BASE64.decode(text.as_bytes()).ok();
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(Value::String)
        }
        value => Some(value),
    };
    Some((key, value))
}

/// Which row an entry stands for: the table, the owner, and the row by the names of its fields.
fn known(key: &str, value: Value) -> Option<(&'static Table, String, Map<String, Value>)> {
    let (prefix, rest) = key.split_once([':', '/'])?;
    let table = tables::ALL.into_iter().find(|table| table.prefixes.contains(&prefix))?;
    // A text may be JSON itself.
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        value => value,
    };
    let (first, second) = rest.split_once([':', '/']).map_or((rest, None), |(first, second)| (first, Some(second)));
    if table.name == USER_SETTINGS.name {
        let row = match second {
            Some(name) => json!({ "key": name, "value": value.to_string() }),
            None => json!({ "settings": value.as_object()? }),
        };
        let Value::Object(row) = row else { return None };
        return Some((table, first.to_owned(), row));
    }
    let Value::Object(mut row) = value else { return None };
    let says = |row: &Map<String, Value>, field: Field| {
        let column = table.columns.iter().find(|column| column.field == field)?;
        column.names.iter().find_map(|name| row.get(*name)).map(|value| match value {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        })
    };
    if table.name == USERS.name {
        // What is kept beside a user, or leads to one, is none.
        if second.is_some() || !table.columns.iter().any(|column| says(&row, column.field).is_some()) {
            return None;
        }
        row.insert("id".into(), Value::String(first.to_owned()));
        return Some((table, first.to_owned(), row));
    }
    // Programs keep who is logged in under such names, too.
    if table.name == CHAT_SESSIONS.name && says(&row, Field::Messages).is_none() {
        return None;
    }
    let last = second.unwrap_or(first);
    let owner = says(&row, Field::Owner).or_else(|| second.is_some().then(|| first.to_owned()))?;
    let names_itself = if table.name == super::API_KEYS.name { (Field::Hash, "key_hash") } else { (Field::Id, "id") };
    if says(&row, names_itself.0).is_none() && says(&row, Field::Key).is_none() {
        row.insert(names_itself.1.into(), Value::String(last.to_owned()));
    }
    Some((table, owner, row))
}

/// The entries that stand for rows of an owner.
pub(super) fn rows(
    connection: &Connection,
    table: &'static Table,
    owner: &str,
    (after, most): (i64, u32),
) -> Result<Vec<(i64, Row)>, OldError> {
    let sql = format!("SELECT id, row FROM {TABLE} WHERE of = ?1 AND owner = ?2 AND id > ?3 ORDER BY id LIMIT ?4");
    let mut statement = connection.prepare_cached(&sql)?;
    let entries = statement.query_map(params![table.name, owner, after.saturating_sub(FIRST).max(0), most], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut rows = vec![];
    for entry in entries {
        let (place, text) = entry?;
        let Ok(Value::Object(mut said)) = serde_json::from_str(&text) else { continue };
        let mut cells = vec![];
        for column in table.columns {
            for (name, unit) in column.choose(said.keys()) {
                cells.push((column.field, said.remove(&name).map_or(Cell::Null, Cell::from), unit));
            }
        }
        cells.push((Field::Owner, Cell::Text(owner.to_owned()), None));
        rows.push((FIRST + place, Row { table, cells, is_entry: true }));
    }
    Ok(rows)
}
