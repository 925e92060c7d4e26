//! Pushes, conflicts, the feed, what is forgotten, locks.

mod parts;

use super::feed::{here, page};
use super::forget::{REVISION_MS, TOMBSTONE_MS, forget};
use super::lock::{LASTS_MS, lock, unlock};
use super::log::{log, status};
use super::push::{Push, Pushed, Source, push};
use super::*;
use crate::store::schema::{self, Durability, Kind};
use crate::store::sessions::{self, Addition, Deed};
use belay_protocol::id::{LockToken, MessageId};
use belay_protocol::message::{Outcome, PushOutcome, Resync, RevisionState, SessionRole};
use belay_protocol::money::NanoUsd;

const NOW: u64 = 1_795_392_000_000;
const QUOTA: u64 = 1 << 30;

struct Book {
    connection: Connection,
    _dir: tempfile::TempDir,
}

fn book() -> Book {
    let dir = tempfile::tempdir().expect("made");
    let connection = schema::open(&dir.path().join("t.db"), Kind::Tenant, Durability::None).expect("made");
    Book { connection, _dir: dir }
}

fn revision_of(number: u8) -> RevisionId {
    RevisionId([number; 16])
}

/// A push of a text, or of a deletion.
fn text(number: u8, parent: Option<u8>, kind: ItemKind, key: &str, content: Option<&str>) -> Push {
    let bytes = content.unwrap_or_default().as_bytes().to_vec();
    Push {
        revision: revision_of(number),
        parent: parent.map(revision_of),
        kind,
        key: key.parse().expect("a key"),
        size: bytes.len() as u64,
        digest: content.map_or(Digest([0; 32]), |_| Digest::of(&bytes)),
        source: if content.is_some() { Source::Inline(bytes) } else { Source::None },
        modified_ms: NOW - 5,
        meta: String::new(),
        device: format!("device-{}", number % 2).parse().expect("name"),
        at_ms: NOW,
        push: Digest([number; 32]),
    }
}

fn document(number: u8, parent: Option<u8>, key: &str, content: Option<&str>) -> Push {
    text(number, parent, ItemKind::DOCUMENT, key, content)
}

impl Book {
    fn push(&self, one: &Push) -> Result<Pushed, Refusal> {
        push(&self.connection, one, QUOTA).expect("stored")
    }

    fn outcome(&self, one: &Push) -> PushOutcome {
        self.push(one).expect("pushed").outcome
    }

    /// Keys and contents of what is not deleted.
    fn live(&self) -> Vec<(String, String)> {
        let changes = page(&self.connection, "", 0).expect("read").changes.into_iter();
        let live = changes.filter(|change| change.content != SyncContent::NONE);
        let mut live: Vec<_> =
            live.map(|change| (change.key, String::from_utf8(change.inline).expect("text"))).collect();
        live.sort();
        live
    }

    /// References are what revisions have, and sizes what there is.
    fn check(&self) {
        let mut refs = std::collections::HashMap::<Vec<u8>, i64>::new();
        let mut statement =
            self.connection.prepare("SELECT parts FROM sync_revision WHERE parts IS NOT NULL").expect("sql");
        for list in statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).expect("read") {
            for part in Parts::from_bytes(&list.expect("read")).expect("parts").all() {
                *refs.entry(part.digest.0.to_vec()).or_default() += 1;
            }
        }
        let mut statement = self.connection.prepare("SELECT hash, refs, idle_ms IS NULL FROM blob_chunk").expect("sql");
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?)));
        for row in rows.expect("read") {
            let (hash, count, in_use) = row.expect("read");
            assert_eq!(refs.remove(&hash).unwrap_or(0), count);
            assert_eq!(in_use, count > 0);
        }
        assert!(refs.is_empty(), "a revision has pieces that are not there");
        let sql = "SELECT (SELECT ifnull(sum(500 + ifnull(octet_length(inline), 0) + ifnull(octet_length(parts), 0)
                              + octet_length(meta)), 0) FROM sync_revision)
                          + (SELECT ifnull(sum(size + 1000), 0) FROM blob_chunk)";
        let size: i64 = self.connection.query_row(sql, [], |row| row.get(0)).expect("read");
        let kept: i64 = self.connection.query_row("SELECT bytes FROM sync_size", [], |row| row.get(0)).expect("read");
        assert_eq!(size, kept);
    }
}

#[test]
fn a_push_from_the_newest_revision_is_accepted_and_the_same_again_is_told_the_same() {
    let book = book();
    let first = document(1, None, "a.md", Some("one"));
    let told = book.push(&first).expect("pushed");
    assert_eq!(told, Pushed { outcome: PushOutcome::ACCEPTED, head: revision_of(1), number: 1, copy: None });
    assert_eq!(book.push(&first), Ok(told));
    assert_eq!(book.outcome(&document(2, Some(1), "a.md", Some("two"))), PushOutcome::ACCEPTED);
    // The head has moved on; what became of the first has not.
    let again = book.push(&first).expect("pushed");
    assert_eq!((again.outcome, again.head, again.number), (PushOutcome::ACCEPTED, revision_of(2), 1));
    let other = Push { push: Digest([9; 32]), ..first };
    assert_eq!(book.push(&other), Err(Refusal::Conflict));
    let same = book.push(&document(3, Some(1), "a.md", Some("two"))).expect("pushed");
    assert_eq!((same.outcome, same.head, same.number), (PushOutcome::SAME, revision_of(2), 0));
    assert_eq!(book.live(), [("a.md".to_owned(), "two".to_owned())]);
    book.check();
}

#[test]
fn a_stale_parent_never_overwrites() {
    let book = book();
    book.push(&document(1, None, "n/a.md", Some("one"))).expect("pushed");
    book.push(&document(2, Some(1), "n/a.md", Some("two"))).expect("pushed");
    let stale = document(3, Some(1), "n/a.md", Some("three"));
    let told = book.push(&stale).expect("pushed");
    let copy = "n/a (conflict device-1 2026-11-23).md";
    assert_eq!((told.outcome, told.head), (PushOutcome::CONFLICT, revision_of(2)));
    assert_eq!(told.copy.as_ref().map(ItemKey::as_str), Some(copy));
    assert_eq!(book.push(&stale), Ok(told), "and the same again");
    // Another one on the same day, by the same device.
    let told = book.push(&document(5, Some(1), "n/a.md", Some("five"))).expect("pushed");
    assert_eq!(told.copy.as_ref().map(ItemKey::as_str), Some("n/a (conflict device-1 2026-11-23 2).md"));
    let live = book.live();
    assert_eq!(live.len(), 3);
    assert!(live.contains(&(copy.to_owned(), "three".to_owned())), "{live:?}");
    let feed = page(&book.connection, "", 0).expect("read").changes;
    assert_eq!(feed.iter().filter(|change| change.conflict_of == "n/a.md").count(), 2);
    let status = status(&book.connection).expect("read");
    assert_eq!((status[0].items, status[0].conflicts, status[0].bytes), (3, 2, 12));
}

#[test]
fn an_edit_beats_a_deletion_whoever_comes_first() {
    let book = book();
    book.push(&document(1, None, "a", Some("one"))).expect("pushed");
    book.push(&document(2, Some(1), "a", Some("two"))).expect("pushed");
    let kept = book.push(&document(3, Some(1), "a", None)).expect("pushed");
    assert_eq!((kept.outcome, kept.head, kept.number), (PushOutcome::KEPT, revision_of(2), 0));
    book.push(&document(4, Some(2), "a", None)).expect("pushed");
    assert_eq!(book.live(), []);
    let edit = book.push(&document(5, Some(2), "a", Some("five"))).expect("pushed");
    assert_eq!(edit.outcome, PushOutcome::ACCEPTED);
    assert_eq!(book.live(), [("a".to_owned(), "five".to_owned())]);
    // Deleting what is gone, and what never was.
    book.push(&document(6, Some(5), "a", None)).expect("pushed");
    assert_eq!(book.outcome(&document(7, Some(5), "a", None)), PushOutcome::SAME);
    assert_eq!(book.outcome(&document(8, None, "never", None)), PushOutcome::SAME);
}

#[test]
fn settings_merge_per_key_and_the_other_value_is_in_the_log() {
    let book = book();
    let setting = |number, parent, key, value| text(number, parent, ItemKind::SETTING, key, Some(value));
    book.push(&setting(1, None, "theme", "\"light\"")).expect("pushed");
    book.push(&setting(2, Some(1), "theme", "\"dark\"")).expect("pushed");
    assert_eq!(book.outcome(&setting(3, None, "font", "12")), PushOutcome::ACCEPTED);
    let before = here(&book.connection).expect("read");
    let told = book.push(&setting(5, Some(1), "theme", "\"blue\"")).expect("pushed");
    assert_eq!((told.outcome, told.head, told.copy), (PushOutcome::CONFLICT, revision_of(2), None));
    let feed = page(&book.connection, &before, 0).expect("read").changes;
    assert_eq!((feed.len(), feed[0].revision), (1, revision_of(2)), "whoever shows the log is told");
    let log = log(&book.connection, ItemKind::SETTING, "theme").expect("read").expect("there");
    let states: Vec<_> = log.iter().map(|row| (row.revision, row.state)).collect();
    let wanted = [(5, RevisionState::CONFLICT), (2, RevisionState::CURRENT), (1, RevisionState::REPLACED)];
    assert_eq!(states, wanted.map(|(number, state)| (revision_of(number), state)));
    let back = Push { source: Source::Earlier(revision_of(5)), ..setting(6, Some(2), "theme", "") };
    assert_eq!(book.outcome(&back), PushOutcome::ACCEPTED);
    assert!(book.live().contains(&("theme".into(), "\"blue\"".into())));
    let elsewhere = Push { source: Source::Earlier(revision_of(5)), ..setting(7, Some(3), "font", "") };
    assert!(matches!(book.push(&elsewhere), Err(Refusal::NotFound(_))), "a revision of another item");
}

#[test]
fn the_feed_is_each_item_once_in_the_order_of_its_last_change() {
    let book = book();
    for number in 1..=5 {
        book.push(&document(number, None, &format!("f{number}"), Some("x"))).expect("pushed");
    }
    book.push(&document(6, Some(2), "f2", Some("y"))).expect("pushed");
    let first = page(&book.connection, "", 2).expect("read");
    assert_eq!((first.changes.len(), first.has_more, first.resync), (2, true, Resync::NO));
    let mut keys: Vec<_> = first.changes.iter().map(|change| change.key.clone()).collect();
    let mut cursor = first.cursor;
    loop {
        let next = page(&book.connection, &cursor, 2).expect("read");
        keys.extend(next.changes.iter().map(|change| change.key.clone()));
        cursor = next.cursor;
        if !next.has_more {
            break;
        }
    }
    assert_eq!(keys, ["f1", "f3", "f4", "f5", "f2"]);
    assert_eq!(cursor, here(&book.connection).expect("read"));
    assert!(page(&book.connection, &cursor, 0).expect("read").changes.is_empty());
    let epoch = cursor.split('-').next().expect("an epoch").to_owned();
    let of_ours =
        ["999-0-0", "2", "-1-0-0-0", "2-0-999", "2-1-0", "x-0-0", "2-x-0", ""].map(|rest| format!("{epoch}-{rest}"));
    for nowhere in of_ours.into_iter().chain(["9-1-0", "x"].map(str::to_owned)) {
        let anew = page(&book.connection, &nowhere, 0).expect("read");
        assert_eq!((anew.resync, anew.changes.len()), (Resync::OTHER_EPOCH, 5), "{nowhere}");
    }
    book.connection.execute("UPDATE tenant SET epoch = 2", []).expect("set");
    assert_eq!(page(&book.connection, &cursor, 0).expect("read").resync, Resync::OTHER_EPOCH);
    // A file that was restored and has gone on, and whoever restored it has told nobody.
    book.connection.execute("UPDATE tenant SET epoch = 1", []).expect("set");
    book.connection.execute("UPDATE sync_change SET nonce = nonce + 1", []).expect("set");
    assert_eq!(page(&book.connection, &cursor, 0).expect("read").resync, Resync::OTHER_EPOCH);
    // A page ends by bytes, too.
    let before = here(&book.connection).expect("read");
    let large = "z".repeat(30_000);
    for number in 10..60 {
        book.push(&document(number, None, &format!("g{number}"), Some(&large))).expect("pushed");
    }
    let some = page(&book.connection, &before, 0).expect("read");
    assert!(some.has_more && some.changes.len() < 50);
}

#[test]
fn tombstones_are_told_for_180_days_and_then_a_reader_begins_anew() {
    let book = book();
    book.push(&document(1, None, "a", Some("one"))).expect("pushed");
    let before = here(&book.connection).expect("read");
    book.push(&document(2, Some(1), "a", None)).expect("pushed");
    book.push(&document(3, None, "b", Some("b"))).expect("pushed");
    forget(&book.connection, NOW + TOMBSTONE_MS - 1).expect("forgotten");
    let told = page(&book.connection, &before, 0).expect("read");
    assert_eq!((told.resync, told.changes[0].content), (Resync::NO, SyncContent::NONE));
    forget(&book.connection, NOW + TOMBSTONE_MS + 1).expect("forgotten");
    let anew = page(&book.connection, &before, 1).expect("read");
    assert_eq!((anew.resync, anew.changes.len(), anew.changes[0].key.as_str()), (Resync::TOO_OLD, 1, "b"));
    // Whoever begins then reads on to the end, though what was forgotten is above where he stands.
    book.push(&document(4, None, "c", Some("c"))).expect("pushed");
    let first = page(&book.connection, "", 1).expect("read");
    assert!(first.has_more);
    let second = page(&book.connection, &first.cursor, 1).expect("read");
    assert_eq!((second.resync, second.changes[0].key.as_str()), (Resync::NO, "c"));
    book.check();
}

#[test]
fn what_was_replaced_is_kept_for_30_days() {
    let book = book();
    book.push(&document(1, None, "a", Some("one"))).expect("pushed");
    book.push(&document(2, Some(1), "a", Some("two"))).expect("pushed");
    forget(&book.connection, NOW + REVISION_MS - 1).expect("forgotten");
    assert_eq!(log(&book.connection, ItemKind::DOCUMENT, "a").expect("read").expect("there").len(), 2);
    forget(&book.connection, NOW + REVISION_MS + 1).expect("forgotten");
    let left = log(&book.connection, ItemKind::DOCUMENT, "a").expect("read").expect("there");
    assert_eq!((left.len(), left[0].revision), (1, revision_of(2)));
    assert_eq!(log(&book.connection, ItemKind::DOCUMENT, "never").expect("read"), None);
    book.check();
}

#[test]
fn conversations_are_in_the_feed() {
    let book = book();
    let name = "trip".parse().expect("a name");
    let say = |number: u8, text: &str| {
        let addition = Addition {
            message_id: MessageId([number; 16]),
            role: SessionRole::USER,
            at_ms: NOW,
            device: "laptop".parse().expect("name"),
            request_id: None,
            outcome: Outcome::COMPLETE,
            model: String::new(),
            cost: NanoUsd::ZERO,
            text: text.into(),
        };
        sessions::add(&book.connection, &name, &addition, QUOTA).expect("stored").expect("added");
    };
    let news = |cursor: &str| page(&book.connection, cursor, 0).expect("read");
    say(1, "Where to?");
    let first = news("");
    assert_eq!((first.changes.len(), first.changes[0].kind, first.changes[0].size), (1, ItemKind::HISTORY, 1));
    assert_eq!(first.changes[0].content, SyncContent::PARTS);
    say(1, "Where to?");
    assert!(news(&first.cursor).changes.is_empty(), "the same message is no change");
    say(2, "To Rome.");
    let second = news(&first.cursor);
    assert_eq!((second.changes.len(), second.changes[0].size), (1, 2));
    assert_ne!(second.changes[0].revision, first.changes[0].revision);
    let act = |deed| sessions::act(&book.connection, &name, deed, NOW).expect("stored").expect("done");
    for (deed, content) in
        [(Deed::Clear, SyncContent::PARTS), (Deed::Delete, SyncContent::NONE), (Deed::Restore, SyncContent::PARTS)]
    {
        let before = here(&book.connection).expect("read");
        act(deed);
        let told = news(&before).changes;
        assert_eq!((told.len(), told[0].content), (1, content), "{deed:?}");
        let before = here(&book.connection).expect("read");
        act(deed);
        assert!(news(&before).changes.is_empty() || deed == Deed::Clear, "{deed:?} again is no change");
    }
}

#[test]
fn a_lock_is_one_holders_until_it_expires() {
    let book = book();
    let key: ItemKey = "index".parse().expect("a key");
    let device = "laptop".parse().expect("name");
    let take =
        |token: u8, now_ms| lock(&book.connection, &key, LockToken([token; 16]), &device, now_ms).expect("stored");
    let give = |token: u8, now_ms| unlock(&book.connection, &key, LockToken([token; 16]), now_ms).expect("stored");
    assert_eq!(take(1, NOW), Ok(1));
    assert_eq!(take(2, NOW + 1000), Err(Refusal::Locked(LASTS_MS - 1000)));
    assert_eq!(take(1, NOW + 10_000), Ok(1), "renewed, with its fence");
    assert!(matches!(take(2, NOW + LASTS_MS + 1000), Err(Refusal::Locked(_))));
    assert!(matches!(give(2, NOW), Err(Refusal::NotFound(_))), "release needs the token");
    assert_eq!(take(2, NOW + 10_000 + LASTS_MS), Ok(2), "it has expired, and the fence rises");
    assert!(matches!(take(1, NOW + 10_001 + LASTS_MS), Err(Refusal::Locked(_))));
    assert_eq!(give(2, NOW + 10_000 + LASTS_MS * 2), Ok(true), "it had expired");
    assert_eq!(take(1, NOW), Ok(3));
    assert_eq!(give(1, NOW), Ok(false));
    // As many as there may be; those that are over make room.
    for number in 0..10_000 {
        let key = format!("k{number}").parse().expect("a key");
        lock(&book.connection, &key, LockToken([1; 16]), &device, NOW).expect("stored").expect("taken");
    }
    assert_eq!(take(1, NOW), Err(Refusal::TooMany("locks", 10_000)));
    assert_eq!(take(1, NOW + LASTS_MS), Ok(10_004));
}

#[test]
fn a_log_tells_a_thousand_revisions_and_nonces_are_kept_for_a_million_changes() {
    let book = book();
    book.connection.execute_batch("BEGIN").expect("begun");
    for number in 0..1_100_u16 {
        let mut revision = [0; 16];
        revision[..2].copy_from_slice(&number.to_le_bytes());
        let mut parent = [0; 16];
        parent[..2].copy_from_slice(&number.wrapping_sub(1).to_le_bytes());
        let one = Push {
            revision: RevisionId(revision),
            parent: (number > 0).then_some(RevisionId(parent)),
            ..document(1, None, "a", Some(&number.to_string()))
        };
        assert_eq!(book.outcome(&one), PushOutcome::ACCEPTED);
    }
    book.connection.execute_batch("COMMIT").expect("committed");
    let log = log(&book.connection, ItemKind::DOCUMENT, "a").expect("read").expect("there");
    assert_eq!((log.len(), log[0].state), (1000, RevisionState::CURRENT));
    let before = here(&book.connection).expect("read");
    book.connection.execute("UPDATE sync_counter SET number = number + 1000000", []).expect("set");
    forget(&book.connection, NOW).expect("forgotten");
    assert_eq!(page(&book.connection, &before, 0).expect("read").resync, Resync::NO, "a million are kept");
    book.connection.execute("UPDATE sync_counter SET number = number + 1", []).expect("set");
    forget(&book.connection, NOW).expect("forgotten");
    assert_eq!(page(&book.connection, &before, 0).expect("read").resync, Resync::TOO_OLD);
}
