//! What requests leave in a session, whoever ends them.

use super::*;
use crate::store::sessions::find::messages;
use crate::store::sessions::turn::Question;
use crate::store::sessions::{Deed, act, find_one};
use belay_protocol::id::SessionId;
use belay_protocol::message::SessionRole;

fn session() -> SessionId {
    "rome".parse().expect("a name")
}

fn asking(id: u8, text: &str) -> HoldRequest {
    HoldRequest { question: Some(Question { session: session(), text: text.into() }), ..request(id) }
}

fn answering(id: u8, text: &str) -> Settlement {
    Settlement { answer: text.into(), ..settlement(id, 100, 50) }
}

/// Number, role, text and outcome of each message.
fn said(book: &Book) -> Vec<(u64, SessionRole, String, Outcome)> {
    let Some(stored) = find_one(&book.connection, &session()).expect("read") else { return vec![] };
    let all = messages(&book.connection, stored.row, 0).expect("read");
    assert_eq!(stored.messages, all.len() as u64);
    let shown = |message: crate::store::sessions::Message| {
        (message.number, message.added.role, message.added.text, message.added.outcome)
    };
    all.into_iter().map(shown).collect()
}

fn pair(first: u64, question: &str, answer: &str, outcome: Outcome) -> [(u64, SessionRole, String, Outcome); 2] {
    [
        (first, SessionRole::USER, question.into(), Outcome::COMPLETE),
        (first + 1, SessionRole::ASSISTANT, answer.into(), outcome),
    ]
}

#[test]
fn a_settlement_leaves_question_and_answer_once() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    assert!(said(&book).is_empty(), "nothing before the end");
    let stored = find_one(&book.connection, &session()).expect("read").expect("begun");
    assert_eq!((stored.title.as_str(), stored.messages), ("Where to?", 0));
    let first = settle(&book.connection, &answering(1, "To the Forum.")).expect("settled");
    assert_eq!(settle(&book.connection, &answering(1, "Elsewhere.")).expect("again"), first);
    assert_eq!(said(&book), pair(1, "Where to?", "To the Forum.", Outcome::COMPLETE));
    let stored = find_one(&book.connection, &session()).expect("read").expect("there");
    assert_eq!(stored.cost, first.end.cost);
    let answer = messages(&book.connection, stored.row, 1).expect("read").remove(0).added;
    assert_eq!(
        (answer.model.as_str(), answer.cost, answer.request_id),
        ("p/m", first.end.cost, Some(RequestId([1; 16])))
    );
    clean(&book);
}

#[test]
fn two_that_run_at_once_stand_in_the_order_of_their_ends() {
    let book = book(50_000_000);
    held(&book, &asking(1, "first"));
    held(&book, &asking(2, "second"));
    settle(&book.connection, &answering(2, "b")).expect("settled");
    settle(&book.connection, &answering(1, "a")).expect("settled");
    let wanted = [pair(1, "second", "b", Outcome::COMPLETE), pair(3, "first", "a", Outcome::COMPLETE)].concat();
    assert_eq!(said(&book), wanted);
}

#[test]
fn what_never_ran_leaves_nothing_and_may_run_again() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    void(&book.connection, RequestId([1; 16]), NOW).expect("voided");
    assert!(said(&book).is_empty());
    held(&book, &asking(1, "Where to?"));
    settle(&book.connection, &answering(1, "There.")).expect("settled");
    assert_eq!(said(&book), pair(1, "Where to?", "There.", Outcome::COMPLETE));
}

#[test]
fn after_a_death_the_question_is_there_and_the_answer_marked() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    recover(&book.connection, &boot("m1", "p2"), None, NOW + 9).expect("recovered");
    assert_eq!(said(&book), pair(1, "Where to?", "", Outcome::RELAY_DIED));
    clean(&book);
}

#[test]
fn one_that_is_deleted_meanwhile_has_the_answer_when_it_is_back() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    act(&book.connection, &session(), Deed::Delete, NOW).expect("stored").expect("there");
    settle(&book.connection, &answering(1, "There.")).expect("settled");
    act(&book.connection, &session(), Deed::Restore, NOW + 9).expect("stored").expect("there");
    assert_eq!(said(&book), pair(1, "Where to?", "There.", Outcome::COMPLETE));
}
