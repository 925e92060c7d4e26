//! The other processes of the bench: this program again, in another role.
//!
//! Each says on stdout where it listens, as `belayd` does, and leaves when its stdin closes, which
//! it does with the bench, however that ends.

use crate::{echo, lossy, proxy};
use anyhow::Context;
use belay_tests::fake_provider::FakeProvider;
use belay_tests::procs::Listening;
use clap::Subcommand;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a process is.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    /// The provider behind everything
    #[command(hide = true)]
    Provider,
    /// A minimal reverse proxy to `upstream`
    #[command(hide = true)]
    Proxy {
        /// The provider
        upstream: SocketAddr,
        /// Makes a durable commit there for each request
        book: Option<PathBuf>,
    },
    /// A raw quinn echo server with the authority in `dir`
    #[command(hide = true)]
    Echo {
        /// Where the authority lies
        dir: PathBuf,
    },
    /// The measurement over a line that loses packets, in a network namespace of its own
    #[command(hide = true)]
    Lossy {
        /// How often
        rounds: usize,
    },
}

/// Plays a role until stdin closes.
pub(crate) async fn play(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Provider => {
            let provider = FakeProvider::start().await?;
            listen(provider.address()).await
        }
        Role::Proxy { upstream, book } => listen(proxy::start(upstream, book).await?).await,
        Role::Lossy { rounds } => lossy::play(rounds).await,
        Role::Echo { dir } => listen(echo::start(&dir)?).await,
    }
}

#[expect(clippy::print_stdout, reason = "this is how the bench learns of it")]
async fn listen(address: SocketAddr) -> anyhow::Result<()> {
    println!("{}", serde_json::json!({ "listening": address }));
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

/// Starts this program in a role.
pub(crate) fn spawn<A: AsRef<OsStr>>(args: &[A]) -> anyhow::Result<Listening> {
    // The running file, even if a build has put a newer one in its place.
    let mut command = Command::new("/proc/self/exe");
    Listening::spawn(command.args(args).stdin(Stdio::piped())).context("a process of the bench did not start")
}
