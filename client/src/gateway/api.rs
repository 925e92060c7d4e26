//! What callers ask for: the endpoints of the two APIs, and the gateway's own.

use belay_http::api::{FORWARDED, Llm};
use http::Method;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Of the two APIs, through the relay.
    Llm(Llm),
    /// The gateway's own.
    Own(Own),
    /// The tunnel itself, for other commands.
    Tunnel,
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
pub(super) fn endpoints() -> String {
    format!(
        "{FORWARDED}; GET /v1/models, /belay/status, /belay/balance, /belay/usage, /belay/requests, /belay/events, /"
    )
}

impl Endpoint {
    /// The endpoint of a path.
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
        Llm::of(path).map(Self::Llm)
    }

    /// The method that it is asked with.
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Llm(Llm::Forward(_)) | Self::Own(Own::Stop) => Method::POST,
            Self::Llm(Llm::Models(_)) | Self::Own(_) | Self::Tunnel => Method::GET,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_own_paths_stand_beside_the_apis() {
        assert_eq!(Endpoint::of("/").map(|found| found.method()), Some(Method::GET));
        assert_eq!(Endpoint::of("/belay/stop").map(|found| found.method()), Some(Method::POST));
        assert_eq!(Endpoint::of("/v1/messages").map(|found| found.method()), Some(Method::POST));
        assert_eq!(Endpoint::of("/belay"), None);
        let named = Endpoint::Own(Own::Requests(Some("x".into())));
        assert_eq!(Endpoint::of("/belay/requests/x"), Some(named));
    }
}
