//! The relay-wide database: tenants, invites, devices, price lists.

pub mod audit;
pub mod erase;
pub mod import;
pub mod keys;
pub mod rollover;
pub mod stripe;
pub mod usage;

use super::StoreError;
use super::ledger::standing::Terms;
use super::ledger::time;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// A tenant as central knows it; its money is in its own file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// The tenant's name.
    pub id: TenantId,
    /// What people call it; empty: nothing else.
    pub label: String,
    /// What it pays with, how far, and whether it may do anything at all.
    #[serde(flatten)]
    pub terms: Terms,
    /// Rises with every change of the terms.
    pub version: i64,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
}

/// A device as central knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The device's id.
    pub id: DeviceId,
    /// Who pays.
    pub tenant: TenantId,
    /// What its user calls it.
    pub label: String,
    /// When it enrolled, milliseconds since 1970.
    pub created_ms: u64,
    /// When its certificate ends, milliseconds since 1970.
    pub expires_ms: u64,
    /// When it last said hello, milliseconds since 1970.
    pub last_seen_ms: Option<u64>,
    /// When it was revoked, milliseconds since 1970.
    pub revoked_ms: Option<u64>,
}

/// Whether a device may have a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Good,
    /// It was revoked.
    Revoked,
    /// Its tenant is suspended.
    Suspended,
    /// This relay never enrolled it.
    Unknown,
}

fn ms(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(index)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

fn parsed<T: std::str::FromStr<Err = belay_protocol::id::IdError>>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    text.parse().map_err(|error: belay_protocol::id::IdError| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// Errors: central cannot be read.
pub fn is_readable(connection: &Connection) -> Result<(), StoreError> {
    connection.prepare_cached("SELECT count(*) FROM (SELECT 1 FROM tenant LIMIT 1)")?.query_row([], |_| Ok(()))?;
    Ok(())
}

/// Creates a tenant. False if it exists already.
pub fn create_tenant(connection: &Connection, id: &TenantId, now_ms: u64) -> Result<bool, StoreError> {
    let sql = "INSERT INTO tenant (id, created_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    Ok(connection.execute(sql, params![id.as_str(), time(now_ms)])? == 1)
}

const TENANT: &str = "id, tier, ceiling_nano, suspended, suspend_at_ceiling, version, created_ms, label";

fn tenant_of(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    let tier: String = row.get(1)?;
    let tier = tier
        .parse()
        .map_err(|why: String| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, why.into()))?;
    let terms = Terms { tier, ceiling: NanoUsd(row.get(2)?), suspended: row.get(3)?, suspend_at_ceiling: row.get(4)? };
    Ok(Tenant { id: parsed(row, 0)?, label: row.get(7)?, terms, version: row.get(5)?, created_ms: ms(row, 6)? })
}

/// All tenants by name.
pub fn tenants(connection: &Connection) -> Result<Vec<Tenant>, StoreError> {
    let mut statement = connection.prepare(&format!("SELECT {TENANT} FROM tenant ORDER BY id"))?;
    let rows = statement.query_map([], tenant_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One tenant.
pub fn tenant(connection: &Connection, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
    let sql = format!("SELECT {TENANT} FROM tenant WHERE id = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([id.as_str()], tenant_of).optional()?)
}

/// Changes a tenant's terms. Returns it as it is now; `None`: there is no such tenant.
pub fn change_terms(
    connection: &Connection,
    id: &TenantId,
    change: impl FnOnce(&mut Terms),
) -> Result<Option<Tenant>, StoreError> {
    let Some(mut changed) = tenant(connection, id)? else { return Ok(None) };
    change(&mut changed.terms);
    changed.version += 1;
    let terms = &changed.terms;
    connection.execute(
        "UPDATE tenant SET tier = ?2, ceiling_nano = ?3, suspended = ?4, suspend_at_ceiling = ?5, version = ?6
         WHERE id = ?1",
        params![
            id.as_str(),
            terms.tier.name(),
            terms.ceiling.0,
            terms.suspended,
            terms.suspend_at_ceiling,
            changed.version
        ],
    )?;
    Ok(Some(changed))
}

/// True if there is such a tenant.
pub fn tenant_exists(connection: &Connection, id: &TenantId) -> Result<bool, StoreError> {
    Ok(connection.query_row("SELECT count(*) FROM tenant WHERE id = ?1", [id.as_str()], |row| row.get::<_, i64>(0))?
        == 1)
}

/// Records an invite by the hash of its secret.
pub fn create_invite(
    connection: &Connection,
    secret_hash: [u8; 32],
    tenant: &TenantId,
    now_ms: u64,
    expires_ms: u64,
) -> Result<(), StoreError> {
    // Old invites prove nothing any more; certificates of used ones stay for a day for late retries.
    connection.execute("DELETE FROM invite WHERE expires_ms < ?1", [time(now_ms.saturating_sub(86_400_000))])?;
    connection.execute(
        "INSERT INTO invite (secret_hash, tenant, created_ms, expires_ms) VALUES (?1, ?2, ?3, ?4)",
        params![secret_hash, tenant.as_str(), time(now_ms), time(expires_ms)],
    )?;
    Ok(())
}

/// An enrolment that wants in.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// SHA-256 of the invite's secret.
    pub secret_hash: [u8; 32],
    /// SHA-256 of the device's public key.
    pub key_fingerprint: [u8; 32],
    /// What the user calls the computer.
    pub label: String,
    /// The id that a new device would get.
    pub new_device: DeviceId,
    /// The wall clock.
    pub now_ms: u64,
}

/// What an invite was good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolmentOutcome {
    /// A certificate was made and recorded, or the same key has asked again.
    Enrolled {
        /// Who pays.
        tenant: TenantId,
        /// The device's id.
        device: DeviceId,
        /// The certificate in DER.
        certificate: Vec<u8>,
        /// When it ends.
        expires_ms: u64,
    },
    /// The invite does not hold; why, for people.
    Refused(&'static str),
}

/// Uses an invite. `sign` makes the certificate for tenant and device; it runs inside the
/// transaction, so that what is recorded and what is answered are the same.
pub fn enrol<S>(connection: &Connection, enrolment: &Enrolment, sign: S) -> Result<EnrolmentOutcome, StoreError>
where
    S: FnOnce(&TenantId, &DeviceId) -> Result<(Vec<u8>, u64), StoreError>,
{
    struct Invite {
        tenant: TenantId,
        expires_ms: u64,
        used_key: Option<Vec<u8>>,
        device: Option<String>,
        certificate: Option<Vec<u8>>,
        suspended: bool,
    }
    let invite = connection
        .query_row(
            "SELECT invite.tenant, expires_ms, used_key, device, certificate, suspended
             FROM invite JOIN tenant ON tenant.id = invite.tenant WHERE secret_hash = ?1",
            [enrolment.secret_hash],
            |row| {
                Ok(Invite {
                    tenant: parsed(row, 0)?,
                    expires_ms: ms(row, 1)?,
                    used_key: row.get(2)?,
                    device: row.get(3)?,
                    certificate: row.get(4)?,
                    suspended: row.get(5)?,
                })
            },
        )
        .optional()?;
    let Some(invite) = invite else {
        return Ok(EnrolmentOutcome::Refused("this invite is not known"));
    };
    if invite.suspended {
        return Ok(EnrolmentOutcome::Refused("the tenant is suspended"));
    }
    if let (Some(key), Some(device), Some(certificate)) = (invite.used_key, invite.device, invite.certificate) {
        if key != enrolment.key_fingerprint {
            return Ok(EnrolmentOutcome::Refused("this invite has been used"));
        }
        return repeated(connection, invite.tenant, &device, certificate);
    }
    if invite.expires_ms <= enrolment.now_ms {
        return Ok(EnrolmentOutcome::Refused("this invite is too old"));
    }
    let device = enrolment.new_device.clone();
    let (certificate, expires_ms) = sign(&invite.tenant, &device)?;
    connection.execute(
        "INSERT INTO device (id, tenant, label, key_fingerprint, created_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            device.as_str(),
            invite.tenant.as_str(),
            enrolment.label,
            enrolment.key_fingerprint,
            time(enrolment.now_ms),
            time(expires_ms)
        ],
    )?;
    connection.execute(
        "UPDATE invite SET used_key = ?2, device = ?3, certificate = ?4 WHERE secret_hash = ?1",
        params![enrolment.secret_hash, enrolment.key_fingerprint, device.as_str(), certificate],
    )?;
    Ok(EnrolmentOutcome::Enrolled { tenant: invite.tenant, device, certificate, expires_ms })
}

/// The same invite and the same key: a lost answer strands nobody. A revoked device stays out.
fn repeated(
    connection: &Connection,
    tenant: TenantId,
    device: &str,
    certificate: Vec<u8>,
) -> Result<EnrolmentOutcome, StoreError> {
    let (device, expires_ms, revoked): (DeviceId, u64, Option<i64>) =
        connection.query_row("SELECT id, expires_ms, revoked_ms FROM device WHERE id = ?1", [device], |row| {
            Ok((parsed(row, 0)?, ms(row, 1)?, row.get(2)?))
        })?;
    if revoked.is_some() {
        return Ok(EnrolmentOutcome::Refused("this invite has been used, and its device was revoked"));
    }
    Ok(EnrolmentOutcome::Enrolled { tenant, device, certificate, expires_ms })
}

/// Whether a device may have a tunnel now; notes that it was seen.
pub fn admit(
    connection: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
    now_ms: u64,
) -> Result<Standing, StoreError> {
    let row: Option<(Option<i64>, bool)> = connection
        .prepare_cached(
            "SELECT revoked_ms, suspended FROM device JOIN tenant ON tenant.id = device.tenant
             WHERE device.id = ?1 AND device.tenant = ?2",
        )?
        .query_row([device.as_str(), tenant.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match row {
        None => Ok(Standing::Unknown),
        Some((Some(_), _)) => Ok(Standing::Revoked),
        Some((None, true)) => Ok(Standing::Suspended),
        Some((None, false)) => {
            connection
                .prepare_cached("UPDATE device SET last_seen_ms = ?2 WHERE id = ?1")?
                .execute(params![device.as_str(), time(now_ms)])?;
            Ok(Standing::Good)
        }
    }
}

/// Revokes a device. False if there is no such device; revoking twice changes nothing.
pub fn revoke_device(connection: &Connection, device: &DeviceId, why: &str, now_ms: u64) -> Result<bool, StoreError> {
    connection.execute(
        "UPDATE device SET revoked_ms = ?2, revoked_why = ?3 WHERE id = ?1 AND revoked_ms IS NULL",
        params![device.as_str(), time(now_ms), why],
    )?;
    let sql = "SELECT count(*) FROM device WHERE id = ?1";
    Ok(connection.query_row(sql, [device.as_str()], |row| row.get::<_, i64>(0))? == 1)
}

/// SHA-256 of the key that a device was enrolled with. `None`: there is no such device, or it was revoked.
pub fn device_key(
    connection: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
) -> Result<Option<[u8; 32]>, StoreError> {
    let sql = "SELECT key_fingerprint FROM device WHERE id = ?1 AND tenant = ?2 AND revoked_ms IS NULL";
    Ok(connection.query_row(sql, [device.as_str(), tenant.as_str()], |row| row.get(0)).optional()?)
}

/// Notes until when a device's newest certificate holds.
pub fn device_renewed(connection: &Connection, device: &DeviceId, expires_ms: u64) -> Result<(), StoreError> {
    connection.execute(
        "UPDATE device SET expires_ms = max(expires_ms, ?2) WHERE id = ?1",
        params![device.as_str(), time(expires_ms)],
    )?;
    Ok(())
}

/// All devices, or those of one tenant, by tenant and id.
pub fn devices(connection: &Connection, tenant: Option<&TenantId>) -> Result<Vec<Device>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT id, tenant, label, created_ms, expires_ms, last_seen_ms, revoked_ms FROM device
         WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, id",
    )?;
    let optional_ms = |row: &Row<'_>, index| -> rusqlite::Result<Option<u64>> {
        Ok(row.get::<_, Option<i64>>(index)?.and_then(|value| u64::try_from(value).ok()))
    };
    let rows = statement.query_map([tenant.map(TenantId::as_str)], |row| {
        Ok(Device {
            id: parsed(row, 0)?,
            tenant: parsed(row, 1)?,
            label: row.get(2)?,
            created_ms: ms(row, 3)?,
            expires_ms: ms(row, 4)?,
            last_seen_ms: optional_ms(row, 5)?,
            revoked_ms: optional_ms(row, 6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Records a price list and returns its version; the same list keeps its version.
pub fn price_list(connection: &Connection, digest: [u8; 32], prices: &str, now_ms: u64) -> Result<i64, StoreError> {
    connection.execute(
        "INSERT INTO price_list (digest, prices, loaded_ms) VALUES (?1, ?2, ?3) ON CONFLICT (digest) DO NOTHING",
        params![digest, prices, time(now_ms)],
    )?;
    Ok(connection.query_row("SELECT version FROM price_list WHERE digest = ?1", [digest], |row| row.get(0))?)
}
