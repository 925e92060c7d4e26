//! Stripe's HTTP API: forms in, JSON out.

use crate::config::Timeouts;
use crate::providers::http::client;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::time::Duration;
use thiserror::Error;

/// How long Stripe may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why Stripe did not do what was asked.
#[derive(Debug, Error)]
pub enum ApiError {
    /// It cannot be reached, or has no time: the same again, later.
    #[error("Stripe cannot be reached: {0}")]
    Unreachable(String),
    /// The payer's card, or bank, says no.
    #[error("the payment is refused: {message} ({code})")]
    Refused {
        /// Stripe's name for the reason.
        code: String,
        /// Its words, which are for the payer.
        message: String,
    },
    /// There is no such thing.
    #[error("Stripe does not know it")]
    Unknown,
    /// It does not take what the relay asks, or the relay's key: for the operator to put right.
    #[error("Stripe does not do what the relay asks: {message} ({code})")]
    Ours {
        /// Its name for the reason.
        code: String,
        /// Its words.
        message: String,
    },
}

/// Of a list, no more than this is read.
const LONGEST_LIST: usize = 10_000;

/// A way to Stripe.
#[derive(Debug)]
pub(super) struct Api {
    client: reqwest::Client,
    base: String,
    key: SecretString,
}

impl Api {
    /// Errors: the TLS set-up failed.
    pub(super) fn new(base: &str, key: SecretString, timeouts: &Timeouts, private: bool) -> Result<Self, String> {
        Ok(Self { client: client(timeouts, None, private)?, base: base.trim_end_matches('/').to_owned(), key })
    }

    /// Asks for something to be made. `name` makes a repetition harmless, for a day at Stripe.
    pub(super) async fn post(&self, path: &str, form: &[(&str, String)], name: &str) -> Result<Value, ApiError> {
        let request = self.client.post(format!("{}{path}", self.base)).header("idempotency-key", name);
        self.send(request.header("content-type", "application/x-www-form-urlencoded").body(encoded(form))).await
    }

    /// Asks for what there is.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(self.client.get(format!("{}{path}", self.base))).await
    }

    /// All of a list, page by page.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>, ApiError> {
        let mut all: Vec<Value> = vec![];
        loop {
            let after = all.last().and_then(|last| last.get("id")).and_then(Value::as_str);
            let after = after.map(|id| format!("&starting_after={id}")).unwrap_or_default();
            let page = self.get(&format!("{path}&limit=100{after}")).await?;
            let found = page.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
            let is_last = found.is_empty() || page.get("has_more") != Some(&Value::Bool(true));
            all.extend(found);
            if is_last || all.len() >= LONGEST_LIST {
                return Ok(all);
            }
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, ApiError> {
        let unreachable = |error: reqwest::Error| ApiError::Unreachable(error.without_url().to_string());
        let answer =
            request.bearer_auth(self.key.expose_secret()).timeout(PATIENCE).send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(json);
        }
        let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        // A conflict is a repetition that came while the first one runs.
        if status.is_server_error() || matches!(status.as_u16(), 409 | 429) {
            return Err(ApiError::Unreachable(format!("it answers {status} {}", text("/error/message"))));
        }
        let code = [text("/error/decline_code"), text("/error/code"), text("/error/type"), status.to_string()];
        let code = code.into_iter().find(|code| !code.is_empty()).unwrap_or_default();
        let message = text("/error/message");
        Err(match status.as_u16() {
            402 => ApiError::Refused { code, message },
            404 => ApiError::Unknown,
            _ if text("/error/type") == "card_error" => ApiError::Refused { code, message },
            _ => ApiError::Ours { code, message },
        })
    }
}

/// A form's bytes.
fn encoded(form: &[(&str, String)]) -> String {
    let escape =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let pairs = form.iter().map(|(name, value)| format!("{}={}", escape(name), escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}
