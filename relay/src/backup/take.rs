//! Taking a backup, over the one that is there.

use super::{
    BackupError, Book, Database, MANIFEST, Manifest, SMALL, SMALL_DIRS, VERSION, copy_file, hash, move_file, tenant_dir,
};
use crate::blobs::DIR;
use crate::master_key::is_rotating;
use crate::store::copy;
use crate::store::lock::{LockError, StateLock};
use belay_certs::file::{create_private_dir, is_temporary, write_private};
use belay_protocol::id::TenantId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Asks for a copy of a database.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// Whose book; absent: the relay-wide database.
    pub tenant: Option<TenantId>,
    /// The state that the last copy is of.
    pub known: Option<String>,
}

/// A copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copied {
    /// Where it lies, to be taken away; absent: nothing was written since.
    pub file: Option<PathBuf>,
    /// The state that it is of.
    pub stamp: Option<String>,
    /// Up to which entry central knew the book as sealed before it was copied.
    #[serde(default)]
    pub sealed: Option<i64>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Databases in the backup.
    pub databases: usize,
    /// Those that were copied; of the others nothing was written since.
    pub copied: usize,
    /// Pieces of content in it.
    pub pieces: usize,
    /// Those that were copied.
    pub pieces_copied: usize,
}

/// Who copies databases: a relay that runs, or the files of one that does not.
pub trait Source {
    /// All tenants.
    fn tenants(&self) -> impl Future<Output = Result<Vec<TenantId>, BackupError>>;
    /// Copies one database.
    fn copy(&self, request: CopyRequest) -> impl Future<Output = Result<Copied, BackupError>>;
}

/// Takes a backup of `state` into `dir`. `now_ms` is the wall clock; `told` hears of each book. Errors: the one that was
/// there, if there was one, stands as it was.
pub async fn take(
    source: &impl Source,
    state: &Path,
    dir: &Path,
    now_ms: u64,
    mut told: impl FnMut(usize, usize),
) -> Result<(Manifest, Taken), BackupError> {
    create_private_dir(dir)?;
    apart(state, dir)?;
    // Two at once would sweep away what the other is about to name.
    let _alone = StateLock::of(dir).map_err(|error| match error {
        LockError::InUse(_) => BackupError::Refused(format!("another backup into {} is being taken", dir.display())),
        LockError::Io { path, source } => BackupError::File { operation: "lock", path: path.into(), source },
    })?;
    let before = if dir.join(MANIFEST).exists() { Some(Manifest::read(dir)?) } else { None };
    if before.is_none() && holds_others(dir)? {
        let why = format!("{} holds no backup and is not empty; name another directory", dir.display());
        return Err(BackupError::Refused(why));
    }
    let mut tenants = source.tenants().await?;
    let (mut books, mut taken) = (BTreeMap::new(), Taken::default());
    let central = loop {
        let all = books.len() + tenants.len();
        for tenant in &tenants {
            told(books.len(), all);
            let (from, to) = (tenant_dir(state, tenant), tenant_dir(dir, tenant));
            create_private_dir(&to)?;
            let known = before.as_ref().and_then(|before| before.tenants.get(tenant));
            let place = (dir, format!("tenants/{tenant}/book-{now_ms}.db"));
            let of_before = known.and_then(|book| book.sealed);
            let (database, sealed) =
                database(source, Some(tenant), known.map(|book| &book.database), place, &mut taken).await?;
            let pieces = pieces(&dir.join(&database.file), &from.join(DIR), &to.join(DIR), &mut taken)?;
            let sealed = sealed.unwrap_or(of_before);
            books.insert(tenant.clone(), Book { database, sealed, pieces });
        }
        told(all, all);
        let known = before.as_ref().map(|before| &before.central);
        let (central, _) = database(source, None, known, (dir, format!("central-{now_ms}.db")), &mut taken).await?;
        // Those that were made meanwhile have a book too.
        tenants = copy::tenants(&copy::open(&dir.join(&central.file))?)?;
        tenants.retain(|tenant| !books.contains_key(tenant));
        if tenants.is_empty() {
            break central;
        }
    };
    if is_rotating(state) {
        return Err(BackupError::Refused(
            "a change of the master key was broken off; finish it first: belayd master-key rotate".into(),
        ));
    }
    let small_dir = format!("{SMALL_DIRS}{now_ms}");
    let files = small(state, &dir.join(&small_dir))?;
    let belayd = env!("CARGO_PKG_VERSION").to_owned();
    let manifest =
        Manifest { version: VERSION, belayd, made_ms: now_ms, central, tenants: books, files, small: small_dir };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| BackupError::Refused(format!("cannot write {MANIFEST}: {error}")))?;
    write_private(&dir.join(MANIFEST), &text)?;
    // Only now is what the one before it named of no use.
    sweep(dir, &manifest)?;
    Ok((manifest, taken))
}

/// Copies the small files, as they were together at one moment.
fn small(state: &Path, dir: &Path) -> Result<BTreeMap<String, String>, BackupError> {
    let there = || -> Result<BTreeMap<String, String>, BackupError> {
        let names = SMALL.into_iter().filter(|name| state.join(name).exists());
        names.map(|name| Ok((name.to_owned(), hash(&state.join(name))?))).collect()
    };
    for _ in 0..10 {
        // One that is gone between being seen and being read is looked for once more.
        let (Ok(before), Ok(())) = (there(), copy_small(state, dir)) else { continue };
        if there().is_ok_and(|after| after == before) {
            return Ok(before);
        }
    }
    // What stands in the way is told by the last attempt.
    copy_small(state, dir)?;
    Err(BackupError::Refused("the authority's files change all the time; try again once that is over".into()))
}

fn copy_small(state: &Path, dir: &Path) -> Result<(), BackupError> {
    for name in SMALL {
        let (from, to) = (state.join(name), dir.join(name));
        match (from.exists(), to.exists()) {
            (true, _) => copy_file(&from, &to)?,
            // A key that the relay has given up is of no use in its backup.
            (false, true) => std::fs::remove_file(&to).map_err(BackupError::file("remove", &to))?,
            (false, false) => {}
        }
    }
    Ok(())
}

/// Also returns, if it was copied anew, what its source says of its seals.
async fn database(
    source: &impl Source,
    tenant: Option<&TenantId>,
    known: Option<&Database>,
    (dir, name): (&Path, String),
    taken: &mut Taken,
) -> Result<(Database, Option<Option<i64>>), BackupError> {
    taken.databases += 1;
    // One that is not what it was is no copy.
    let known = known.filter(|known| hash(&dir.join(&known.file)).is_ok_and(|found| found == known.sha256));
    let stamp = known.and_then(|known| known.stamp.clone());
    let copied = source.copy(CopyRequest { tenant: tenant.cloned(), known: stamp }).await?;
    match (copied.file, known) {
        (None, Some(known)) => Ok((known.clone(), None)),
        (None, None) => Err(BackupError::Refused("the relay copied nothing, and there is no copy".into())),
        (Some(file), _) => {
            taken.copied += 1;
            let to = dir.join(&name);
            move_file(&file, &to)?;
            no_worse(&to, known.map(|known| dir.join(&known.file)).as_deref(), tenant)?;
            Ok((Database { sha256: hash(&to)?, file: name, stamp: copied.stamp }, Some(copied.sealed)))
        }
    }
}

/// Errors: a new copy is damaged, or is of a book that has come less far than the copy before: then that one is worth more.
fn no_worse(new: &Path, before: Option<&Path>, tenant: Option<&TenantId>) -> Result<(), BackupError> {
    let connection = copy::open(new)?;
    let whose = tenant.map_or("central", TenantId::as_str);
    if let Some(first) = copy::damage(&connection)?.first() {
        return Err(BackupError::Refused(format!(
            "the database of {whose} is damaged ({first}); the backup is not touched"
        )));
    }
    let (Some(before), Some(_)) = (before, tenant) else { return Ok(()) };
    let (then, now) = (copy::extent(&copy::open(before)?)?, copy::extent(&connection)?);
    if now < then {
        return Err(BackupError::Refused(format!(
            "the book of {whose} has come less far than the backup of it ({now:?} after {then:?}, epoch and entry): it was \
             lost or replaced. Bring it back with belayd restore --tenant {whose}, or take a backup into another directory"
        )));
    }
    Ok(())
}

/// Errors: a backup in the state directory, or the other way round: either would sweep the other.
fn apart(state: &Path, dir: &Path) -> Result<(), BackupError> {
    let real = |path: &Path| std::fs::canonicalize(path).map_err(BackupError::file("find", path));
    let (state, dir) = (real(state)?, real(dir)?);
    if dir.starts_with(&state) || state.starts_with(&dir) {
        return Err(BackupError::Refused(format!(
            "{} and the state directory {} must not lie in each other",
            dir.display(),
            state.display()
        )));
    }
    Ok(())
}

/// Whether something lies there that a backup which was broken off does not leave.
fn holds_others(dir: &Path) -> Result<bool, BackupError> {
    let is_ours = |name: &str| {
        let first = |path: &str| path.split('/').next().map(str::to_owned);
        ["lock", "tenants"].contains(&name)
            || is_temporary(name)
            || name.starts_with("central-") && name.ends_with(".db")
            || name.starts_with(SMALL_DIRS)
            || SMALL.iter().any(|small| first(small).as_deref() == Some(name))
    };
    let entries = std::fs::read_dir(dir).map_err(BackupError::file("read", dir))?;
    Ok(entries.flatten().any(|entry| !entry.file_name().to_str().is_some_and(is_ours)))
}

/// Brings the pieces that a copied book names beside it.
fn pieces(book: &Path, from: &Path, to: &Path, taken: &mut Taken) -> Result<Vec<String>, BackupError> {
    let mut names = vec![];
    for (chunk, is_needed) in copy::chunks(&copy::open(book)?)? {
        let (source, target) = (from.join(&chunk.file), to.join(&chunk.file));
        // One that nothing needs may be collected any moment.
        if !is_needed && !source.exists() && !target.exists() {
            continue;
        }
        taken.pieces += 1;
        // What is there is looked at to the last byte by `verify-backup`.
        let len = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
        if !target.exists() || source.exists() && len(&target) != len(&source) {
            copy_file(&source, &target)?;
            taken.pieces_copied += 1;
        }
        names.push(chunk.file);
    }
    Ok(names)
}

/// Removes what earlier backups have left and the manifest does not name. What somebody else has put there stays.
fn sweep(dir: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_small = name.to_str().is_some_and(|name| name.starts_with(SMALL_DIRS) && name != manifest.small);
        if is_small && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(entry.path()).map_err(BackupError::file("remove", &entry.path()))?;
        }
    }
    // Where backups of before had them.
    if !manifest.small.is_empty() {
        for name in SMALL.iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
            std::fs::remove_file(&name).map_err(BackupError::file("remove", &name))?;
        }
    }
    let is_copy = |name: &str, kind: &str| name.starts_with(kind) && name.ends_with(".db");
    remove(dir, |name| is_copy(name, "central-") && *name != manifest.central.file)?;
    let tenants = dir.join("tenants");
    for entry in std::fs::read_dir(&tenants).into_iter().flatten().flatten() {
        let Some(tenant) = entry.file_name().to_str().and_then(|name| name.parse::<TenantId>().ok()) else { continue };
        let book = manifest.tenants.get(&tenant);
        let file = book.map(|book| book.database.file.rsplit('/').next().unwrap_or_default());
        remove(&entry.path(), |name| is_copy(name, "book-") && Some(name) != file)?;
        let pieces: HashSet<&str> = book.into_iter().flat_map(|book| book.pieces.iter().map(String::as_str)).collect();
        remove(&entry.path().join(DIR), |name| !pieces.contains(name))?;
    }
    Ok(())
}

/// Removes files of a directory by their names; one that is not there is empty.
fn remove(dir: &Path, goes: impl Fn(&str) -> bool) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_str().is_some_and(&goes) {
            std::fs::remove_file(entry.path()).map_err(BackupError::file("remove", &entry.path()))?;
        }
    }
    Ok(())
}
