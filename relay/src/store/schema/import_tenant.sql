-- Usage of the deployment that came before, as it was exported. It counts like a request that was settled.
CREATE TABLE imported_usage (
    id INTEGER PRIMARY KEY,
    -- What that deployment called it.
    source TEXT NOT NULL UNIQUE,
    request_id BLOB NOT NULL UNIQUE,
    at_ms INTEGER NOT NULL,
    -- The API key that it was asked under; empty: not known.
    key TEXT NOT NULL,
    class INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL
) STRICT;
CREATE TRIGGER imported_usage_no_update BEFORE UPDATE ON imported_usage
    BEGIN SELECT RAISE(ABORT, 'imported usage is append only'); END;
CREATE TRIGGER imported_usage_no_delete BEFORE DELETE ON imported_usage
    BEGIN SELECT RAISE(ABORT, 'imported usage is append only'); END;
-- Settings, documents and adapters that came over, as they were then.
CREATE TABLE imported_item (
    -- What that deployment called it: a table and an id.
    source TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    meta TEXT NOT NULL,
    revision BLOB NOT NULL
) STRICT, WITHOUT ROWID;
