//! Who may ask. The gateway listens on loopback, where every program of this computer reaches it, and so
//! does every page in a browser that tries: by its own name pointed to 127.0.0.1 (DNS rebinding), or by
//! a request across origins. Both show in the headers.

use super::api::{Endpoint, Own};
use super::{Settings, Token};
use belay_http::refusal::Refusal;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use http::{Method, StatusCode, request};
use std::net::{IpAddr, SocketAddr};

/// Whether a request comes from this computer's own programs. Errors: why not, and what to do.
pub(super) fn check(
    settings: &Settings,
    local: SocketAddr,
    endpoint: Option<&Endpoint>,
    head: &request::Parts,
) -> Result<(), Refusal> {
    let forbidden = |message: String| Refusal::new(StatusCode::FORBIDDEN, "forbidden", message);
    let host = host(head).ok_or_else(|| Refusal::bad_request("the request names no host"))?;
    if !is_ours(settings, local, host) {
        let message = format!("{host:?} is not a name of this computer; call it 127.0.0.1, or start with --allow-host");
        return Err(forbidden(message));
    }
    let origin = text(&head.headers, &ORIGIN);
    match origin {
        Some(origin) if !is_own_origin(settings, local, origin) && !allows(settings, origin) => {
            let message = format!("pages of {origin:?} may not ask; to let them, start with --allow-origin");
            return Err(forbidden(message));
        }
        // A browser asks before it shows any token.
        Some(_) if head.method == Method::OPTIONS => return Ok(()),
        Some(_) => {}
        None => {
            // A browser says so where it leaves the origin out. A link that somebody follows is no harm.
            let site = text(&head.headers, &HeaderName::from_static("sec-fetch-site"));
            let mode = text(&head.headers, &HeaderName::from_static("sec-fetch-mode"));
            let follows = mode == Some("navigate") && endpoint == Some(&Endpoint::Own(Own::Page));
            if !matches!(site, None | Some("same-origin" | "none")) && !follows {
                return Err(forbidden("pages of other sites may not ask".into()));
            }
        }
    }
    match &settings.token {
        // A command of this program has a secret of its own.
        Some(_) if settings.is_own_command(&head.headers) => Ok(()),
        Some(token) if needs_token(endpoint) && !has(token, &head.headers) => {
            let message = "this gateway wants its token, as the API key or as a bearer token; see how it was started";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthenticated", message))
        }
        _ => Ok(()),
    }
}

/// The headers that let a page of an allowed origin read the answer; none for all others.
pub(super) fn cors(settings: &Settings, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let Some(origin) = headers.get(ORIGIN).filter(|origin| origin.to_str().is_ok_and(|text| allows(settings, text)))
    else {
        return vec![];
    };
    let fixed =
        |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let mut found = vec![
        (HeaderName::from_static("access-control-allow-origin"), origin.clone()),
        fixed("access-control-allow-methods", "GET, POST"),
        fixed("access-control-max-age", "600"),
        fixed("access-control-expose-headers", "*"),
        fixed("vary", "Origin"),
    ];
    if let Some(asked) = headers.get("access-control-request-headers") {
        found.push((HeaderName::from_static("access-control-allow-headers"), asked.clone()));
    }
    found
}

/// The page itself says nothing of anybody.
fn needs_token(endpoint: Option<&Endpoint>) -> bool {
    // What is for commands of this program wants their secret.
    !matches!(
        endpoint,
        Some(Endpoint::Tunnel | Endpoint::Own(Own::Page | Own::Script | Own::Style | Own::Icon | Own::Stop))
    )
}

fn has(token: &Token, headers: &HeaderMap) -> bool {
    let bearer = text(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let keys = ["x-api-key", "api-key"].map(|name| text(headers, &HeaderName::from_static(name)));
    let mut given = keys.into_iter().chain([bearer]).flatten();
    given.any(|given| token.is(given.trim()))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The name that the caller calls us by, without the port. Of several, none counts.
fn host(head: &request::Parts) -> Option<&str> {
    let mut named = head.headers.get_all(HOST).iter();
    let header = named.next().and_then(|value| value.to_str().ok());
    if named.next().is_some() {
        return None;
    }
    without_port(head.uri.authority().map_or(header, |authority| Some(authority.as_str()))?)
}

fn without_port(authority: &str) -> Option<&str> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map(|(host, _)| host);
    }
    Some(authority.split_once(':').map_or(authority, |(host, _)| host))
}

fn is_ours(settings: &Settings, local: SocketAddr, host: &str) -> bool {
    let is_address = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == local.ip());
    is_address
        || host.eq_ignore_ascii_case("localhost")
        || settings.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// An origin of the gateway's own page.
fn is_own_origin(settings: &Settings, local: SocketAddr, origin: &str) -> bool {
    let Some(authority) = origin.strip_prefix("http://") else { return false };
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or(80);
    port == local.port() && without_port(authority).is_some_and(|host| is_ours(settings, local, host))
}

fn allows(settings: &Settings, origin: &str) -> bool {
    settings.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> SocketAddr {
        ([127, 0, 0, 1], 4141).into()
    }

    fn asked(settings: &Settings, path: &str, headers: &[(&str, &str)]) -> Result<(), StatusCode> {
        let mut request = http::Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        check(settings, local(), Endpoint::of(path).as_ref(), &head).map_err(|refusal| refusal.status)
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let settings = Settings { hosts: vec!["desk.local".into()], ..Settings::default() };
        for host in ["127.0.0.1:4141", "localhost:4141", "LOCALHOST", "[::1]:4141", "desk.local", "127.8.9.1"] {
            assert_eq!(asked(&settings, "/v1/models", &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:4141", "10.0.0.1", "", "[::1"] {
            assert!(asked(&settings, "/v1/models", &[("host", host)]).is_err(), "{host}");
        }
        assert!(asked(&settings, "/v1/models", &[]).is_err());
        assert!(asked(&settings, "/v1/models", &[("host", "localhost"), ("host", "evil.example")]).is_err());
    }

    #[test]
    fn pages_of_other_origins_may_not_ask() {
        let settings = Settings { origins: vec!["app://obsidian.md".into()], ..Settings::default() };
        let from = |name, value| asked(&settings, "/v1/chat/completions", &[("host", "127.0.0.1:4141"), (name, value)]);
        for origin in ["http://127.0.0.1:4141", "http://localhost:4141", "app://obsidian.md"] {
            assert_eq!(from("origin", origin), Ok(()), "{origin}");
        }
        for origin in
            ["http://evil.example", "null", "http://localhost:3000", "https://localhost:4141", "http://localhost"]
        {
            assert_eq!(from("origin", origin), Err(StatusCode::FORBIDDEN), "{origin}");
        }
        for (site, allowed) in [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)] {
            assert_eq!(from("sec-fetch-site", site).is_ok(), allowed, "{site}");
        }
        let link = [("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(asked(&settings, "/", &link), Ok(()));
        assert_eq!(asked(&settings, "/belay/requests", &link), Err(StatusCode::FORBIDDEN));
        let headers = |origin: &str| HeaderMap::from_iter([(ORIGIN, HeaderValue::from_str(origin).expect("text"))]);
        assert!(cors(&settings, &headers("http://127.0.0.1:4141")).is_empty());
        assert!(!cors(&settings, &headers("app://obsidian.md")).is_empty());
    }

    #[test]
    fn a_token_is_wanted_for_everything_but_the_page() {
        let settings = Settings { token: Some("s3cret".into()), ..Settings::default() };
        let with = |path, name, value| asked(&settings, path, &[("host", "localhost"), (name, value)]);
        for (name, value) in [("authorization", "Bearer s3cret"), ("x-api-key", "s3cret"), ("api-key", "s3cret")] {
            assert_eq!(with("/v1/messages", name, value), Ok(()), "{name}");
        }
        for (name, value) in [("authorization", "Bearer s3cre"), ("x-api-key", ""), ("authorization", "s3cret")] {
            assert_eq!(with("/v1/messages", name, value), Err(StatusCode::UNAUTHORIZED), "{name}");
            assert_eq!(with("/belay/requests", name, value), Err(StatusCode::UNAUTHORIZED), "{name}");
            assert_eq!(with("/", name, value), Ok(()));
        }
    }
}
