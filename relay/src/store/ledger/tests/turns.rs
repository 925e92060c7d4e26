//! What requests leave in a session, whoever ends them.

use super::*;
use crate::store::sessions::find::messages;
use crate::store::sessions::turn::Question;
use crate::store::sessions::{Deed, Refusal, act, find_one};
use belay_protocol::id::SessionId;
use belay_protocol::message::SessionRole;

fn session() -> SessionId {
    "rome".parse().expect("a name")
}

fn asking(id: u8, text: &str) -> HoldRequest {
    HoldRequest { question: Some(Question { session: session(), text: text.into(), most: u64::MAX }), ..request(id) }
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
    let again = settle(&book.connection, &answering(1, "Elsewhere.")).expect("again");
    assert_eq!(again, Settled { is_repeated: true, ..first.clone() });
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

#[test]
fn money_does_not_wait_for_a_conversation() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    // Whatever stands in the way of the messages.
    let id = crate::store::sessions::turn::message_id(RequestId([1; 16]), SessionRole::ASSISTANT);
    book.connection
        .execute(
            "INSERT INTO message (session, number, message_id, role, at_ms, device, outcome, model, cost_nano, text)
             VALUES (1, 99, ?1, 1, 1, 'laptop', 1, '', 0, 'in the way')",
            [id.0],
        )
        .expect("planted");
    let settled = settle(&book.connection, &answering(1, "There.")).expect("settled all the same");
    assert_eq!(settled.end.cost, NanoUsd(150_000));
    clean(&book);
}

#[test]
fn one_that_was_deleted_takes_no_question_but_a_repetition_gets_its_end() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    let first = settle(&book.connection, &answering(1, "There.")).expect("settled");
    act(&book.connection, &session(), Deed::Delete, NOW).expect("stored").expect("there");
    match hold(&book.connection, &asking(1, "Where to?")).expect("works") {
        HoldOutcome::Finished { end, .. } => assert_eq!(end, first.end_bytes),
        other => panic!("not its end: {other:?}"),
    }
    assert_eq!(
        refusal(&book, &asking(2, "And then?")),
        HoldRefusal::Session { name: session(), refusal: Refusal::Deleted }
    );
    act(&book.connection, &session(), Deed::Restore, NOW).expect("stored").expect("there");
    let full =
        HoldRequest { question: Some(Question { session: session(), text: "more".into(), most: 10 }), ..request(3) };
    assert_eq!(refusal(&book, &full), HoldRefusal::Session { name: session(), refusal: Refusal::Full });
}

#[test]
fn a_question_that_never_ran_gives_no_title() {
    let book = book(50_000_000);
    let title = || find_one(&book.connection, &session()).expect("read").expect("begun").title;
    held(&book, &asking(1, "Where to?"));
    assert_eq!(title(), "Where to?");
    void(&book.connection, RequestId([1; 16]), NOW).expect("voided");
    assert_eq!(title(), "");
    held(&book, &asking(2, "When?"));
    settle(&book.connection, &answering(2, "Now.")).expect("settled");
    assert_eq!(title(), "When?");
}

#[test]
fn a_correction_is_seen_in_the_session() {
    let book = book(50_000_000);
    held(&book, &asking(1, "Where to?"));
    let estimated = Settlement { estimated: true, ..answering(1, "There.") };
    let charged = settle(&book.connection, &estimated).expect("settled").end.cost;
    let usage = [UsageLine { kind: UnitKind::INPUT, units: 40 }, UsageLine { kind: UnitKind::OUTPUT, units: 20 }];
    let day_later = NOW + 2 * 86_400_000;
    let corrected = crate::store::ledger::correct::correct(&book.connection, RequestId([1; 16]), &usage, day_later);
    let corrected = corrected.expect("works").expect("was an estimate");
    assert!(corrected.after < charged);
    let stored = find_one(&book.connection, &session()).expect("read").expect("there");
    assert_eq!(stored.cost, corrected.after);
    clean(&book);
}
