//! The HTTP way to the provider, straight or through the proxy: warm connections, one a lane.

use anyhow::ensure;
use belay_protocol::dialect::sse::SseSplitter;
use belay_tests::clock;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// What was seen of one streamed answer.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    /// From the request to its first token, in nanoseconds.
    pub(crate) first_ns: u64,
    /// From each token's sending to its arrival here, in nanoseconds.
    pub(crate) travel_ns: Vec<u64>,
}

impl Streamed {
    /// Takes bytes in that have arrived at `now_ns`.
    pub(crate) fn take(&mut self, bytes: &[u8], asked_ns: u64, now_ns: u64) {
        for sent_ns in clock::stamps(bytes) {
            if self.travel_ns.is_empty() {
                self.first_ns = now_ns - asked_ns;
            }
            self.travel_ns.push(now_ns.saturating_sub(sent_ns));
        }
    }
}

/// Warm connections to one address.
#[derive(Debug)]
pub(crate) struct Http {
    address: SocketAddr,
    /// What is shown with every request.
    key: Option<String>,
    lanes: Vec<Mutex<SendRequest<Full<Bytes>>>>,
}

impl Http {
    /// Opens so many.
    pub(crate) async fn connect(address: SocketAddr, lanes: usize) -> anyhow::Result<Self> {
        let mut open = vec![];
        for _ in 0..lanes {
            open.push(Mutex::new(Self::lane(address).await?));
        }
        Ok(Self { address, key: None, lanes: open })
    }

    /// The same for a relay, which wants a key.
    pub(crate) async fn with_key(address: SocketAddr, lanes: usize, key: String) -> anyhow::Result<Self> {
        Ok(Self { key: Some(key), ..Self::connect(address, lanes).await? })
    }

    async fn lane(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request and reads its answer to the end.
    pub(crate) async fn stream(&self, lane: usize, body: Bytes) -> anyhow::Result<Streamed> {
        let mut sender = self.lanes[lane].lock().await;
        // One that was idle for long may have been closed.
        if sender.is_closed() {
            *sender = Self::lane(self.address).await?;
        }
        sender.ready().await?;
        let mut request = Request::post("/v1/chat/completions")
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body))?;
        let asked_ns = clock::monotonic_ns();
        let mut answer = sender.send_request(request).await?;
        ensure!(answer.status() == 200, "the provider answered {}", answer.status());
        let mut seen = Streamed::default();
        // A stamp may lie across two reads.
        let mut splitter = SseSplitter::new(64 << 10);
        while let Some(frame) = answer.body_mut().frame().await {
            let now_ns = clock::monotonic_ns();
            if let Ok(data) = frame?.into_data() {
                splitter.push(data);
                while let Some(event) = splitter.next()? {
                    seen.take(&event, asked_ns, now_ns);
                }
            }
        }
        Ok(seen)
    }
}
