//! Taking a backup, over the one that is there.

use super::{BackupError, Book, Database, MANIFEST, Manifest, SMALL, VERSION, copy_file, hash, move_file, tenant_dir};
use crate::blobs::DIR;
use crate::store::copy;
use belay_certs::file::{create_private_dir, write_private};
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
    let before = if dir.join(MANIFEST).exists() { Some(Manifest::read(dir)?) } else { None };
    let tenants = source.tenants().await?;
    let (mut books, mut taken) = (BTreeMap::new(), Taken::default());
    for (number, tenant) in tenants.iter().enumerate() {
        told(number, tenants.len());
        let (from, to) = (tenant_dir(state, tenant), tenant_dir(dir, tenant));
        create_private_dir(&to)?;
        let known = before.as_ref().and_then(|before| before.tenants.get(tenant)).map(|book| &book.database);
        let place = (dir, format!("tenants/{tenant}/book-{now_ms}.db"));
        let database = database(source, Some(tenant), known, place, &mut taken).await?;
        let pieces = pieces(&dir.join(&database.file), &from.join(DIR), &to.join(DIR), &mut taken)?;
        books.insert(tenant.clone(), Book { database, pieces });
    }
    told(tenants.len(), tenants.len());
    let known = before.as_ref().map(|before| &before.central);
    let central = database(source, None, known, (dir, format!("central-{now_ms}.db")), &mut taken).await?;
    let mut files = BTreeMap::new();
    for name in SMALL {
        let (from, to) = (state.join(name), dir.join(name));
        if from.exists() {
            copy_file(&from, &to)?;
            files.insert(name.to_owned(), hash(&to)?);
        }
    }
    let belayd = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { version: VERSION, belayd, made_ms: now_ms, central, tenants: books, files };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| BackupError::Refused(format!("cannot write {MANIFEST}: {error}")))?;
    write_private(&dir.join(MANIFEST), &text)?;
    // Only now is what the one before it named of no use.
    sweep(dir, &manifest)?;
    Ok((manifest, taken))
}

async fn database(
    source: &impl Source,
    tenant: Option<&TenantId>,
    known: Option<&Database>,
    (dir, name): (&Path, String),
    taken: &mut Taken,
) -> Result<Database, BackupError> {
    taken.databases += 1;
    let known = known.filter(|known| dir.join(&known.file).exists());
    let stamp = known.and_then(|known| known.stamp.clone());
    let copied = source.copy(CopyRequest { tenant: tenant.cloned(), known: stamp }).await?;
    match (copied.file, known) {
        (None, Some(known)) => Ok(known.clone()),
        (None, None) => Err(BackupError::Refused("the relay copied nothing, and there is no copy".into())),
        (Some(file), _) => {
            taken.copied += 1;
            let to = dir.join(&name);
            move_file(&file, &to)?;
            Ok(Database { sha256: hash(&to)?, file: name, stamp: copied.stamp })
        }
    }
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
        if !target.exists() {
            copy_file(&source, &target)?;
            taken.pieces_copied += 1;
        }
        names.push(chunk.file);
    }
    Ok(names)
}

/// Removes what the manifest does not name.
fn sweep(dir: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let mut named: HashSet<PathBuf> = [dir.join(&manifest.central.file), dir.join(MANIFEST)].into();
    for (tenant, book) in &manifest.tenants {
        named.insert(dir.join(&book.database.file));
        let pieces = tenant_dir(dir, tenant).join(DIR);
        named.extend(book.pieces.iter().map(|piece| pieces.join(piece)));
    }
    named.extend(manifest.files.keys().map(|name| dir.join(name)));
    remove_others(dir, &named)
}

fn remove_others(dir: &Path, named: &HashSet<PathBuf>) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(dir).map_err(BackupError::file("read", dir))? {
        let entry = entry.map_err(BackupError::file("read", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(BackupError::file("read", dir))?);
        if kind.is_dir() {
            remove_others(&path, named)?;
        } else if !named.contains(&path) && is_ours(&path) {
            std::fs::remove_file(&path).map_err(BackupError::file("remove", &path))?;
        }
    }
    Ok(())
}

/// Whether a file may be of a backup: what somebody else has put into the directory stays.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let in_pieces = path.parent().is_some_and(|dir| dir.ends_with(DIR));
    in_pieces || name.ends_with(".db") && (name.starts_with("book-") || name.starts_with("central-"))
}
