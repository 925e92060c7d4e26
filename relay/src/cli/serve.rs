//! `belayd serve`.

use super::Global;
use anyhow::Context;
use belay_relay::admin::{http, socket_path};
use belay_relay::{Config, Overrides, Relay, ops};
use belay_transport::env::Env;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(super) fn serve(global: &Global) -> anyhow::Result<()> {
    let config = Config::load(&global.config)?;
    ops::log::start(config.log_format, &config.log_filter).map_err(anyhow::Error::msg)?;
    ops::files::raise_limit();
    let mut builder = match config.network_threads {
        // Leaner: nothing is stolen, so nothing has to be guarded against it.
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build()?;
    runtime.block_on(run(config, global.json))
}

async fn run(config: Config, json: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let socket = socket_path(&config.state_dir);
    let relay = Relay::start(config, Env::system(), Overrides::default()).await?;
    let listener = http::bind(&socket).with_context(|| format!("cannot open the admin socket {}", socket.display()))?;
    let stop = CancellationToken::new();
    let admin = tokio::spawn(http::run(listener, relay.admin().clone(), stop.clone()));
    if json {
        println!("{}", serde_json::json!({ "listening": relay.local_addr(), "http": relay.http_url() }));
    } else {
        println!(
            "belayd is listening on {} ({})",
            relay.local_addr(),
            if relay.serves_tcp() { "UDP and TCP" } else { "UDP" }
        );
        if let Some(url) = relay.http_url() {
            println!("callers without a tunnel: {url} (what there is: {url}/docs)");
        }
    }
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
    }
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        biased;
        () = relay.shutdown() => {}
        () = again => warn!("second signal: leaving at once; the next start settles what was running"),
    }
    stop.cancel();
    admin.await.context("the admin listener failed")??;
    // The socket file goes with the process that owns it.
    let _ = std::fs::remove_file(socket);
    Ok(())
}
