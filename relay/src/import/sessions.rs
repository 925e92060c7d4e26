//! Conversations, with what was said in them.

use super::names;
use super::report::Left;
use crate::store::old::{CHAT_SESSIONS, Field, Row};
use crate::store::sessions::{Addition, Change, MAX_TEXT};
use belay_certs::sha256;
use belay_protocol::dialect::prompt::Knowledge;
use belay_protocol::id::{DeviceId, MessageId, SessionId};
use belay_protocol::message::{Outcome, SessionRole};
use belay_protocol::money::NanoUsd;
use serde_json::Value;
use std::collections::HashMap;

/// A conversation that comes over.
#[derive(Debug, Clone)]
pub(super) struct Conversation {
    /// What it was called there.
    pub(super) id: String,
    pub(super) name: SessionId,
    pub(super) change: Change,
    pub(super) messages: Vec<Addition>,
    /// Messages that cannot be kept, and why.
    pub(super) left: Vec<Left>,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
    /// It was deleted there.
    pub(super) is_gone: bool,
}

/// A message as it was exported: from the list of its session, or from a table of its own.
struct Said {
    id: Option<String>,
    role: String,
    content: Value,
    model: String,
    at_ms: Option<u64>,
}

/// The text of a message: itself, or its parts that are text.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str()));
            texts.collect::<Vec<_>>().join("\n")
        }
        Value::Object(part) => part.get("text").and_then(Value::as_str).unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

/// A time in a message.
fn time(value: &Value) -> Option<u64> {
    let names = ["created_at", "timestamp", "at", "time", "ts"];
    let said = names.iter().find_map(|name| value.get(*name))?.clone();
    Row::of(&CHAT_SESSIONS, vec![(Field::Created, said.into())]).time_ms(Field::Created).ok().flatten()
}

fn listed(value: &Value) -> Said {
    let text = |names: &[&str]| names.iter().find_map(|name| value.get(*name)?.as_str()).map(str::to_owned);
    let content = ["content", "text", "message"].iter().find_map(|name| value.get(*name)).cloned();
    Said {
        id: text(&["id", "message_id"]),
        role: text(&["role", "author", "sender"]).unwrap_or_default(),
        content: content.unwrap_or(Value::Null),
        model: text(&["model", "model_used"]).unwrap_or_default(),
        at_ms: time(value),
    }
}

/// Pieces of knowledge: texts, or objects with a text.
fn knowledge(value: &Value) -> Vec<Knowledge> {
    let piece = |value: &Value| {
        let text = value.as_str().or_else(|| ["text", "content"].iter().find_map(|name| value.get(*name)?.as_str()))?;
        let source =
            ["source", "title", "name"].iter().find_map(|name| value.get(*name)?.as_str()).unwrap_or("imported");
        let relevance = value.get("relevance").or_else(|| value.get("score")).and_then(Value::as_f64);
        Some(Knowledge { source: source.into(), relevance, text: text.into() })
    };
    match value {
        Value::Array(list) => list.iter().filter_map(piece).collect(),
        other => piece(other).into_iter().collect(),
    }
}

fn constraints(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(text) => vec![text.clone()],
        _ => vec![],
    }
}

/// A conversation as it is kept here; `beside` are its messages from a table of their own. What names no
/// time is of now. Errors: it cannot be kept.
pub(super) fn conversation(user: &str, row: &Row, beside: &[Row], now_ms: u64) -> Result<Conversation, Left> {
    let id = row.text(Field::Id).unwrap_or_default();
    let left = |id: String, why: String| Left { table: CHAT_SESSIONS.name, user: user.into(), id, why };
    let name = names::session(&id).ok_or_else(|| left(id.clone(), "it has no id".into()))?;
    let time = |row: &Row, field| row.time_ms(field).ok().flatten();
    let (created, updated) = (time(row, Field::Created), time(row, Field::Updated));
    let created_ms = created.or(updated).unwrap_or(now_ms);
    let mut said = vec![];
    match row.json(Field::Messages) {
        Some(Value::Array(list)) => said.extend(list.iter().map(listed)),
        Some(_) => return Err(left(id, "its messages are no list".into())),
        None => {}
    }
    for row in beside {
        said.push(Said {
            id: row.text(Field::Id),
            role: row.text(Field::Role).unwrap_or_default(),
            content: row
                .json(Field::Content)
                .filter(|content| {
                    content.as_array().is_some_and(|parts| parts.iter().all(|part| part.get("type").is_some()))
                })
                .unwrap_or_else(|| Value::String(row.text(Field::Content).unwrap_or_default())),
            model: row.text(Field::Model).unwrap_or_default(),
            at_ms: time(row, Field::Created),
        });
    }
    let context = row.json(Field::Context).unwrap_or(Value::Null);
    let within = |names: &[&str]| names.iter().find_map(|name| context.get(*name)).cloned();
    let mut framing = row
        .text(Field::Framing)
        .or_else(|| {
            within(&["pathos_framing", "framing"]).map(|value| match value {
                Value::String(text) => text,
                value => value.to_string(),
            })
        })
        .unwrap_or_default();
    let its_knowledge = row.json(Field::Knowledge).or_else(|| within(&["local_knowledge", "knowledge"]));
    let its_constraints = row.json(Field::Constraints).or_else(|| within(&["constraints"]));
    let (mut messages, mut lost, mut last_ms) = (vec![], vec![], created_ms);
    let mut times: HashMap<(u16, String), u32> = HashMap::new();
    for (index, one) in said.into_iter().enumerate() {
        let text = text_of(&one.content);
        let role = match one.role.to_lowercase().as_str() {
            "user" | "human" => SessionRole::USER,
            "assistant" | "ai" | "model" | "bot" => SessionRole::ASSISTANT,
            "system" | "developer" => {
                // What was said to every request of it.
                if !framing.contains(&text) {
                    framing = [framing.as_str(), text.as_str()].join("\n").trim().to_owned();
                }
                continue;
            }
            role => {
                let shown = if role.len() <= 16 && role.chars().all(char::is_alphanumeric) { role } else { "somebody" };
                lost.push(left(
                    format!("{id}/{index}"),
                    format!("a message is of {shown}, neither user nor assistant"),
                ));
                continue;
            }
        };
        if text.is_empty() || text.len() > MAX_TEXT {
            lost.push(left(format!("{id}/{index}"), "a message has no text, or more than 4 MiB of it".into()));
            continue;
        }
        // What comes later is not said to be earlier, or lists would show it in another order.
        last_ms = one.at_ms.unwrap_or(last_ms).max(last_ms);
        // One without an id is the same as the one that says the same, as often as it is said.
        let place = match one.id {
            Some(place) => format!("id {place}"),
            None => {
                let count = times.entry((role.0, text.clone())).or_insert(0_u32);
                *count += 1;
                format!("{count}\n{text}")
            }
        };
        messages.push(Addition {
            message_id: message_id(&id, &place, role),
            role,
            at_ms: last_ms,
            device: device(),
            request_id: None,
            outcome: Outcome::COMPLETE,
            model: one.model,
            cost: NanoUsd::ZERO,
            text,
        });
    }
    let change = Change {
        title: row.text(Field::Name),
        model: row.text(Field::Model).filter(|model| model.len() <= 256),
        framing: (!framing.is_empty()).then_some(framing),
        knowledge: its_knowledge.as_ref().map(knowledge),
        constraints: its_constraints.as_ref().map(constraints),
    };
    let updated_ms = updated.unwrap_or(last_ms).max(last_ms);
    let is_gone = row.is_set(Field::Deleted);
    Ok(Conversation { id, name, change, messages, left: lost, created_ms, updated_ms, is_gone })
}

/// The device that what comes over is said to come from.
pub(super) fn device() -> DeviceId {
    #[expect(clippy::expect_used, reason = "it is a constant, and a name")]
    crate::store::ledger::import::DEVICE.parse().expect("a name")
}

/// The same message has the same id every time.
fn message_id(session: &str, place: &str, role: SessionRole) -> MessageId {
    let digest = sha256(format!("imported message\n{session}\n{place}\n{}", role.0).as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    MessageId(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::old::Cell;
    use serde_json::json;

    fn session(messages: Value) -> Row {
        Row::of(
            &CHAT_SESSIONS,
            vec![
                (Field::Id, Cell::Text("s-1".into())),
                (Field::Name, Cell::Text("Rome".into())),
                (Field::Messages, messages.into()),
                (Field::Context, json!({"pathos_framing": "be brief", "constraints": ["no maps"]}).into()),
                (Field::Created, Cell::Integer(1_700_000_000)),
            ],
        )
    }

    #[test]
    fn messages_of_all_shapes_come_in_their_order() {
        let row = session(json!([
            {"role": "system", "content": "You are a guide."},
            {"role": "user", "content": "Where to?", "timestamp": 1_700_000_100_000_i64},
            {"role": "assistant", "content": [{"type": "text", "text": "To"}, {"type": "text", "text": "Rome."}], "model": "m"},
            {"role": "tool", "content": "{}"},
            {"role": "user", "content": "When?", "timestamp": "2000-01-01"},
        ]));
        let found = conversation("u", &row, &[], 1).expect("read");
        let texts: Vec<_> = found.messages.iter().map(|message| (message.text.as_str(), message.at_ms)).collect();
        let at = 1_700_000_100_000;
        assert_eq!(texts, [("Where to?", at), ("To\nRome.", at), ("When?", at)]);
        assert_eq!(found.left.len(), 1);
        assert_eq!(found.change.framing.as_deref(), Some("be brief\nYou are a guide."));
        assert_eq!(found.change.constraints, Some(vec!["no maps".to_owned()]));
        let again = conversation("u", &row, &[], 1).expect("read");
        assert_eq!(again.messages, found.messages);
    }

    #[test]
    fn what_is_no_list_of_messages_is_left_out() {
        let left = conversation("u", &session(json!({"role": "user"})), &[], 1).expect_err("no list");
        assert!(left.why.contains("no list"), "{left:?}");
    }
}
