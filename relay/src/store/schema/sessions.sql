-- Conversations. A session is named by whoever begins it; its messages are numbered as they come.
CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL DEFAULT '',
    -- Whether a person has named it; else its first message has.
    titled INTEGER NOT NULL DEFAULT 0 CHECK (titled IN (0, 1)),
    model TEXT NOT NULL DEFAULT '',
    framing TEXT NOT NULL DEFAULT '',
    -- JSON lists.
    knowledge TEXT NOT NULL DEFAULT '[]',
    constraints TEXT NOT NULL DEFAULT '[]',
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    messages INTEGER NOT NULL DEFAULT 0,
    -- The number of the last message that it ever had.
    last_number INTEGER NOT NULL DEFAULT 0,
    cost_nano INTEGER NOT NULL DEFAULT 0,
    deleted_ms INTEGER
) STRICT;
CREATE INDEX session_live ON session(updated_ms, id) WHERE deleted_ms IS NULL;
CREATE INDEX session_deleted ON session(deleted_ms, id) WHERE deleted_ms IS NOT NULL;
-- Numbered by AUTOINCREMENT: what was said last has the highest id, also where others were cleared.
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL REFERENCES session(id),
    number INTEGER NOT NULL,
    message_id BLOB NOT NULL UNIQUE,
    role INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    device TEXT NOT NULL,
    request_id BLOB,
    outcome INTEGER NOT NULL,
    model TEXT NOT NULL,
    cost_nano INTEGER NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (session, number)
) STRICT;
-- Messages that were cleared, so that one that is sent again does not come back.
CREATE TABLE cleared (
    message_id BLOB PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES session(id),
    number INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX cleared_at ON cleared(at_ms);
CREATE INDEX cleared_session ON cleared(session);
-- What requests that run have asked: their end adds it to their session, with the answer.
CREATE TABLE turn (
    request INTEGER PRIMARY KEY REFERENCES request(id),
    session INTEGER NOT NULL REFERENCES session(id),
    asked_ms INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX turn_session ON turn(session);
-- What all of it takes, in bytes, about.
CREATE TABLE session_size (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO session_size (id, bytes) VALUES (1, 0);
CREATE TRIGGER session_size_begun AFTER INSERT ON session BEGIN
    UPDATE session_size SET bytes = bytes + 1000 + octet_length(new.framing) + octet_length(new.knowledge)
        + octet_length(new.constraints);
END;
CREATE TRIGGER session_size_gone AFTER DELETE ON session BEGIN
    UPDATE session_size SET bytes = bytes - 1000 - octet_length(old.framing) - octet_length(old.knowledge)
        - octet_length(old.constraints);
END;
CREATE TRIGGER session_size_context AFTER UPDATE OF framing, knowledge, constraints ON session BEGIN
    UPDATE session_size SET bytes = bytes
        + octet_length(new.framing) + octet_length(new.knowledge) + octet_length(new.constraints)
        - octet_length(old.framing) - octet_length(old.knowledge) - octet_length(old.constraints);
END;
CREATE TRIGGER session_size_said AFTER INSERT ON message BEGIN
    UPDATE session_size SET bytes = bytes + 200 + octet_length(new.text);
END;
CREATE TRIGGER session_size_unsaid AFTER DELETE ON message BEGIN
    UPDATE session_size SET bytes = bytes - 200 - octet_length(old.text);
END;
-- The session that a request goes on with.
ALTER TABLE request ADD COLUMN session INTEGER REFERENCES session(id);
CREATE INDEX request_session ON request(session) WHERE session IS NOT NULL;
-- Made from the tables: INSERT INTO message_fts (message_fts) VALUES ('rebuild') makes it anew.
CREATE VIRTUAL TABLE session_fts USING fts5(
    title, content = 'session', content_rowid = 'id', tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
);
CREATE TRIGGER session_titled AFTER UPDATE OF title ON session WHEN old.title <> new.title BEGIN
    INSERT INTO session_fts (session_fts, rowid, title) VALUES ('delete', old.id, old.title);
    INSERT INTO session_fts (rowid, title) VALUES (new.id, new.title);
END;
CREATE TRIGGER session_begun AFTER INSERT ON session BEGIN
    INSERT INTO session_fts (rowid, title) VALUES (new.id, new.title);
END;
CREATE TRIGGER session_gone AFTER DELETE ON session BEGIN
    INSERT INTO session_fts (session_fts, rowid, title) VALUES ('delete', old.id, old.title);
END;
CREATE VIRTUAL TABLE message_fts USING fts5(
    text, content = 'message', content_rowid = 'id', tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
);
CREATE TRIGGER message_added AFTER INSERT ON message BEGIN
    INSERT INTO message_fts (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER message_gone AFTER DELETE ON message BEGIN
    INSERT INTO message_fts (message_fts, rowid, text) VALUES ('delete', old.id, old.text);
END;
