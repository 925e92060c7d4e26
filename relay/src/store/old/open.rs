//! Bringing an export in, and finding out what it has.

use super::{Found, Loaded, Old, OldError, PLACE, Unknown, dump, kv, quoted, tables};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The first bytes of every file of SQLite.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// An empty database: on disk, where it is large, and gone with the connection.
fn scratch() -> Result<Connection, OldError> {
    let connection = Connection::open("")?;
    // What refers to what is not there is found out later, row by row.
    let setup = [("journal_mode", "off"), ("synchronous", "off"), ("trusted_schema", "off"), ("foreign_keys", "off")];
    for (name, value) in setup {
        connection.pragma_update(None, name, value)?;
    }
    Ok(connection)
}

impl Old {
    /// Reads what was exported. Errors: a file cannot be used; there is nobody in it.
    pub fn open(d1: Option<&Path>, kv: &[PathBuf]) -> Result<Self, OldError> {
        let mut old = Self { connection: scratch()?, loaded: vec![], unknown: Unknown::default() };
        kv::prepare(&old.connection)?;
        if let Some(path) = d1 {
            old.load(path)?;
        }
        for path in kv {
            kv::load(&old.connection, path, &mut old.unknown.entries)?;
        }
        if old.users()?.is_empty() {
            return Err(OldError::Missing(
                "there is nobody in the export: it has no table users with rows, and no entries user:ID".into(),
            ));
        }
        Ok(old)
    }

    fn load(&mut self, path: &Path) -> Result<(), OldError> {
        let unreadable = |error| OldError::File { path: path.into(), error };
        let mut start = vec![];
        File::open(path).and_then(|file| file.take(16).read_to_end(&mut start)).map_err(unreadable)?;
        let from = if start == MAGIC {
            database(path)?
        } else {
            let file = File::open(path).map_err(unreadable)?;
            let raw = scratch()?;
            let transaction = raw.unchecked_transaction()?;
            dump::load(&raw, path, BufReader::with_capacity(1 << 20, file))?;
            transaction.commit()?;
            raw
        };
        self.copy(&from)
    }

    /// Copies the tables that are known, and finds out what they have. Each row gets a place of its own: not every
    /// table numbers its rows.
    fn copy(&mut self, from: &Connection) -> Result<(), OldError> {
        let transaction = self.connection.unchecked_transaction()?;
        let (mut all, mut unknown) = (vec![], Unknown::default());
        for name in tables_of(from)? {
            let Some(table) = tables::ALL.into_iter().find(|table| table.name.eq_ignore_ascii_case(&name)) else {
                unknown.tables.push(name);
                continue;
            };
            let mut rest = columns_of(from, &name)?;
            let mut columns = vec![];
            for column in table.columns {
                let chosen = column.choose(rest.iter()).into_iter();
                columns.extend(chosen.map(|(name, unit)| Found { field: column.field, name, unit }));
            }
            rest.retain(|name| !columns.iter().any(|found| found.name == *name));
            unknown.columns.extend(rest.into_iter().map(|column| format!("{name}.{column}")));
            let loaded = Loaded { table, columns };
            self.fill(from, &name, &loaded)?;
            all.push(loaded);
        }
        transaction.commit()?;
        (self.loaded, self.unknown) = (all, unknown);
        Ok(())
    }

    /// Copies what is known of a table.
    fn fill(&self, from: &Connection, name: &str, loaded: &Loaded) -> Result<(), OldError> {
        let table = loaded.table;
        let owner = loaded.owner().ok_or_else(|| {
            let names = table.columns.iter().find(|column| column.field == table.owner()).map(|c| c.names.join(", "));
            let names = names.unwrap_or_default();
            OldError::Missing(format!(
                "the table {name} does not say whose its rows are: it has none of the columns {names}"
            ))
        })?;
        let (marks, list) = (vec!["?"; loaded.columns.len()].join(", "), loaded.list());
        self.connection.execute_batch(&format!(
            "CREATE TABLE {0} ({PLACE} INTEGER PRIMARY KEY, {list});
             CREATE INDEX belay_of_{0} ON {0} (CAST({1} AS TEXT))",
            table.name,
            quoted(owner)
        ))?;
        let mut insert = self.connection.prepare(&format!("INSERT INTO {} ({list}) VALUES ({marks})", table.name))?;
        let mut statement = from.prepare(&format!("SELECT {list} FROM {}", quoted(name)))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for index in 0..loaded.columns.len() {
                insert.raw_bind_parameter(index + 1, ToSqlOutput::Borrowed(row.get_ref(index)?))?;
            }
            insert.raw_execute()?;
        }
        Ok(())
    }
}

/// A database in a file, which nothing is written to and nothing is made beside. Errors: a part of it is in its log.
fn database(path: &Path) -> Result<Connection, OldError> {
    let log = PathBuf::from(format!("{}-wal", path.display()));
    if log.metadata().is_ok_and(|log| log.len() > 0) {
        return Err(OldError::Missing(format!(
            "a part of {0} is in {1}: bring it in with sqlite3 {0} \"PRAGMA wal_checkpoint(TRUNCATE)\"",
            path.display(),
            log.display()
        )));
    }
    let escaped = path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let from = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    from.pragma_update(None, "trusted_schema", "off")?;
    Ok(from)
}

fn tables_of(connection: &Connection) -> Result<Vec<String>, OldError> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
               AND name NOT LIKE '\\_cf\\_%' ESCAPE '\\' AND name NOT LIKE 'd1\\_%' ESCAPE '\\'
               AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
    let mut statement = connection.prepare(sql)?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

fn columns_of(connection: &Connection, table: &str) -> Result<Vec<String>, OldError> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}
