//! Checkpoints of the chain, under a key that is not in the book: whoever can write the file can chain
//! false entries anew, but cannot make the checkpoints fit them.

use super::chain::{Evidence, Hash};
use crate::store::StoreError;
use aws_lc_rs::hmac;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, params};

/// A checkpoint is made every so many entries.
pub const EVERY: i64 = 1024;

/// The key of all checkpoints of a relay.
#[derive(Clone)]
pub struct SealKey(hmac::Key);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(****)")
    }
}

impl SealKey {
    /// From 32 secret bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn text(tenant: &TenantId, transfer: i64, hash: &Hash) -> Hash {
        Evidence::new("checkpoint").text(tenant.as_str()).number(transfer).bytes(hash).finish()
    }

    pub(super) fn sign(&self, tenant: &TenantId, transfer: i64, hash: &Hash) -> Vec<u8> {
        hmac::sign(&self.0, &Self::text(tenant, transfer, hash)).as_ref().to_vec()
    }

    /// True if that checkpoint was made with this key.
    pub(super) fn fits(&self, tenant: &TenantId, transfer: i64, hash: &Hash, mac: &[u8]) -> bool {
        hmac::verify(&self.0, &Self::text(tenant, transfer, hash), mac).is_ok()
    }
}

/// Makes the checkpoints that are due. Returns the entry of the last one that there is now; 0 without any.
pub fn seal(connection: &Connection, tenant: &TenantId, key: &SealKey) -> Result<i64, StoreError> {
    let due: Vec<(i64, Hash)> = connection
        .prepare_cached(
            "SELECT id, hash FROM transfer
             WHERE id > (SELECT coalesce(max(transfer_id), 0) FROM checkpoint) AND id % ?1 = 0 ORDER BY id",
        )?
        .query_map([EVERY], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (transfer, hash) in &due {
        connection
            .prepare_cached("INSERT INTO checkpoint (transfer_id, hash, mac) VALUES (?1, ?2, ?3)")?
            .execute(params![transfer, hash, key.sign(tenant, *transfer, hash)])?;
    }
    let last = "SELECT coalesce(max(transfer_id), 0) FROM checkpoint";
    Ok(connection.prepare_cached(last)?.query_row([], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_fits_its_own_tenant_entry_and_hash_only() {
        let key = SealKey::new(&[7; 32]);
        let (ours, theirs): (TenantId, TenantId) = ("ours".parse().expect("name"), "theirs".parse().expect("name"));
        let mac = key.sign(&ours, 1024, &[1; 32]);
        assert!(key.fits(&ours, 1024, &[1; 32], &mac));
        assert!(!key.fits(&theirs, 1024, &[1; 32], &mac));
        assert!(!key.fits(&ours, 2048, &[1; 32], &mac));
        assert!(!key.fits(&ours, 1024, &[2; 32], &mac));
        assert!(!SealKey::new(&[8; 32]).fits(&ours, 1024, &[1; 32], &mac));
    }
}
