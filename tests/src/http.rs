//! Callers of a relay's HTTP side.

use crate::relay::{PATIENCE, TestRelay, tenant};
use belay_relay::admin::keys::{CreateKey, CreatedKey};
use belay_relay::store::central::keys::KeyScope;
use serde_json::Value;

/// The table that makes a relay serve HTTP, on a port that the system chooses.
pub const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// Every scope but that of an operator.
pub const SCOPES: [KeyScope; 3] = [KeyScope::Read, KeyScope::Write, KeyScope::Escalate];

/// A caller with an API key.
#[derive(Debug, Clone)]
pub struct HttpCaller {
    /// Where the relay is, without a trailing slash.
    pub url: String,
    /// The whole key.
    pub key: String,
    /// What names it.
    pub key_id: String,
    /// A client without proxies.
    pub http: reqwest::Client,
}

impl TestRelay {
    /// Where it serves HTTP.
    #[must_use]
    pub fn url(&self) -> String {
        self.relay().http_url().expect("HTTP is served")
    }

    /// A new API key of a tenant.
    pub async fn key(&self, id: &str, scopes: &[KeyScope]) -> CreatedKey {
        let wanted = CreateKey { tenant: tenant(id), label: "test".into(), scopes: scopes.to_vec(), expires_ms: None };
        self.relay().admin().create_key(wanted).await.unwrap()
    }

    /// A caller of `acme` that may do everything but what an operator does.
    pub async fn caller(&self) -> HttpCaller {
        self.caller_of("acme", &SCOPES).await
    }

    /// A caller of a tenant with these scopes.
    pub async fn caller_of(&self, id: &str, scopes: &[KeyScope]) -> HttpCaller {
        let made = self.key(id, scopes).await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        HttpCaller { url: self.url(), key: made.secret, key_id: made.key.id, http }
    }
}

impl HttpCaller {
    /// A POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.key).body(body.to_string())
    }

    /// A GET.
    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// Status and JSON of an answer.
    pub async fn json(request: reqwest::RequestBuilder) -> (u16, Value) {
        let (status, text) = Self::text(request).await;
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {error}: {text}"));
        (status, json)
    }

    /// Status and text of an answer.
    pub async fn text(request: reqwest::RequestBuilder) -> (u16, String) {
        let answer = tokio::time::timeout(PATIENCE, request.send()).await.expect("in time").unwrap();
        let status = answer.status().as_u16();
        (status, tokio::time::timeout(PATIENCE, answer.text()).await.expect("ends in time").unwrap())
    }

    /// What is answered with 200.
    pub async fn good(request: reqwest::RequestBuilder) -> Value {
        let (status, json) = Self::json(request).await;
        assert_eq!(status, 200, "{json}");
        json
    }
}
