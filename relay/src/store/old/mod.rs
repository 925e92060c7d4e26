//! What was exported from the deployment that Belay takes the place of: its relational database, as SQL or as a file
//! of SQLite, and its key-value store as JSON. All of it is brought into one database that is gone with the process;
//! nothing that was exported is written to.

mod amount;
mod dump;
mod kv;
mod open;
mod row;
mod tables;

pub use self::amount::Amount;
pub use self::row::{Cell, Odd, Row};
pub use self::tables::{
    API_KEYS, BILLING_LEDGER, CHAT_MESSAGES, CHAT_SESSIONS, Field, KNOWLEDGE_DOCUMENTS, Table, USAGE_RECORDS,
    USER_LORAS, USER_SETTINGS, USERS, Unit,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use serde::Serialize;
use std::collections::HashSet;
use std::path::PathBuf;
use thiserror::Error;

/// Why an export cannot be read.
#[derive(Debug, Error)]
pub enum OldError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The stream of a file broke.
    #[error("cannot read the export")]
    Read(#[from] std::io::Error),
    /// A file of SQL is not whole.
    #[error("the dump is not usable, line {line}: {why}; export it again")]
    Dump {
        /// Where.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A statement of it fails.
    #[error("{}:{line}: {why}; if it was written by another database, export it as a file of SQLite", path.display())]
    Sql {
        /// The file.
        path: PathBuf,
        /// Where the statement ends.
        line: u64,
        /// What SQLite says.
        why: String,
    },
    /// A file of JSON is not what it should be.
    #[error("{}: {why}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The database does not answer.
    #[error("the export cannot be read as a database")]
    Database(#[from] rusqlite::Error),
    /// Somebody has more of something than anybody should.
    #[error("a million rows or more in {0} are of one user: too many to take in")]
    TooMany(&'static str),
    /// Something that is needed is not there.
    #[error("{0}")]
    Missing(String),
}

/// A column of a table, as it was found.
#[derive(Debug)]
struct Found {
    field: Field,
    name: String,
    unit: Option<Unit>,
}

/// What was found of a table.
#[derive(Debug)]
struct Loaded {
    table: &'static Table,
    columns: Vec<Found>,
}

/// What nothing here has a place for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Unknown {
    /// Tables.
    pub tables: Vec<String>,
    /// Columns, as `table.column`.
    pub columns: Vec<String>,
    /// Entries of the key-value store, by what they begin with, and how many.
    pub entries: Vec<(String, u64)>,
}

/// An export.
#[derive(Debug)]
pub struct Old {
    connection: Connection,
    loaded: Vec<Loaded>,
    unknown: Unknown,
}

/// The column that says where a row was.
const PLACE: &str = "belay_place";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Old {
    /// What nothing here has a place for.
    #[must_use]
    pub fn unknown(&self) -> &Unknown {
        &self.unknown
    }

    /// The ids of all users, in order.
    pub fn users(&self) -> Result<Vec<String>, OldError> {
        let sql = format!("{} ORDER BY 1", self.sql_of_users());
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut ids = vec![];
        while let Some(row) = rows.next()? {
            // One that is no text names nobody; see strays.
            ids.extend(row.get_ref(0)?.as_str().ok().map(str::to_owned));
        }
        Ok(ids)
    }

    fn sql_of_users(&self) -> String {
        let mut sql = format!("SELECT owner FROM {} WHERE of = 'users'", kv::TABLE);
        if let Some(column) = self.loaded(&USERS).and_then(Loaded::owner) {
            sql += &format!(" UNION SELECT CAST({0} AS TEXT) FROM users WHERE {0} IS NOT NULL", quoted(column));
        }
        sql
    }

    fn loaded(&self, table: &Table) -> Option<&Loaded> {
        self.loaded.iter().find(|loaded| loaded.table.name == table.name)
    }

    /// Whether a table is there and says such a thing.
    #[must_use]
    pub fn says(&self, table: &Table, field: Field) -> bool {
        self.loaded(table).is_some_and(|loaded| loaded.columns.iter().any(|found| found.field == field))
    }

    /// A row that says something of it; `None`: there is none.
    pub fn sample(&self, table: &'static Table, field: Field) -> Result<Option<Row>, OldError> {
        let Some(loaded) = self.loaded(table) else { return Ok(None) };
        let Some(found) = loaded.columns.iter().find(|found| found.field == field) else { return Ok(None) };
        let sql = format!("SELECT {0} FROM {1} WHERE {0} IS NOT NULL LIMIT 1", quoted(&found.name), table.name);
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Row { table, cells: vec![(field, cell(row.get_ref(0)?), found.unit)], is_entry: false }))
    }

    /// Rows of all.
    pub fn count(&self, table: &Table) -> Result<u64, OldError> {
        let beside = self.connection.query_row(
            &format!("SELECT count(*) FROM {} WHERE of = ?1", kv::TABLE),
            [table.name],
            |row| row.get::<_, u32>(0),
        )?;
        let rows = match self.loaded(table) {
            None => 0,
            Some(_) => self
                .connection
                .query_row(&format!("SELECT count(*) FROM {}", table.name), [], |row| row.get::<_, u32>(0))?,
        };
        Ok(u64::from(rows) + u64::from(beside))
    }

    /// Rows whose owner is not there.
    pub fn strays(&self, table: &'static Table) -> Result<u64, OldError> {
        if table.name == USERS.name {
            let Some(owner) = self.loaded(table).and_then(Loaded::owner) else { return Ok(0) };
            let mut statement =
                self.connection.prepare(&format!("SELECT CAST({} AS TEXT) FROM users", quoted(owner)))?;
            let (mut rows, mut strays) = (statement.query([])?, 0);
            while let Some(row) = rows.next()? {
                strays += u64::from(row.get_ref(0)?.as_str().is_err());
            }
            return Ok(strays);
        }
        let users = self.sql_of_users();
        let owners = if table.name == CHAT_MESSAGES.name {
            let mut sql = format!("SELECT name FROM {} WHERE of = 'chat_sessions' AND owner IN ({users})", kv::TABLE);
            if let Some(sessions) = self.loaded(&CHAT_SESSIONS)
                && let (Some(owner), Some(id)) = (sessions.owner(), sessions.name_of(Field::Id))
            {
                let (id, owner) = (quoted(id), quoted(owner));
                sql += &format!(
                    " UNION SELECT CAST({id} AS TEXT) FROM chat_sessions
                      WHERE {id} IS NOT NULL AND CAST({owner} AS TEXT) IN ({users})"
                );
            }
            sql
        } else {
            users
        };
        let beside = format!("SELECT count(*) FROM {} WHERE of = ?1 AND owner NOT IN ({owners})", kv::TABLE);
        let mut strays: i64 = self.connection.query_row(&beside, [table.name], |row| row.get(0))?;
        if let Some(column) = self.loaded(table).and_then(Loaded::owner) {
            let sql = format!(
                "SELECT count(*) FROM {} WHERE coalesce(CAST({1} AS TEXT) NOT IN ({owners}), TRUE)",
                table.name,
                quoted(column)
            );
            strays += self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        }
        Ok(u64::try_from(strays).unwrap_or(0))
    }

    /// What a table says of something, each once, with how many of its amounts are above zero and how many below. A table
    /// that says nothing of it says nothing, once.
    pub fn kinds(&self, table: &'static Table, of: Field, amount: Field) -> Result<Vec<(String, u64, u64)>, OldError> {
        let Some(loaded) = self.loaded(table) else { return Ok(vec![]) };
        let column = |field| loaded.columns.iter().find(|found| found.field == field).map(|found| quoted(&found.name));
        let (kind, amount) = (column(of).unwrap_or_else(|| "''".into()), column(amount).unwrap_or_else(|| "0".into()));
        let sql = format!(
            "SELECT coalesce(lower(trim(CAST({kind} AS TEXT))), ''), sum(CAST({amount} AS REAL) > 0),
                    sum(CAST({amount} AS REAL) < 0) FROM {} GROUP BY 1",
            table.name
        );
        let mut statement = self.connection.prepare(&sql)?;
        let count = |row: &rusqlite::Row<'_>, at| row.get::<_, Option<u32>>(at).map(|n| u64::from(n.unwrap_or(0)));
        let rows = statement.query_map([], |row| Ok((row.get(0)?, count(row, 1)?, count(row, 2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ids of sessions that several users have.
    pub fn shared_sessions(&self) -> Result<HashSet<String>, OldError> {
        let mut sql = format!("SELECT name AS id, owner FROM {} WHERE of = 'chat_sessions'", kv::TABLE);
        if let Some(loaded) = self.loaded(&CHAT_SESSIONS)
            && let (Some(owner), Some(id)) = (loaded.owner(), loaded.name_of(Field::Id))
        {
            let (id, owner) = (quoted(id), quoted(owner));
            sql += &format!(" UNION SELECT CAST({id} AS TEXT), CAST({owner} AS TEXT) FROM chat_sessions");
        }
        let sql = format!("SELECT id FROM ({sql}) WHERE id IS NOT NULL GROUP BY id HAVING count(DISTINCT owner) > 1");
        let mut statement = self.connection.prepare(&sql)?;
        let ids = statement.query_map([], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// Every row of a table, those of the key-value store left out.
    pub fn each(&self, table: &'static Table, mut each: impl FnMut(&Row)) -> Result<(), OldError> {
        let Some(loaded) = self.loaded(table) else { return Ok(()) };
        let mut statement = self.connection.prepare(&format!("SELECT {} FROM {}", loaded.list(), table.name))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(&loaded.read(row, 0)?);
        }
        Ok(())
    }

    /// The rows of an owner, the first `most` of those after `after`, in the order in which they were written. Those of
    /// the key-value store come last. Gives each its place.
    pub fn rows(
        &self,
        table: &'static Table,
        owner: &str,
        (after, most): (i64, u32),
    ) -> Result<Vec<(i64, Row)>, OldError> {
        let mut found = vec![];
        if let Some(loaded) = self.loaded(table)
            && let Some(column) = loaded.owner()
        {
            let sql = format!(
                "SELECT {PLACE}, {} FROM {} WHERE CAST({} AS TEXT) = ?1 AND {PLACE} > ?2 ORDER BY {PLACE} LIMIT ?3",
                loaded.list(),
                table.name,
                quoted(column)
            );
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![owner, after, most])?;
            while let Some(row) = rows.next()? {
                found.push((row.get(0)?, loaded.read(row, 1)?));
            }
        }
        let left = most - u32::try_from(found.len()).unwrap_or(most);
        if left > 0 {
            found.extend(kv::rows(&self.connection, table, owner, (after, left))?);
        }
        Ok(found)
    }

    /// All rows of an owner who has few. Errors: there are more than anybody can have of such.
    pub fn all(&self, table: &'static Table, owner: &str) -> Result<Vec<Row>, OldError> {
        const FEW: u32 = 1_000_000;
        let rows = self.rows(table, owner, (i64::MIN, FEW))?;
        if rows.len() >= FEW as usize {
            return Err(OldError::TooMany(table.name));
        }
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }
}

impl Loaded {
    fn owner(&self) -> Option<&str> {
        self.name_of(self.table.owner())
    }

    /// Its columns, as SQL lists them.
    fn list(&self) -> String {
        self.columns.iter().map(|found| quoted(&found.name)).collect::<Vec<_>>().join(", ")
    }

    /// A row whose columns are those of [`list`](Self::list), from `first` on.
    fn read(&self, row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Row> {
        let cells = self.columns.iter().zip(first..);
        let cells = cells.map(|(found, index)| Ok((found.field, cell(row.get_ref(index)?), found.unit)));
        Ok(Row { table: self.table, cells: cells.collect::<rusqlite::Result<_>>()?, is_entry: false })
    }

    fn name_of(&self, field: Field) -> Option<&str> {
        self.columns.iter().find(|found| found.field == field).map(|found| found.name.as_str())
    }
}

impl Table {
    /// What says whose a row is.
    fn owner(&self) -> Field {
        if self.name == USERS.name { Field::Id } else { Field::Owner }
    }
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Real(number) => Cell::Real(number),
        // What is no text, whatever its column says, stays as it is.
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Cell::Text(text.to_owned()),
            Err(_) => Cell::Bytes(text.to_vec()),
        },
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests;
