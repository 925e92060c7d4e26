//! `belayd config`.

use super::{Global, print_json};
use anyhow::{Context, bail};
use belay_relay::Config;
use belay_relay::config::{Environment, for_units, template};
use clap::Subcommand;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented configuration (never over an existing file)
    #[command(
        after_help = "Examples:\n  belayd config init\n  belayd config init /etc/belayd/belayd.toml\n  belayd config init -    (to stdout)\n  belayd config init --environment production --units"
    )]
    Init {
        /// Where to; "-" is stdout
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,
        /// What it is for: development, staging or production
        #[arg(long, value_name = "ENVIRONMENT", default_value_t)]
        environment: Environment,
        /// With the addresses and directories of the units for systemd
        #[arg(long)]
        units: bool,
    },
    /// Check a configuration without starting anything
    #[command(after_help = "Example:\n  belayd config check --config belayd.toml")]
    Check,
}

pub(super) fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { path, environment, units } => {
            let text = template(environment);
            let text = if units { for_units(&text) } else { text };
            init(global, &path.unwrap_or_else(|| global.config.clone()), &text)
        }
        Command::Check => check(global),
    }
}

fn init(global: &Global, path: &PathBuf, text: &str) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        print!("{text}");
        return Ok(());
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} exists already; name another file, or move it away", path.display())
        }
        other => other.with_context(|| format!("cannot write {}", path.display()))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    if global.json {
        return print_json(&serde_json::json!({ "written": path }));
    }
    println!("wrote {}", path.display());
    println!("next: belayd serve --config {}", path.display());
    Ok(())
}

fn check(global: &Global) -> anyhow::Result<()> {
    let config = Config::load(&global.config)?;
    if global.json {
        return print_json(&serde_json::json!({
            "valid": true,
            "environment": config.environment.to_string(),
            "listen": config.listen,
            "state_dir": config.state_dir,
            "providers": config.providers.keys().collect::<Vec<_>>(),
            "models": config.models.keys().collect::<Vec<_>>(),
            "aliases": config.aliases,
        }));
    }
    println!("{} is valid for {}", global.config.display(), config.environment);
    println!("listens on {} (UDP), state in {}", config.listen, config.state_dir.display());
    for (name, model) in &config.models {
        let price = if model.prices.is_some() { "" } else { ": NO PRICE, its requests are refused" };
        println!("model {name}: {} at {}{price}", model.name, model.provider);
    }
    Ok(())
}
