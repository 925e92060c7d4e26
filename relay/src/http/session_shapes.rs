//! What goes with conversations, as it stands in requests.

use belay_protocol::message::SessionKnowledge;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What goes with every request of a conversation.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ContextBody {
    /// How the asker wants to be met.
    pub(super) framing: Option<String>,
    /// What the asker's computer knows: texts, or texts with their source and how well they fit.
    pub(super) knowledge: Option<Vec<KnowledgeBody>>,
    /// What answers must respect.
    pub(super) constraints: Option<Vec<String>>,
}

/// A piece of knowledge.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum KnowledgeBody {
    /// The text alone.
    Text(String),
    /// With its source.
    Sourced(SourcedKnowledge),
}

/// A piece of knowledge with its source.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SourcedKnowledge {
    #[serde(default)]
    source: String,
    #[serde(alias = "content")]
    text: String,
    /// From 0 to 1.
    #[serde(default, alias = "score")]
    relevance: Option<f64>,
}

impl From<KnowledgeBody> for SessionKnowledge {
    fn from(body: KnowledgeBody) -> Self {
        match body {
            KnowledgeBody::Text(text) => Self { source: String::new(), relevance: None, text },
            KnowledgeBody::Sourced(SourcedKnowledge { source, text, relevance }) => Self { source, relevance, text },
        }
    }
}
