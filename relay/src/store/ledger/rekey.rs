//! A book under another master key: its checkpoints are signed anew, and the keys in it sealed anew.

use super::chain::Hash;
use super::provider_keys::SealedKey;
use super::seal::SealKey;
use crate::store::StoreError;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, params};
use serde::Serialize;

/// What was brought under the other key; the rest was there already.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Rekeyed {
    /// Checkpoints of the chain.
    pub checkpoints: u64,
    /// A tenant's keys for providers.
    pub provider_keys: u64,
}

/// Sees to it that all checkpoints were made with one of those keys, and that every key for a provider `opens`. Errors:
/// `Corrupt`, naming the first that does not.
pub fn stands(
    connection: &Connection,
    tenant: &TenantId,
    seals: &[SealKey],
    opens: impl Fn(&str, &SealedKey) -> bool,
) -> Result<(), StoreError> {
    for (entry, hash, mac) in checkpoints(connection)? {
        if !seals.iter().any(|seal| seal.fits(tenant, entry, &hash, &mac)) {
            return Err(foreign(&format!("the checkpoint at entry {entry} was not made")));
        }
    }
    match sealed(connection)?.iter().find(|(provider, key)| !opens(provider, key)) {
        Some((provider, _)) => Err(foreign(&format!("its key for {provider} was not sealed"))),
        None => Ok(()),
    }
}

fn foreign(what: &str) -> StoreError {
    StoreError::Corrupt { what: "a book", why: format!("{what} under this master key") }
}

fn checkpoints(connection: &Connection) -> Result<Vec<(i64, Hash, Vec<u8>)>, StoreError> {
    let mut statement = connection.prepare("SELECT transfer_id, hash, mac FROM checkpoint ORDER BY transfer_id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn sealed(connection: &Connection) -> Result<Vec<(String, SealedKey)>, StoreError> {
    let mut statement = connection.prepare("SELECT provider, nonce, sealed FROM provider_key ORDER BY provider")?;
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, SealedKey { nonce: row.get(1)?, sealed: row.get(2)? })))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Brings one book over. `reseal` gives a provider's key sealed anew, or nothing if it is sealed so already. May be done
/// again. Errors: `Corrupt`, for what is under neither key; nothing has changed then, in its transaction.
pub fn rekey(
    connection: &Connection,
    tenant: &TenantId,
    (old, new): (&SealKey, &SealKey),
    reseal: impl Fn(&str, &SealedKey) -> Result<Option<SealedKey>, StoreError>,
) -> Result<Rekeyed, StoreError> {
    let mut rekeyed = Rekeyed::default();
    for (entry, hash, mac) in checkpoints(connection)? {
        if new.fits(tenant, entry, &hash, &mac) {
            continue;
        }
        if !old.fits(tenant, entry, &hash, &mac) {
            return Err(foreign(&format!("the checkpoint at entry {entry} was not made")));
        }
        let sql = "UPDATE checkpoint SET mac = ?2 WHERE transfer_id = ?1";
        connection.prepare_cached(sql)?.execute(params![entry, new.sign(tenant, entry, &hash)])?;
        rekeyed.checkpoints += 1;
    }
    for (provider, key) in sealed(connection)? {
        let Some(anew) = reseal(&provider, &key)? else { continue };
        let sql = "UPDATE provider_key SET nonce = ?2, sealed = ?3 WHERE provider = ?1";
        connection.prepare_cached(sql)?.execute(params![provider, anew.nonce, anew.sealed])?;
        rekeyed.provider_keys += 1;
    }
    Ok(rekeyed)
}
