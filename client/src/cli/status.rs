//! `belay status`.

use super::exit::Usage;
use super::{Global, print_json};
use anyhow::Context;
use belay_client::running::Told;
use belay_client::vitals::Computer;
use belay_client::{Client, ClientError, Identity, Phase, TunnelStatus};
use belay_transport::env::{Clock, SystemClock};
use clap::Args;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  belay status\n  belay status --watch      (hold the tunnel and print every change)"
)]
pub(super) struct StatusArgs {
    /// Hold the tunnel and print every change until interrupted
    #[arg(long)]
    watch: bool,
    /// A model that this computer has loaded itself; the relay is told, for its operator to see
    #[arg(long, value_name = "NAME", requires = "watch")]
    loaded_model: Option<String>,
}

pub(super) async fn run(global: &Global, args: &StatusArgs) -> anyhow::Result<()> {
    let state = global.state()?;
    let (identity, _) = state.load()?;
    if let Some(told) = state.running()?.filter(|told| told.device == identity.device) {
        if args.loaded_model.is_some() {
            let why = format!("process {} holds the tunnel; say it there: belay up --loaded-model", told.process);
            return Err(Usage(why).into());
        }
        // The tunnel that is there is the one to be told of.
        let shown =
            if args.watch { watch_running(global, &told).await } else { once_running(global, &identity, &told).await };
        return shown.with_context(|| format!("process {} does not answer at {}", told.process, told.listen));
    }
    let mut options = global.options()?;
    if args.watch {
        // A tunnel that stays also tells the relay how this computer is.
        options.sensors = Some(std::sync::Arc::new(Computer::watch()?));
        options.loaded_model = args.loaded_model.clone();
    }
    let client = global.client_with(options)?;
    let result = if args.watch { watch(global, &client).await } else { once(global, &client).await };
    client.close().await;
    result
}

async fn once_running(global: &Global, identity: &Identity, told: &Told) -> anyhow::Result<()> {
    let running = told.status().await?;
    if global.json {
        let mut object = object(identity, &running.tunnel)?;
        object["gateway"] = serde_json::to_value(&running.gateway)?;
        return print_json(&object);
    }
    show(identity, &running.tunnel);
    println!("gateway      http://{}, process {}", running.gateway.listen, running.gateway.process);
    Ok(())
}

async fn watch_running(global: &Global, told: &Told) -> anyhow::Result<()> {
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut changes = told.changes().await?;
    loop {
        let running = tokio::select! {
            // First, so that it listens from the beginning.
            biased;
            _ = &mut interrupt => return Ok(()),
            next = changes.next() => next?,
        };
        match running {
            Some(running) => print_line(global, &running.tunnel)?,
            None => return Ok(()),
        }
    }
}

async fn once(global: &Global, client: &Client) -> anyhow::Result<()> {
    client.tunnel(global.wait()).await?;
    let mut status = client.status();
    // The first heartbeat leaves at once; its answer completes the picture.
    let first_beat = timeout(Duration::from_secs(3), status.wait_for(|status| status.round_trip_us.is_some()));
    drop(first_beat.await);
    let status = client.status().borrow().clone();
    if global.json {
        return print_json(&object(client.identity(), &status)?);
    }
    show(client.identity(), &status);
    Ok(())
}

async fn watch(global: &Global, client: &Client) -> anyhow::Result<()> {
    let mut status = client.status();
    // One listener for all the time: a signal that comes while nobody listens is lost.
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    loop {
        let now = status.borrow_and_update().clone();
        print_line(global, &now)?;
        if let Phase::Refused { .. } = now.phase {
            client.tunnel(Duration::ZERO).await?;
        }
        tokio::select! {
            // First, so that it listens from the beginning.
            biased;
            _ = &mut interrupt => return Ok(()),
            changed = status.changed() => changed.map_err(|_| ClientError::Stopped)?,
        }
    }
}

fn object(identity: &Identity, status: &TunnelStatus) -> anyhow::Result<serde_json::Value> {
    let mut object = serde_json::to_value(status)?;
    object["tenant"] = serde_json::to_value(&identity.tenant)?;
    object["device"] = serde_json::to_value(&identity.device)?;
    object["certificate_expires_ms"] = identity.expires_ms.into();
    Ok(object)
}

fn print_line(global: &Global, status: &TunnelStatus) -> anyhow::Result<()> {
    if global.json {
        println!("{}", serde_json::to_string(status)?);
    } else {
        println!("{}", line(status));
    }
    Ok(())
}

fn show(identity: &Identity, status: &TunnelStatus) {
    println!("device       {} of tenant {}", identity.device, identity.tenant);
    println!("tunnel       {}", phase(status));
    if let Some(remote) = status.remote {
        println!("path         {} to {remote} ({})", status.path, status.relay.as_deref().unwrap_or("unknown relay"));
    }
    if let Some(why) = &status.path_why {
        println!("             {why}");
    }
    println!("round trip   {} (the relay measures {})", trip(status.round_trip_us), trip(status.relay_round_trip_us));
    if let Some(state) = &status.relay_state {
        println!("relay        {}", state.describe(SystemClock.now_ms()));
    }
    println!("reconnects   {}", status.reconnects);
    println!("bytes        {} sent, {} received", status.bytes_sent, status.bytes_received);
}

fn line(status: &TunnelStatus) -> String {
    format!(
        "{}  {} {}  round trip {}  reconnects {}  {} B sent, {} B received",
        phase(status),
        status.path,
        status.remote.map_or_else(|| "-".into(), |remote| remote.to_string()),
        trip(status.round_trip_us),
        status.reconnects,
        status.bytes_sent,
        status.bytes_received
    )
}

fn phase(status: &TunnelStatus) -> String {
    let now_ms = SystemClock.now_ms();
    let seconds = now_ms.saturating_sub(status.since_ms) / 1000;
    match &status.phase {
        Phase::Connecting => "connecting".into(),
        Phase::Up => format!("up since {seconds} s"),
        Phase::Waiting { reason, for_ms } => format!("waiting {for_ms} ms: {reason}"),
        Phase::Refused { code } => format!("refused: {code}"),
        Phase::Closed => "closed".into(),
    }
}

fn trip(us: Option<u64>) -> String {
    us.map_or_else(|| "unknown".into(), |us| format!("{}.{:03} ms", us / 1000, us % 1000))
}
