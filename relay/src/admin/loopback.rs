//! The operator's side over TCP, for programs of this machine that speak no Unix sockets: Prometheus, and browsers. Whoever
//! asks shows the token that lies in the state directory, which only belayd's user can read.

use super::http::{ErrorBody, router};
use super::service::AdminService;
use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::serve;
use belay_certs::{CertError, file};
use belay_transport::env::Env;
use data_encoding::HEXLOWER;
use http::StatusCode;
use http::header::{AUTHORIZATION, HOST, HeaderMap, WWW_AUTHENTICATE};
use secrecy::{ExposeSecret, SecretString};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where the token of a state directory is.
#[must_use]
pub fn token_path(state: &Path) -> PathBuf {
    state.join("admin.token")
}

/// The token; made new where there is none. Errors: the file cannot be read or written.
pub fn token(state: &Path, env: &Env) -> Result<SecretString, CertError> {
    let path = token_path(state);
    match file::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned().into()),
        Err(CertError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let token = HEXLOWER.encode(&env.random.bytes::<32>());
            file::write_private(&path, format!("{token}\n").as_bytes())?;
            Ok(token.into())
        }
        Err(error) => Err(error),
    }
}

/// Serves until `stop`. `listener` is on a loopback address.
pub async fn run(
    listener: TcpListener,
    service: Arc<AdminService>,
    token: SecretString,
    stop: CancellationToken,
) -> io::Result<()> {
    let guarded = router(service).layer(from_fn_with_state(Arc::new(token), guard));
    // The page asks for the token, and so comes without one; but not under another name.
    let page = super::page::files().layer(from_fn(by_its_name));
    serve(listener, guarded.merge(page)).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Lets nobody through whose browser was led here by another name.
async fn by_its_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_this_machine(host) { next.run(request).await } else { refused(StatusCode::FORBIDDEN, OTHER_NAME) }
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, [(WWW_AUTHENTICATE, "Bearer")], Json(ErrorBody { error: error.to_owned() })).into_response()
}

const OTHER_NAME: &str = "this is asked for by 127.0.0.1 or localhost";

/// Lets nobody through who does not show the token, or whose browser was led here by another name.
async fn guard(State(token): State<Arc<SecretString>>, request: Request, next: Next) -> Response {
    match refusal(&token, request.headers()) {
        None => next.run(request).await,
        Some((status, error)) => refused(status, error),
    }
}

fn refusal(token: &SecretString, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !is_this_machine(header(HOST)) {
        return Some((StatusCode::FORBIDDEN, OTHER_NAME));
    }
    let shown = header(AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
    let expected = token.expose_secret();
    let is_right = !expected.is_empty() && bool::from(shown.as_bytes().ct_eq(expected.as_bytes()));
    let missing = "show the token of admin.token in the state directory, as a bearer token";
    (!is_right).then_some((StatusCode::UNAUTHORIZED, missing))
}

/// Whether a `Host` names this machine and nothing that somebody else can answer for.
fn is_this_machine(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_this_machine() {
        for host in ["127.0.0.1:9470", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:80", "127.8.8.8:1"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "relay.example.org", "127.0.0.1.nip.io:80", "10.0.0.1:1", "localhost.evil.org"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
