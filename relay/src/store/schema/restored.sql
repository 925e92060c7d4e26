-- Usage that central was handed in an earlier life of this book and that the book itself does not know since it was
-- brought back from a backup. One row for each such life.
CREATE TABLE restored_usage (
    epoch INTEGER PRIMARY KEY,
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
CREATE TRIGGER restored_usage_no_update BEFORE UPDATE ON restored_usage
    BEGIN SELECT RAISE(ABORT, 'restored usage is append only'); END;
CREATE TRIGGER restored_usage_no_delete BEFORE DELETE ON restored_usage
    BEGIN SELECT RAISE(ABORT, 'restored usage is append only'); END;
