//! A database as SQL: its tables are made and filled, and nothing else that such a file says is done.

use super::OldError;
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest statement, in bytes: a row with a document in it.
const LONGEST: usize = 256 << 20;

/// Cuts SQL into statements: at semicolons that are outside of quotes and comments.
struct Statements<R> {
    reader: R,
    line: u64,
    longest: usize,
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
                let was = inside;
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
                // What opens or closes something is no part of what comes next.
                last = if inside == was { byte } else { 0 };
                statement.push(byte);
            }
            self.reader.consume(used);
            if ended {
                return Ok(Some((self.line + 1, statement)));
            }
            if statement.len() > self.longest {
                let why = format!("a statement is longer than {} bytes", self.longest);
                return Err(OldError::Dump { line: self.line + 1, why });
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
    // A trigger's END may have a comment behind it.
    let rest = if rest.len() < 200 { rest.split("--").next().unwrap_or_default() } else { rest };
    rest.split(|c: char| c.is_whitespace() || c == '(')
        .filter(|word| !word.is_empty())
        .take(8)
        .map(str::to_uppercase)
        .collect()
}

/// How long one statement may take: rows are written down, and nothing is computed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps of SQLite between two looks at the clock.
const STEPS: i32 = 100_000;

/// Lets a statement make a table and put rows into it, and nothing else: whoever wrote the file is not trusted.
fn only_tables(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::CreateTable { .. }
        | AuthAction::CreateIndex { .. }
        | AuthAction::Insert { .. }
        | AuthAction::Update { .. }
        | AuthAction::Delete { .. }
        | AuthAction::Read { .. }
        | AuthAction::Reindex { .. }
        | AuthAction::Select
        | AuthAction::Function { .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }
}

/// What SQLite says is wrong, without the statement: that may have secrets in it.
fn words_of(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqliteFailure(code, None) => code.to_string(),
        rusqlite::Error::MultipleStatement => "it is more than one statement".into(),
        _ => "the statement cannot be run".into(),
    }
}

/// Carries one statement out.
fn execute(connection: &Connection, statement: &str, patience: Duration) -> rusqlite::Result<()> {
    let until = Instant::now() + patience;
    connection.progress_handler(STEPS, Some(move || Instant::now() > until))?;
    connection.prepare(statement)?.raw_execute().map(|_| ())
}

/// Fills a database from a file of SQL.
pub(super) fn load(connection: &Connection, path: &Path, reader: impl BufRead) -> Result<(), OldError> {
    connection.authorizer(Some(only_tables))?;
    let loaded = statements(connection, path, reader);
    connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    connection.progress_handler(0, None::<fn() -> bool>)?;
    loaded
}

fn statements(connection: &Connection, path: &Path, mut reader: impl BufRead) -> Result<(), OldError> {
    let mut statements = Statements { reader: &mut reader, line: 0, longest: LONGEST };
    let mut in_trigger = None;
    let refused = |line: u64, why: String| OldError::Sql { path: path.into(), line, why };
    while let Some((line, statement)) = statements.next()? {
        let statement = String::from_utf8(statement).map_err(|error| refused(line, error.to_string()))?;
        let words = words(&statement);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if in_trigger.is_some() {
            // What a trigger does is many statements.
            in_trigger = in_trigger.filter(|_| words != ["END"]);
            continue;
        }
        match words.as_slice() {
            ["CREATE", "TRIGGER", ..] | ["CREATE", "TEMP" | "TEMPORARY", "TRIGGER", ..] => in_trigger = Some(line),
            // Of the database itself, and of counters.
            ["INSERT", .., "INTO", table, _] | ["INSERT", "INTO", table, ..] if is_internal(table) => {}
            ["CREATE", "TABLE", ..] | ["INSERT" | "REPLACE", ..] => {
                execute(connection, &statement, PATIENCE).map_err(|error| refused(line, words_of(&error)))?;
            }
            _ => {}
        }
    }
    match in_trigger {
        None => Ok(()),
        Some(line) => Err(refused(line, "the trigger that begins here has no end; leave triggers out".into())),
    }
}

fn is_internal(table: &str) -> bool {
    let name = table.trim_matches(['"', '\'', '`', '[', ']']);
    ["SQLITE_", "D1_", "_CF_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(sql: &str) -> Result<Connection, OldError> {
        let connection = Connection::open_in_memory().expect("made");
        load(&connection, Path::new("dump.sql"), sql.as_bytes())?;
        Ok(connection)
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
        let connection = loaded(sql).expect("loaded");
        assert_eq!(names(&connection), ["a;b", "it's; \"so\"", "-- no comment"]);
        assert!(!Path::new("elsewhere.db").exists());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (sql, part) in [
            ("CREATE TABLE users (id);\nINSERT INTO users VALUES (1, 2);", "dump.sql:2: "),
            ("CREATE TABLE users (id);\nINSERT INTO users VALUES ('ab", "line 2: it ends in the middle"),
            ("CREATE TABLE users (id);\nCREATE TRIGGER t BEGIN DELETE FROM x;\nSELECT 1;", "dump.sql:2: the trigger"),
            ("CREATE TABLE users (id);INSERT INTO users VALUES(f('secret'));", "no such function"),
        ] {
            let error = loaded(sql).expect_err(part).to_string();
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
    }

    /// What the reader here takes for one statement, and SQLite for several, is none.
    #[test]
    fn nothing_gets_through_between_two_ways_to_read_comments() {
        let dir = tempfile::tempdir().expect("made");
        let other = dir.path().join("other.db");
        let table = "CREATE TABLE users (id, name);";
        for hidden in [
            format!(
                "INSERT INTO users SELECT 1, 1/**/*1; ATTACH '{}' AS c; CREATE TABLE c.t (x); /* */;",
                other.display()
            ),
            format!("INSERT INTO users VALUES (1, 2)/**/;ATTACH '{}' AS c; CREATE TABLE c.t (x);", other.display()),
            "INSERT INTO users WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x, x FROM n;"
                .into(),
            "INSERT INTO users SELECT load_extension('x'), 1;".into(),
        ] {
            let connection = Connection::open_in_memory().expect("made");
            let _ = load(&connection, Path::new("dump.sql"), format!("{table}{hidden}").as_bytes());
            assert!(!other.exists(), "{hidden}");
            let count: i64 = connection.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).expect("read");
            assert!(count <= 1, "{hidden}");
        }
        let quotes = "CREATE TABLE users (id, name); INSERT INTO users VALUES (1, '/*'), (2, '*/'); /***/ -- '\n/*;*/INSERT INTO users VALUES (3, '--');";
        assert_eq!(names(&loaded(quotes).expect("loaded")), ["/*", "*/", "--"]);
        let end = "CREATE TABLE users (id, name); CREATE TRIGGER t AFTER INSERT ON users BEGIN DELETE FROM users; END -- so\n; INSERT INTO users VALUES (1, 'x');";
        assert_eq!(names(&loaded(end).expect("loaded")), ["x"]);
    }

    #[test]
    fn a_statement_has_its_length_and_its_time() {
        let sql = "INSERT INTO users VALUES ('a name that goes on and on');";
        for (longest, is_read) in [(sql.len(), true), (20, false)] {
            let reader = std::io::BufReader::with_capacity(8, sql.as_bytes());
            let read = Statements { reader, line: 0, longest }.next();
            assert_eq!(read.is_ok(), is_read, "{longest}");
            assert!(read.err().is_none_or(|error| error.to_string().contains("longer than 20 bytes")));
        }
        let connection = Connection::open_in_memory().expect("made");
        let rows = "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10);";
        connection.execute_batch(rows).expect("made");
        let long = "INSERT INTO t SELECT 1 FROM t, t AS b, t AS c, t AS d, t AS e, t AS f";
        let error = execute(&connection, long, Duration::ZERO).expect_err("takes too long");
        assert!(words_of(&error).contains("interrupted"), "{error}");
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
