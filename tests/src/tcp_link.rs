//! TCP through a place of our own: a proxy on a chosen address that can stand still and break.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
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
    /// Bytes per second towards the relay, of each connection; 0: no bound.
    upload: AtomicUsize,
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
            upload: AtomicUsize::new(0),
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

    /// From now on, each connection carries so many bytes per second towards the relay.
    pub fn slow_upload(&self, bytes_per_second: usize) {
        self.shared.upload.store(bytes_per_second, Ordering::Relaxed);
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
        let pace = Arc::clone(&shared);
        running.spawn(async move {
            let Ok(server) = TcpStream::connect(relay).await else { return };
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let both = async {
                let up = pass(from_client, to_server, still.clone(), Some(&pace));
                tokio::join!(up, pass(from_server, to_client, still.clone(), None))
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
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut still: watch::Receiver<bool>,
    pace: Option<&Arc<Shared>>,
) {
    still.mark_unchanged();
    let passing = async {
        let _ = carry(&mut from, &mut to, pace).await;
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

/// Carries bytes, no faster than the pace of the moment.
async fn carry(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, pace: Option<&Arc<Shared>>) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = match from.read(&mut buffer).await? {
            0 => return Ok(()),
            read => read,
        };
        let per_second = pace.map_or(0, |shared| shared.upload.load(Ordering::Relaxed));
        if per_second > 0 {
            // The line is busy with these for so long.
            sleep(Duration::from_secs_f64(read as f64 / per_second as f64)).await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
