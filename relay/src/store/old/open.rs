//! Bringing an export in, and finding out what it has.

use super::{Found, Loaded, Old, OldError, Unknown, dump, kv, quoted, tables};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The first bytes of every file of SQLite.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

impl Old {
    /// Reads what was exported. Errors: a file cannot be used; there is nobody in it.
    pub fn open(d1: Option<&Path>, kv: &[PathBuf]) -> Result<Self, OldError> {
        // A name that is empty: on disk, where it is large, and gone with the connection.
        let connection = Connection::open("")?;
        for (name, value) in [("journal_mode", "off"), ("synchronous", "off"), ("trusted_schema", "off")] {
            connection.pragma_update(None, name, value)?;
        }
        let mut old = Self { connection, loaded: vec![], unknown: Unknown::default() };
        kv::prepare(&old.connection)?;
        if let Some(path) = d1 {
            old.load(path)?;
        }
        old.know()?;
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

    fn load(&self, path: &Path) -> Result<(), OldError> {
        let unreadable = |error| OldError::File { path: path.into(), error };
        let mut start = vec![];
        File::open(path).and_then(|file| file.take(16).read_to_end(&mut start)).map_err(unreadable)?;
        if start == MAGIC {
            return self.copy(path);
        }
        let file = File::open(path).map_err(unreadable)?;
        let transaction = self.connection.unchecked_transaction()?;
        dump::load(&self.connection, path, BufReader::with_capacity(1 << 20, file))?;
        Ok(transaction.commit()?)
    }

    /// Copies the tables that are known out of a database, which is only read.
    fn copy(&self, path: &Path) -> Result<(), OldError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let from = Connection::open_with_flags(path, flags)?;
        from.pragma_update(None, "trusted_schema", "off")?;
        // A database in a state of being written has its log beside it; whoever copied it without that hears so.
        from.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let transaction = self.connection.unchecked_transaction()?;
        for name in tables_of(&from)? {
            let columns = columns_of(&from, &name)?;
            let list: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
            self.connection.execute_batch(&format!("CREATE TABLE {} ({})", quoted(&name), list.join(", ")))?;
            if !tables::ALL.iter().any(|table| table.name.eq_ignore_ascii_case(&name)) {
                continue;
            }
            let marks = vec!["?"; columns.len()].join(", ");
            let mut insert = self.connection.prepare(&format!("INSERT INTO {} VALUES ({marks})", quoted(&name)))?;
            let mut statement = from.prepare(&format!("SELECT {} FROM {}", list.join(", "), quoted(&name)))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                for index in 0..columns.len() {
                    insert.raw_bind_parameter(index + 1, ToSqlOutput::Borrowed(row.get_ref(index)?))?;
                }
                insert.raw_execute()?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Finds out what there is, and makes it quick to find by its owner.
    fn know(&mut self) -> Result<(), OldError> {
        for name in tables_of(&self.connection)? {
            let Some(table) = tables::ALL.into_iter().find(|table| table.name.eq_ignore_ascii_case(&name)) else {
                self.unknown.tables.push(name);
                continue;
            };
            let mut columns = vec![];
            let mut rest = columns_of(&self.connection, &name)?;
            for column in table.columns {
                let fits = rest.iter().filter_map(|name| column.fits(name).map(|(place, unit)| (place, name, unit)));
                if let Some((_, name, unit)) = fits.min_by_key(|(place, ..)| *place) {
                    columns.push(Found { field: column.field, name: name.clone(), unit });
                }
            }
            rest.retain(|name| !columns.iter().any(|found| found.name == *name));
            self.unknown.columns.extend(rest.into_iter().map(|column| format!("{name}.{column}")));
            let loaded = Loaded { table, columns };
            let owner = loaded.owner().ok_or_else(|| {
                let names =
                    table.columns.iter().find(|column| column.field == table.owner()).map(|c| c.names.join(", "));
                OldError::Missing(format!(
                    "the table {name} does not say whose its rows are: it has none of the columns {}",
                    names.unwrap_or_default()
                ))
            })?;
            let index = format!(
                "CREATE INDEX {} ON {} (CAST({} AS TEXT))",
                quoted(&format!("old {name}")),
                quoted(&name),
                quoted(owner)
            );
            self.connection.execute_batch(&index)?;
            self.loaded.push(loaded);
        }
        Ok(())
    }
}

fn tables_of(connection: &Connection) -> Result<Vec<String>, OldError> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
               AND name NOT LIKE '\\_cf\\_%' ESCAPE '\\' AND name NOT LIKE 'd1\\_%' ESCAPE '\\' AND name <> ?1
               AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
    let mut statement = connection.prepare(sql)?;
    let names = statement.query_map([kv::TABLE], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

fn columns_of(connection: &Connection, table: &str) -> Result<Vec<String>, OldError> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}
