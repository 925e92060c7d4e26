//! A local gateway of a client of this process.

use crate::relay::{PATIENCE, TestClient};
use belay_client::gateway::{Gateway, Settings};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A gateway on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct TestGateway {
    /// Its address, as a base URL without the version.
    pub url: String,
    /// A caller without proxies.
    pub http: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl TestGateway {
    /// Starts one.
    pub async fn start(client: &TestClient) -> Self {
        Self::with(client, Settings::default()).await
    }

    /// The same with settings.
    pub async fn with(client: &TestClient, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway::new(Arc::clone(&client.client), settings, listener).unwrap();
        let url = format!("http://{}", gateway.local_addr());
        let stop = gateway.stopper();
        let task = tokio::spawn(gateway.run());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, http, stop, task }
    }

    /// A POST of a body.
    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).header("content-type", "application/json").body(body)
    }

    /// The JSON at a path.
    pub async fn get(&self, path: &str) -> serde_json::Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Stops it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the gateway stops").unwrap();
    }
}
