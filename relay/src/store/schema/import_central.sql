-- What people call a tenant: a company, an address.
ALTER TABLE tenant ADD COLUMN label TEXT NOT NULL DEFAULT '';
-- Keys of a deployment that came before.
ALTER TABLE api_key ADD COLUMN imported INTEGER NOT NULL DEFAULT 0 CHECK (imported IN (0, 1));
CREATE UNIQUE INDEX api_key_hash ON api_key(hash);
-- Who was who there.
CREATE TABLE imported_user (
    user TEXT PRIMARY KEY,
    tenant TEXT NOT NULL UNIQUE REFERENCES tenant(id),
    -- As the last export said: what was changed here since is told by it.
    tier TEXT NOT NULL,
    suspended INTEGER NOT NULL CHECK (suspended IN (0, 1)),
    at_ms INTEGER NOT NULL
) STRICT;
-- What one tenant has used is found without looking through what all have.
CREATE INDEX usage_total_tenant ON usage_total(tenant, day);
