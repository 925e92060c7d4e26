//! `belay up`: holds the tunnel and serves the local gateway.

use super::Global;
use super::exit::Usage;
use super::signals::Signals;
use anyhow::{Context, anyhow};
use belay_client::gateway::{Gateway, Settings, Token};
use belay_client::running::{Held, Told};
use belay_client::state::StateDir;
use belay_client::vitals::Computer;
use belay_client::{Client, ClientError, Phase, TunnelStatus};
use belay_transport::env::Env;
use clap::Args;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Where the gateway listens unless it is told otherwise.
pub(super) const LISTEN: &str = "127.0.0.1:4141";

/// How long another command may look whether the place is taken, and how often it is looked at again.
const LOOKED_AT: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Args)]
pub(super) struct GatewayArgs {
    /// Where programs of this computer find the gateway
    #[arg(long, value_name = "ADDRESS", default_value = LISTEN, env = "BELAY_LISTEN")]
    pub(super) listen: SocketAddr,
    /// What callers have to show as their API key
    #[arg(long, value_name = "TOKEN", env = "BELAY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Another name that callers may call this computer by
    #[arg(long, value_name = "NAME", value_parser = host)]
    allow_host: Vec<String>,
    /// An origin whose pages may ask, such as app://obsidian.md
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    allow_origin: Vec<String>,
    /// A caller that streams hears something after so many seconds of silence
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    keep_alive: u64,
    /// Let the page and /belay/requests show the beginning of what is asked
    #[arg(long)]
    show_prompts: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  belay up
  belay up --listen 127.0.0.1:8080
  BELAY_TOKEN=\"$(cat gateway.token)\" belay up    (others on this computer see what stands behind --token)
  OPENAI_BASE_URL=http://127.0.0.1:4141/v1 OPENAI_API_KEY=any my-program
  ANTHROPIC_BASE_URL=http://127.0.0.1:4141 ANTHROPIC_API_KEY=any my-program")]
pub(super) struct UpArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Run in the background; belay down ends it
    #[arg(long)]
    pub(super) background: bool,
    /// What --background starts
    #[arg(long, hide = true, conflicts_with = "background")]
    detached: bool,
    /// A model that this computer has loaded itself; the relay is told, for its operator to see
    #[arg(long, value_name = "NAME")]
    loaded_model: Option<String>,
}

impl GatewayArgs {
    pub(super) fn settings(&self, global: &Global) -> anyhow::Result<Settings> {
        if self.token.as_deref().is_some_and(|token| token.trim().is_empty()) {
            return Err(Usage("--token is empty".into()).into());
        }
        if !self.listen.ip().is_loopback() && self.token.is_none() {
            let why =
                format!("{} is not of this computer alone: whoever reaches it could spend; set --token", self.listen);
            return Err(Usage(why).into());
        }
        Ok(Settings {
            token: self.token.as_deref().map(Token::from),
            hosts: self.allow_host.clone(),
            origins: self.allow_origin.clone(),
            wait: global.wait(),
            keep_alive: Duration::from_secs(self.keep_alive),
            show_prompts: self.show_prompts,
            ..Settings::default()
        })
    }
}

pub(super) async fn run(global: &Global, args: UpArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let mut settings = args.gateway.settings(global)?;
    let state = global.state()?;
    // Before anything is made or taken.
    state.load()?;
    let held = hold(&state).await?.ok_or_else(|| match state.running() {
        Ok(Some(told)) => {
            anyhow!(
                "process {} runs already, its gateway on http://{}; to end it: belay down",
                told.process,
                told.listen
            )
        }
        _ => anyhow!("another belay up is just starting"),
    })?;
    state.sweep();
    let secret = Env::system().random.bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let has_token = settings.token.is_some();
    settings.secret = Some(Token::from(secret.as_str()));
    let mut options = global.options()?;
    // It is the one that runs.
    options.through_running = false;
    options.sensors = Some(Arc::new(Computer::watch()?));
    options.loaded_model = args.loaded_model;
    let listen = args.gateway.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; if another belay runs there, end it, or choose another --listen")
    })?;
    let client = Arc::new(global.client_with(options)?);
    let gateway = Gateway::new(Arc::clone(&client), settings, listener)?;
    let listen = gateway.local_addr();
    let device = client.identity().device.clone();
    held.tell(&Told { process: std::process::id(), device, listen, secret })?;
    announce(global, listen, has_token);
    let stop = gateway.stopper();
    let serving = tokio::spawn(gateway.run());
    let ended = tokio::select! {
        biased;
        () = signals.end_of_program(args.detached) => Ok(()),
        () = stop.cancelled() => Ok(()),
        ended = follow(global, &client) => ended,
    };
    stop.cancel();
    serving.await.context("the gateway failed")?;
    client.close().await;
    ended
}

/// The place of the one that runs. Another command may look for a moment whether it is taken.
async fn hold(state: &StateDir) -> Result<Option<Held>, ClientError> {
    let until = Instant::now() + LOOKED_AT;
    loop {
        let held = state.hold()?;
        if held.is_some() || Instant::now() > until || state.running()?.is_some() {
            return Ok(held);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// A name as it stands in a request, without a port.
fn host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['/', '*', ' ']) || text.contains(':') && !text.starts_with('[') {
        return Err("a name alone, such as desk.local: no port, no path, and not all names".into());
    }
    Ok(text.to_owned())
}

/// An origin as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    let whole = text.strip_suffix('/').unwrap_or(text);
    match whole.split_once("://") {
        Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '*', ' ']) => {
            Ok(whole.to_owned())
        }
        _ => Err("a scheme and a host, such as https://app.example.org: no path, and not all origins".into()),
    }
}

/// What a person needs to use it.
fn announce(global: &Global, local: SocketAddr, has_token: bool) {
    if global.json {
        println!("{}", serde_json::json!({ "listening": local.to_string() }));
        return;
    }
    println!("The gateway listens on http://{local}; its page shows what runs and what it costs.");
    println!("  OpenAI programs:     OPENAI_BASE_URL=http://{local}/v1");
    println!("  Anthropic programs:  ANTHROPIC_BASE_URL=http://{local}");
    let key = if has_token { "The API key is the token that it was started with" } else { "Any API key will do" };
    println!("{key}: keys of providers stay at the relay. Ctrl-C ends it.");
}

/// Prints how the tunnel is whenever that changes. Ends with an error if the relay refuses for good.
async fn follow(global: &Global, client: &Client) -> anyhow::Result<()> {
    let mut status: watch::Receiver<TunnelStatus> = client.status();
    let mut shown = None;
    loop {
        let now = status.borrow_and_update().clone();
        if shown.as_ref() != Some(&now.phase) {
            if global.json {
                println!("{}", serde_json::to_string(&now)?);
            } else if !matches!((&shown, &now.phase), (None, Phase::Connecting)) {
                println!("{}", words(&now));
            }
            shown = Some(now.phase.clone());
        }
        if let Phase::Refused { .. } = now.phase {
            client.tunnel(Duration::ZERO).await?;
        }
        status.changed().await.map_err(|_| ClientError::Stopped)?;
    }
}

fn words(status: &TunnelStatus) -> String {
    match &status.phase {
        Phase::Connecting => "Tunnel: connecting".into(),
        Phase::Up => match status.remote {
            Some(remote) => format!("Tunnel: up over {} to {remote}", status.path),
            None => "Tunnel: up".into(),
        },
        Phase::Waiting { reason, for_ms } => format!("Tunnel: next attempt in {for_ms} ms ({reason})"),
        Phase::Refused { code } => format!("Tunnel: refused ({code})"),
        Phase::Closed => "Tunnel: closed".into(),
    }
}
