//! Where callers without a tunnel are served, and how.

use super::check::Wrong;
use super::jwt::{Issuer, issuers};
use super::raw::{RawHttp, RawJwt};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The HTTP side of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What protects it on its way.
    pub tls: HttpTls,
    /// Origins whose pages may ask.
    pub origins: Vec<String>,
    /// Connections at once, and of one address.
    pub connections: usize,
    /// Of one address (an IPv6 /64 is one).
    pub connections_per_address: usize,
    /// Keys and tokens from one address that are looked up in a second.
    pub look_ups_per_second: u32,
    /// Proxies whose word on where a caller comes from is taken.
    pub trusted_proxies: Vec<IpAddr>,
    /// How long a caller may take to send a request's head, and a connection be idle.
    pub idle: Duration,
    /// A caller that takes nothing of its answer for so long has left.
    pub patience: Duration,
    /// After so long without a word, a caller that streams gets a sign of life.
    pub keep_alive: Duration,
    /// Whose signed tokens are taken, beside API keys.
    pub issuers: Vec<Issuer>,
}

/// What protects the HTTP side on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpTls {
    /// Nothing: it is for this machine, or stands behind a proxy.
    Off,
    /// The operator's certificate and key, in PEM.
    Files {
        /// The chain, the server's own first.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// A certificate of the relay's own authority for these names and addresses.
    Own {
        /// Host names and IP addresses.
        names: Vec<String>,
    },
}

/// The most connections that can be asked for.
const MOST: u32 = 1_000_000;

pub(super) fn http(raw: RawHttp, jwt: Vec<RawJwt>) -> Result<Option<Http>, Wrong> {
    let RawHttp { listen, tls, cert_file, key_file, names, origins, .. } = raw;
    let Some(listen) = listen else {
        let set = [
            (tls.is_some(), "http.tls"),
            (cert_file.is_some(), "http.cert_file"),
            (key_file.is_some(), "http.key_file"),
            (!names.is_empty(), "http.names"),
            (!origins.is_empty(), "http.origins"),
            (!jwt.is_empty(), "jwt"),
        ];
        return match set.into_iter().find(|(set, _)| *set) {
            Some((_, key)) => Err((key, "means nothing without http.listen; name the address to listen on".into())),
            None => Ok(None),
        };
    };
    let listen: SocketAddr = listen
        .parse()
        .map_err(|_| ("http.listen", format!("{listen:?} is not an address; write for example \"0.0.0.0:8443\"")))?;
    let files = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some(HttpTls::Files { cert, key }),
        (None, None) => None,
        (Some(_), None) => return Err(("http.key_file", "is missing; http.cert_file needs its key".into())),
        (None, Some(_)) => return Err(("http.cert_file", "is missing; http.key_file needs its certificate".into())),
    };
    let tls = match (tls.as_deref(), files) {
        (None | Some("files"), Some(files)) => files,
        (Some("files"), None) => {
            return Err(("http.tls", "is \"files\"; name http.cert_file and http.key_file".into()));
        }
        (Some("own"), None) => HttpTls::Own { names: own_names(names, listen)? },
        (Some("off"), None) => HttpTls::Off,
        (None, None) if listen.ip().is_loopback() => HttpTls::Off,
        (None, None) => {
            let why = "is missing, and other machines can reach http.listen; name http.cert_file and http.key_file, or \
                 \"own\" for a certificate of the relay's authority, or \"off\" behind a proxy that has one";
            return Err(("http.tls", why.into()));
        }
        (Some("own" | "off"), Some(_)) => {
            return Err(("http.tls", "stands beside http.cert_file; with these it is \"files\"".into()));
        }
        (Some(other), _) => return Err(("http.tls", format!("{other:?} is not \"files\", \"own\" or \"off\""))),
    };
    for origin in &origins {
        let is_origin = origin
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.contains('/'));
        if !is_origin {
            let why = format!("{origin:?} is no origin; write for example \"https://app.example.org\", without a path");
            return Err(("http.origins", why));
        }
    }
    let mut trusted_proxies = vec![];
    for proxy in &raw.trusted_proxies {
        let parsed = proxy.parse::<IpAddr>();
        trusted_proxies.push(parsed.map_err(|_| ("http.trusted_proxies", format!("{proxy:?} is not an address")))?);
    }
    if raw.look_ups_per_second == Some(0) {
        return Err(("http.look_ups_per_second", "0 would let nobody in".into()));
    }
    let count = |key, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        if (1..=MOST).contains(&value) {
            Ok(value as usize)
        } else {
            Err((key, format!("{value} is not from 1 to {MOST}")))
        }
    };
    let seconds = |key, value: Option<u64>, default: u64| {
        let value = value.unwrap_or(default);
        if (1..=86_400).contains(&value) {
            Ok(Duration::from_secs(value))
        } else {
            Err((key, format!("{value} is not from 1 to 86400 seconds")))
        }
    };
    Ok(Some(Http {
        listen,
        tls,
        origins,
        connections: count("http.connections", raw.connections, 4096)?,
        connections_per_address: count("http.connections_per_address", raw.connections_per_address, 256)?,
        look_ups_per_second: raw.look_ups_per_second.unwrap_or(100),
        trusted_proxies,
        idle: seconds("http.idle_s", raw.idle_s, 60)?,
        patience: seconds("http.patience_s", raw.patience_s, 60)?,
        keep_alive: seconds("http.keep_alive_s", raw.keep_alive_s, 15)?,
        issuers: issuers(jwt)?,
    }))
}

/// What a certificate of the relay's own is for: what is configured, or the address that is listened on.
fn own_names(names: Vec<String>, listen: SocketAddr) -> Result<Vec<String>, Wrong> {
    if !names.is_empty() {
        return Ok(names);
    }
    if listen.ip().is_unspecified() {
        return Err((
            "http.names",
            "is empty; name the hosts that callers will ask for, for example [\"relay.example.org\"]".into(),
        ));
    }
    Ok(vec![listen.ip().to_string()])
}
