//! A database as SQL: its tables are made and filled, and nothing else that such a file says is done.

use super::OldError;
use rusqlite::Connection;
use std::io::BufRead;
use std::path::Path;

/// The longest statement, in bytes: a row with a document in it.
const LONGEST: usize = 256 << 20;

/// Cuts SQL into statements: at semicolons that are outside of quotes and comments.
struct Statements<R> {
    reader: R,
    line: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nothing,
    Quotes(u8),
    Line,
    Block,
}

impl<R: BufRead> Statements<R> {
    /// The next one, without its semicolon, and the line where it ends. `None`: there are no more.
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, OldError> {
        let (mut statement, mut inside, mut last) = (vec![], Inside::Nothing, 0);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                let rest = statement.iter().any(|byte: &u8| !byte.is_ascii_whitespace());
                return if inside != Inside::Nothing && inside != Inside::Line {
                    Err(OldError::Dump { line: self.line + 1, why: "it ends in the middle of a statement".into() })
                } else if rest {
                    Ok(Some((self.line + 1, statement)))
                } else {
                    Ok(None)
                };
            }
            let mut used = 0;
            let mut ended = false;
            for &byte in buffer {
                used += 1;
                self.line += u64::from(byte == b'\n');
                match inside {
                    Inside::Nothing => match (last, byte) {
                        (_, b';') => {
                            ended = true;
                            break;
                        }
                        (_, b'\'' | b'"' | b'`') => inside = Inside::Quotes(byte),
                        (_, b'[') => inside = Inside::Quotes(b']'),
                        (b'-', b'-') => inside = Inside::Line,
                        (b'/', b'*') => inside = Inside::Block,
                        _ => {}
                    },
                    Inside::Quotes(quote) if byte == quote => inside = Inside::Nothing,
                    Inside::Line if byte == b'\n' => inside = Inside::Nothing,
                    Inside::Block if last == b'*' && byte == b'/' => inside = Inside::Nothing,
                    _ => {}
                }
                // The star that opens a comment does not close it.
                last = if inside == Inside::Block && (last, byte) == (b'/', b'*') { 0 } else { byte };
                statement.push(byte);
            }
            self.reader.consume(used);
            if ended {
                return Ok(Some((self.line + 1, statement)));
            }
            if statement.len() > LONGEST {
                return Err(OldError::Dump { line: self.line + 1, why: "a statement is longer than 256 MiB".into() });
            }
        }
    }
}

/// The first words of a statement, in capitals, without what stands before them.
fn words(statement: &str) -> Vec<String> {
    let mut rest = statement.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, after)| after).trim_start()
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, after)| after).trim_start()
        } else {
            break;
        };
    }
    rest.split(|c: char| c.is_whitespace() || c == '(')
        .filter(|word| !word.is_empty())
        .take(8)
        .map(str::to_uppercase)
        .collect()
}

/// Fills a database from a file of SQL. Returns how many statements were passed over: indices, triggers, views.
pub(super) fn load(connection: &Connection, path: &Path, mut reader: impl BufRead) -> Result<u64, OldError> {
    let mut statements = Statements { reader: &mut reader, line: 0 };
    let (mut passed, mut in_trigger) = (0, false);
    let refused = |line: u64, why: String| OldError::Sql { path: path.into(), line, why };
    while let Some((line, statement)) = statements.next()? {
        let statement = String::from_utf8(statement).map_err(|error| refused(line, error.to_string()))?;
        let words = words(&statement);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if in_trigger {
            // What a trigger does is many statements.
            in_trigger = words != ["END"];
            continue;
        }
        let does = match words.as_slice() {
            [] => continue,
            ["CREATE", "TRIGGER", ..] | ["CREATE", "TEMP" | "TEMPORARY", "TRIGGER", ..] => {
                in_trigger = true;
                false
            }
            // Of the database itself, and of counters.
            ["INSERT", .., "INTO", table, _] | ["INSERT", "INTO", table, ..] if is_internal(table) => false,
            ["CREATE", "TABLE", ..] | ["INSERT" | "REPLACE", ..] => true,
            _ => false,
        };
        if does {
            connection.execute_batch(&statement).map_err(|error| refused(line, error.to_string()))?;
        } else {
            passed += 1;
        }
    }
    Ok(passed)
}

fn is_internal(table: &str) -> bool {
    let name = table.trim_matches(['"', '\'', '`', '[', ']']);
    ["SQLITE_", "D1_", "_CF_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(sql: &str) -> Result<(Connection, u64), OldError> {
        let connection = Connection::open_in_memory().expect("made");
        let passed = load(&connection, Path::new("dump.sql"), sql.as_bytes())?;
        Ok((connection, passed))
    }

    fn names(connection: &Connection) -> Vec<String> {
        let mut statement = connection.prepare("SELECT name FROM users ORDER BY id").expect("prepared");
        let names = statement.query_map([], |row| row.get(0)).expect("read");
        names.collect::<Result<_, _>>().expect("read")
    }

    #[test]
    fn tables_are_filled_and_nothing_else_is_done() {
        let sql = "PRAGMA defer_foreign_keys=TRUE;\nBEGIN TRANSACTION;\n-- users; all of them\nCREATE TABLE IF NOT EXISTS \"users\" (id INTEGER, name TEXT); /* ; */
            INSERT INTO users VALUES(1,'a;b'),(2,'it''s; \"so\"');\n\
            CREATE TRIGGER t AFTER INSERT ON users BEGIN INSERT INTO users VALUES (9, 'trigger'); DELETE FROM users; END;\n\
            CREATE INDEX i ON users(name);\nINSERT INTO \"sqlite_sequence\" VALUES('users',2);DELETE FROM users;\n\
            ATTACH 'elsewhere.db' AS other;\nINSERT INTO \"users\" VALUES(3,'-- no comment');COMMIT;\n";
        let (connection, passed) = loaded(sql).expect("loaded");
        assert_eq!(names(&connection), ["a;b", "it's; \"so\"", "-- no comment"]);
        assert_eq!(passed, 8, "PRAGMA, BEGIN, trigger, index, sequence, DELETE, ATTACH, COMMIT");
        assert!(!Path::new("elsewhere.db").exists());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (sql, part) in [
            ("CREATE TABLE users (id);\nINSERT INTO users VALUES (1, 2);", "dump.sql:2: "),
            ("CREATE TABLE users (id);\nINSERT INTO users VALUES ('ab", "line 2: it ends in the middle"),
        ] {
            let error = loaded(sql).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn statements_do_not_depend_on_how_they_are_read() {
        let sql = "CREATE TABLE users(id,name);INSERT INTO users VALUES(1,'x--;y');/* a ; b */INSERT INTO users VALUES(2,'é');";
        for size in 1..40 {
            let connection = Connection::open_in_memory().expect("made");
            let reader = std::io::BufReader::with_capacity(size, sql.as_bytes());
            load(&connection, Path::new("dump.sql"), reader).expect("loaded");
            assert_eq!(names(&connection), ["x--;y", "é"], "{size}");
        }
    }
}
