//! Commands, and group commit: those that wait for one database share a transaction.
//!
//! One that fails takes no neighbour with it: if it had written something, which is rare, the transaction is undone and run
//! again with a savepoint per command (savepoints for all would copy every page that a command writes to). Replies leave
//! after the commit. If the commit fails the outcome is unknown: the connection is dropped, everyone in the group is told
//! so, and the next command opens the file anew.

use super::{StoreError, schema};
use rusqlite::Connection;
use std::time::Duration;
use tokio::sync::oneshot;

/// Commands that share a transaction.
pub(super) type Group = Vec<Box<dyn Command>>;

/// Whether they are kept. `Err((error, broken))`: nothing is known to be kept; `broken` says that the connection must not be
/// used again.
pub(super) type Committed = Result<(), (StoreError, bool)>;

/// The most commands that share a commit.
pub(super) const MAX_BATCH: usize = 256;

/// A command for one database, waiting for its commit.
pub(super) trait Command: Send {
    /// Runs inside the transaction, and again if that had to be undone. `Err`: undo what it wrote.
    fn apply(&mut self, connection: &Connection) -> Result<(), ()>;
    /// Tells the caller, after the commit or its failure.
    fn reply(self: Box<Self>, committed: Result<(), StoreError>);
}

pub(super) struct Typed<T, E, F> {
    pub(super) run: F,
    pub(super) result: Option<Result<T, E>>,
    pub(super) sender: Option<oneshot::Sender<Result<T, E>>>,
}

impl<T, E, F> Command for Typed<T, E, F>
where
    T: Send,
    E: From<StoreError> + Send,
    F: FnMut(&Connection) -> Result<T, E> + Send,
{
    fn apply(&mut self, connection: &Connection) -> Result<(), ()> {
        let result = (self.run)(connection);
        let applied = result.as_ref().map(|_| ()).map_err(|_| ());
        self.result = Some(result);
        applied
    }

    fn reply(mut self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (committed, self.result.take()) {
            (Ok(()), Some(result)) => result,
            // A refusal stands whether or not its neighbours' commit did.
            (Err(_), Some(Err(refusal))) => Err(refusal),
            (Err(error), _) => Err(error.into()),
            (Ok(()), None) => Err(StoreError::Closed.into()),
        };
        if let Some(sender) = self.sender.take() {
            // The caller may have gone; the commit stands all the same.
            let _ = sender.send(result);
        }
    }
}

/// Runs a group in one transaction, and with it what `more` has come meanwhile: a commit is dear, and
/// whoever comes a moment later would have to wait for the next.
pub(super) fn transact(connection: &Connection, group: &mut Group, more: impl FnMut() -> Group) -> Committed {
    run(connection, "BEGIN IMMEDIATE").map_err(failed)?;
    transact_begun(connection, group, more)
}

/// The same for one command, without waiting for anybody: it comes back where another connection writes just now.
pub(super) fn transact_at_once(
    connection: &Connection,
    command: Box<dyn Command>,
) -> Result<(Group, Committed), Box<dyn Command>> {
    let begun = connection.busy_timeout(Duration::ZERO).and_then(|()| run(connection, "BEGIN IMMEDIATE"));
    let mut group = vec![command];
    let committed = begun.map(|()| transact_begun(connection, &mut group, Vec::new));
    // It can be set for as long as the connection is of any use.
    let _ = connection.busy_timeout(schema::BUSY);
    match committed {
        Ok(committed) => Ok((group, committed)),
        Err(_) => Err(group.remove(0)),
    }
}

/// Runs a group in the transaction that has been begun.
fn transact_begun(connection: &Connection, group: &mut Group, mut more: impl FnMut() -> Group) -> Committed {
    let mut done = 0;
    while done < group.len() {
        for command in &mut group[done..] {
            let before = connection.total_changes();
            let is_refused = command.apply(connection).is_err();
            still_open(connection)?;
            if is_refused && connection.total_changes() != before {
                run(connection, "ROLLBACK").map_err(failed)?;
                return transact_apart(connection, group);
            }
        }
        done = group.len();
        if done < MAX_BATCH {
            group.extend(more());
        }
    }
    run(connection, "COMMIT").map_err(unknown)
}

/// The same for commands of which one has to be undone alone.
fn transact_apart(connection: &Connection, group: &mut [Box<dyn Command>]) -> Committed {
    run(connection, "BEGIN IMMEDIATE").map_err(failed)?;
    for command in group {
        run(connection, "SAVEPOINT command").map_err(failed)?;
        let is_refused = command.apply(connection).is_err();
        still_open(connection)?;
        if is_refused {
            run(connection, "ROLLBACK TO command").map_err(failed)?;
        }
        run(connection, "RELEASE command").map_err(failed)?;
    }
    run(connection, "COMMIT").map_err(unknown)
}

/// Errors: SQLite has undone the whole transaction by itself, as it does when the disk fails or is full. Whatever came
/// next would be durable statement by statement.
fn still_open(connection: &Connection) -> Committed {
    if !connection.is_autocommit() {
        return Ok(());
    }
    let why = "the disk failed or is full, and the transaction was undone".to_owned();
    Err((StoreError::Failed { operation: "write", why }, true))
}

fn run(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(|_| ())
}

fn failed(error: rusqlite::Error) -> (StoreError, bool) {
    (StoreError::Failed { operation: "begin", why: error.to_string() }, true)
}

fn unknown(error: rusqlite::Error) -> (StoreError, bool) {
    (StoreError::Unknown { why: error.to_string() }, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::{self, Durability, Kind};
    use crate::store::testing::{count, put};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn only_what_has_written_before_it_failed_makes_others_run_again() {
        let dir = tempfile::tempdir().expect("made");
        let connection = schema::open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
        let runs: Arc<[AtomicU64; 3]> = Arc::default();
        let counted = |at: usize, command: fn(&Connection) -> Result<(), StoreError>| -> Box<dyn Command> {
            let runs = Arc::clone(&runs);
            let run = move |connection: &Connection| {
                runs[at].fetch_add(1, Ordering::Relaxed);
                command(connection)
            };
            Box::new(Typed { run, result: None, sender: None })
        };
        let told = || runs.iter().map(|runs| runs.swap(0, Ordering::Relaxed)).collect::<Vec<_>>();
        let refuse = |_: &Connection| Err(StoreError::Closed);
        let mut group = vec![counted(0, |on| put("a")(on)), counted(1, refuse), counted(2, |on| put("b")(on))];
        transact(&connection, &mut group, Vec::new).expect("committed");
        assert_eq!((told(), count(&connection).expect("counted")), (vec![1, 1, 1], 2));
        let twice = |on: &Connection| put("d")(on).and_then(|()| put("d")(on));
        let mut group = vec![counted(0, |on| put("c")(on)), counted(1, twice)];
        let mut late = vec![counted(2, |on| put("e")(on))];
        transact(&connection, &mut group, || std::mem::take(&mut late)).expect("committed");
        assert_eq!((told(), count(&connection).expect("counted")), (vec![2, 2, 0], 3));
        // Who came meanwhile was not asked for yet, and waits for the next transaction.
        assert_eq!(late.len(), 1);
    }

    #[test]
    fn where_the_disk_undoes_a_transaction_nothing_of_the_group_is_kept() {
        let dir = tempfile::tempdir().expect("made");
        let connection = schema::open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
        let command = |run: fn(&Connection) -> Result<(), StoreError>| -> Box<dyn Command> {
            Box::new(Typed { run, result: None, sender: None })
        };
        // What SQLite does by itself where a page cannot be written; the command may not even notice.
        let undone = |on: &Connection| Ok(on.execute_batch("ROLLBACK")?);
        let unnoticed: fn(&Connection) -> Result<(), StoreError> = undone;
        let noticed =
            |on: &Connection| on.execute_batch("ROLLBACK").map_err(StoreError::from).and(Err(StoreError::Closed));
        for fault in [unnoticed, noticed] {
            let mut group = vec![command(|on| put("a")(on)), command(fault), command(|on| put("b")(on))];
            let (error, is_broken) = transact(&connection, &mut group, Vec::new).expect_err("undone");
            assert!(is_broken && error.may_pass(), "{error}");
            assert_eq!(count(&connection).expect("counted"), 0);
            let (_, is_broken) = transact_apart(&connection, &mut group).expect_err("undone");
            assert!(is_broken);
            assert_eq!(count(&connection).expect("counted"), 0);
        }
    }
}
