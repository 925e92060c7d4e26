//! Whatever is changed in a book, verify names it.

use super::*;
use crate::store::ledger::correct::correct;
use crate::store::ledger::credits::grant;
use crate::store::ledger::request as request_rows;
use crate::store::ledger::seal::{EVERY, SealKey, seal};
use belay_transport::env::Random;
use rusqlite::params;
use rusqlite::types::Value;

/// Tables whose every row and column is proven, with what identifies a row.
const PROVEN: [(&str, &str); 10] = [
    ("transfer", "id"),
    ("account", "id"),
    ("terms", "id"),
    ("request", "id"),
    ("credit_grant", "id"),
    ("draw", "request, credit_grant"),
    ("usage_day", "day, device, key, class, provider, model"),
    ("usage_month", "month, device, key, class, provider, model"),
    ("outbox", "number"),
    ("correction", "request"),
];

/// A book with everything in it.
fn eventful() -> Book {
    let book = book(5_000_000);
    grant(&book.connection, NanoUsd(1_500_000), "gift", Some("for testing"), NOW + 1_000_000, NOW).expect("granted");
    held(&book, &request(1));
    settle(&book.connection, &settlement(1, 100, 50)).expect("settled");
    held(&book, &HoldRequest { key: Some("k".into()), ..request(2) });
    void(&book.connection, RequestId([2; 16]), NOW).expect("voided");
    held(&book, &request(3));
    settle(&book.connection, &Settlement { estimated: true, ..settlement(3, 900_000, 6_000_000) }).expect("settled");
    credit(&book.connection, 5_000_000, "again");
    let really = settlement(3, 1_000, 2_000).usage;
    correct(&book.connection, RequestId([3; 16]), &really, NOW + 7).expect("works").expect("corrected");
    grant(&book.connection, NanoUsd(200_000), "second", None, NOW + 1_000_000, NOW).expect("granted");
    held(&book, &request(4));
    book.connection.execute_batch("PRAGMA foreign_keys = OFF").expect("set");
    clean(&book);
    book
}

fn texts(book: &Book, sql: &str) -> Vec<String> {
    let mut statement = book.connection.prepare(sql).expect("prepared");
    let rows = statement.query_map([], |row| row.get(0)).expect("read");
    rows.collect::<Result<_, _>>().expect("text")
}

/// What verify says after `statement`, which is undone. `None`: the database itself refuses it.
fn after(book: &Book, statement: &str) -> Option<Vec<String>> {
    let free = "BEGIN; DROP TRIGGER transfer_no_update; DROP TRIGGER transfer_no_delete;";
    book.connection.execute_batch(free).expect("free");
    let changed = book.connection.execute(statement, []);
    let said = changed.ok().map(|rows| {
        assert_eq!(rows, 1, "{statement}");
        match super::super::verify::verify(&book.connection, None, 0) {
            Ok(report) => report.problems,
            Err(error) => vec![error.to_string()],
        }
    });
    book.connection.execute_batch("ROLLBACK").expect("undone");
    said
}

#[test]
fn every_change_of_every_value_and_every_row_that_is_gone_is_seen() {
    let book = eventful();
    let mut tried = 0;
    for (table, key) in PROVEN {
        let columns = texts(&book, &format!("SELECT name FROM pragma_table_info('{table}')"));
        let count =
            texts(&book, &format!("SELECT cast(count(*) AS text) FROM {table}"))[0].parse::<u32>().expect("number");
        assert!(count > 0, "{table} is empty");
        for row in 0..count {
            let of_row = format!("WHERE ({key}) = (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {row})");
            for column in &columns {
                let value = format!(
                    "CASE typeof({column}) WHEN 'integer' THEN {column} + 1 WHEN 'text' THEN {column} || 'x'
                     WHEN 'blob' THEN cast({column} || x'00' AS blob)
                     ELSE (SELECT CASE type WHEN 'INTEGER' THEN 1 WHEN 'TEXT' THEN 'x' ELSE x'01' END
                           FROM pragma_table_info('{table}') WHERE name = '{column}') END"
                );
                let statement = format!("UPDATE {table} SET {column} = {value} {of_row}");
                let Some(problems) = after(&book, &statement) else { continue };
                assert!(!problems.is_empty(), "not seen: {statement}");
                tried += 1;
                if table == "transfer" && column != "id" {
                    let named = format!("entry {} ", row + 1);
                    assert!(problems[0].contains(&named), "{statement}: {problems:?} does not begin with {named:?}");
                }
            }
            let problems = after(&book, &format!("DELETE FROM {table} {of_row}")).expect("can be deleted");
            assert!(!problems.is_empty(), "a row of {table} that is gone is not seen");
            if table == "transfer" {
                assert!(
                    problems.iter().any(|said| said.contains(&format!("entry {} is missing", row + 1))),
                    "{problems:?}"
                );
            }
        }
    }
    assert!(tried > 200, "{tried}");
    clean(&book);
}

#[test]
fn entries_that_change_places_are_seen_and_the_first_is_named() {
    let book = eventful();
    let last = verify(&book.connection).transfers as i64;
    for one in 1..=last {
        for other in one + 1..=last {
            let free = "BEGIN; DROP TRIGGER transfer_no_update;";
            book.connection.execute_batch(free).expect("free");
            for (from, to) in [(one, -1), (other, one), (-1, other)] {
                book.connection.execute("UPDATE transfer SET id = ?2 WHERE id = ?1", [from, to]).expect("moved");
            }
            let problems = verify(&book.connection).problems;
            assert!(problems[0].contains(&format!("entry {one} ")), "{one} and {other}: {problems:?}");
            book.connection.execute_batch("ROLLBACK").expect("undone");
        }
    }
}

#[test]
fn a_chain_that_was_made_anew_does_not_fit_its_checkpoints() {
    let book = book(0);
    let (tenant, key) = ("acme".parse().expect("name"), SealKey::new(&[7; 32]));
    for number in 0..EVERY {
        credit(&book.connection, 1, &number.to_string());
    }
    for _ in 0..2 {
        assert_eq!(seal(&book.connection, &tenant, &key).expect("sealed"), EVERY);
    }
    let made = "SELECT count(*) FROM checkpoint";
    assert_eq!(book.connection.query_row(made, [], |row| row.get::<_, i64>(0)).expect("counted"), 1);
    let check =
        |key: &SealKey| super::super::verify::verify(&book.connection, Some((&tenant, key)), EVERY).expect("checked");
    assert_eq!((check(&key).problems, check(&key).sealed), (vec![], EVERY as u64));
    let other = check(&SealKey::new(&[8; 32])).problems;
    assert!(other[0].contains("was not made by this relay"), "{other:?}");
    // Somebody writes another amount and chains everything behind it anew.
    let free = "DROP TRIGGER transfer_no_update; UPDATE transfer SET note = 'changed' WHERE id = 5";
    book.connection.execute_batch(free).expect("changed");
    let mut statement = book
        .connection
        .prepare(&format!("SELECT {} FROM transfer ORDER BY id", super::super::chain::COLUMNS))
        .expect("prepared");
    let entries: Vec<_> = statement
        .query_map([], super::super::chain::Posted::read)
        .expect("read")
        .collect::<Result<_, _>>()
        .expect("read");
    let mut hash = super::super::chain::GENESIS;
    for entry in entries {
        hash = entry.hash_after(&hash);
        book.connection.execute("UPDATE transfer SET hash = ?2 WHERE id = ?1", params![entry.id, hash]).expect("set");
    }
    let problems = check(&key).problems;
    assert!(problems[0].contains("the chain was made anew"), "{problems:?}");
    // And takes the checkpoint away that tells of it: who keeps the books knows that there was one.
    drop(statement);
    book.connection.execute("DELETE FROM checkpoint", []).expect("deleted");
    assert_eq!(check(&key).problems, [format!("the checkpoint at entry {EVERY} is missing")]);
}

#[test]
fn prices_that_were_changed_or_change_places_are_seen() {
    let book = eventful();
    let dear = |offer: &Offer| {
        let mut offer = offer.clone();
        offer.price.lines.iter_mut().for_each(|line| line.nano_per_million *= 2);
        offer
    };
    let offers = vec![dear(&request(5).offers[0])];
    held(&book, &HoldRequest { offers, asked_output: Some(10), ..request(5) });
    settle(&book.connection, &settlement(5, 1, 1)).expect("settled");
    clean(&book);
    let text = texts(&book, "SELECT terms FROM terms WHERE id = 1").remove(0).replace("1000000000", "2000000000");
    let forged = request_rows::terms_digest(&text);
    let change = "UPDATE terms SET terms = ?1, digest = ?2 WHERE id = 1";
    book.connection.execute_batch("BEGIN").expect("begun");
    book.connection.execute("DELETE FROM terms WHERE id = 2", []).expect("out of its way");
    book.connection.execute(change, params![text, forged]).expect("changed");
    let problems = verify(&book.connection).problems;
    assert!(problems.iter().any(|problem| problem.contains("what was used costs")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("not the one that its entries prove")), "{problems:?}");
    book.connection.execute_batch("ROLLBACK; BEGIN").expect("undone");
    for (from, to) in [(1, -1), (2, 1), (-1, 2)] {
        book.connection.execute("UPDATE terms SET id = ?2 WHERE id = ?1", [from, to]).expect("moved");
    }
    let problems = verify(&book.connection).problems;
    assert!(problems.iter().any(|problem| problem.contains("not the one that its entries prove")), "{problems:?}");
    book.connection.execute_batch("ROLLBACK").expect("undone");
}

/// Everything that a book says.
fn dump(connection: &Connection) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut all = vec![];
    for (table, key) in PROVEN {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY {key}"))?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect())?;
        all.extend(rows.collect::<Result<Vec<_>, _>>()?);
    }
    Ok(all)
}

#[test]
fn a_bit_that_is_flipped_in_the_file_is_seen_or_says_nothing() {
    let book = eventful();
    let path = book.dir.path().join("t.db");
    book.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("written out");
    let (bytes, sound) = (std::fs::read(&path).expect("read"), dump(&book.connection).expect("read"));
    let seed = u64::from_le_bytes(Random::from_os().bytes());
    let random = Random::from_seed(seed);
    let (mut seen, other) = (0, book.dir.path().join("flipped.db"));
    for _ in 0..400 {
        let mut flipped = bytes.clone();
        let at = usize::try_from(random.below(bytes.len() as u64)).expect("fits");
        flipped[at] ^= 1 << random.below(8);
        std::fs::write(&other, flipped).expect("written");
        let connection = Connection::open(&other).expect("opened");
        let verdict = super::super::verify::verify(&connection, None, 0);
        match (verdict, dump(&connection)) {
            (Ok(report), Ok(dump)) if report.problems.is_empty() => {
                assert!(dump == sound, "seed {seed}: a bit at {at} has changed the book unseen");
            }
            _ => seen += 1,
        }
    }
    assert!(seen > 5, "seed {seed}: {seen}");
}
