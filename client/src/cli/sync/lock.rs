//! `belay sync lock`: a command that runs while a lock is held.

use super::super::{Global, LONGEST_WAIT};
use crate::cli::exit::{CommandFailed, Usage};
use crate::cli::signals::Signals;
use anyhow::Context;
use belay_client::{Client, ClientError};
use belay_protocol::id::LockToken;
use belay_protocol::item::ItemKey;
use belay_protocol::message::FailureCode;
use clap::Args;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often a lock is renewed, and how often it is looked whether the command has ended.
const RENEW: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How long a command may take to end once this program was told to.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct LockArgs {
    /// The lock's name
    #[arg(value_name = "NAME")]
    key: ItemKey,
    /// How long to wait for it, in seconds
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=LONGEST_WAIT))]
    patience: u64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(global: &Global, client: &Client, args: &LockArgs) -> anyhow::Result<()> {
    let token = client.lock_token();
    let until = Instant::now() + Duration::from_secs(args.patience);
    let locked = loop {
        match client.sync_lock(&args.key, token, global.wait()).await {
            Err(ClientError::Failed(failed)) if failed.code == FailureCode::CONFLICT && Instant::now() < until => {
                sleep(Duration::from_millis(failed.retry_after_ms.unwrap_or(1000).clamp(50, 1000))).await;
            }
            other => break other?,
        }
    };
    let ran = hold(client, args, (token, locked.fence)).await;
    // Whatever became of the command; what it says counts.
    match client.sync_unlock(&args.key, token, global.wait()).await {
        Ok(_) => {}
        // It had passed to another.
        Err(ClientError::Failed(failed)) if failed.code == FailureCode::NOT_FOUND => {}
        Err(error) => eprintln!("belay: the lock could not be given back, and ends by itself: {error}"),
    }
    let status = ran?;
    if status.success() {
        return Ok(());
    }
    Err(CommandFailed { program: args.command[0].clone(), status }.into())
}

/// Runs the command, and renews the lock while it does.
async fn hold(client: &Client, args: &LockArgs, (token, fence): (LockToken, u64)) -> anyhow::Result<ExitStatus> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Usage("no command is given".into()).into());
    };
    let mut signals = Signals::listen()?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env("BELAY_FENCE", fence.to_string());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let mut renewed = Instant::now();
    let mut told: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if renewed.elapsed() >= RENEW {
            // While the relay is away the lock may pass to another; what comes with an older fence is too late then.
            match client.sync_lock(&args.key, token, RENEW).await {
                Ok(now) if now.fence != fence => eprintln!("belay: the lock was lost; its fence is {} now", now.fence),
                Ok(_) => {}
                Err(error) => eprintln!("belay: the lock is not renewed: {error}"),
            }
            renewed = Instant::now();
        }
        tokio::select! {
            biased;
            // A terminal has told the command, too, and it may take its time to end.
            () = signals.any() => { told.get_or_insert_with(Instant::now); }
            () = sleep(LOOK) => {}
        }
        if told.is_some_and(|told| told.elapsed() > GRACE) {
            child.kill()?;
        }
    }
}
