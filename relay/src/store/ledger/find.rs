//! Looking a request up by its id.

use super::state;
use crate::store::StoreError;
use belay_protocol::id::{DeviceId, RequestId};
use rusqlite::{Connection, OptionalExtension};

/// What the book knows of a request of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is settled.
    Settled {
        /// The encoded `End`, as it was recorded.
        end: Vec<u8>,
        /// Provider and model that ran it.
        provider: String,
        /// See `provider`.
        model: String,
    },
    /// Its hold is open.
    Open,
    /// It is unknown or another device's, or its hold was given back.
    Nothing,
}

/// Looks a request up. Errors: those of the store; `Corrupt` for a settled request without `End`.
pub fn find(connection: &Connection, id: RequestId, device: &DeviceId) -> Result<Found, StoreError> {
    type Row = (i64, Option<Vec<u8>>, Option<String>, Option<String>);
    let row: Option<Row> = connection
        .prepare_cached("SELECT state, end, provider, model FROM request WHERE request_id = ?1 AND device = ?2")?
        .query_row((id.0, device.as_str()), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    match row {
        Some((state::OPEN, ..)) => Ok(Found::Open),
        Some((state::SETTLED, Some(end), provider, model)) => {
            Ok(Found::Settled { end, provider: provider.unwrap_or_default(), model: model.unwrap_or_default() })
        }
        Some((state::SETTLED, None, ..)) => {
            Err(StoreError::Corrupt { what: "a settled request", why: format!("{id} has no End") })
        }
        _ => Ok(Found::Nothing),
    }
}
