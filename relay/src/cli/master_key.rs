//! `belayd master-key`.

use super::backup::{progress, stopped};
use super::{Global, print_json};
use belay_relay::Config;
use belay_relay::master_key::rotate;
use belay_transport::env::Random;
use clap::Subcommand;
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum MasterKeyCommand {
    /// Bring all books under a new master key; the relay must not run
    #[command(
        after_help = "Examples:\n  belayd master-key rotate\n  belayd master-key rotate --to /etc/belayd/secrets/master-2027"
    )]
    Rotate {
        /// The new key, 32 random bytes, made if it is not there; you put it where the configuration wants it. Without
        /// this, a new one takes the place of the old file
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

pub(super) async fn master_key(global: &Global, command: MasterKeyCommand) -> anyhow::Result<()> {
    let MasterKeyCommand::Rotate { to } = command;
    let config = Config::load_without_keys(&global.config)?;
    let (store, _lock) = stopped(&config)?;
    let shows = std::io::stderr().is_terminal();
    let told = |number: usize, all: usize| {
        if shows {
            progress(number, all);
        }
    };
    let place = (config.state_dir.as_path(), config.master_key.as_path());
    let rotated = rotate(place, to.as_deref(), &store, &Random::from_os(), told).await;
    store.close();
    let rotated = rotated?;
    if global.json {
        return print_json(&serde_json::json!({
            "tenants": rotated.tenants, "anew": rotated.all, "to_place": rotated.to_place,
        }));
    }
    println!(
        "under the new master key: books {}; checkpoints signed anew {}, provider keys sealed anew {}",
        rotated.tenants, rotated.all.checkpoints, rotated.all.provider_keys
    );
    match &rotated.to_place {
        Some(path) => println!(
            "before the relay starts, put {} in the place of {}; it does not start with the old one",
            path.display(),
            config.master_key.display()
        ),
        None => println!("it lies in the place of the old one: {}", config.master_key.display()),
    }
    println!("backups from before are under the old one; take a new one: belayd backup DIR");
    Ok(())
}
