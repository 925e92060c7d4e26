//! How the commands reach a running relay.

use super::http::ErrorBody;
use super::socket_path;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why a command got no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no belayd is running on {} ({why}); start it with: belayd serve", state.display())]
    NotRunning {
        /// Which state directory.
        state: PathBuf,
        /// What the connection attempt said.
        why: String,
    },
    /// The relay refused; its words.
    #[error("{0}")]
    Refused(String),
    /// It cannot use the configuration that is written; its words.
    #[error("{0}")]
    BadConfig(String),
    /// The answer made no sense.
    #[error("belayd's answer is not understood: {0}")]
    Answer(String),
}

/// How long a copy of a large database may take.
const LONG: Duration = Duration::from_secs(3600);

/// A connection to the admin socket of a state directory.
#[derive(Debug)]
pub struct AdminClient {
    http: reqwest::Client,
    state: PathBuf,
}

impl AdminClient {
    /// Errors: the HTTP client cannot be made.
    pub fn new(state: &Path) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .unix_socket(socket_path(state))
            // There is no TLS on it, and so no need for the machine's authorities.
            .tls_certs_only([])
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        Ok(Self { http, state: state.to_owned() })
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(self.http.get(url(path))).await
    }

    /// Reads a text.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let answer = self.http.get(url(path)).send().await;
        let read = async { answer?.error_for_status()?.text().await };
        read.await.map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// Does something.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.send(self.http.post(url(path)).header("content-type", "application/json").body(body)).await
    }

    /// Does something that may take long.
    pub async fn post_long<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        let request = self.http.post(url(path)).header("content-type", "application/json").body(body);
        self.send(request.timeout(LONG)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let answer = request.send().await.map_err(|error| {
            if error.is_connect() {
                ClientError::NotRunning { state: self.state.clone(), why: "its admin socket does not answer".into() }
            } else {
                ClientError::Answer(error.to_string())
            }
        })?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| ClientError::Answer(error.to_string()))?;
        if !status.is_success() {
            let words = serde_json::from_slice::<ErrorBody>(&body)
                .map_or_else(|_| format!("status {status}: {}", String::from_utf8_lossy(&body)), |body| body.error);
            let refused = if status == 422 { ClientError::BadConfig } else { ClientError::Refused };
            return Err(refused(words));
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Answer(error.to_string()))
    }
}

/// The host is not used on a Unix socket.
fn url(path: &str) -> String {
    format!("http://belayd{path}")
}
