//! `belayd backup`, `verify-backup` and `restore`.

use super::exit::Told;
use super::{Global, print_json, table};
use anyhow::Context;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::doctor::Taken;
use belay_relay::admin::service::TenantInfo;
use belay_relay::backup::restore::Restored;
use belay_relay::backup::take::{Copied, CopyRequest, Source, take};
use belay_relay::backup::{BackupError, Manifest, check, restore};
use belay_relay::store::central;
use belay_relay::store::central::audit::note;
use belay_relay::store::executor::{Db, Store, StoreConfig};
use belay_relay::store::lock::StateLock;
use belay_relay::store::schema::Durability;
use belay_transport::env::{Clock, SystemClock};
use clap::Args;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The directory; a backup that is there is brought up to date
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The directory of the backup
    dir: PathBuf,
    /// Bring back the book and content of this tenant alone, where they are lost
    #[arg(long)]
    tenant: Option<TenantId>,
}

/// Whoever copies.
pub(super) enum Copier {
    Running(AdminClient),
    Stopped { store: Store, dir: PathBuf, _lock: StateLock },
}

impl Copier {
    pub(super) async fn of(config: &Config) -> anyhow::Result<Self> {
        let client = AdminClient::new(&config.state_dir)?;
        match client.get::<serde_json::Value>("/status").await {
            Ok(_) => Ok(Self::Running(client)),
            Err(ClientError::NotRunning { .. }) => {
                let (store, lock) = stopped(config)?;
                // On the disk of the state, so that they can be moved.
                let dir = config.state_dir.join("copies");
                belay_certs::file::create_private_dir(&dir)?;
                Ok(Self::Stopped { store, dir, _lock: lock })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The files of a relay that does not run, under its lock.
pub(super) fn stopped(config: &Config) -> anyhow::Result<(Store, StateLock)> {
    belay_certs::file::create_private_dir(&config.state_dir)?;
    let lock = StateLock::acquire(&config.state_dir)?;
    let store = Store::start(&StoreConfig {
        dir: config.state_dir.clone(),
        threads: 1,
        durability: Durability::Full,
        idle_close: config.idle_close,
        max_open: 8,
    });
    Ok((store, lock))
}

impl Copier {
    /// Has the audit log know of it.
    pub(super) async fn tell(&self, taken: Taken) -> anyhow::Result<()> {
        match self {
            Self::Running(client) => Ok(client.post("/taken", &taken).await?),
            Self::Stopped { store, .. } => {
                let (deed, now_ms) = (taken.deed(), SystemClock.now_ms());
                Ok(store.run(Db::Central, move |connection| note(connection, &deed, now_ms)).await?)
            }
        }
    }
}

/// A directory as it is called from everywhere.
pub(super) fn whole(dir: &Path) -> anyhow::Result<String> {
    Ok(std::path::absolute(dir)?.display().to_string())
}

impl Source for Copier {
    async fn tenants(&self) -> Result<Vec<TenantId>, BackupError> {
        match self {
            Self::Running(client) => {
                let all: Vec<TenantInfo> = client.get("/tenants").await?;
                Ok(all.into_iter().map(|tenant| tenant.id).collect())
            }
            Self::Stopped { store, .. } => {
                let all = store.run(Db::Central, central::tenants).await?;
                Ok(all.into_iter().map(|tenant| tenant.id).collect())
            }
        }
    }

    async fn copy(&self, request: CopyRequest) -> Result<Copied, BackupError> {
        match self {
            Self::Running(client) => Ok(client.post_long("/copies", &request).await?),
            Self::Stopped { store, dir, .. } => {
                let name = request.tenant.as_ref().map_or("central", TenantId::as_str).to_owned();
                let sealed = store.sealed(request.tenant.as_ref()).await?;
                let db = request.tenant.map_or(Db::Central, Db::Tenant);
                let stamp = store.stamp(&db);
                if stamp.is_some() && stamp == request.known {
                    return Ok(Copied { file: None, stamp, sealed });
                }
                let file = dir.join(format!("{name}.db"));
                let _ = std::fs::remove_file(&file);
                store.copy(&db, file.clone()).await?;
                let stamp = stamp.filter(|stamp| store.stamp(&db).as_ref() == Some(stamp));
                Ok(Copied { file: Some(file), stamp, sealed })
            }
        }
    }
}

pub(super) async fn backup(global: &Global, args: BackupArgs) -> anyhow::Result<()> {
    let config = Config::load_without_keys(&global.config)?;
    let copier = Copier::of(&config).await?;
    let shows = std::io::stderr().is_terminal();
    let told = |number: usize, all: usize| {
        if shows {
            progress(number, all);
        }
    };
    let now_ms = SystemClock.now_ms();
    let (manifest, taken) = take(&copier, &config.state_dir, &args.dir, now_ms, told)
        .await
        .with_context(|| format!("the backup in {} stays as it was", args.dir.display()))?;
    copier.tell(Taken::Backup { dir: whole(&args.dir)? }).await?;
    if global.json {
        return print_json(&serde_json::json!({ "made_ms": manifest.made_ms, "taken": taken,
            "has_master_key": manifest.has_master_key() }));
    }
    println!(
        "{} databases, {} of them copied; {} pieces of content, {} of them copied; in {}",
        taken.databases,
        taken.copied,
        taken.pieces,
        taken.pieces_copied,
        args.dir.display()
    );
    if !manifest.has_master_key() {
        println!("the master key {} is not in it: keep a copy of it elsewhere", config.master_key.display());
    }
    println!("prove it with: belayd verify-backup {}", args.dir.display());
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a command line shows how far it is")]
pub(super) fn progress(number: usize, all: usize) {
    eprint!("\r{number} of {all} tenants");
    if number == all {
        eprintln!();
    }
}

pub(super) fn verify(global: &Global, args: &BackupArgs) -> anyhow::Result<()> {
    // Where there is no configuration, seals are looked at if the key is in the backup.
    let master = Config::load_without_keys(&global.config).ok().map(|config| config.master_key);
    let master = master.filter(|path| path.exists());
    let (manifest, checked) = check::check(&args.dir, master.as_deref())?;
    if global.json {
        print_json(
            &serde_json::json!({ "made_ms": manifest.made_ms, "tenants": manifest.tenants.len(), "checked": checked }),
        )?;
    } else {
        println!(
            "a backup of {}, {} tenants: {} databases and {} pieces of content looked at{}",
            table::time(manifest.made_ms),
            manifest.tenants.len(),
            checked.databases,
            checked.pieces,
            if checked.with_master_key { "" } else { "; without the master key, seals of books were not" },
        );
        checked.problems.iter().for_each(|problem| println!("{problem}"));
    }
    if checked.problems.is_empty() {
        return Ok(());
    }
    Err(Told(format!("{} problems in the backup", checked.problems.len())).into())
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> anyhow::Result<()> {
    let config = Config::load_without_keys(&global.config)?;
    let (manifest, checked) = check::check(&args.dir, Some(config.master_key.as_path()).filter(|path| path.exists()))?;
    if let Some(first) = checked.problems.first() {
        return Err(BackupError::Refused(format!(
            "the backup is damaged ({first}{}); see: belayd verify-backup {}",
            if checked.problems.len() > 1 { ", and more" } else { "" },
            args.dir.display()
        ))
        .into());
    }
    let (store, _lock) = stopped(&config)?;
    let restored = bring(&config, &args, &manifest, &store).await;
    store.close();
    let restored = restored?;
    if global.json {
        return print_json(&serde_json::json!({ "made_ms": manifest.made_ms, "restored": restored }));
    }
    println!("{} tenants are as they were at {}", restored.len(), table::time(manifest.made_ms));
    for one in restored.iter().filter(|one| one.lost.requests > 0) {
        let (requests, cost) = (one.lost.requests, NanoUsd(one.lost.cost_nano));
        println!(
            "{}: central knows of {requests} requests since, for {cost}, which were taken off its balance",
            one.tenant
        );
    }
    println!("look for what came since and is in no backup: payments and credits, revoked devices and keys");
    Ok(())
}

async fn bring(
    config: &Config,
    args: &RestoreArgs,
    manifest: &Manifest,
    store: &Store,
) -> anyhow::Result<Vec<Restored>> {
    let (dir, state): (&Path, &Path) = (&args.dir, &config.state_dir);
    match &args.tenant {
        None => Ok(restore::node(dir, manifest, state, &config.master_key, SystemClock.now_ms())?),
        Some(tenant) => {
            let known = store.run(Db::Central, central::tenants).await?;
            if !known.iter().any(|known| known.id == *tenant) {
                return Err(BackupError::Refused(format!("this relay has no tenant {tenant}")).into());
            }
            let of = tenant.clone();
            let erased = move |connection: &_| central::erase::erased_ms(connection, &of);
            if store.run(Db::Central, erased).await?.is_some() {
                return Err(BackupError::Refused(format!("the tenant {tenant} was erased")).into());
            }
            let restored = restore::tenant(dir, manifest, state, tenant, SystemClock.now_ms())?;
            let (of, sealed) = (tenant.clone(), restored.sealed);
            store.run(Db::Central, move |connection| central::usage::sealed_again(connection, &of, sealed)).await?;
            Ok(vec![restored])
        }
    }
}
