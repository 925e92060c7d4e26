//! Where an import is written: the state of a relay that is not running.

use super::ImportError;
use crate::blobs::Blobs;
use crate::blobs::disk::SystemDisk;
use crate::config::Config;
use crate::master_key::{is_rotating, name_in};
use crate::ops::metrics::SyncMetrics;
use crate::secrets::MasterKey;
use crate::store::books::Books;
use crate::store::executor::{CENTRAL, Store, StoreConfig};
use crate::store::lock::{LockError, StateLock};
use crate::store::schema::{self, Durability, Kind};
use crate::sync::Sync;
use belay_certs::file;
use belay_transport::env::Env;
use std::sync::Arc;

/// Threads that write.
const THREADS: usize = 3;

/// Where an import is written.
#[derive(Debug, Clone)]
pub struct Target {
    /// `None`: nowhere, as for a dry run without a relay's state.
    pub(super) state: Option<State>,
    /// What a tenant's sessions may take, in bytes.
    pub(super) sessions: u64,
    /// What a tenant's items may take, in bytes.
    pub(super) quota: u64,
    /// The wall clock, milliseconds since 1970.
    pub(super) now_ms: u64,
}

/// The state of a relay that is not running.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) store: Store,
    pub(super) books: Books,
    pub(super) sync: Sync,
    _lock: Arc<StateLock>,
}

impl Target {
    /// Nowhere: everything is new.
    #[must_use]
    pub fn nowhere(config: &Config, env: &Env) -> Self {
        let (sessions, quota) = (config.limits.sessions, config.limits.sync);
        Self { state: None, sessions, quota, now_ms: env.clock.now_ms() }
    }

    /// What a dry run compares with; it changes nothing there. `Err`, for people: why there is nothing to compare with.
    pub fn look_at(config: &Config, env: &Env) -> Result<Result<Self, String>, ImportError> {
        let path = config.state_dir.join(CENTRAL);
        if !path.exists() {
            return Ok(Err(format!("there is no state in {}", config.state_dir.display())));
        }
        let lock = match StateLock::acquire(&config.state_dir) {
            Err(LockError::InUse(_)) => return Ok(Err("belayd is running".into())),
            lock => lock?,
        };
        if schema::is_older(&path, Kind::Central)? {
            return Ok(Err("the state was written by an older belayd, and is left as it is".into()));
        }
        drop(lock);
        Self::open(config, env).map(Ok)
    }

    /// The state of a relay that is not running; it is begun where there is none. Errors: the relay runs; its state
    /// cannot be opened.
    pub fn open(config: &Config, env: &Env) -> Result<Self, ImportError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| ImportError::State(format!("{what}: {error}"));
        file::create_private_dir(&config.state_dir)
            .map_err(|error| failed("the state directory cannot be made", &error))?;
        let lock = StateLock::acquire(&config.state_dir)?;
        let is_new = !config.state_dir.join(CENTRAL).exists();
        if !is_new && !config.master_key.exists() {
            let path = config.master_key.display();
            return Err(ImportError::State(format!(
                "the master key {path} is not there; put it back, or restore a backup"
            )));
        }
        let store = Store::start(&StoreConfig {
            dir: config.state_dir.clone(),
            threads: THREADS,
            durability: Durability::Full,
            idle_close: config.idle_close,
            max_open: 64,
        });
        let master = MasterKey::load(&config.master_key, is_new.then_some(&env.random))
            .map_err(|error| failed("the master key cannot be used", &error))?;
        // Its own name only: an import makes no claim on a state that names none.
        if let Some(wanted) = name_in(&config.state_dir).filter(|wanted| *wanted != master.id()) {
            let why = format!("it is not the key that the books are under ({wanted})");
            return Err(failed("the master key cannot be used", &why));
        }
        if is_rotating(&config.state_dir) {
            return Err(failed("the master key cannot be used", &crate::master_key::MasterKeyError::BrokenOff));
        }
        let books = Books::new(store.clone(), Arc::clone(&env.clock), &master, config.billing.free_allowance);
        let blobs = Blobs::new(Arc::new(SystemDisk), env.random.clone(), false);
        let sync = Sync::new(store.clone(), blobs, Arc::clone(&env.clock), config.limits.sync, SyncMetrics::default());
        let state = State { store, books, sync, _lock: Arc::new(lock) };
        Ok(Self { state: Some(state), ..Self::nowhere(config, env) })
    }

    /// Writes what is queued, and closes every file. Blocks.
    pub fn close(&self) {
        if let Some(state) = &self.state {
            state.sync.close();
            state.store.close();
        }
    }
}
