//! What is called what after it came over. The same gets the same name every time.

use belay_certs::sha256;
use belay_protocol::id::{SessionId, TenantId};
use belay_protocol::item::ItemKey;
use data_encoding::BASE32_NOPAD;

/// The longest name of a tenant, in bytes.
const LONGEST: usize = 64;
/// Letters of a digest that tell apart what would look alike.
const MARK: usize = 8;

/// Letters and digits that stand for a text.
pub(super) fn mark(of: &str, letters: usize) -> String {
    let mut mark = BASE32_NOPAD.encode(&sha256(of.as_bytes())).to_ascii_lowercase();
    mark.truncate(letters);
    mark
}

/// The tenant of a user: the user's id, if a tenant can be called so; else what is left of it, and a mark.
pub(super) fn tenant(prefix: &str, user: &str) -> Option<TenantId> {
    let whole = format!("{prefix}{user}");
    if let Ok(id) = whole.parse() {
        return Some(id);
    }
    let mut plain: String = whole
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_') { c } else { '-' })
        .collect();
    plain.truncate(LONGEST - MARK - 1);
    let plain = plain.trim_matches(['-', '_']);
    // One that is nothing but signs has its mark alone.
    format!("{plain}-{}", mark(user, MARK)).trim_start_matches('-').parse().ok()
}

/// A conversation of that id.
pub(super) fn session(id: &str) -> Option<SessionId> {
    let trimmed = id.trim();
    if let Ok(name) = trimmed.parse() {
        return Some(name);
    }
    let plain: String = trimmed.chars().filter(|c| !c.is_control()).take(20).collect();
    format!("{} {}", plain.trim(), mark(id, MARK)).trim().parse().ok()
}

/// The key of an item of that name, with what no computer can have in a file's name replaced. `id` tells apart those
/// that would have none.
pub(super) fn item(name: &str, id: &str) -> Option<ItemKey> {
    let parts = name.split('/').map(|part| {
        let plain: String = part
            .chars()
            .map(
                |c| if c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|') { '-' } else { c },
            )
            .collect();
        // What is cut may end with what a name must not end with.
        cut(plain.trim(), 200).trim_end_matches(['.', ' ']).trim_end().to_owned()
    });
    let parts: Vec<String> = parts.filter(|part| !matches!(part.as_str(), "" | "." | "..")).collect();
    if let Ok(key) = parts.join("/").parse() {
        return Some(key);
    }
    // Reserved on some computer, or deeper than folders go.
    let last = parts.last().map(String::as_str).unwrap_or_default();
    format!("{}-{last}", mark(id, MARK)).trim_end_matches('-').parse().ok()
}

/// The same key for another item of the same name.
pub(super) fn other(key: &ItemKey, id: &str) -> Option<ItemKey> {
    let (folder, name) = key.as_str().rsplit_once('/').map_or(("", key.as_str()), |(folder, name)| (folder, name));
    let (stem, ending) = match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && ending.len() <= 16 => (stem, format!(".{ending}")),
        _ => (name, String::new()),
    };
    let slash = if folder.is_empty() { "" } else { "/" };
    format!("{folder}{slash}{} {}{ending}", cut(stem, 200), mark(id, MARK)).parse().ok()
}

/// At most so many bytes of a text.
fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_can_keeps_its_name() {
        for (user, expected) in [("acme", "acme"), ("0b5e1f2c-77aa", "0b5e1f2c-77aa"), ("42", "42")] {
            assert_eq!(tenant("", user).expect("a name").as_str(), expected);
        }
        assert_eq!(tenant("old-", "42").expect("a name").as_str(), "old-42");
        let names =
            ["Acme", "acme!", "ACME", "ä@b.c", "a b", &"x".repeat(100), "日本", "-", ".."].map(|user| tenant("", user));
        let mut names: Vec<_> = names.into_iter().map(|name| name.expect("a name")).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9, "{names:?}");
    }

    #[test]
    fn files_have_names_that_every_computer_can_have() {
        for (name, expected) in [
            ("notes.md", "notes.md"),
            ("a/b.md", "a/b.md"),
            ("../../etc/passwd", "etc/passwd"),
            ("/root", "root"),
            ("what? why: \"so\"", "what- why- -so-"),
            (" x. ", "x"),
            ("C:\\a", "C--a"),
        ] {
            assert_eq!(item(name, "1").expect("a key").as_str(), expected);
        }
        assert!(item("con.txt", "1").expect("a key").as_str().ends_with("-con.txt"));
        assert!(item("///", "1").is_some());
        let key = item("a/notes.md", "1").expect("a key");
        assert_ne!(other(&key, "2"), other(&key, "3"));
        assert!(other(&key, "2").expect("a key").as_str().starts_with("a/notes "));
    }

    proptest! {
        #[test]
        fn everything_has_a_name(text in "\\PC{1,300}") {
            prop_assert!(tenant("", &text).is_some());
            prop_assert!(item(&text, "id").is_some());
            let key = item(&text, "id").expect("just now");
            prop_assert!(other(&key, "7").is_some());
            prop_assert!(session(&text).is_some() || text.trim().is_empty());
        }
    }
}
