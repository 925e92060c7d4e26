//! Content in parts: announced, sent, pinned, let go; the quota.

use super::super::forget::{CHUNK_MS, REVISION_MS, UPLOAD_MS, forget, orphans};
use super::super::push::{Push, Source, push};
use super::super::upload::{begin, expected, stored};
use super::super::*;
use super::{Book, NOW, QUOTA, book, document, revision_of};
use belay_protocol::message::PushOutcome;

fn parts(contents: &[u8]) -> Parts {
    let part = |content: &u8| Part { digest: Digest([*content; 32]), size: 20_000 };
    Parts::new(contents.iter().map(part).collect()).expect("parts")
}

fn store_part(book: &Book, revision: u8, parts: &Parts, place: usize) -> bool {
    let part = parts.all()[place];
    let file = format!("{}-{revision}-{place}", part.digest);
    let chunk = Chunk { part, encoding: Encoding::PLAIN, file };
    stored(&book.connection, revision_of(revision), &chunk, NOW).expect("stored").unwrap_or(false)
}

fn in_parts(number: u8, parent: Option<u8>, key: &str, parts: &Parts) -> Push {
    let source = Source::Upload;
    Push { source, size: parts.size(), digest: parts.digest(), ..document(number, parent, key, Some("")) }
}

#[test]
fn content_in_parts_is_announced_sent_and_pushed() {
    let book = book();
    let list = parts(&[1, 2, 3, 2]);
    let announced = |revision, list: &Parts, now_ms| {
        begin(&book.connection, revision_of(revision), (ItemKind::DOCUMENT, list), QUOTA, now_ms).expect("stored")
    };
    assert_eq!(
        book.push(&in_parts(1, None, "big", &list)),
        Err(Refusal::NotFound("announced content of that revision"))
    );
    assert_eq!(announced(1, &list, NOW), Ok(vec![0, 1, 2]), "the same piece is needed once");
    assert_eq!(used(&book.connection).expect("read"), 60_000 + 4 * 150, "room is set aside");
    assert_eq!(announced(1, &parts(&[9, 8]), NOW), Err(Refusal::Conflict));
    assert!(store_part(&book, 1, &list, 0) && store_part(&book, 1, &list, 1));
    assert_eq!(announced(1, &list, NOW), Ok(vec![2]), "what is there is not asked for again");
    assert_eq!(book.push(&in_parts(1, None, "big", &list)), Err(Refusal::Incomplete(1)));
    assert_eq!(expected(&book.connection, revision_of(1), 0).expect("read"), Ok((list.all()[0], true)));
    assert_eq!(expected(&book.connection, revision_of(1), 2).expect("read"), Ok((list.all()[2], false)));
    assert!(expected(&book.connection, revision_of(1), 4).expect("read").is_err());
    assert!(expected(&book.connection, revision_of(2), 0).expect("read").is_err());
    assert!(store_part(&book, 1, &list, 2));
    assert_eq!(book.push(&Push { size: 5, ..in_parts(1, None, "big", &list) }), Err(Refusal::Mismatch));
    assert_eq!(book.outcome(&in_parts(1, None, "big", &list)), PushOutcome::ACCEPTED);
    assert_eq!(announced(1, &list, NOW), Ok(vec![]), "whoever has not heard of it sends nothing");
    assert!(!store_part(&book, 1, &list, 2), "nobody waits for it");
    book.check();
    // Another item with the same pieces sends nothing, and takes no room but its row's.
    let before = used(&book.connection).expect("read");
    assert_eq!(announced(2, &list, NOW), Ok(vec![]));
    assert_eq!(book.outcome(&in_parts(2, None, "copy", &list)), PushOutcome::ACCEPTED);
    assert!(used(&book.connection).expect("read") - before < 1000, "a row");
    book.check();
}

#[test]
fn pieces_that_nothing_has_go_after_a_while_and_pinned_ones_stay() {
    let book = book();
    let (list, other) = (parts(&[1, 2]), parts(&[2, 3]));
    let announce = |revision, list: &Parts, now_ms| {
        begin(&book.connection, revision_of(revision), (ItemKind::DOCUMENT, list), QUOTA, now_ms).expect("stored")
    };
    announce(1, &list, NOW).expect("announced");
    assert!(store_part(&book, 1, &list, 0) && store_part(&book, 1, &list, 1));
    book.push(&in_parts(1, None, "big", &list)).expect("pushed");
    book.push(&document(2, Some(1), "big", Some("small"))).expect("pushed");
    let later = NOW + REVISION_MS + 1;
    assert_eq!(forget(&book.connection, later).expect("forgotten").files, Vec::<String>::new(), "not at once");
    // Somebody is told that piece 2 is there, and is about to push it.
    assert_eq!(announce(3, &other, later), Ok(vec![1]));
    let gone = forget(&book.connection, later + CHUNK_MS + 1).expect("forgotten").files;
    assert_eq!(gone, [format!("{}-1-0", Digest([1; 32]))]);
    assert_eq!(announce(3, &other, later + CHUNK_MS + 1), Ok(vec![1]));
    // Nobody has sent anything for a day.
    forget(&book.connection, later + CHUNK_MS + UPLOAD_MS + 2).expect("forgotten");
    let left = forget(&book.connection, later + CHUNK_MS + UPLOAD_MS + 2).expect("forgotten");
    assert!(expected(&book.connection, revision_of(3), 0).expect("read").is_err());
    assert_eq!(left.files.len() + usize::from(chunk(&book.connection, Digest([2; 32])).expect("read").is_some()), 0);
    let names = ["known".to_owned(), "orphan".to_owned()];
    let known = Chunk { part: other.all()[1], encoding: Encoding::PLAIN, file: "known".into() };
    announce(4, &other, later).expect("announced");
    assert_eq!(stored(&book.connection, revision_of(4), &known, NOW).expect("stored"), Ok(true));
    assert_eq!(orphans(&book.connection, &names).expect("read"), ["orphan"]);
    book.check();
}

#[test]
fn a_quota_is_kept_with_what_is_on_its_way() {
    let book = book();
    let quota = 50_000;
    let announce = |revision, list: &Parts| {
        begin(&book.connection, revision_of(revision), (ItemKind::DOCUMENT, list), quota, NOW).expect("stored")
    };
    announce(1, &parts(&[1, 2])).expect("there is room");
    assert_eq!(announce(2, &parts(&[3, 4])), Err(Refusal::Full { wanted: 80_600, quota }));
    let small = document(3, None, "a", Some(&"x".repeat(9_600)));
    assert_eq!(push(&book.connection, &small, quota).expect("stored"), Err(Refusal::Full { wanted: 50_400, quota }));
    let small = document(4, None, "a", Some(&"x".repeat(9_000)));
    assert!(push(&book.connection, &small, quota).expect("stored").is_ok());
    // There is always room to delete.
    assert!(push(&book.connection, &document(5, Some(4), "a", None), 0).expect("stored").is_ok());
}

#[test]
fn so_many_contents_are_on_their_way_at_once() {
    let book = book();
    let announce = |number: u8, now_ms| {
        let name = RevisionId([number; 16]);
        begin(&book.connection, name, (ItemKind::DOCUMENT, &parts(&[1, 2])), QUOTA, now_ms).expect("stored")
    };
    for number in 0..200 {
        announce(number, NOW).expect("there is room");
    }
    assert_eq!(announce(200, NOW), Err(Refusal::TooMany("contents on their way", 200)));
    assert!(announce(7, NOW).is_ok(), "one of them again");
    forget(&book.connection, NOW + UPLOAD_MS + 1).expect("forgotten");
    assert!(announce(200, NOW + UPLOAD_MS + 1).is_ok(), "those that nobody goes on with make room");
}
