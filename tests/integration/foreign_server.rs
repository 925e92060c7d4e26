//! llmsim on a loopback port.

use std::sync::Arc;
use tokio::task::JoinHandle;

/// Ends with its value.
pub(crate) struct Server {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn start() -> Server {
    let config = llmsim::cli::Config::default();
    let state = llmsim::cli::AppState::new(config, llmsim::stats::new_shared_stats());
    let router = llmsim::cli::build_router(Arc::new(state));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { url, task }
}
