//! `belayd serve`.

use super::Global;
use anyhow::Context;
use belay_certs::file;
use belay_protocol::vitals::RelayState;
use belay_relay::admin::{http, loopback, socket_path};
use belay_relay::ops::service;
use belay_relay::{Config, Overrides, Relay, ops};
use belay_transport::env::Env;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

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
    let mut hangup = signal(SignalKind::hangup())?;
    let socket = socket_path(&config.state_dir);
    let mut env = Env::system();
    let given = service::inherited(&mut env).context("a socket that was handed over cannot be used")?;
    let (over_tcp, token) = match config.admin {
        Some(address) => {
            file::create_private_dir(&config.state_dir)?;
            let listener =
                env.net.listen_tcp(address).with_context(|| format!("cannot open admin.listen {address}"))?;
            (Some(listener), Some(loopback::token(&config.state_dir, &env)?))
        }
        None => (None, None),
    };
    let relay = Relay::start(config, env, Overrides::default()).await?;
    for (protocol, address) in given.iter().flat_map(|given| given.unused()) {
        warn!(%address, "a socket for {protocol} was handed over that the configuration has no use for: name it in [listen] or [http]");
    }
    let listener = http::bind(&socket).with_context(|| format!("cannot open the admin socket {}", socket.display()))?;
    let stop = CancellationToken::new();
    let admin = tokio::spawn(http::run(listener, relay.admin().clone(), stop.clone()));
    let admin_address = over_tcp.as_ref().map(TcpListener::local_addr).transpose()?;
    if let (Some(listener), Some(token)) = (over_tcp, token) {
        tokio::spawn(loopback::run(listener, relay.admin().clone(), token, stop.clone()));
    }
    if json {
        println!(
            "{}",
            serde_json::json!({ "listening": relay.local_addr(), "http": relay.http_url(), "admin": admin_address })
        );
    } else {
        println!(
            "belayd is listening on {} ({})",
            relay.local_addr(),
            if relay.serves_tcp() { "UDP and TCP" } else { "UDP" }
        );
        if let Some(url) = relay.http_url() {
            println!("callers without a tunnel: {url} (what there is: {url}/docs)");
        }
        if let Some(address) = admin_address {
            println!("metrics: http://{address}/metrics (bearer token: admin.token in the state directory)");
            println!("the operator's page: http://{address}/");
        }
    }
    service::ready(&line(&relay));
    tokio::select! {
        () = report(&relay) => {}
        () = reload(&relay, &mut hangup) => {}
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
    }
    service::stopping();
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
    // One that never ends its request keeps nobody here.
    match tokio::time::timeout(LAST_ANSWERS, admin).await {
        Ok(ended) => ended.context("the admin listener failed")??,
        Err(_) => info!("an operator's connection did not end, and is left"),
    }
    // The socket file goes with the process that owns it.
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Reads the configuration anew at each SIGHUP. What comes of it is logged.
async fn reload(relay: &Relay, hangup: &mut Signal) {
    while hangup.recv().await.is_some() {
        service::reloading();
        // What is wrong with it was logged, and everything stays as it was.
        let _ = relay.admin().reload().await;
        service::ready(&line(relay));
    }
}

/// How often the service manager is told how the relay is.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// How long operators' connections may take to end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How the relay is, in a line.
fn line(relay: &Relay) -> String {
    let status = relay.admin().status();
    let state = match status.state {
        RelayState::Healthy => String::new(),
        RelayState::Degraded { reason } => format!("; degraded: {reason}"),
        RelayState::Maintenance { reason, .. } => format!("; maintenance: {reason}"),
    };
    let state = match status.reload.error {
        Some(_) => format!("{state}; the configuration that is written is not in force, see: belayd status"),
        None => state,
    };
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    format!(
        "{}, {}, {}{state}",
        count(status.tunnels.len(), "tunnel"),
        count(status.running_requests, "running request"),
        count(status.open_tenants, "open tenant"),
    )
}

/// Tells the service manager how the relay is, and that it lives, as long as all of it makes progress. A relay that does
/// not is killed and started again.
async fn report(relay: &Relay) {
    let vitals = relay.vitals();
    let watchdog = service::watchdog();
    // Twice within the time that it has, and a check is over before the next begins.
    let every = watchdog.map_or(TOLD_EVERY, |within| TOLD_EVERY.min(within / 3));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if watchdog.is_some() {
            match vitals.check(every).await {
                Ok(()) => service::alive(),
                Err(stuck) => error!(%stuck, "the service manager is not told that the relay lives"),
            }
        }
        service::status(&line(relay));
    }
}
