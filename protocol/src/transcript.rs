//! A session as a file: Markdown for people, JSON for programs.

use crate::calendar;
use crate::message::{Outcome, Session, SessionMessage, SessionRole};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A message and its text.
pub type Said<'a> = (&'a SessionMessage, &'a str);

/// What a session is called: its title, or its name where it has none.
#[must_use]
pub fn heading(session: &Session) -> &str {
    let row = &session.row;
    if row.title.is_empty() { row.session.as_str() } else { &row.title }
}

/// The session as Markdown: a heading, what goes with its requests, and each message under a heading of its own.
/// Texts are as they were said.
#[must_use]
pub fn markdown<'a>(session: &Session, said: impl IntoIterator<Item = Said<'a>>) -> String {
    let mut out = format!("# {}\n", heading(session));
    let row = &session.row;
    // Writing to a text cannot fail.
    let _ = writeln!(out, "\n- session: {}\n- begun: {}", row.session, calendar::time_text(row.created_ms));
    if !row.model.is_empty() {
        let _ = writeln!(out, "- model: {}", row.model);
    }
    let _ = writeln!(out, "- messages: {}\n- cost: {}", row.messages, row.cost);
    let context = &session.context;
    if !context.framing.is_empty() {
        let _ = writeln!(out, "\n## Framing\n\n{}", context.framing);
    }
    if !context.constraints.is_empty() {
        out += "\n## Constraints\n\n";
        for constraint in &context.constraints {
            let _ = writeln!(out, "- {}", constraint.replace('\n', " "));
        }
    }
    for piece in &context.knowledge {
        let _ = writeln!(out, "\n## Knowledge: {}\n\n{}", piece.source.replace('\n', " "), piece.text);
    }
    for (message, text) in said {
        let who = match message.role {
            SessionRole::USER => "You".to_owned(),
            _ if message.model.is_empty() => "Assistant".to_owned(),
            _ => format!("Assistant ({})", message.model),
        };
        let _ = writeln!(out, "\n## {who}, {}\n\n{}", calendar::time_text(message.at_ms), text.trim_end());
        if message.outcome != Outcome::COMPLETE {
            let _ = writeln!(out, "\n*The answer was cut: {}.*", message.outcome);
        }
    }
    out
}

/// The session as JSON.
#[must_use]
pub fn json<'a>(session: &Session, said: impl IntoIterator<Item = Said<'a>>) -> Value {
    let mut value = row_json(&session.row);
    let knowledge = session.context.knowledge.iter();
    value["context"] = json!({
        "framing": session.context.framing,
        "knowledge": knowledge
            .map(|piece| json!({ "source": piece.source, "relevance": piece.relevance, "text": piece.text }))
            .collect::<Vec<_>>(),
        "constraints": session.context.constraints,
    });
    value["said"] = said.into_iter().map(|(message, text)| message_json(message, text)).collect();
    value
}

/// A row of a list as JSON.
#[must_use]
pub fn row_json(row: &crate::message::SessionRow) -> Value {
    json!({
        "session": row.session,
        "title": row.title,
        "model": row.model,
        "created_ms": row.created_ms,
        "updated_ms": row.updated_ms,
        "messages": row.messages,
        "cost_nano_usd": row.cost.0,
        "deleted_ms": row.deleted_ms,
    })
}

/// A message as JSON.
#[must_use]
pub fn message_json(message: &SessionMessage, text: &str) -> Value {
    json!({
        "number": message.number,
        "message_id": message.message_id.to_string(),
        "role": message.role.name(),
        "at_ms": message.at_ms,
        "device": message.device,
        "request_id": message.request_id.map(|id| id.to_string()),
        "outcome": message.outcome.name(),
        "model": message.model,
        "cost_nano_usd": message.cost.0,
        "text": text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{MessageId, RequestId};
    use crate::message::{SessionContext, SessionKnowledge, SessionRow};
    use crate::money::NanoUsd;

    fn session() -> Session {
        Session {
            row: SessionRow {
                session: "trip".parse().expect("a name"),
                title: "A trip to Rome".into(),
                model: "claude".into(),
                created_ms: 1_790_000_000_000,
                updated_ms: 1_790_000_060_000,
                messages: 2,
                cost: NanoUsd(10_815_000),
                deleted_ms: None,
            },
            context: SessionContext {
                framing: "warmly".into(),
                knowledge: vec![SessionKnowledge { source: "a.md".into(), relevance: Some(0.5), text: "k".into() }],
                constraints: vec!["short".into()],
            },
        }
    }

    fn message(role: SessionRole, outcome: Outcome) -> SessionMessage {
        SessionMessage {
            number: 1,
            message_id: MessageId([1; 16]),
            role,
            at_ms: 1_790_000_000_000,
            device: "laptop".parse().expect("a name"),
            request_id: Some(RequestId([2; 16])),
            outcome,
            model: if role == SessionRole::USER { String::new() } else { "anthropic/claude".into() },
            cost: NanoUsd(5),
            text_len: 3,
        }
    }

    #[test]
    fn a_session_reads_well_as_markdown() {
        let (asked, cut) =
            (message(SessionRole::USER, Outcome::COMPLETE), message(SessionRole::ASSISTANT, Outcome::CANCELLED));
        let text = markdown(&session(), [(&asked, "Where to?"), (&cut, "To the For\n")]);
        let wanted = "# A trip to Rome\n\n- session: trip\n- begun: 2026-09-21 14:13:20Z\n- model: claude\n- messages: 2\n\
            - cost: $0.010815\n\n## Framing\n\nwarmly\n\n## Constraints\n\n- short\n\n## Knowledge: a.md\n\nk\n\n\
            ## You, 2026-09-21 14:13:20Z\n\nWhere to?\n\n## Assistant (anthropic/claude), 2026-09-21 14:13:20Z\n\n\
            To the For\n\n*The answer was cut: cancelled.*\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn nothing_of_a_session_is_missing_in_json() {
        let asked = message(SessionRole::USER, Outcome::COMPLETE);
        let value = json(&session(), [(&asked, "Where to?")]);
        assert_eq!(value["session"], "trip");
        assert_eq!(value["cost_nano_usd"], 10_815_000);
        assert_eq!(value["context"]["knowledge"][0]["relevance"], 0.5);
        assert_eq!(value["said"][0]["text"], "Where to?");
        assert_eq!(value["said"][0]["request_id"], "02020202020202020202020202020202");
    }
}
