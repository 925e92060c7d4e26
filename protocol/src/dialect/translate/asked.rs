//! What a request means, whichever API it was written for.

use serde_json::Value;

/// A request without its dialect.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Asked {
    pub(super) system: Vec<String>,
    pub(super) turns: Vec<Turn>,
    pub(super) tools: Vec<Tool>,
    pub(super) choice: Option<Choice>,
    /// Several tools may be called at once.
    pub(super) parallel: Option<bool>,
    pub(super) max_output: Option<u32>,
    pub(super) temperature: Option<Value>,
    pub(super) top_p: Option<Value>,
    pub(super) stop: Vec<String>,
    pub(super) stream: bool,
    pub(super) user: Option<String>,
    /// OpenAI's name of how much is to be thought.
    pub(super) effort: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Assistant,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    pub(super) role: Role,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Text(String),
    Image(Image),
    Call { id: String, name: String, arguments: String },
    Result { id: String, text: String, is_error: bool },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Image {
    Base64 { media_type: String, data: String },
    Url(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) schema: Value,
    pub(super) strict: Option<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Choice {
    Auto,
    None,
    Any,
    Tool(String),
}

impl Asked {
    /// Adds to the last turn if it is of the same side: results of several tools belong into one. What says nothing, such
    /// as an answer that was cancelled at once, is no turn: Anthropic refuses such.
    pub(super) fn push(&mut self, role: Role, mut parts: Vec<Part>) {
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        if parts.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(last) if last.role == role => last.parts.extend(parts),
            _ => self.turns.push(Turn { role, parts }),
        }
    }

    /// Adds instructions; none are none.
    pub(super) fn instruct(&mut self, text: impl Into<String>) {
        self.system.extend(Some(text.into()).filter(|text| !text.is_empty()));
    }
}

impl Image {
    /// From what OpenAI calls an image's URL.
    pub(super) fn from_url(url: &str) -> Option<Self> {
        let Some(rest) = url.strip_prefix("data:") else {
            return (url.starts_with("https://") || url.starts_with("http://")).then(|| Self::Url(url.to_owned()));
        };
        let (media_type, data) = rest.split_once(";base64,")?;
        Some(Self::Base64 { media_type: media_type.to_owned(), data: data.to_owned() })
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
            Self::Url(url) => url.clone(),
        }
    }
}
