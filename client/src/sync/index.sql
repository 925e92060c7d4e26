-- What is known of an item. base: what both agreed on last; head: what the relay says.
CREATE TABLE item (
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    base_revision BLOB,
    base_digest BLOB,
    base_size INTEGER,
    base_meta TEXT,
    -- What the file looked like then.
    stamp TEXT,
    head_revision BLOB,
    head_digest BLOB,
    head_size INTEGER,
    head_meta TEXT,
    -- The content itself, where it is small and does not lie here yet.
    head_inline BLOB,
    head_modified_ms INTEGER NOT NULL DEFAULT 0,
    conflict_of TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
-- Revisions that were made here and that the relay has not confirmed.
CREATE TABLE push (
    revision BLOB PRIMARY KEY,
    kind INTEGER NOT NULL,
    key TEXT NOT NULL,
    parent BLOB,
    digest BLOB,
    size INTEGER,
    meta TEXT,
    modified_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cursor TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO state (id) VALUES (1);
CREATE TABLE kind (
    kind INTEGER PRIMARY KEY,
    pushed_ms INTEGER NOT NULL DEFAULT 0,
    pulled_ms INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0,
    problems INTEGER NOT NULL DEFAULT 0
) STRICT;
