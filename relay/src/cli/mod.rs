//! The command line of `belayd`. The only place, with `main`, that uses anyhow and prints.
#![expect(clippy::print_stdout, reason = "a command line prints")]

mod admin;
mod audit;
mod authority;
mod backup;
mod config;
mod doctor;
mod exit;
mod import;
mod keys;
mod leaving;
mod ledger;
mod master_key;
mod money;
mod prices;
mod reconcile;
mod serve;
mod status;
mod support;
mod table;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER: &str = "\
Examples:
  belayd config init belayd.toml        write a commented configuration
  belayd serve                          run the relay (configuration: ./belayd.toml)
  belayd tenant create acme --credit 5  a tenant with $5.00
  belayd invite acme                    a join string for one computer, good for 15 minutes

Exit codes: 0 done, 1 failed, 2 usage, 64 bad configuration, 69 relay not running, 77 refused.";

/// The belay relay: one persistent QUIC tunnel per computer, LLM requests with exact money.
#[derive(Debug, Parser)]
#[command(name = "belayd", version, after_help = AFTER, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Args)]
struct Global {
    /// The configuration file (default: belayd.toml here, or else /etc/belayd/belayd.toml)
    #[arg(long, short, global = true, default_value_os_t = usual_config(), hide_default_value = true, env = "BELAYD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the relay
    #[command(after_help = "Example:\n  belayd serve --config /etc/belayd/belayd.toml")]
    Serve,
    /// Write or check a configuration
    #[command(subcommand, after_help = "Examples:\n  belayd config init belayd.toml\n  belayd config check")]
    Config(config::Command),
    /// Create, list, credit and suspend tenants
    #[command(subcommand, after_help = "Examples:\n  belayd tenant create acme --credit 5\n  belayd tenant list")]
    Tenant(admin::TenantCommand),
    /// Make a join string for one computer of a tenant
    #[command(after_help = "Example:\n  belayd invite acme")]
    Invite(admin::InviteArgs),
    /// List and revoke devices
    #[command(subcommand, after_help = "Examples:\n  belayd device list\n  belayd device revoke laptop-1f2e3d4c")]
    Device(admin::DeviceCommand),
    /// Make, list and revoke API keys
    #[command(subcommand, after_help = "Examples:\n  belayd key create acme --label ci\n  belayd key list")]
    Key(keys::KeyCommand),
    /// Keep the providers' keys of tenants that pay their providers themselves
    #[command(subcommand, after_help = "Example:\n  belayd provider-key set acme openai < key.txt")]
    ProviderKey(keys::ProviderKeyCommand),
    /// Bound what a tenant, a device or a key may spend and ask for
    #[command(subcommand, after_help = "Example:\n  belayd budget set acme --month 50")]
    Budget(money::BudgetCommand),
    /// Show what tenants have used
    #[command(after_help = "Examples:\n  belayd usage\n  belayd usage --by day --tenant acme --from 2026-11-01")]
    Usage(money::UsageArgs),
    /// Show what models cost
    #[command(subcommand, after_help = "Examples:\n  belayd prices list\n  belayd prices check")]
    Prices(prices::Command),
    /// Check the books
    #[command(subcommand, after_help = "Example:\n  belayd ledger verify")]
    Ledger(ledger::Command),
    /// Take over the users, keys, balances, usage and files of the deployment before; see docs/MIGRATION.md
    #[command(after_help = "Examples:\n  belayd import --d1 export.sql --r2 objects --dry-run\n  \
        belayd import --d1 export.sqlite --kv kv.json --r2 objects")]
    Import(import::ImportArgs),
    /// Tell clients that the relay is being worked on; requests are served all the same
    #[command(
        after_help = "Examples:\n  belayd maintenance --for 30 --reason \"new disk\"\n  belayd maintenance --off"
    )]
    Maintenance(admin::MaintenanceArgs),
    /// Show who did what to access and money; with --json one line each, for export
    #[command(after_help = "Examples:\n  belayd audit --from 2026-11-01\n  belayd audit --json > audit.jsonl")]
    Audit(audit::AuditArgs),
    /// Show the relay's certificate authority, or let another take its place
    #[command(
        subcommand,
        after_help = "Examples:\n  belayd authority show\n  belayd authority prepare\n  belayd authority switch"
    )]
    Authority(authority::AuthorityCommand),
    /// Copy everything that the relay remembers into a directory, while it runs or not
    #[command(after_help = "Example:\n  belayd backup /var/backups/belayd")]
    Backup(backup::BackupArgs),
    /// Prove that a backup can be read and that its books add up
    #[command(after_help = "Example:\n  belayd verify-backup /var/backups/belayd")]
    VerifyBackup(backup::BackupArgs),
    /// Bring a node back where none is, or one tenant whose book is lost; the relay must not run
    #[command(
        after_help = "Examples:\n  belayd restore /var/backups/belayd\n  belayd restore /var/backups/belayd --tenant acme"
    )]
    Restore(backup::RestoreArgs),
    /// Change the master key, which signs the books' checkpoints and seals tenants' provider keys
    #[command(subcommand, after_help = "Example:\n  belayd master-key rotate")]
    MasterKey(master_key::MasterKeyCommand),
    /// Put the configuration in force as it is written now, without a restart
    #[command(after_help = "Example:\n  belayd reload --config /etc/belayd/belayd.toml")]
    Reload,
    /// Show the running relay
    #[command(after_help = "Examples:\n  belayd status --json\n  belayd status --watch")]
    Status(status::StatusArgs),
    /// Look for what may be wrong with this node, and say what to do
    #[command(after_help = "Example:\n  belayd doctor --json")]
    Doctor,
    /// Gather what somebody needs who is to help, without secrets, in one text
    #[command(after_help = "Example:\n  belayd support-bundle support.txt")]
    SupportBundle(support::SupportArgs),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  belayd completions bash > /etc/bash_completion.d/belayd")]
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

/// Where the configuration is if nobody says.
fn usual_config() -> PathBuf {
    let here = PathBuf::from("belayd.toml");
    let installed = PathBuf::from("/etc/belayd/belayd.toml");
    if !here.exists() && installed.exists() { installed } else { here }
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
    let global = cli.global;
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match cli.command {
        Command::Serve => serve::serve(&global),
        Command::Config(command) => config::run(&global, command),
        Command::Tenant(command) => runtime()?.block_on(admin::tenant(&global, command)),
        Command::Invite(args) => runtime()?.block_on(admin::invite(&global, &args)),
        Command::Device(command) => runtime()?.block_on(admin::device(&global, command)),
        Command::Key(command) => runtime()?.block_on(keys::key(&global, command)),
        Command::ProviderKey(command) => runtime()?.block_on(keys::provider_key(&global, command)),
        Command::Budget(command) => runtime()?.block_on(money::budget(&global, command)),
        Command::Usage(args) => runtime()?.block_on(money::usage(&global, args)),
        Command::Prices(command) => prices::run(&global, command),
        Command::Ledger(command) => runtime()?.block_on(ledger::run(&global, command)),
        Command::Import(args) => runtime()?.block_on(import::import(&global, args)),
        Command::Maintenance(args) => runtime()?.block_on(admin::maintenance(&global, args)),
        Command::Audit(args) => runtime()?.block_on(audit::audit(&global, args)),
        Command::Authority(command) => runtime()?.block_on(authority::authority(&global, command)),
        Command::MasterKey(command) => runtime()?.block_on(master_key::master_key(&global, command)),
        Command::Backup(args) => runtime()?.block_on(backup::backup(&global, args)),
        Command::VerifyBackup(args) => backup::verify(&global, &args),
        Command::Restore(args) => runtime()?.block_on(backup::restore(&global, args)),
        Command::Reload => runtime()?.block_on(admin::reload(&global)),
        Command::Status(args) => runtime()?.block_on(status::status(&global, &args)),
        Command::SupportBundle(args) => runtime()?.block_on(support::bundle(&global, args)),
        Command::Doctor => runtime()?.block_on(doctor::doctor(&global)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "belayd", &mut std::io::stdout());
            Ok(())
        }
        Command::Manual { dir } => Ok(clap_mangen::generate_to(Cli::command(), &dir)
            .with_context(|| format!("cannot write to {}", dir.display()))?),
    }
}

/// Prints a value as a line of JSON.
fn print_json_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
