//! Sessions by themselves: order, retries, titles, lists, the search, and what is forgotten.

use super::find::{BadCursor, PAGE, list, messages, search};
use super::forget::{KEPT_MS, forget};
use super::history::{history, tokens};
use super::*;
use crate::store::schema::{Durability, Kind, open};
use belay_protocol::dialect::prompt::{Knowledge, Role};
use tempfile::TempDir;

const NOW: u64 = 1_790_000_000_000;
const DAY: u64 = 24 * 60 * 60 * 1000;

fn book() -> (Connection, TempDir) {
    let dir = tempfile::tempdir().expect("made");
    let connection = open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("opened");
    (connection, dir)
}

fn name(text: &str) -> SessionId {
    text.parse().expect("a name")
}

fn addition(id: u8, role: SessionRole, text: &str) -> Addition {
    Addition {
        message_id: MessageId([id; 16]),
        role,
        at_ms: NOW + u64::from(id),
        device: "laptop".parse().expect("a name"),
        request_id: None,
        outcome: Outcome::COMPLETE,
        model: String::new(),
        cost: NanoUsd(i64::from(id)),
        text: text.to_owned(),
    }
}

fn say(connection: &Connection, session: &str, id: u8, text: &str) -> Result<u64, Refusal> {
    let role = if id % 2 == 1 { SessionRole::USER } else { SessionRole::ASSISTANT };
    add(connection, &name(session), &addition(id, role, text), u64::MAX).expect("stored")
}

fn found(connection: &Connection, session: &str) -> Stored {
    find_one(connection, &name(session)).expect("read").expect("there")
}

fn texts(connection: &Connection, session: &str) -> Vec<(u64, String)> {
    let row = found(connection, session).row;
    let all = messages(connection, row, 0).expect("read");
    all.into_iter().map(|message| (message.number, message.added.text)).collect()
}

fn names(connection: &Connection, deleted: bool) -> Vec<String> {
    let page = list(connection, deleted, "", 0).expect("read").expect("the first page");
    page.rows.into_iter().map(|stored| stored.name.into()).collect()
}

fn places(connection: &Connection, words: &str) -> Vec<(String, u64)> {
    let page = search(connection, words, "", 0).expect("read").expect("the first page");
    page.rows.into_iter().map(|hit| (hit.session.name.into(), hit.message)).collect()
}

#[test]
fn messages_stand_in_the_order_in_which_they_came_and_once() {
    let (book, _dir) = book();
    assert_eq!(say(&book, "rome", 1, "Where to?"), Ok(1));
    assert_eq!(say(&book, "rome", 2, "To the Forum."), Ok(2));
    assert_eq!(say(&book, "other", 3, "Another"), Ok(1));
    // Sent again, it is the same message; with another text or elsewhere, it is none.
    assert_eq!(say(&book, "rome", 1, "Where to?"), Ok(1));
    assert_eq!(say(&book, "rome", 1, "Where else?"), Err(Refusal::Conflict));
    assert_eq!(say(&book, "other", 1, "Where to?"), Err(Refusal::Conflict));
    assert_eq!(texts(&book, "rome"), [(1, "Where to?".into()), (2, "To the Forum.".into())]);
    let rome = found(&book, "rome");
    assert_eq!((rome.title.as_str(), rome.messages, rome.cost), ("Where to?", 2, NanoUsd(3)));
    assert_eq!((rome.created_ms, rome.updated_ms), (NOW + 1, NOW + 2));
}

#[test]
fn a_title_is_the_first_question_until_a_person_gives_another() {
    let (book, _dir) = book();
    assert_eq!(say(&book, "s", 2, "An answer comes first"), Ok(1));
    assert_eq!(found(&book, "s").title, "");
    assert_eq!(say(&book, "s", 3, "the first question"), Ok(2));
    assert_eq!(say(&book, "s", 5, "the second question"), Ok(3));
    assert_eq!(found(&book, "s").title, "the first question");
    let rename = |title: &str| {
        let change = Change { title: Some(title.into()), ..Change::default() };
        update(&book, &name("s"), &change, (u64::MAX, NOW + 9)).expect("stored").expect("there").title
    };
    assert_eq!(rename("Mine"), "Mine");
    assert_eq!(say(&book, "s", 7, "the third question"), Ok(4));
    assert_eq!(found(&book, "s").title, "Mine");
    assert_eq!(rename(""), "the first question");
    // One that is named before anything is said in it keeps its name.
    let change = Change { title: Some("Plans".into()), ..Change::default() };
    update(&book, &name("new"), &change, (u64::MAX, NOW)).expect("stored").expect("made");
    assert_eq!(say(&book, "new", 9, "what now?"), Ok(1));
    assert_eq!(found(&book, "new").title, "Plans");
}

#[test]
fn each_part_of_the_context_is_set_alone() {
    let (book, _dir) = book();
    let piece = |text: &str| Knowledge { source: "a.md".into(), relevance: Some(0.5), text: text.into() };
    let change = |change: Change| {
        let stored = update(&book, &name("s"), &change, (u64::MAX, NOW)).expect("stored").expect("there");
        (context(&book, &stored).expect("read"), stored.model)
    };
    let knowledge = vec![piece("one"), piece("two")];
    change(Change { framing: Some("warmly".into()), model: Some("claude".into()), ..Change::default() });
    change(Change { knowledge: Some(knowledge.clone()), ..Change::default() });
    let (context, model) = change(Change { constraints: Some(vec!["short".into()]), ..Change::default() });
    let all = Context { framing: "warmly".into(), knowledge, constraints: vec!["short".into()] };
    assert_eq!((context, model.as_str()), (all, "claude"));
    let (context, model) = change(Change {
        framing: Some(String::new()),
        knowledge: Some(vec![]),
        model: Some(String::new()),
        ..Change::default()
    });
    let rest = Context { constraints: vec!["short".into()], ..Context::default() };
    assert_eq!((context, model.as_str()), (rest, ""));
}

#[test]
fn what_is_deleted_can_be_restored_for_thirty_days() {
    let (book, _dir) = book();
    for (id, session) in [(1, "a"), (3, "b"), (5, "c")] {
        assert_eq!(say(&book, session, id, "hello there"), Ok(1));
    }
    let deed = |session: &str, deed, now_ms| act(&book, &name(session), deed, now_ms).expect("stored");
    assert_eq!(deed("nobody", Deed::Delete, NOW), Err(Refusal::NotFound));
    assert!(deed("a", Deed::Delete, NOW + 10).expect("there").deleted_ms.is_some());
    assert!(deed("b", Deed::Delete, NOW + DAY).expect("there").deleted_ms.is_some());
    // Deleting again does not make it last longer.
    assert_eq!(deed("a", Deed::Delete, NOW + DAY).expect("there").deleted_ms, Some(NOW + 10));
    assert_eq!((names(&book, false), names(&book, true)), (vec!["c".into()], vec!["b".into(), "a".into()]));
    assert_eq!(places(&book, "hello"), [("c".into(), 0), ("c".into(), 1)]);
    assert_eq!(say(&book, "a", 7, "more"), Err(Refusal::Deleted));
    assert_eq!(update(&book, &name("a"), &Change::default(), (u64::MAX, NOW)).expect("read"), Err(Refusal::Deleted));
    assert_eq!(deed("a", Deed::Clear, NOW), Err(Refusal::Deleted));
    assert!(!forget(&book, NOW + 10 + KEPT_MS).expect("done"));
    assert_eq!(deed("a", Deed::Restore, NOW).expect("there").deleted_ms, None);
    assert_eq!(texts(&book, "a"), [(1, "hello there".into())]);
    deed("a", Deed::Delete, NOW + 10).expect("there");
    let late = deed("a", Deed::Restore, NOW + 11 + KEPT_MS);
    assert_eq!(late, Err(Refusal::NotFound), "it may be going already");
    assert!(!forget(&book, NOW + 11 + KEPT_MS).expect("done"));
    assert_eq!(deed("a", Deed::Restore, NOW), Err(Refusal::NotFound), "its time is over");
    assert_eq!(names(&book, true), ["b"]);
    // The name is free again.
    assert_eq!(say(&book, "a", 9, "anew"), Ok(1));
    book.execute_batch("INSERT INTO message_fts (message_fts, rank) VALUES ('integrity-check', 1)").expect("fits");
    book.execute_batch("INSERT INTO session_fts (session_fts, rank) VALUES ('integrity-check', 1)").expect("fits");
}

#[test]
fn what_is_cleared_does_not_come_back_and_its_numbers_do_not_either() {
    let (book, _dir) = book();
    for id in 1..=4 {
        assert_eq!(say(&book, "s", id, &format!("words {id}")), Ok(u64::from(id)));
    }
    let cleared = act(&book, &name("s"), Deed::Clear, NOW + 50).expect("stored").expect("there");
    assert_eq!((cleared.messages, cleared.cost, cleared.title.as_str()), (0, NanoUsd::ZERO, "words 1"));
    assert_eq!(say(&book, "s", 2, "words 2"), Ok(2), "a late repetition");
    assert!(texts(&book, "s").is_empty());
    assert!(places(&book, "words 3").is_empty());
    assert_eq!(say(&book, "s", 5, "words 5"), Ok(5));
    assert!(!forget(&book, NOW + 51 + KEPT_MS).expect("done"));
    let known: i64 = book.query_row("SELECT count(*) FROM cleared", [], |row| row.get(0)).expect("read");
    assert_eq!(known, 0);
}

#[test]
fn large_sessions_are_cleared_in_pieces() {
    let (book, _dir) = book();
    book.execute_batch("BEGIN").expect("begun");
    for number in 0..2 * CLEARED_AT_ONCE + 100 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        let message = Addition { message_id: MessageId(id), ..addition(1, SessionRole::USER, "word") };
        add(&book, &name("s"), &message, u64::MAX).expect("stored").expect("added");
    }
    book.execute_batch("COMMIT").expect("committed");
    let clear = || act(&book, &name("s"), Deed::Clear, NOW + 50).expect("stored").expect("there").messages;
    let most = u64::from(CLEARED_AT_ONCE);
    assert_eq!([clear(), clear(), clear(), clear()], [most + 100, 100, 0, 0]);
    assert!(texts(&book, "s").is_empty());
    let taken: i64 = book.query_row("SELECT bytes FROM session_size", [], |row| row.get(0)).expect("read");
    assert!(taken < 10_000, "{taken} bytes are left");
}

#[test]
fn large_sessions_are_forgotten_in_pieces() {
    let (book, _dir) = book();
    for number in 0..1200_u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        let message = Addition { message_id: MessageId(id), ..addition(1, SessionRole::USER, "word") };
        add(&book, &name("s"), &message, u64::MAX).expect("stored").expect("added");
    }
    act(&book, &name("s"), Deed::Delete, NOW).expect("stored").expect("there");
    let mut calls = 1;
    while forget(&book, NOW + 1 + KEPT_MS).expect("done") {
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert_eq!(find_one(&book, &name("s")).expect("read"), None);
}

#[test]
fn pages_go_on_where_the_one_before_ended() {
    let (book, _dir) = book();
    for id in 1..=250_u8 {
        say(&book, &format!("s{id}"), id, &format!("common text of number{id}")).expect("added");
    }
    let (mut all, mut cursor, mut sizes) = (vec![], String::new(), vec![]);
    loop {
        let page = list(&book, false, &cursor, 0).expect("read").expect("a page");
        sizes.push(page.rows.len());
        all.extend(page.rows.into_iter().map(|stored| String::from(stored.name)));
        cursor = page.next;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [PAGE as usize, 50]);
    assert_eq!(all, (1..=250).rev().map(|id| format!("s{id}")).collect::<Vec<_>>(), "the newest first, each once");
    let (mut hits, mut cursor) = (vec![], String::new());
    loop {
        let page = search(&book, "common", &cursor, 7).expect("read").expect("a page");
        assert!(page.rows.len() <= 7);
        hits.extend(page.rows.into_iter().map(|hit| (String::from(hit.session.name), hit.message)));
        cursor = page.next;
        if cursor.is_empty() {
            break;
        }
    }
    let titles = (1..=250_u8).rev().filter(|id| id % 2 == 1).map(|id| (format!("s{id}"), 0));
    let said = (1..=250_u8).rev().map(|id| (format!("s{id}"), 1));
    assert_eq!(hits, titles.chain(said).collect::<Vec<_>>(), "titles, then what was said, the newest first");
    for cursor in ["x", "1", "1.", ".1", "9.1"] {
        assert_eq!(search(&book, "common", cursor, 1).expect("read"), Err(BadCursor), "{cursor}");
    }
    assert_eq!(list(&book, false, "a.b", 1).expect("read"), Err(BadCursor));
}

#[test]
fn words_are_found_however_they_are_written() {
    let (book, _dir) = book();
    say(&book, "s", 1, "Der Müller mahlt in Zürich; NEAR the \"old\" mill - and AND OR NOT").expect("added");
    say(&book, "t", 2, "nothing of the kind").expect("added");
    for words in ["müller", "MULLER", "zurich", "mahlt zür", "\"old\"", "near", "AND", "mill -", "not ("] {
        assert_eq!(places(&book, words).last(), Some(&("s".into(), 1)), "{words}");
    }
    let many = format!("{} nowhere", "müller ".repeat(32));
    assert_eq!(places(&book, &many).last(), Some(&("s".into(), 1)), "so many words are looked at");
    for words in ["", "  ", "-", "\"", "müller kind", "mül "] {
        assert!(places(&book, words).is_empty(), "{words:?}");
    }
    let page = search(&book, "kind", "", 0).expect("read").expect("a page");
    assert_eq!(page.rows[0].snippet, "nothing of the \u{2}kind\u{3}");
    assert_eq!(places(&book, "mahlt\0zür").last(), Some(&("s".into(), 1)), "a control character is a gap");
}

#[test]
fn long_texts_are_shown_where_they_begin_or_around_the_place() {
    let (book, _dir) = book();
    let around = format!("{} needle {}", "hay ".repeat(100), "straw ".repeat(100));
    say(&book, "s", 2, &around).expect("added");
    // Marking every place in this takes minutes.
    say(&book, "t", 4, &"needle ".repeat(200_000)).expect("added");
    say(&book, "u", 6, &format!("needle {}", "x".repeat(70_000))).expect("added");
    let page = search(&book, "needle", "", 0).expect("read").expect("a page");
    let shown: Vec<&str> = page.rows.iter().map(|hit| hit.snippet.as_str()).collect();
    assert!(shown.iter().all(|snippet| snippet.chars().count() <= 170), "{shown:?}");
    assert!(shown[0].starts_with("needle xxx"), "{}", shown[0]);
    assert!(shown[1].starts_with("needle needle"), "{}", shown[1]);
    assert!(shown[2].starts_with('…') && shown[2].ends_with('…'), "{}", shown[2]);
    assert!(shown[2].contains("hay  \u{2}needle\u{3} straw"), "{}", shown[2]);
}

#[test]
fn what_a_tenant_keeps_is_bounded_and_what_goes_makes_room() {
    let (book, _dir) = book();
    let text = "x".repeat(1000);
    let put = |id, most| add(&book, &name("s"), &addition(id, SessionRole::USER, &text), most).expect("stored");
    let size = || -> i64 { book.query_row("SELECT bytes FROM session_size", [], |row| row.get(0)).expect("read") };
    assert_eq!(put(1, 2000), Ok(1));
    assert_eq!(size(), 2204, "the session with its empty lists, and the message");
    assert_eq!(put(2, 2000), Err(Refusal::Full));
    assert_eq!(put(1, 2000), Ok(1), "what is there already");
    let framed = |framing: &str, most| {
        let change = Change { framing: Some(framing.into()), ..Change::default() };
        update(&book, &name("s"), &change, (most, NOW)).expect("stored").map(|_| ())
    };
    assert_eq!(framed("warmly", 2000), Err(Refusal::Full));
    assert_eq!((framed("warmly", 3000), size()), (Ok(()), 2210));
    assert_eq!((framed("", 2000), size()), (Ok(()), 2204), "less is always taken");
    act(&book, &name("s"), Deed::Clear, NOW).expect("stored").expect("there");
    assert_eq!((size(), put(3, 2000)), (1004, Ok(2)));
    act(&book, &name("s"), Deed::Delete, NOW).expect("stored").expect("there");
    forget(&book, NOW + 1 + KEPT_MS).expect("done");
    // Cleared messages are known for as long as a deleted session.
    forget(&book, NOW + 1 + KEPT_MS).expect("done");
    assert_eq!(size(), 0);
}

#[test]
fn a_context_is_bounded_in_all_its_parts_together() {
    let (book, _dir) = book();
    let half = usize::try_from(MAX_CONTEXT / 2).expect("small");
    let set = |change: Change| update(&book, &name("s"), &change, (u64::MAX, NOW)).expect("stored").map(|_| ());
    assert_eq!(set(Change { framing: Some("x".repeat(half)), ..Change::default() }), Ok(()));
    let more = Change { constraints: Some(vec!["y".repeat(half)]), ..Change::default() };
    assert_eq!(set(more), Err(Refusal::TooLarge(2 * half as u64 + 4)));
    assert_eq!(set(Change { constraints: Some(vec!["short".into()]), ..Change::default() }), Ok(()));
}

#[test]
fn the_oldest_is_left_out_and_a_question_comes_first() {
    let (book, _dir) = book();
    for id in 1..=6 {
        say(&book, "s", id, &"x".repeat(30)).expect("added");
    }
    let each = tokens(&"x".repeat(30));
    assert_eq!(each, 14);
    let read = |room| history(&book, &name("s"), room).expect("read");
    let all = read(6 * each);
    assert_eq!((all.turns.len(), all.left_out), (6, 0));
    assert_eq!(read(6 * each - 1).turns.len(), 4, "without its question an answer is none");
    let four = read(4 * each);
    assert_eq!((four.turns.len(), four.left_out, four.turns[0].role), (4, 2, Role::User));
    let mut shorter = all;
    shorter.shorten(2 * each);
    assert_eq!((shorter.turns.len(), shorter.left_out), (2, 4));
    shorter.shorten(0);
    assert_eq!((shorter.turns.len(), shorter.left_out), (0, 6));
    // What has no word goes nowhere, and is not missed.
    say(&book, "blank", 21, "why?").expect("added");
    say(&book, "blank", 22, "").expect("added");
    say(&book, "blank", 24, " \n").expect("added");
    let blank = history(&book, &name("blank"), 100).expect("read");
    assert_eq!((blank.turns.len(), blank.left_out), (1, 0));
    assert_eq!(history(&book, &name("none"), 100).expect("read"), history::History::default());
    act(&book, &name("s"), Deed::Delete, NOW).expect("stored").expect("there");
    assert_eq!(history(&book, &name("s"), 100).expect("read"), history::History::default());
}
