//! What callers ask for: the endpoints of the two APIs, in whichever way a base URL was written.

use belay_protocol::message::{Dialect, Operation};
use http::HeaderMap;

/// Whose API a caller speaks: it decides how it is told of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// That of OpenAI.
    OpenAi,
    /// That of Anthropic.
    Anthropic,
}

impl Api {
    /// Of a caller that asks for something both have: its SDK shows which one it is.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key("anthropic-version") { Self::Anthropic } else { Self::OpenAi }
    }
}

/// An endpoint that either API has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Llm {
    /// An LLM request.
    Forward(Forward),
    /// All models, or one.
    Models(Option<String>),
}

/// An LLM request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// What is asked for.
    pub operation: Operation,
    /// How its body is written.
    pub dialect: Dialect,
}

/// The endpoints that are asked with POST, for those who ask for something else.
pub const FORWARDED: &str = "POST /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/messages, \
     /v1/messages/count_tokens";

impl Llm {
    /// The endpoint of a path. A base URL may be given with the version or without it, so the version may
    /// stand there once, twice or not at all.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let mut rest = path.trim_end_matches('/');
        while let Some(shorter) =
            rest.strip_prefix("/v1").filter(|shorter| shorter.is_empty() || shorter.starts_with('/'))
        {
            rest = shorter;
        }
        let (operation, dialect) = match rest {
            "/chat/completions" => (Operation::CHAT, Dialect::OPENAI_CHAT),
            "/responses" => (Operation::RESPONSES, Dialect::OPENAI_RESPONSES),
            "/embeddings" => (Operation::EMBEDDINGS, Dialect::OPENAI_CHAT),
            "/messages" => (Operation::MESSAGES, Dialect::ANTHROPIC),
            "/messages/count_tokens" => (Operation::COUNT_TOKENS, Dialect::ANTHROPIC),
            "/models" => return Some(Self::Models(None)),
            _ => {
                let model = rest.strip_prefix("/models/").filter(|model| !model.is_empty())?;
                let model = percent_encoding::percent_decode_str(model).decode_utf8().ok()?;
                return Some(Self::Models(Some(model.into_owned())));
            }
        };
        Some(Self::Forward(Forward { operation, dialect }))
    }
}

impl Forward {
    /// Whose API it belongs to.
    #[must_use]
    pub fn api(self) -> Api {
        if self.dialect == Dialect::ANTHROPIC { Api::Anthropic } else { Api::OpenAi }
    }

    /// What keeps a caller from giving up while nothing comes; its SDK passes over it.
    #[must_use]
    pub fn keep_alive(self) -> &'static [u8] {
        match self.dialect {
            Dialect::ANTHROPIC => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
            _ => b": belay keeps this stream alive\n\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_have_the_version_or_not() {
        let chat = Llm::Forward(Forward { operation: Operation::CHAT, dialect: Dialect::OPENAI_CHAT });
        for path in ["/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"] {
            assert_eq!(Llm::of(path).as_ref(), Some(&chat), "{path}");
        }
        assert_eq!(Llm::of("/v1/models"), Some(Llm::Models(None)));
        for path in ["/models/open/gpt-x", "/v1/models/open%2Fgpt%2dx"] {
            assert_eq!(Llm::of(path), Some(Llm::Models(Some("open/gpt-x".into()))));
        }
        for path in ["/v1", "/v1chat/completions", "/v2/chat/completions", "/v1/models/extra/..", "/belay", "/v1/files"]
        {
            let found = Llm::of(path);
            assert!(!matches!(found, Some(Llm::Forward(_))), "{path}: {found:?}");
        }
    }
}
