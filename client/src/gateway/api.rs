//! What callers ask for: the endpoints of the two APIs, in whichever way a base URL was written.

use belay_protocol::message::{Dialect, Operation};
use http::Method;

/// Whose API a caller speaks: it decides how it is told of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    OpenAi,
    Anthropic,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// An LLM request, through the relay.
    Forward(Forward),
    /// All models, or one.
    Models(Option<String>),
    /// The gateway's own.
    Own(Own),
    /// The tunnel itself, for other commands.
    Tunnel,
}

/// An LLM request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) operation: Operation,
    pub(super) dialect: Dialect,
}

/// What the gateway tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    Page,
    Script,
    Style,
    Icon,
    Status,
    Balance,
    Usage,
    Requests(Option<String>),
    Events,
    /// The end of the program, for those who can read its state.
    Stop,
}

/// All that there is, for those who ask for something else.
pub(super) const ENDPOINTS: &str = "POST /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/messages, \
     /v1/messages/count_tokens; GET /v1/models, /belay/status, /belay/balance, /belay/usage, /belay/requests, \
     /belay/events, /";

impl Endpoint {
    /// The endpoint of a path. A base URL may be given with the version or without it, so the version may
    /// stand there once, twice or not at all.
    pub(super) fn of(path: &str) -> Option<Self> {
        let own = match path {
            "/" | "/index.html" => Some(Own::Page),
            "/belay/page.js" => Some(Own::Script),
            "/belay/page.css" => Some(Own::Style),
            "/favicon.ico" | "/belay/icon.svg" => Some(Own::Icon),
            "/belay/status" => Some(Own::Status),
            "/belay/balance" => Some(Own::Balance),
            "/belay/usage" => Some(Own::Usage),
            "/belay/requests" => Some(Own::Requests(None)),
            "/belay/events" => Some(Own::Events),
            "/belay/tunnel" => return Some(Self::Tunnel),
            "/belay/stop" => Some(Own::Stop),
            _ => path.strip_prefix("/belay/requests/").map(|id| Own::Requests(Some(id.to_owned()))),
        };
        if let Some(own) = own {
            return Some(Self::Own(own));
        }
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

    /// The method that it is asked with.
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Forward(_) | Self::Own(Own::Stop) => Method::POST,
            Self::Models(_) | Self::Own(_) | Self::Tunnel => Method::GET,
        }
    }
}

impl Forward {
    pub(super) fn api(self) -> Api {
        if self.dialect == Dialect::ANTHROPIC { Api::Anthropic } else { Api::OpenAi }
    }

    /// What keeps a caller from giving up while nothing comes; its SDK passes over it.
    pub(super) fn keep_alive(self) -> &'static [u8] {
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
        let chat = Endpoint::Forward(Forward { operation: Operation::CHAT, dialect: Dialect::OPENAI_CHAT });
        for path in ["/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"] {
            assert_eq!(Endpoint::of(path).as_ref(), Some(&chat), "{path}");
        }
        assert_eq!(Endpoint::of("/v1/models"), Some(Endpoint::Models(None)));
        for path in ["/models/open/gpt-x", "/v1/models/open%2Fgpt%2dx"] {
            assert_eq!(Endpoint::of(path), Some(Endpoint::Models(Some("open/gpt-x".into()))));
        }
        for path in ["/v1", "/v1chat/completions", "/v2/chat/completions", "/v1/models/extra/..", "/belay", "/v1/files"]
        {
            let found = Endpoint::of(path);
            assert!(!matches!(found, Some(Endpoint::Forward(_) | Endpoint::Own(_))), "{path}: {found:?}");
        }
        assert_eq!(Endpoint::of("/").map(|found| found.method()), Some(Method::GET));
    }
}
