//! The command line of `belay`. The only place, with `main`, that uses anyhow and prints.
#![expect(clippy::print_stdout, reason = "a command line prints")]

mod account;
mod answer;
mod ask;
mod background;
mod chat;
#[cfg(all(feature = "dev", unix))]
mod dev;
mod doctor;
mod exit;
mod join;
mod models;
mod sessions;
mod signals;
mod statement;
mod status;
mod sync;
mod topup;
mod up;

use anyhow::Context;
use belay_client::state::StateDir;
use belay_client::{Client, Options};
use belay_transport::env::Env;
use clap::{Args, CommandFactory, Parser, Subcommand, value_parser};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

const AFTER: &str = "\
Examples:
  belay dev \"Why is the sky blue?\"   relay, tunnel and answer in one process, for a first look
  belay join belay1:...              enrol this computer with an invite
  belay up                           serve programs of this computer on http://127.0.0.1:4141
  belay ask \"Why is the sky blue?\"   ask through the tunnel; the answer streams to stdout
  git diff | belay ask --query \"Review this change\"

Exit codes: 0 done, 1 failed, 2 usage, 64 not joined or bad configuration, 69 relay unreachable,
77 refused, 78 payment required.";

/// The belay client: LLM requests through one persistent tunnel, with exact money.
#[derive(Debug, Parser)]
#[command(name = "belay", version, after_help = AFTER, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The longest that anything is waited for, in seconds: a year. More would overflow a clock.
const LONGEST_WAIT: u64 = 366 * 86_400;

#[derive(Debug, Clone, Args)]
struct Global {
    /// Where this computer's identity is kept (default: the platform's place for application data)
    #[arg(long, global = true, env = "BELAY_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print one JSON object for programs
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for the relay, in seconds
    #[arg(long, global = true, default_value_t = 15, value_name = "SECONDS", value_parser = value_parser!(u64).range(..=LONGEST_WAIT))]
    wait: u64,
    /// Send spans of requests to a collector of OpenTelemetry there (OTLP over HTTP), such as http://127.0.0.1:4318;
    /// headers for it: OTEL_EXPORTER_OTLP_HEADERS
    #[arg(long, global = true, env = "BELAY_TRACES", value_name = "URL")]
    traces: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay, tunnel and answer in one process, for a first look; needs no key
    #[cfg(all(feature = "dev", unix))]
    Dev(Box<dev::DevArgs>),
    /// Enrol this computer with an invite
    #[command(after_help = "Example:\n  belay join belay1:AbC...")]
    Join(join::JoinArgs),
    /// Hold the tunnel and serve programs of this computer, with the APIs of OpenAI and Anthropic
    Up(up::UpArgs),
    /// End what `belay up` holds
    #[command(after_help = "Example:\n  belay down")]
    Down,
    /// Show the models that can be asked, and their prices
    #[command(after_help = "Example:\n  belay models --json")]
    Models,
    /// Ask a question; the answer streams to stdout
    Ask(Box<ask::AskArgs>),
    /// Have a conversation; it is kept in a session
    Chat(Box<chat::ChatArgs>),
    /// Show, find and change conversations that the relay keeps
    #[command(after_help = "Examples:\n  belay sessions list\n  belay sessions search heartbeat")]
    Sessions(Box<sessions::SessionsArgs>),
    /// Keep documents, adapters and settings of this computer and of others the same
    Sync(Box<sync::SyncArgs>),
    /// Show what can be spent
    #[command(after_help = "Example:\n  belay balance --json")]
    Balance,
    /// Show what was used and what it cost
    #[command(
        after_help = "Examples:\n  belay usage\n  belay usage --period week --by device\n  belay usage --from 2026-11-01 --until 2026-11-15"
    )]
    Usage(account::UsageArgs),
    /// Show every entry of the tenant's book
    #[command(after_help = "Examples:\n  belay statement\n  belay statement --from 2026-11-01 --csv > november.csv")]
    Statement(statement::StatementArgs),
    /// Record usage that the relay did not see, such as inference on this computer
    #[command(after_help = "Example:\n  belay record local --model llama3 --input 1200 --output 300")]
    Record(account::RecordArgs),
    /// Add money: show the page to pay at, and wait until it has come
    #[command(after_help = "Examples:\n  belay topup 20\n  belay topup 20 --open")]
    Topup(topup::TopUpArgs),
    /// Show the tunnel: path, round trip, since when, reconnects, bytes
    Status(status::StatusArgs),
    /// Look for what may stand between this computer and its relay, and say what to do
    #[command(after_help = "Example:\n  belay doctor --json")]
    Doctor,
    /// Revoke this computer at the relay and forget its identity
    #[command(
        after_help = "Examples:\n  belay logout\n  belay logout --offline    (only forget, if the relay is gone for good)"
    )]
    Logout(join::LogoutArgs),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  belay completions bash > ~/.local/share/bash-completion/completions/belay")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages, for packages
    #[command(hide = true)]
    Manual {
        /// An existing directory
        dir: PathBuf,
    },
}

/// A reader that has had enough, such as `head`, is no fault of anybody: `println!` would panic.
#[expect(clippy::exit, reason = "the panic of a print has no other end that is quiet")]
fn end_with_the_reader() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let words = info.payload_as_str().unwrap_or_default();
        if words.starts_with("failed printing to stdout") && words.contains("Broken pipe") {
            std::process::exit(0);
        }
        default(info);
    }));
}

/// Parses the arguments and runs the command.
pub(crate) fn main() -> ExitCode {
    end_with_the_reader();
    let cli = Cli::parse();
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, json),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("BELAY_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    // It can only fail if a logger is set already, and this is the first one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
    let global = cli.global;
    // The tunnel lives on a thread of its own: it must not stand still when stdout does.
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match cli.command {
        #[cfg(all(feature = "dev", unix))]
        // A relay runs beside the client.
        Command::Dev(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(dev::run(&global, *args))
        }
        Command::Join(args) => runtime()?.block_on(join::join(&global, &args)),
        Command::Ask(args) => runtime()?.block_on(ask::run(&global, *args)),
        Command::Chat(args) => runtime()?.block_on(chat::run(&global, *args)),
        Command::Sessions(args) => runtime()?.block_on(sessions::run(&global, *args)),
        Command::Sync(args) => runtime()?.block_on(sync::run(&global, *args)),
        Command::Up(args) if args.background => background::start(&global),
        Command::Down => background::down(&global),
        Command::Up(args) => runtime()?.block_on(up::run(&global, args)),
        Command::Models => runtime()?.block_on(models::models(&global)),
        Command::Balance => runtime()?.block_on(account::balance(&global)),
        Command::Usage(args) => runtime()?.block_on(account::usage(&global, &args)),
        Command::Statement(args) => runtime()?.block_on(statement::statement(&global, &args)),
        Command::Record(args) => runtime()?.block_on(account::record(&global, args)),
        Command::Topup(args) => runtime()?.block_on(topup::top_up(&global, &args)),
        Command::Status(args) => runtime()?.block_on(status::run(&global, &args)),
        Command::Doctor => runtime()?.block_on(doctor::doctor(&global)),
        Command::Logout(args) => runtime()?.block_on(join::logout(&global, &args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "belay", &mut std::io::stdout());
            Ok(())
        }
        Command::Manual { dir } => {
            clap_mangen::generate_to(Cli::command(), &dir).with_context(|| format!("cannot write to {}", dir.display()))
        }
    }
}

impl Global {
    fn state(&self) -> anyhow::Result<StateDir> {
        match &self.home {
            Some(home) => Ok(StateDir::at(home)),
            None => StateDir::from_environment().context("set BELAY_HOME or use --home"),
        }
    }

    fn wait(&self) -> Duration {
        Duration::from_secs(self.wait)
    }

    fn client(&self) -> anyhow::Result<Client> {
        self.client_with(self.options()?)
    }

    fn options(&self) -> anyhow::Result<Options> {
        let traces = self.traces()?;
        Ok(Options { state: Some(self.state()?), through_running: true, traces, ..Options::default() })
    }

    fn traces(&self) -> anyhow::Result<Option<belay_traces::Settings>> {
        let Some(endpoint) = self.traces.clone() else { return Ok(None) };
        let settings = belay_traces::Settings {
            endpoint,
            headers: vec![],
            service: "belay",
            version: env!("CARGO_PKG_VERSION"),
            ratio: 1.0,
            follows_callers: true,
        };
        settings.check().map_err(|error| exit::Usage(format!("--traces: {error}")))?;
        Ok(Some(settings))
    }

    fn client_with(&self, options: Options) -> anyhow::Result<Client> {
        let (identity, key) = self.state()?.load()?;
        Ok(Client::start(Env::system(), identity, &key, options)?)
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
