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
        created_ms INTEGER NOT NULL,
        tier TEXT NOT NULL DEFAULT 'managed',
        ceiling_nano INTEGER NOT NULL DEFAULT 0,
        suspend_at_ceiling INTEGER NOT NULL DEFAULT 0,
        -- Rises with every change of what the tenant's own file must know.
        version INTEGER NOT NULL DEFAULT 0
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
    CREATE TABLE api_key (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenant(id),
        label TEXT NOT NULL,
        hash BLOB NOT NULL,
        scopes TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        last_used_ms INTEGER,
        revoked_ms INTEGER
    ) STRICT;
    CREATE INDEX api_key_tenant ON api_key(tenant);
    CREATE TABLE price_list (
        version INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        prices TEXT NOT NULL,
        loaded_ms INTEGER NOT NULL
    ) STRICT;
    -- Usage of all tenants, as their files hand it over.
    CREATE TABLE usage_record (
        tenant TEXT NOT NULL REFERENCES tenant(id),
        epoch INTEGER NOT NULL,
        number INTEGER NOT NULL,
        request_id BLOB NOT NULL,
        at_ms INTEGER NOT NULL,
        device TEXT NOT NULL,
        key TEXT NOT NULL,
        class INTEGER NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        absorbed_nano INTEGER NOT NULL,
        PRIMARY KEY (tenant, epoch, number)
    ) STRICT, WITHOUT ROWID;
    -- Sums over them, kept by the trigger: whatever is inserted is summed, once.
    CREATE TABLE usage_total (
        day INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        class INTEGER NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        absorbed_nano INTEGER NOT NULL,
        PRIMARY KEY (day, tenant, class, provider, model)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER usage_record_summed AFTER INSERT ON usage_record BEGIN
        INSERT INTO usage_total VALUES (
            NEW.at_ms / 86400000, NEW.tenant, NEW.class, NEW.provider, NEW.model, NEW.requests, NEW.estimated,
            NEW.input, NEW.output, NEW.cache_read, NEW.cache_write, NEW.reasoning, NEW.cost_nano, NEW.absorbed_nano)
        ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
            estimated = estimated + excluded.estimated, input = input + excluded.input,
            output = output + excluded.output, cache_read = cache_read + excluded.cache_read,
            cache_write = cache_write + excluded.cache_write, reasoning = reasoning + excluded.reasoning,
            cost_nano = cost_nano + excluded.cost_nano, absorbed_nano = absorbed_nano + excluded.absorbed_nano;
    END;",
)];

const TENANT: &[M<'static>] = &[M::up(
    "-- One row: what central says of the tenant, and which life of the book this is.
    CREATE TABLE tenant (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        tier TEXT NOT NULL DEFAULT 'managed',
        ceiling_nano INTEGER NOT NULL DEFAULT 0,
        -- The deepest that it ever was.
        deepest_ceiling_nano INTEGER NOT NULL DEFAULT 0,
        suspended INTEGER NOT NULL DEFAULT 0,
        suspend_at_ceiling INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 0,
        epoch INTEGER NOT NULL DEFAULT 1,
        -- The last row of the outbox that central has confirmed.
        flushed INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    INSERT INTO tenant (id) VALUES (1);
    CREATE TABLE account (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        -- What transfers brought in less what they took out; verify recomputes it.
        balance_nano INTEGER NOT NULL,
        last_transfer INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    INSERT INTO account (id, name, balance_nano) VALUES
        (1, 'relay:funding', 0), (2, 'tenant:prepaid', 0), (3, 'tenant:held', 0),
        (4, 'relay:revenue', 0), (5, 'relay:absorbed', 0), (6, 'tenant:credits', 0);
    -- Append only. Each row is two entries, one on each account, that sum to zero.
    CREATE TABLE transfer (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        from_account INTEGER NOT NULL REFERENCES account(id),
        to_account INTEGER NOT NULL REFERENCES account(id),
        amount_nano INTEGER NOT NULL CHECK (amount_nano >= 0),
        from_after_nano INTEGER NOT NULL,
        to_after_nano INTEGER NOT NULL,
        request_id BLOB,
        -- Names an operation from outside (a credit), so that a retry of it is no second one.
        operation_id TEXT,
        note TEXT,
        -- A digest of what this proves of its request.
        evidence BLOB,
        -- Over this row and the hash of the one before it.
        hash BLOB NOT NULL,
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
    CREATE TABLE checkpoint (
        transfer_id INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        mac BLOB NOT NULL
    ) STRICT;
    -- What requests were offered: models and their prices.
    CREATE TABLE terms (
        id INTEGER PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        terms TEXT NOT NULL
    ) STRICT;
    -- Not WITHOUT ROWID: ids are random, and rows are too large to be moved about by them.
    CREATE TABLE request (
        id INTEGER PRIMARY KEY,
        request_id BLOB NOT NULL UNIQUE,
        device TEXT NOT NULL,
        -- The API key that it was asked under; empty: none.
        key TEXT NOT NULL,
        class INTEGER NOT NULL,
        digest BLOB NOT NULL,
        -- 0 open, 1 settled, 2 voided
        state INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
        boot TEXT NOT NULL,
        terms INTEGER NOT NULL REFERENCES terms(id),
        input_bytes INTEGER NOT NULL,
        held_nano INTEGER NOT NULL,
        -- Of what is held, what came from credits.
        credits_nano INTEGER NOT NULL,
        -- Who ran it, once it is settled.
        provider TEXT,
        model TEXT,
        cost_nano INTEGER NOT NULL DEFAULT 0,
        absorbed_nano INTEGER NOT NULL DEFAULT 0,
        estimated INTEGER NOT NULL DEFAULT 0 CHECK (estimated IN (0, 1)),
        end BLOB,
        created_ms INTEGER NOT NULL,
        finished_ms INTEGER
    ) STRICT;
    CREATE INDEX request_open ON request(boot) WHERE state = 0;
    CREATE INDEX request_estimated ON request(finished_ms) WHERE state = 1 AND estimated = 1;
    CREATE TABLE credit_grant (
        id INTEGER PRIMARY KEY,
        granted_nano INTEGER NOT NULL,
        -- What no request has taken.
        left_nano INTEGER NOT NULL CHECK (left_nano >= 0),
        expires_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX credit_grant_left ON credit_grant(expires_ms) WHERE left_nano > 0;
    -- What open requests have taken of grants.
    CREATE TABLE draw (
        request INTEGER NOT NULL REFERENCES request(id),
        credit_grant INTEGER NOT NULL REFERENCES credit_grant(id),
        nano INTEGER NOT NULL,
        PRIMARY KEY (request, credit_grant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE budget (
        -- 'tenant', 'device:ID' or 'key:ID'
        scope TEXT NOT NULL,
        measure TEXT NOT NULL,
        amount INTEGER NOT NULL,
        PRIMARY KEY (scope, measure)
    ) STRICT, WITHOUT ROWID;
    -- Keys of the tenant's own for providers, sealed.
    CREATE TABLE provider_key (
        provider TEXT PRIMARY KEY,
        nonce BLOB NOT NULL,
        sealed BLOB NOT NULL,
        set_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage_day (
        day INTEGER NOT NULL,
        device TEXT NOT NULL,
        key TEXT NOT NULL,
        class INTEGER NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        absorbed_nano INTEGER NOT NULL,
        PRIMARY KEY (day, device, key, class, provider, model)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage_month (
        month INTEGER NOT NULL,
        device TEXT NOT NULL,
        key TEXT NOT NULL,
        class INTEGER NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        absorbed_nano INTEGER NOT NULL,
        PRIMARY KEY (month, device, key, class, provider, model)
    ) STRICT, WITHOUT ROWID;
    -- Usage that central has not confirmed. Numbers are never used again.
    CREATE TABLE outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        request_id BLOB NOT NULL,
        at_ms INTEGER NOT NULL,
        device TEXT NOT NULL,
        key TEXT NOT NULL,
        class INTEGER NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        cost_nano INTEGER NOT NULL,
        absorbed_nano INTEGER NOT NULL
    ) STRICT;",
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
