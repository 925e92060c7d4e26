-- One row: what central says of the tenant, and which life of the book this is.
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
-- Charges by estimate that were put right. The request keeps its End for ever.
CREATE TABLE correction (
    request INTEGER PRIMARY KEY REFERENCES request(id),
    -- What is charged and borne in the end, not the difference.
    cost_nano INTEGER NOT NULL,
    absorbed_nano INTEGER NOT NULL,
    usage TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
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
) STRICT;
