//! Bringing a backup back: a whole node where none is, or the book of one tenant where it is lost.
//!
//! A ledger that can be read is never rewound: what was charged since is only there. What is brought back begins an epoch
//! of its own, so that neither central takes its next usage for what it knows, nor devices their files for what was
//! deleted.

use super::{BackupError, Book, Manifest, copy_file, tenant_dir};
use crate::blobs::DIR;
use crate::master_key::name_in;
use crate::secrets::MasterKey;
use crate::store::copy::{begin_anew, extent, open, sealed_again, sound_extent};
use crate::store::executor::{BOOK, CENTRAL};
use crate::store::ledger::usage::Totals;
use belay_certs::file::{create_private_dir, write_private};
use belay_protocol::id::TenantId;
use serde::Serialize;
use std::path::Path;

/// Lies in a state directory while a node is brought back: what is there is not all of it.
pub(crate) const RESTORING: &str = "restoring";

/// Brings a whole node back into a state directory that holds none. Its lock is held by the caller. Errors: there is one,
/// or the key that its books are sealed under is nowhere.
pub fn node(
    dir: &Path,
    manifest: &Manifest,
    state: &Path,
    master_key: &Path,
    now_ms: u64,
) -> Result<Vec<Restored>, BackupError> {
    let mark = state.join(RESTORING);
    // One that was broken off goes on; else whatever is there stays.
    if !mark.exists() && holds_state(state) {
        return Err(BackupError::Refused(format!(
            "{} holds a relay's state; move it away, or bring one tenant back: belayd restore --tenant NAME",
            state.display()
        )));
    }
    if !manifest.has_master_key() && !master_key.exists() {
        return Err(BackupError::Refused(format!(
            "the master key is not in the backup, and {} is missing: bring it back first",
            master_key.display()
        )));
    }
    let theirs = manifest.master_key_name(dir).filter(|_| !manifest.has_master_key());
    if let Some(wanted) = theirs.filter(|wanted| MasterKey::load(master_key, None).is_ok_and(|own| own.id() != *wanted))
    {
        return Err(BackupError::Refused(format!(
            "{} is not the master key that the backup is under ({wanted}); bring that one back first",
            master_key.display()
        )));
    }
    write_private(&mark, format!("{}\n", manifest.made_ms).as_bytes())?;
    for name in manifest.files.keys() {
        // The configured place of the master key is where it is looked for.
        let to = if name == "master.key" { master_key.to_owned() } else { state.join(name) };
        if !to.exists() {
            copy_file(&manifest.small(dir, name), &to)?;
        }
    }
    let central = dir.join(&manifest.central.file);
    let books = manifest.tenants.iter();
    let restored: Vec<Restored> =
        books.map(|(tenant, book)| place(dir, tenant, book, (state, &central), now_ms)).collect::<Result<_, _>>()?;
    // Central last: with it, the state is there.
    let coming = state.join("restoring.db");
    remove_database(&coming);
    copy_file(&central, &coming)?;
    sealed_again(&coming, restored.iter().map(|book| (&book.tenant, book.sealed)))?;
    move_durably(&coming, &state.join(CENTRAL))?;
    std::fs::remove_file(&mark).map_err(BackupError::file("remove", &mark))?;
    Ok(restored)
}

/// Whether something of a relay lies there.
fn holds_state(state: &Path) -> bool {
    let books = std::fs::read_dir(state.join("tenants")).is_ok_and(|mut entries| entries.next().is_some());
    books || ["db", "db-wal", "db-shm"].iter().any(|extension| state.join(CENTRAL).with_extension(extension).exists())
}

/// Brings one tenant's book and content back. The lock of the state directory is held by the caller. Errors: its book can
/// be read, the backup has none, or the relay does not know the tenant.
pub fn tenant(
    dir: &Path,
    manifest: &Manifest,
    state: &Path,
    tenant: &TenantId,
    now_ms: u64,
) -> Result<Restored, BackupError> {
    let Some(book) = manifest.tenants.get(tenant) else {
        return Err(BackupError::Refused(format!("the backup has no tenant {tenant}")));
    };
    if let (Some(theirs), Some(own)) = (manifest.master_key_name(dir), name_in(state))
        && theirs != own
    {
        return Err(BackupError::Refused(format!(
            "the backup is under another master key ({theirs}) than this relay ({own}): a book of it could not be proven \
             here, nor its keys opened; bring back a backup from after the change"
        )));
    }
    let path = tenant_dir(state, tenant).join(BOOK);
    // One that has come less far than its copy is no continuation of it: it was made where the right one was lost.
    let copied = extent(&open(&dir.join(&book.database.file))?)?;
    if sound_extent(&path).is_some_and(|there| there >= copied) {
        return Err(BackupError::Refused(format!(
            "the book of {tenant} can be read, and a restore would take back what was charged since. Single items come \
             back by: belay sync restore, belay sessions list --deleted"
        )));
    }
    place(dir, tenant, book, (state, &state.join(CENTRAL)), now_ms)
}

/// A book that came back.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// Whose.
    pub tenant: TenantId,
    /// Usage that central knows and the book does not: its cost was taken off the balance.
    pub lost: Totals,
    /// Up to which entry it is sealed.
    #[serde(skip)]
    pub sealed: i64,
}

fn place(
    dir: &Path,
    tenant: &TenantId,
    book: &Book,
    (state, central): (&Path, &Path),
    now_ms: u64,
) -> Result<Restored, BackupError> {
    let (from, to) = (tenant_dir(dir, tenant), tenant_dir(state, tenant));
    create_private_dir(&to)?;
    for piece in &book.pieces {
        let target = to.join(DIR).join(piece);
        if !target.exists() {
            copy_file(&from.join(DIR).join(piece), &target)?;
        }
    }
    // It has its new epoch before it is there.
    let (coming, there) = (to.join("restoring.db"), to.join(BOOK));
    remove_database(&coming);
    copy_file(&dir.join(&book.database.file), &coming)?;
    let (lost, sealed) = begin_anew(&coming, central, tenant, now_ms)?;
    for extension in ["db", "db-wal", "db-shm"] {
        let damaged = there.with_extension(extension);
        if damaged.exists() {
            let aside = there.with_extension(format!("{extension}.damaged-{now_ms}"));
            std::fs::rename(&damaged, &aside).map_err(BackupError::file("move away", &damaged))?;
        }
    }
    move_durably(&coming, &there)?;
    Ok(Restored { tenant: tenant.clone(), lost, sealed })
}

/// Removes what a restore that was broken off has left of a database.
fn remove_database(path: &Path) {
    for leftover in ["db", "db-wal", "db-shm", "db-journal"] {
        let _ = std::fs::remove_file(path.with_extension(leftover));
    }
}

/// Gives a file its name, on disk when this returns.
fn move_durably(from: &Path, to: &Path) -> Result<(), BackupError> {
    std::fs::rename(from, to).map_err(BackupError::file("write", to))?;
    let dir = to.parent().unwrap_or(to);
    let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(BackupError::file("write", dir))
}
