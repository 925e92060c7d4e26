//! Exit codes, and how an error is shown.

use belay_relay::admin::client::ClientError;
use belay_relay::backup::BackupError;
use belay_relay::config::ConfigError;
use belay_relay::master_key::MasterKeyError;
use belay_relay::store::lock::LockError;
use belay_relay::{StartError, store::StoreError};
use std::process::ExitCode;
use thiserror::Error;

/// What a command has shown already, and only the exit code and a line for people is left to tell.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Told(pub(super) String);

const FAILED: u8 = 1;
const BAD_CONFIG: u8 = 64;
const NOT_RUNNING: u8 = 69;
const REFUSED: u8 = 77;

/// The documented code of an error.
fn code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        return BAD_CONFIG;
    }
    if let Some(BackupError::Refused(_)) = error.downcast_ref::<BackupError>() {
        return REFUSED;
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotRunning { .. }) => return NOT_RUNNING,
        Some(ClientError::BadConfig(_)) => return BAD_CONFIG,
        Some(ClientError::Refused(_)) => return REFUSED,
        _ => {}
    }
    let key = match error.downcast_ref::<StartError>() {
        // No better a second later.
        Some(StartError::NoMasterKey { .. } | StartError::Restoring { .. }) => return REFUSED,
        Some(StartError::MasterKey(error)) => Some(error),
        _ => error.downcast_ref::<MasterKeyError>(),
    };
    if key.is_some_and(MasterKeyError::is_lasting) {
        return REFUSED;
    }
    // `serve` meets these while it starts, `ledger verify` of a stopped relay by itself.
    let (lock, store) = match error.downcast_ref::<StartError>() {
        Some(StartError::Lock(error)) => (Some(error), None),
        Some(StartError::Store(error)) => (None, Some(error)),
        _ => (error.downcast_ref::<LockError>(), error.downcast_ref::<StoreError>()),
    };
    match (lock, store) {
        (Some(LockError::InUse(_)), _) | (_, Some(StoreError::NewerSchema { .. })) => REFUSED,
        _ => FAILED,
    }
}

/// Shows an error on stderr (and as JSON on stdout, if asked for) and gives its code.
#[expect(clippy::print_stderr, reason = "a command line prints")]
pub(super) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = code(error);
    let text = format!("{error:#}");
    if json && !error.is::<Told>() {
        println!("{}", serde_json::json!({ "error": text, "exit_code": code }));
    }
    eprintln!("belayd: {text}");
    ExitCode::from(code)
}
