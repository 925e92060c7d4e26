//! Migrations of both kinds of database, and how a connection is set up.

use super::StoreError;
use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};
use std::path::Path;
use std::sync::LazyLock;

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

const CENTRAL: &[M<'static>] = &[M::up(
    "CREATE TABLE tenant (
        id TEXT PRIMARY KEY,
        suspended INTEGER NOT NULL DEFAULT 0,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE invite (
        secret_hash BLOB PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenant(id),
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        -- Set by the first enrolment; the same key gets the same certificate again.
        used_key BLOB,
        device TEXT,
        certificate BLOB
    ) STRICT;
    CREATE TABLE device (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenant(id),
        label TEXT NOT NULL,
        key_fingerprint BLOB NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        last_seen_ms INTEGER,
        revoked_ms INTEGER,
        revoked_why TEXT
    ) STRICT;
    CREATE INDEX device_tenant ON device(tenant);
    CREATE TABLE price_list (
        version INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        prices TEXT NOT NULL,
        loaded_ms INTEGER NOT NULL
    ) STRICT;",
)];

const TENANT: &[M<'static>] = &[M::up(
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE account (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        -- What transfers brought in less what they took out; verify recomputes it.
        balance_nano INTEGER NOT NULL
    ) STRICT;
    INSERT INTO account (id, name, balance_nano) VALUES
        (1, 'relay:funding', 0), (2, 'tenant:prepaid', 0), (3, 'tenant:held', 0),
        (4, 'relay:revenue', 0), (5, 'relay:absorbed', 0);
    -- Append only. Each row is two entries, one on each account, that sum to zero.
    CREATE TABLE transfer (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        from_account INTEGER NOT NULL REFERENCES account(id),
        to_account INTEGER NOT NULL REFERENCES account(id),
        amount_nano INTEGER NOT NULL CHECK (amount_nano > 0),
        request_id BLOB,
        -- Names an operation from outside (a credit), so that a retry of it is no second one.
        operation_id TEXT,
        note TEXT,
        CHECK (from_account <> to_account)
    ) STRICT;
    CREATE UNIQUE INDEX transfer_operation ON transfer(operation_id) WHERE operation_id IS NOT NULL;
    CREATE TRIGGER transfer_no_update BEFORE UPDATE ON transfer
        BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;
    CREATE TRIGGER transfer_no_delete BEFORE DELETE ON transfer
        BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END;
    CREATE VIEW entry AS
        SELECT id AS transfer_id, at_ms, kind, from_account AS account, -amount_nano AS amount_nano, request_id FROM transfer
        UNION ALL
        SELECT id, at_ms, kind, to_account, amount_nano, request_id FROM transfer;
    CREATE TABLE request (
        request_id BLOB PRIMARY KEY,
        device TEXT NOT NULL,
        digest BLOB NOT NULL,
        -- 0 open, 1 settled, 2 voided
        state INTEGER NOT NULL,
        boot TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        price TEXT NOT NULL,
        input_bytes INTEGER NOT NULL,
        held_nano INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL DEFAULT 0,
        absorbed_nano INTEGER NOT NULL DEFAULT 0,
        estimated INTEGER NOT NULL DEFAULT 0,
        end BLOB,
        created_ms INTEGER NOT NULL,
        finished_ms INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX request_open ON request(boot) WHERE state = 0;",
)];

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
        connection.pragma_update(None, "cache_size", -512)?;
        connection.pragma_update(None, "temp_store", "memory")?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(())
    };
    setup(&connection).map_err(failed("set the database up"))?;
    let (migrations, known) = kind.migrations();
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read the schema version"))?;
    if found > known {
        return Err(StoreError::NewerSchema { path: path.display().to_string(), found, known });
    }
    migrations
        .to_latest(&mut connection)
        .map_err(|error| StoreError::Failed { operation: "migrate the database", why: error.to_string() })?;
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
                "INSERT INTO transfer (at_ms, kind, from_account, to_account, amount_nano) VALUES (1, 1, 1, 2, 5)",
                [],
            )
            .expect("inserted");
        for statement in ["UPDATE transfer SET amount_nano = 6", "DELETE FROM transfer"] {
            let error = connection.execute(statement, []).expect_err("append only");
            assert!(error.to_string().contains("append only"), "{error}");
        }
    }
}
