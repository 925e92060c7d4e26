//! `belay dev`: relay, tunnel and answer in one process, with a throwaway authority and state. The
//! only file of the client that may name the relay.

use super::ask::{RequestArgs, ask};
use super::signals::Signals;
use super::up::{GatewayArgs, LISTEN};
use super::{Global, print_json};
use anyhow::Context;
use belay_certs::invite::Invite;
use belay_client::gateway::{Gateway, Settings};
use belay_client::state::StateDir;
use belay_client::vitals::{Computer, Sensors};
use belay_client::{Client, Options, enrol};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::message::Dialect;
use belay_protocol::money::NANOS_PER_USD;
use belay_protocol::money::NanoUsd;
use belay_relay::admin::{http, socket_path};
use belay_relay::store::ledger::money::Operation;
use belay_relay::{Config, Overrides, Relay};
use belay_transport::env::Env;
use clap::Args;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TENANT: &str = "dev";
const OPENING_CREDIT: NanoUsd = NanoUsd(5 * NANOS_PER_USD);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  belay dev \"Why is the sky blue?\"
  belay dev --once --json \"Why is the sky blue?\"
  ANTHROPIC_API_KEY=... belay dev --model claude \"Why is the sky blue?\"
  belay dev --provider-url http://127.0.0.1:8080/v1 --provider-model llama-3 \"Why is the sky blue?\"")]
pub(super) struct DevArgs {
    /// What to ask
    #[arg(default_value = "Why is the sky blue?")]
    prompt: String,
    /// Leave after the answer instead of serving on
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// A server to ask instead of the demo provider
    #[arg(long, value_name = "URL")]
    provider_url: Option<String>,
    /// Which API that server speaks
    #[arg(long, default_value = "openai", value_parser = ["openai", "anthropic"], requires = "provider_url")]
    provider_kind: String,
    /// That server's name of the model
    #[arg(long, default_value = "default", value_name = "NAME", requires = "provider_url")]
    provider_model: String,
    /// What a million input tokens of that server are taken to cost, in dollars
    #[arg(long, default_value = "0.50", value_name = "DOLLARS", requires = "provider_url")]
    price_input: String,
    /// What a million output tokens of that server are taken to cost, in dollars
    #[arg(long, default_value = "1.50", value_name = "DOLLARS", requires = "provider_url")]
    price_output: String,
}

pub(super) async fn run(global: &Global, args: DevArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    // Before anything is asked and paid.
    let settings = args.gateway.settings(global)?;
    let dir = tempfile::Builder::new().prefix("belay-dev-").tempdir().context("cannot make a throwaway directory")?;
    let config_path = dir.path().join("belayd.toml");
    let text = config_text(&args, dir.path(), |name| std::env::var(name).is_ok_and(|key| !key.is_empty()))?;
    std::fs::write(&config_path, &text).context("cannot write the throwaway configuration")?;
    let config = Config::load(&config_path)?;
    let state = config.state_dir.clone();
    let relay = Relay::start(config, Env::system(), Overrides::default()).await?;
    let stop = CancellationToken::new();
    let listener = http::bind(&socket_path(&state)).context("cannot open the admin socket")?;
    let admin = tokio::spawn(http::run(listener, relay.admin().clone(), stop.clone()));
    let home = dir.path().join("home");
    let asked = tokio::select! {
        asked = asked(global, &args, &relay, &home) => asked,
        () = signals.end() => Err(anyhow::anyhow!("ended by a signal")),
    };
    let outcome = match asked {
        Ok(client) => {
            let served = match args.once {
                true => Ok(()),
                false => {
                    serve(args.gateway.listen, settings, &client, &mut signals, |gateway| {
                        announce(global, gateway, &config_path, &home, &relay);
                    })
                    .await
                }
            };
            client.close().await;
            served
        }
        Err(error) => Err(error),
    };
    stop.cancel();
    relay.shutdown().await;
    admin.await.context("the admin listener failed")??;
    outcome
}

/// Enrols this process as a client of the relay, asks, and shows the answer.
async fn asked(global: &Global, args: &DevArgs, relay: &Relay, home: &Path) -> anyhow::Result<Arc<Client>> {
    let tenant: belay_protocol::id::TenantId = TENANT.parse()?;
    relay.admin().create_tenant(tenant.clone()).await?;
    let (operation, note) = (Some("opening".into()), Some("opening credit".into()));
    relay.admin().operate(&tenant, Operation::Credit, OPENING_CREDIT, operation, note).await?;
    let invite = Invite::decode(&relay.admin().invite(&tenant).await?.invite)?;
    let state_dir = StateDir::at(home);
    enrol::join(&Env::system(), &state_dir, &invite, "dev").await?;
    let (identity, key) = state_dir.load()?;
    let sensors: Option<Arc<dyn Sensors>> = if args.once { None } else { Some(Arc::new(Computer::watch()?)) };
    let options = Options { state: Some(state_dir), sensors, traces: global.traces()?, ..Options::default() };
    let client = Arc::new(Client::start(Env::system(), identity, &key, options)?);
    let body = serde_json::to_vec(&Prompt::new(&args.prompt))?;
    let asked = ask(global, &client, &args.request, (None, None), (Dialect::PROMPT, body)).await?;
    if global.json {
        print_json(&asked.to_json())?;
    } else {
        println!("{}", asked.summary());
    }
    asked.check()?;
    Ok(client)
}

/// Serves the gateway until a signal. Where its usual address is taken, any other will do.
async fn serve(
    listen: SocketAddr,
    settings: Settings,
    client: &Arc<Client>,
    signals: &mut Signals,
    announce: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let listener = match TcpListener::bind(listen).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && listen.to_string() == LISTEN => {
            TcpListener::bind((listen.ip(), 0)).await
        }
        bound => bound,
    };
    let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
    let gateway = Gateway::new(Arc::clone(client), settings, listener)?;
    announce(gateway.local_addr());
    let stop = gateway.stopper();
    let serving = tokio::spawn(gateway.run());
    signals.any().await;
    stop.cancel();
    serving.await.context("the gateway failed")
}

fn announce(global: &Global, gateway: SocketAddr, config: &Path, home: &Path, relay: &Relay) {
    if global.json {
        println!("{}", serde_json::json!({ "listening": gateway.to_string() }));
        return;
    }
    println!();
    println!("The gateway listens on http://{gateway}. Open that page, or let a program use it:");
    println!("  OPENAI_BASE_URL=http://{gateway}/v1 OPENAI_API_KEY=any my-program");
    println!("  ANTHROPIC_BASE_URL=http://{gateway} ANTHROPIC_API_KEY=any my-program");
    println!("The relay goes on serving at {} (UDP). From another terminal:", relay.local_addr());
    println!("  belay --home {} ask \"What else?\"", home.display());
    println!("  belay --home {} balance", home.display());
    println!("  belayd --config {} tenant list", config.display());
    println!("Ctrl-C ends it and throws its state away.");
}

/// A configuration for loopback: the server that was named, else the providers whose keys are
/// there, else the demo provider.
fn config_text(args: &DevArgs, dir: &Path, has_key: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let state = serde_json::to_string(&dir.join("state"))?;
    let mut text = format!("[listen]\nquic = \"127.0.0.1:0\"\n[state]\ndir = {state}\n[timeouts]\ndrain_ms = 2000\n");
    let mut auto = None;
    if let Some(url) = &args.provider_url {
        let key = match args.provider_kind.as_str() {
            "anthropic" => "ANTHROPIC_API_KEY",
            _ => "OPENAI_API_KEY",
        };
        let quote = |text: &str| serde_json::to_string(text);
        write!(text, "[providers.server]\nkind = \"{}\"\nurl = {}\n", args.provider_kind, quote(url)?)?;
        if has_key(key) {
            writeln!(text, "key_env = \"{key}\"")?;
        }
        writeln!(
            text,
            "[models.server]\nprovider = \"server\"\nname = {}\ncontext_tokens = 32000\nmax_output_tokens = 4096\nprice = {{ input = {}, output = {} }}",
            quote(&args.provider_model)?,
            quote(&args.price_input)?,
            quote(&args.price_output)?,
        )?;
        auto = Some("server");
    }
    let mut aliases = String::new();
    if has_key("ANTHROPIC_API_KEY") && args.provider_url.is_none() {
        text += ANTHROPIC;
        aliases += "claude = \"claude-sonnet-4-5\"\n";
        auto = auto.or(Some("claude-sonnet-4-5"));
    }
    if has_key("OPENAI_API_KEY") && args.provider_url.is_none() {
        text += OPENAI;
        aliases += "gpt = \"gpt-5-mini\"\n";
        auto = auto.or(Some("gpt-5-mini"));
    }
    text += DEMO;
    write!(text, "[aliases]\nauto = \"{}\"\n{aliases}", auto.unwrap_or("demo"))?;
    Ok(text)
}

const DEMO: &str = r#"[providers.demo]
kind = "demo"
[models.demo]
provider = "demo"
name = "demo-1"
context_tokens = 32000
max_output_tokens = 4096
price = { input = "0.50", output = "1.50" }
"#;

const ANTHROPIC: &str = r#"[providers.anthropic]
kind = "anthropic"
key_env = "ANTHROPIC_API_KEY"
any_model = true
[models.claude-sonnet-4-5]
provider = "anthropic"
max_output_tokens = 64000
"#;

const OPENAI: &str = r#"[providers.openai]
kind = "openai"
key_env = "OPENAI_API_KEY"
any_model = true
[models.gpt-5-mini]
provider = "openai"
max_output_tokens = 128000
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: DevArgs,
    }

    fn auto(arguments: &[&str], keys: &[&str]) -> String {
        let args = Wrapper::parse_from([&["dev"], arguments].concat()).args;
        let text = config_text(&args, Path::new("x"), |name| keys.contains(&name)).expect("made");
        // Keys are looked up when the text is checked; here only its form counts.
        let text: String =
            text.lines().filter(|line| !line.starts_with("key_env")).map(|line| format!("{line}\n")).collect();
        Config::parse(&text, "dev").expect("valid").aliases["auto"].targets[0].model.clone()
    }

    #[test]
    fn the_best_provider_that_is_there_answers() {
        assert_eq!(auto(&[], &[]), "demo");
        assert_eq!(auto(&[], &["OPENAI_API_KEY"]), "gpt-5-mini");
        assert_eq!(auto(&[], &["OPENAI_API_KEY", "ANTHROPIC_API_KEY"]), "claude-sonnet-4-5");
        assert_eq!(auto(&["--provider-url", "http://127.0.0.1:1/v1"], &["OPENAI_API_KEY"]), "server");
    }
}
