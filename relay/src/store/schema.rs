//! Migrations of both kinds of database, and how a connection is set up.

use super::{StoreError, log};
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// How long a connection waits for another one's lock.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Which database a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tenants, invites, devices, prices.
    Central,
    /// One tenant's state.
    Tenant,
}

/// How carefully commits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `synchronous=FULL`: survives power loss. For money, always.
    Full,
    /// `synchronous=OFF`: for simulations of behaviour, which lose no power.
    None,
}

const CENTRAL: &[M<'static>] = &[
    M::up(include_str!("schema/central.sql")),
    M::up(include_str!("schema/stripe.sql")),
    M::up(include_str!("schema/import_central.sql")),
    M::up(include_str!("schema/audit.sql")),
    M::up(include_str!("schema/erased.sql")),
];

const TENANT: &[M<'static>] = &[
    M::up(include_str!("schema/tenant.sql")),
    M::up(include_str!("schema/sessions.sql")),
    M::up(include_str!("schema/sync.sql")),
    M::up(include_str!("schema/import_tenant.sql")),
    M::up(include_str!("schema/restored.sql")),
];

static CENTRAL_MIGRATIONS: LazyLock<Migrations<'static>> = LazyLock::new(|| Migrations::from_slice(CENTRAL));
static TENANT_MIGRATIONS: LazyLock<Migrations<'static>> = LazyLock::new(|| Migrations::from_slice(TENANT));

impl Kind {
    fn migrations(self) -> (&'static Migrations<'static>, i64) {
        match self {
            Self::Central => (&CENTRAL_MIGRATIONS, CENTRAL.len() as i64),
            Self::Tenant => (&TENANT_MIGRATIONS, TENANT.len() as i64),
        }
    }
}

/// Opens a database, makes it if it is not there, and brings it to the newest schema.
///
/// Errors: `NewerSchema`, `Failed`.
pub fn open(path: &Path, kind: Kind, durability: Durability) -> Result<Connection, StoreError> {
    let failed = |operation| move |error: rusqlite::Error| StoreError::Failed { operation, why: error.to_string() };
    let mut connection = Connection::open(path).map_err(failed("open the database"))?;
    let setup = |connection: &Connection| -> rusqlite::Result<()> {
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", if durability == Durability::Full { "full" } else { "off" })?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        log::listen(connection);
        connection.pragma_update(None, "cache_size", -512)?;
        connection.pragma_update(None, "temp_store", "memory")?;
        connection.busy_timeout(BUSY)?;
        // It is never written anew, and must be able to forget a tenant.
        connection.pragma_update(None, "secure_delete", kind == Kind::Central)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(())
    };
    setup(&connection).map_err(failed("set the database up"))?;
    let (_, known) = kind.migrations();
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read the schema version"))?;
    if found > known {
        return Err(StoreError::NewerSchema { path: path.display().to_string(), found, known });
    }
    migrate(&mut connection, kind)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, kind: Kind) -> Result<(), StoreError> {
    let (migrations, _) = kind.migrations();
    migrations
        .to_latest(connection)
        .map_err(|error| StoreError::Failed { operation: "migrate the database", why: error.to_string() })
}

/// True if opening a file would bring it to a newer schema. Errors: it cannot be read.
pub fn is_older(path: &Path, kind: Kind) -> Result<bool, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let (_, known) = kind.migrations();
    Ok(found < known)
}

/// An empty database that is gone with its connection: for what is only tried.
pub fn scratch(kind: Kind) -> Result<Connection, StoreError> {
    let mut connection = Connection::open_in_memory()?;
    connection.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut connection, kind)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_valid() {
        assert_eq!(CENTRAL_MIGRATIONS.validate(), Ok(()));
        assert_eq!(TENANT_MIGRATIONS.validate(), Ok(()));
    }

    #[test]
    fn a_newer_schema_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("t.db");
        let connection = open(&path, Kind::Tenant, Durability::None).expect("made");
        connection.pragma_update(None, "user_version", 999).expect("set");
        drop(connection);
        let error = open(&path, Kind::Tenant, Durability::None).expect_err("newer");
        assert!(matches!(error, StoreError::NewerSchema { found: 999, .. }));
        assert!(error.to_string().contains("newer belayd"), "{error}");
    }

    #[test]
    fn the_book_cannot_be_rewritten() {
        let dir = tempfile::tempdir().expect("made");
        let connection = open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("made");
        connection
            .execute(
                "INSERT INTO transfer (at_ms, kind, from_account, to_account, amount_nano, from_after_nano,
                                       to_after_nano, hash) VALUES (1, 1, 1, 2, 5, -5, 5, x'00')",
                [],
            )
            .expect("inserted");
        for statement in ["UPDATE transfer SET amount_nano = 6", "DELETE FROM transfer"] {
            let error = connection.execute(statement, []).expect_err("append only");
            assert!(error.to_string().contains("append only"), "{error}");
        }
    }
}
