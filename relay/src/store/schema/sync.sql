-- What is synced. An item is what it is now; its revisions are what it was, and what others wanted it to be.
-- The number of the last change, and the highest number of a change that is forgotten.
CREATE TABLE sync_counter (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- Tells this file from that of any other tenant or relay.
    life INTEGER NOT NULL,
    number INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    -- The last fence of a lock.
    fence INTEGER NOT NULL
) STRICT;
INSERT INTO sync_counter (id, life, number, forgotten, fence) VALUES (1, abs(random() >> 16), 0, 0, 0);
-- Each change's own number beside its place: a file that was restored, and has gone on since, has other ones.
CREATE TABLE sync_change (
    number INTEGER PRIMARY KEY,
    nonce INTEGER NOT NULL
) STRICT;
CREATE TRIGGER sync_changed AFTER UPDATE OF number ON sync_counter BEGIN
    INSERT INTO sync_change (number, nonce) VALUES (new.number, abs(random() >> 24));
END;
CREATE TABLE sync_item (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    -- Of history there is none: its sessions say what it is.
    head INTEGER REFERENCES sync_revision(id),
    number INTEGER NOT NULL UNIQUE,
    changed_ms INTEGER NOT NULL,
    deleted_ms INTEGER,
    -- The item that this one is a conflict copy of.
    conflict_of TEXT NOT NULL DEFAULT '',
    UNIQUE (kind, key)
) STRICT;
CREATE INDEX sync_item_deleted ON sync_item(deleted_ms) WHERE deleted_ms IS NOT NULL;
CREATE TABLE sync_revision (
    id INTEGER PRIMARY KEY,
    revision BLOB NOT NULL UNIQUE,
    -- Digest of the push, so that its name means one push for ever.
    push BLOB NOT NULL,
    item INTEGER NOT NULL REFERENCES sync_item(id),
    parent BLOB,
    number INTEGER NOT NULL,
    -- 1: accepted, 3: it was in conflict.
    outcome INTEGER NOT NULL,
    -- 0: deleted, 1: inline, 2: in parts.
    content INTEGER NOT NULL,
    device TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL,
    inline BLOB,
    parts BLOB,
    meta TEXT NOT NULL,
    -- Since when it is not what the item is.
    replaced_ms INTEGER
) STRICT;
CREATE INDEX sync_revision_item ON sync_revision(item, id);
CREATE INDEX sync_revision_replaced ON sync_revision(replaced_ms) WHERE replaced_ms IS NOT NULL;
-- Pieces of content, by their hash. Each is a file.
CREATE TABLE blob_chunk (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    encoding INTEGER NOT NULL,
    -- Never used again for another piece, so that a file that goes cannot be one that comes.
    file TEXT NOT NULL UNIQUE,
    -- Revisions that have it, and since when none does.
    refs INTEGER NOT NULL DEFAULT 0,
    idle_ms INTEGER
) STRICT;
CREATE INDEX blob_chunk_idle ON blob_chunk(idle_ms) WHERE idle_ms IS NOT NULL;
-- Content that is on its way, and the pieces that are kept for it.
CREATE TABLE blob_upload (
    id INTEGER PRIMARY KEY,
    revision BLOB NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    parts BLOB NOT NULL,
    -- Bytes that are still to come.
    reserved INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX blob_upload_touched ON blob_upload(touched_ms);
CREATE TABLE blob_pin (
    hash BLOB NOT NULL,
    upload INTEGER NOT NULL REFERENCES blob_upload(id) ON DELETE CASCADE,
    PRIMARY KEY (hash, upload)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_pin_upload ON blob_pin(upload);
CREATE TABLE sync_lock (
    key TEXT PRIMARY KEY,
    token BLOB NOT NULL,
    fence INTEGER NOT NULL,
    device TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- What all of it takes, in bytes, about.
CREATE TABLE sync_size (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO sync_size (id, bytes) VALUES (1, 0);
CREATE TRIGGER sync_size_revision AFTER INSERT ON sync_revision BEGIN
    UPDATE sync_size SET bytes = bytes + 500 + ifnull(octet_length(new.inline), 0) + ifnull(octet_length(new.parts), 0)
        + octet_length(new.meta);
END;
CREATE TRIGGER sync_size_forgotten AFTER DELETE ON sync_revision BEGIN
    UPDATE sync_size SET bytes = bytes - 500 - ifnull(octet_length(old.inline), 0) - ifnull(octet_length(old.parts), 0)
        - octet_length(old.meta);
END;
CREATE TRIGGER sync_size_chunk AFTER INSERT ON blob_chunk BEGIN
    -- A file and a row, however small it is.
    UPDATE sync_size SET bytes = bytes + new.size + 1000;
END;
CREATE TRIGGER sync_size_collected AFTER DELETE ON blob_chunk BEGIN
    UPDATE sync_size SET bytes = bytes - old.size - 1000;
END;
-- History: a session has changed when something was said in it, or it was renamed, cleared, deleted or restored.
CREATE TRIGGER sync_said AFTER INSERT ON message BEGIN
    UPDATE sync_counter SET number = number + 1;
    INSERT INTO sync_item (kind, key, number, changed_ms, deleted_ms)
        SELECT 4, session.name, sync_counter.number, new.at_ms, session.deleted_ms FROM session, sync_counter
            WHERE session.id = new.session
        ON CONFLICT (kind, key) DO UPDATE SET number = excluded.number, changed_ms = excluded.changed_ms,
            deleted_ms = excluded.deleted_ms;
END;
CREATE TRIGGER sync_session AFTER UPDATE OF title, messages, deleted_ms ON session
    WHEN old.title <> new.title OR new.messages < old.messages OR old.deleted_ms IS NOT new.deleted_ms
BEGIN
    UPDATE sync_counter SET number = number + 1;
    INSERT INTO sync_item (kind, key, number, changed_ms, deleted_ms)
        SELECT 4, new.name, number, new.updated_ms, new.deleted_ms FROM sync_counter WHERE TRUE
        ON CONFLICT (kind, key) DO UPDATE SET number = excluded.number, changed_ms = excluded.changed_ms,
            deleted_ms = excluded.deleted_ms;
END;
-- What there is already.
INSERT INTO sync_item (kind, key, number, changed_ms, deleted_ms)
    SELECT 4, name, row_number() OVER (ORDER BY id), updated_ms, deleted_ms FROM session;
UPDATE sync_counter SET number = (SELECT count(*) FROM sync_item) WHERE EXISTS (SELECT 1 FROM sync_item);
