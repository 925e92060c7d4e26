//! Belay's own request format: a question with what the asker knows and wishes.
//!
//! It is JSON, so that a person can write it. The relay renders it into the body of whichever
//! provider the model belongs to.

use crate::message::Dialect;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A question and its surroundings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// What is asked.
    pub query: String,
    /// The pathos framing: how the asker wants to be met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<String>,
    /// What the asker's computer knows about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub knowledge: Vec<Knowledge>,
    /// What the answer must respect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// The conversation so far, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Turn>,
    /// How the answer should read.
    #[serde(default, skip_serializing_if = "Preferences::is_empty")]
    pub preferences: Preferences,
}

/// A piece of local knowledge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// Where it comes from.
    pub source: String,
    /// How well it fits, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relevance: Option<f64>,
    /// The text itself.
    pub text: String,
}

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The asker.
    User,
    /// The model.
    Assistant,
}

/// One message of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// How the answer should read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preferences {
    /// For example `en` or `Deutsch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// For example `brief`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
    /// For example `friendly`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tone: Option<String>,
}

impl Preferences {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Prompt {
    /// A bare question.
    #[must_use]
    pub fn new(query: impl Into<String>) -> Self {
        Self { query: query.into(), ..Self::default() }
    }

    /// Reads a prompt's JSON; the error names line, column and field.
    pub fn from_json(body: &[u8]) -> Result<Self, String> {
        let prompt: Self = serde_json::from_slice(body).map_err(|error| format!("the prompt is not valid: {error}"))?;
        if prompt.query.trim().is_empty() {
            return Err("the prompt's query is empty".into());
        }
        for item in &prompt.knowledge {
            if item.relevance.is_some_and(|relevance| !(0.0..=1.0).contains(&relevance)) {
                return Err("the prompt's knowledge has a relevance outside 0 to 1".into());
            }
        }
        Ok(prompt)
    }

    /// The body for a provider of `dialect`; its size bounds the input tokens.
    ///
    /// `cap_field` is the provider's name of the output cap.
    #[must_use]
    pub fn render(
        &self,
        dialect: Dialect,
        model: &str,
        max_output_tokens: u32,
        cap_field: &str,
        stream: bool,
    ) -> Vec<u8> {
        let system = self.system_text();
        let turns = self.history.iter().map(|turn| {
            let role = if turn.role == Role::User { "user" } else { "assistant" };
            json!({ "role": role, "content": turn.content })
        });
        let question = json!({ "role": "user", "content": self.query });
        let mut body = json!({ "model": model, "stream": stream });
        body[cap_field] = max_output_tokens.into();
        if dialect == Dialect::ANTHROPIC {
            if !system.is_empty() {
                body["system"] = system.into();
            }
            body["messages"] = turns.chain([question]).collect();
        } else {
            let system = (!system.is_empty()).then(|| json!({ "role": "system", "content": system }));
            body["messages"] = system.into_iter().chain(turns).chain([question]).collect::<Value>();
            if stream {
                body["stream_options"] = json!({ "include_usage": true });
            }
        }
        body.to_string().into_bytes()
    }

    /// Everything but the conversation, as instructions.
    fn system_text(&self) -> String {
        let mut text = String::new();
        let mut section = |title: &str, body: String| {
            if !body.is_empty() {
                let gap = if text.is_empty() { "" } else { "\n\n" };
                // Writing to a String cannot fail.
                let _ = write!(text, "{gap}{title}\n{body}");
            }
        };
        section("How to meet the person who asks:", self.framing.clone().unwrap_or_default());
        section("What is known on this computer, most relevant first:", self.knowledge_text());
        let constraints: Vec<String> = self.constraints.iter().map(|line| format!("- {line}")).collect();
        section("The answer must respect:", constraints.join("\n"));
        let wishes = [
            ("Language", &self.preferences.language),
            ("Verbosity", &self.preferences.verbosity),
            ("Tone", &self.preferences.tone),
        ];
        let wishes: Vec<String> =
            wishes.iter().filter_map(|(name, wish)| wish.as_ref().map(|wish| format!("{name}: {wish}"))).collect();
        section("How the answer should read:", wishes.join("\n"));
        text
    }

    fn knowledge_text(&self) -> String {
        let mut items: Vec<&Knowledge> = self.knowledge.iter().collect();
        items.sort_by(|a, b| b.relevance.unwrap_or(0.0).total_cmp(&a.relevance.unwrap_or(0.0)));
        let shown = items.iter().map(|item| match item.relevance {
            Some(relevance) => format!("[{} (relevance {relevance:.2})]\n{}", item.source, item.text),
            None => format!("[{}]\n{}", item.source, item.text),
        });
        shown.collect::<Vec<_>>().join("\n\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Prompt {
        Prompt {
            query: "Why?".into(),
            framing: Some("gently".into()),
            knowledge: vec![
                Knowledge { source: "b.md".into(), relevance: Some(0.2), text: "less".into() },
                Knowledge { source: "a.md".into(), relevance: Some(0.9), text: "more".into() },
            ],
            constraints: vec!["no jargon".into()],
            history: vec![
                Turn { role: Role::User, content: "q0".into() },
                Turn { role: Role::Assistant, content: "a0".into() },
            ],
            preferences: Preferences {
                language: Some("en".into()),
                verbosity: Some("brief".into()),
                tone: Some("dry".into()),
            },
        }
    }

    #[test]
    fn every_part_reaches_both_dialects() {
        for dialect in [Dialect::ANTHROPIC, Dialect::OPENAI_CHAT] {
            let body = full().render(dialect, "m", 9, "max_tokens", true);
            let text = String::from_utf8(body.clone()).expect("utf-8");
            for part in [
                "Why?",
                "gently",
                "less",
                "more",
                "no jargon",
                "q0",
                "a0",
                "Language: en",
                "Verbosity: brief",
                "Tone: dry",
            ] {
                assert!(text.contains(part), "{part} is missing in {text}");
            }
            assert!(text.find("more") < text.find("less"), "the most relevant comes first");
            let value: Value = serde_json::from_slice(&body).expect("json");
            assert_eq!(value["max_tokens"], 9);
            let last = value["messages"].as_array().expect("list").last().expect("question");
            assert_eq!(last["content"], "Why?");
        }
    }

    #[test]
    fn prompts_round_trip_and_typos_are_named() {
        let text = serde_json::to_vec(&full()).expect("json");
        assert_eq!(Prompt::from_json(&text), Ok(full()));
        let error = Prompt::from_json(br#"{"query":"a","framming":"x"}"#).expect_err("typo");
        assert!(error.contains("framming"), "{error}");
        assert!(Prompt::from_json(br#"{"query":"  "}"#).is_err());
        assert!(Prompt::from_json(br#"{"query":"a","knowledge":[{"source":"s","relevance":7,"text":"t"}]}"#).is_err());
    }
}
