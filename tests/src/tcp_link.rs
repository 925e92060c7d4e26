//! TCP through a place of our own: a proxy on a chosen address that can stand still and break.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// A running proxy. Dropping it closes everything.
#[derive(Debug)]
pub struct TcpLink {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    still: watch::Sender<bool>,
    cut: watch::Sender<CancellationToken>,
    connections: AtomicUsize,
}

impl TcpLink {
    /// Takes connections at `address` and leads them to `relay`. Errors: the address is taken.
    pub async fn start(address: SocketAddr, relay: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            still: watch::Sender::new(false),
            cut: watch::Sender::new(CancellationToken::new()),
            connections: AtomicUsize::new(0),
        });
        let task = tokio::spawn(accept(listener, relay, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were taken so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// What the connections of now carry stands still for good; new ones are not concerned.
    pub fn stand_still(&self) {
        self.shared.still.send_replace(true);
    }

    /// Breaks the connections of now.
    pub fn cut(&self) {
        self.shared.cut.send_replace(CancellationToken::new()).cancel();
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, relay: SocketAddr, shared: Arc<Shared>) {
    let mut running = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared.still.send_replace(false);
        let (still, cut) = (shared.still.subscribe(), shared.cut.borrow().clone());
        running.spawn(async move {
            let Ok(server) = TcpStream::connect(relay).await else { return };
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let both = async {
                tokio::join!(pass(from_client, to_server, still.clone()), pass(from_server, to_client, still.clone()))
            };
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                _ = both => {}
            }
        });
        while running.try_join_next().is_some() {}
    }
}

/// Passes bytes on until the end, or until they stand still: then for ever.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut still: watch::Receiver<bool>) {
    still.mark_unchanged();
    let passing = async {
        let _ = copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
        // Whoever sends after the end is not reset.
        let _ = from.read(&mut [0]).await;
    };
    let stands_still = async { still.wait_for(|still| *still).await.is_ok() };
    tokio::select! {
        biased;
        true = stands_still => {}
        () = passing => return,
    }
    std::future::pending().await
}
