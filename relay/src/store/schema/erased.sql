-- When a tenant's words were erased, and it may never do anything again.
ALTER TABLE tenant ADD COLUMN erased_ms INTEGER;
