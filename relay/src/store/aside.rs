//! What goes on beside the workers: questions that may take long, and what goes through a whole database.

use super::executor::{Db, Mode, Store};
use super::ledger::machines_boot;
use super::readers::Readers;
use super::{StoreError, copy, erase, readers};
use belay_protocol::id::TenantId;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::oneshot;

/// Files that were written so long ago look different after another write.
const SETTLED: Duration = Duration::from_secs(2);

impl Store {
    /// Runs a question that may take long, beside the thread that writes to `tenant`'s book. It sees what is
    /// durable by then. Errors: `TooLong`; writing is an error, too.
    pub async fn read<T, F>(&self, tenant: &TenantId, mut question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let Mode::Threads { readers, .. } = &self.inner.mode else {
            return self.run(Db::Tenant(tenant.clone()), question).await;
        };
        let db = Db::Tenant(tenant.clone());
        self.bring_up_to_date(&db).await?;
        let path = self.path(&db);
        answered(readers, &db, move || readers::ask(&path, |connection| question(connection))).await
    }

    /// Goes through the whole of a tenant's book, as it is at one moment, however long that takes, beside the thread that
    /// writes to it. Writing is an error.
    pub async fn go_through<T, F>(&self, tenant: &TenantId, mut look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let db = Db::Tenant(tenant.clone());
        let Mode::Threads { long, .. } = &self.inner.mode else { return self.run(db, look).await };
        self.bring_up_to_date(&db).await?;
        let path = self.path(&db);
        answered(long, &db, move || readers::go_through(&path, |connection| look(connection))).await
    }

    /// Copies a database into a new file, as it is at one moment; its worker goes on meanwhile.
    pub async fn copy(&self, db: &Db, to: PathBuf) -> Result<(), StoreError> {
        // One that is lost must not be made new, and take the place of a good copy.
        if !self.has(db) {
            return Err(StoreError::Lost { path: self.path(db).display().to_string() });
        }
        self.bring_up_to_date(db).await?;
        let from = self.path(db);
        let Mode::Threads { long, .. } = &self.inner.mode else { return copy::copy(&from, &to) };
        answered(long, db, move || copy::copy(&from, &to)).await
    }

    /// So that a file is there, with the newest schema.
    async fn bring_up_to_date(&self, db: &Db) -> Result<(), StoreError> {
        self.run(db.clone(), |_| Ok(())).await
    }

    /// Sees to it that nothing of what was deleted is left in a database's files. A tenant's is written anew for it, and what
    /// else is asked of it waits; in central nothing is left where something was, and only the log has to be emptied.
    pub async fn compact(&self, db: &Db) -> Result<(), StoreError> {
        let path = self.path(db);
        let compact: fn(&Path) -> Result<(), StoreError> =
            if *db == Db::Central { erase::empty_log } else { erase::compact };
        let Mode::Threads { long, .. } = &self.inner.mode else { return compact(&path) };
        let (sender, receiver) = oneshot::channel();
        // Done also if whoever asked has gone.
        long.run(db, Box::new(move || drop(sender.send(compact(&path)))));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// What tells one state of a database's files from another. `None`: they were written so lately that the next write
    /// may look the same.
    #[must_use]
    pub fn stamp(&self, db: &Db) -> Option<String> {
        let path = self.path(db);
        let mut stamp = String::new();
        let log = path.with_extension("db-wal");
        // A log is written over in place, and a machine that loses power may forget when it was.
        if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > 0) {
            stamp += &format!("{} ", machines_boot());
        }
        for path in [path, log] {
            let Ok(meta) = std::fs::metadata(path) else { continue };
            let age = meta.modified().ok()?.elapsed().ok()?;
            if age < SETTLED {
                return None;
            }
            let written = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
            stamp += &format!("{written}-{} ", meta.len());
        }
        Some(stamp)
    }
}

/// What a job on one of `threads` comes to; it is left out if whoever asked has gone by then.
async fn answered<T: Send + 'static>(
    threads: &Readers,
    db: &Db,
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = oneshot::channel();
    threads.run(
        db,
        Box::new(move || {
            if !sender.is_closed() {
                let _ = sender.send(job());
            }
        }),
    );
    receiver.await.unwrap_or(Err(StoreError::Closed))
}
