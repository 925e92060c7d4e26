CREATE TABLE tenant (
    id TEXT PRIMARY KEY,
    suspended INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    tier TEXT NOT NULL DEFAULT 'managed',
    ceiling_nano INTEGER NOT NULL DEFAULT 0,
    suspend_at_ceiling INTEGER NOT NULL DEFAULT 0,
    -- Rises with every change of what the tenant's own file must know.
    version INTEGER NOT NULL DEFAULT 0,
    -- The entry of the last checkpoint of its book: those up to it must be there.
    sealed INTEGER NOT NULL DEFAULT 0
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
END;
