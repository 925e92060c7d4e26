//! Proving that a backup can be read: every file is there and is what it was, every database is sound, every book adds up,
//! every piece of content has its hash.

use super::{BackupError, Database, Manifest, hash, tenant_dir};
use crate::blobs::DIR;
use crate::secrets::MasterKey;
use crate::store::books::SEAL;
use crate::store::copy;
use crate::store::ledger::seal::SealKey;
use belay_protocol::packing::unpack_part;
use bytes::Bytes;
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Databases that were looked at.
    pub databases: usize,
    /// Pieces of content.
    pub pieces: usize,
    /// Whether seals of books were looked at: that takes the master key.
    pub with_master_key: bool,
    /// What is wrong, each with the file.
    pub problems: Vec<String>,
}

/// Checks a backup. `master`: the key, where the backup has none. Errors: it is no backup.
pub fn check(dir: &Path, master: Option<&Path>) -> Result<(Manifest, Checked), BackupError> {
    let manifest = Manifest::read(dir)?;
    let mut checked = Checked::default();
    for (name, sha256) in &manifest.files {
        match hash(&manifest.small(dir, name)) {
            Ok(found) if found == *sha256 => {}
            Ok(_) => checked.problems.push(format!("{name}: it is not what it was")),
            Err(error) => checked.problems.push(format!("{name}: {error}")),
        }
    }
    let own = manifest.small(dir, "master.key");
    let master = if manifest.has_master_key() { Some(own.as_path()) } else { master };
    let seal = match master.map(|path| MasterKey::load(path, None)).transpose() {
        Ok(master) => master.map(|master| SealKey::new(&master.derive(SEAL))),
        Err(error) => {
            checked.problems.push(format!("master key: {error}"));
            None
        }
    };
    checked.with_master_key = seal.is_some();
    let central = sound(dir, &manifest.central, &mut checked);
    for (tenant, book) in &manifest.tenants {
        let Some(connection) = sound(dir, &book.database, &mut checked) else { continue };
        if let Some(central) = &central {
            let report = copy::verify_book(&connection, central, tenant, (seal.as_ref(), book.sealed))?;
            checked.problems.extend(report.problems.into_iter().map(|problem| format!("{tenant}: {problem}")));
        }
        let pieces = tenant_dir(dir, tenant).join(DIR);
        let named: HashSet<&str> = book.pieces.iter().map(String::as_str).collect();
        for (chunk, is_needed) in copy::chunks(&connection)? {
            let path = pieces.join(&chunk.file);
            if !is_needed && !path.exists() {
                continue;
            }
            checked.pieces += 1;
            if is_needed && !named.contains(chunk.file.as_str()) {
                checked.problems.push(format!("{tenant}: the piece {} is not named", chunk.file));
            }
            let bytes = std::fs::read(&path).map(Bytes::from);
            let is_whole = bytes.is_ok_and(|bytes| unpack_part(chunk.encoding, bytes, &chunk.part).is_some());
            if !is_whole {
                checked.problems.push(format!("{tenant}: the piece {} is gone or damaged", chunk.file));
            }
        }
    }
    Ok((manifest, checked))
}

/// A copy that is what it was, and a database.
fn sound(dir: &Path, database: &Database, checked: &mut Checked) -> Option<crate::store::Connection> {
    checked.databases += 1;
    let path = dir.join(&database.file);
    let looked = || -> Result<_, BackupError> {
        if hash(&path)? != database.sha256 {
            return Ok(Err("it is not what it was".to_owned()));
        }
        let connection = copy::open(&path)?;
        Ok(match copy::damage(&connection)?.first() {
            None => Ok(connection),
            Some(first) => Err(first.clone()),
        })
    };
    match looked() {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(why)) => {
            checked.problems.push(format!("{}: {why}", database.file));
            None
        }
        Err(error) => {
            checked.problems.push(format!("{}: {error}", database.file));
            None
        }
    }
}
