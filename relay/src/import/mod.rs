//! The way over: what was exported from the deployment that Belay takes the place of becomes tenants.
//!
//! Everything has the same name every time, so that an import can be repeated: what is there already is left as it is,
//! and what has come to the export since is added. It is done under the lock of the state directory, with the relay
//! stopped. A user's part is planned from the export (`plan`), and then applied (`apply`, `place`): first in central,
//! then in the tenant's own file, so that one that breaks off in between is finished by the next.

mod apply;
mod items;
mod keys;
mod money;
mod names;
mod objects;
mod place;
mod plan;
pub mod report;
mod sessions;
mod target;
mod usage;

use self::apply::Applier;
use self::items::Item;
pub use self::money::BalanceSource;
use self::money::Signs;
use self::objects::Objects;
use self::report::{Left, Report, Tally};
use self::sessions::Conversation;
pub use self::target::Target;
use crate::blobs::BlobError;
use crate::store::StoreError;
use crate::store::central::import::ImportedUser;
use crate::store::central::keys::ApiKey;
use crate::store::ledger::import::ImportedUsage;
use crate::store::lock::LockError;
use crate::store::old::{
    API_KEYS, BILLING_LEDGER, CHAT_MESSAGES, CHAT_SESSIONS, Field, KNOWLEDGE_DOCUMENTS, Old, OldError, USAGE_RECORDS,
    USER_LORAS, USER_SETTINGS, USERS, Unit, Unknown,
};
use crate::sync::SyncError;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::task::JoinSet;

/// Users that are written at once: each has a file of its own.
const AT_ONCE: usize = 8;

/// How an export is to be understood.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the names of all tenants begin with.
    pub prefix: String,
    /// The unit of money in columns whose names say none.
    pub money_unit: Option<Unit>,
    /// What balances are taken from, where the export has more than one answer.
    pub balances: Option<BalanceSource>,
    /// Kinds of entries of the ledger that add to a balance (true) or take from it.
    pub ledger_kinds: Vec<(String, bool)>,
    /// Only these users; empty: all.
    pub only: Vec<String>,
    /// Nothing is written.
    pub dry_run: bool,
}

/// Why an import cannot go on. What was written stays, and is known to the next one.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The export cannot be read.
    #[error(transparent)]
    Old(#[from] OldError),
    /// The directory of objects cannot be read.
    #[error("cannot read the objects below {}: {error}", path.display())]
    Objects {
        /// Where.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It could mean more than one thing.
    #[error("{0}")]
    Ambiguous(String),
    /// The relay runs, or another program works on its state.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The relay's own state cannot be opened.
    #[error("{0}")]
    State(String),
    /// The relay's own state cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes of a document cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A file of the export changed or vanished while it was read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A task of it was lost.
    #[error("a part of the import was lost: {0}")]
    Lost(String),
}

impl From<SyncError> for ImportError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Store(error) => Self::Store(error),
            SyncError::Blob(error) => Self::Blob(error),
            SyncError::Invalid(why, _) => Self::Lost(why),
            SyncError::Refused(refusal) => Self::Lost(refusal.to_string()),
        }
    }
}

/// Where an export is.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The relational database: a dump in SQL, or a file of SQLite.
    pub d1: Option<PathBuf>,
    /// The key-value store, in JSON.
    pub kv: Vec<PathBuf>,
    /// The objects, as files below a directory.
    pub r2: Option<PathBuf>,
}

/// What a user brings along.
#[derive(Debug)]
struct Arriving {
    user: ImportedUser,
    customer: Option<String>,
    keys: Vec<(ApiKey, [u8; 32])>,
    /// Every key that the export has is in the list above, so that others are not good any more.
    are_all_keys: bool,
    /// What those are called here that rows of usage name.
    key_names: HashMap<String, String>,
    balance: Option<NanoUsd>,
    usage: Vec<ImportedUsage>,
    sessions: Vec<Conversation>,
    items: Vec<Item>,
    /// What is known of it already: what was found, and what cannot come.
    report: Report,
}

/// An import that is ready to run.
#[derive(Debug)]
pub struct Import {
    old: Old,
    objects: Option<Objects>,
    options: Options,
    signs: Signs,
    /// What users who came before are called here.
    known: HashMap<String, TenantId>,
    /// Tenants that somebody has become in this run, and keys and customers that somebody has.
    taken: HashSet<TenantId>,
    hashes: HashSet<[u8; 32]>,
    customers: HashSet<String>,
    /// Keys that the table has, whosever they are: what was kept of them for speed does not count.
    in_table: HashSet<[u8; 32]>,
    /// Ids of sessions that several users have.
    shared_sessions: HashSet<String>,
    /// The time of what names none, milliseconds since 1970.
    now_ms: u64,
}

impl Import {
    /// Reads an export. Errors: it cannot be read, or could mean more than one thing.
    pub fn open(files: &Files, options: Options) -> Result<Self, ImportError> {
        let old = Old::open(files.d1.as_deref(), &files.kv)?;
        let objects = files.r2.as_deref().map(|dir: &Path| Objects::open(dir)).transpose()?;
        let signs = Signs::of(&old, &options)?;
        if old.count(&USAGE_RECORDS)? > 0
            && !old.says(&USAGE_RECORDS, Field::Id)
            && !old.says(&USAGE_RECORDS, Field::Request)
        {
            let why = "usage_records has neither id nor request_id: its rows could not be told apart the next time";
            return Err(ImportError::Ambiguous(why.into()));
        }
        for (table, field) in [
            (&USERS, Field::Balance),
            (&BILLING_LEDGER, Field::Amount),
            (&BILLING_LEDGER, Field::Balance),
            (&USAGE_RECORDS, Field::Cost),
        ] {
            if options.money_unit.is_none()
                && let Some(error) = old.sample(table, field)?.and_then(|row| row.lacks_unit(field))
            {
                return Err(ImportError::Ambiguous(error.to_string()));
            }
        }
        let mut in_table = HashSet::new();
        old.each(&API_KEYS, |row| in_table.extend(keys::hash_of(row).ok()))?;
        let shared_sessions = old.shared_sessions()?;
        Ok(Self {
            old,
            objects,
            options,
            signs,
            known: HashMap::new(),
            taken: HashSet::new(),
            hashes: HashSet::new(),
            customers: HashSet::new(),
            in_table,
            shared_sessions,
            now_ms: 0,
        })
    }

    /// Takes everything over. `progress` hears how many users of how many are through.
    pub async fn run(mut self, target: Target, mut progress: impl FnMut(usize, usize)) -> Result<Report, ImportError> {
        self.now_ms = target.now_ms;
        let applier = Applier::new(target, self.options.dry_run);
        self.known = applier.known().await?;
        let mut report = Report { dry_run: self.options.dry_run, ..Report::default() };
        let mut users = self.old.users()?;
        if !self.options.only.is_empty() {
            let missing: Vec<&String> = self.options.only.iter().filter(|user| !users.contains(user)).collect();
            if let Some(user) = missing.first() {
                return Err(ImportError::Ambiguous(format!("there is no user {user:?} in the export")));
            }
            users.retain(|user| self.options.only.contains(user));
        } else {
            self.count_strays(&mut report)?;
        }
        let all = users.len();
        let mut running = JoinSet::new();
        let taken = self.take(users, &applier, &mut running, &mut report, |through| progress(through, all)).await;
        // Whoever is being written to is written to the end, whatever has happened to others.
        let mut failed = taken.err();
        while let Some(done) = running.join_next().await {
            match done.map_err(|error| ImportError::Lost(error.to_string())).flatten() {
                Ok(done) => report.add(done),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        progress(all, all);
        report.unknown = self.old.unknown().clone();
        let Unknown { tables, columns, entries } = &mut report.unknown;
        let names = tables.iter_mut().chain(columns).chain(entries.iter_mut().map(|(name, _)| name));
        names.for_each(|name| *name = report::plain(name));
        if let Some(objects) = self.objects.as_ref().filter(|_| self.options.only.is_empty()) {
            report.unused_objects = objects.unused()?;
        }
        if report.balances.found == 0 {
            report.notes.push("the export says nothing of balances: every tenant begins with nothing".into());
        }
        Ok(report)
    }

    async fn take(
        &mut self,
        users: Vec<String>,
        applier: &Applier,
        running: &mut JoinSet<Result<Report, ImportError>>,
        report: &mut Report,
        mut progress: impl FnMut(usize),
    ) -> Result<(), ImportError> {
        for (through, user) in users.into_iter().enumerate() {
            progress(through.saturating_sub(running.len()));
            while running.len() >= AT_ONCE {
                match running.join_next().await {
                    None => {}
                    Some(done) => report.add(done.map_err(|error| ImportError::Lost(error.to_string()))??),
                }
            }
            let (arriving, more) = match self.plan(&user)? {
                Ok(planned) => planned,
                Err(left) => {
                    report.users.add(Tally { found: 1, left_out: 1, ..Tally::default() });
                    report.leave(left);
                    continue;
                }
            };
            let Some(after) = more else {
                let applier = applier.clone();
                running.spawn(async move { applier.arrive(arriving).await });
                continue;
            };
            // Somebody with more usage than one transaction takes comes in pieces, one after the other.
            let (tenant, keys) = (arriving.user.tenant.clone(), arriving.key_names.clone());
            let arrived = applier.arrive(arriving).await?;
            let has_come = arrived.users.left_out == 0;
            report.add(arrived);
            let mut more = has_come.then_some(after);
            while let Some(after) = more {
                let mut piece = Report::default();
                let (rows, next) = self.usage(&user, after, &keys, &mut piece)?;
                report.add(applier.usage(&tenant, rows, piece).await?);
                more = next;
            }
        }
        Ok(())
    }

    /// Rows that belong to nobody who comes.
    fn count_strays(&self, report: &mut Report) -> Result<(), ImportError> {
        for (table, tally) in [
            (&USERS, &mut report.users),
            (&API_KEYS, &mut report.keys),
            (&USAGE_RECORDS, &mut report.usage),
            (&CHAT_SESSIONS, &mut report.sessions),
            (&USER_SETTINGS, &mut report.settings),
            (&KNOWLEDGE_DOCUMENTS, &mut report.documents),
            (&USER_LORAS, &mut report.adapters),
            (&BILLING_LEDGER, &mut report.balances),
            (&CHAT_MESSAGES, &mut report.messages),
        ] {
            let strays = self.old.strays(table)?;
            tally.add(Tally { found: strays, left_out: strays, ..Tally::default() });
            if strays > 0 {
                let why = match table.name {
                    "users" => format!("{strays} rows have no id that is a text or a number"),
                    "chat_messages" => format!("{strays} rows are of a session that is not in the export"),
                    _ => format!("{strays} rows are of a user that is not in the export"),
                };
                report.left.push(Left { table: table.name, user: String::new(), id: String::new(), why });
            }
        }
        Ok(())
    }
}
