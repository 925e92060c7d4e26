//! API keys. Of each there is a hash; the key itself stays with whoever has it, and goes on being good.

use super::names::mark;
use super::report::Left;
use crate::store::central::keys::{ApiKey, KeyScope};
use crate::store::old::{API_KEYS, Field, Row};
use belay_certs::sha256;
use belay_protocol::id::TenantId;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use serde_json::Value;

/// Letters of a key's id.
const ID_LEN: usize = 12;

/// The id of a key here. Another key under the same id there is another key here.
fn key_id(user: &str, hash: &[u8; 32]) -> String {
    mark(&format!("imported key\n{user}\n{}", HEXLOWER_PERMISSIVE.encode(hash)), ID_LEN)
}

/// What may be shown of a text that may be a secret.
fn shown(row: &Row) -> String {
    row.text(Field::Id).unwrap_or_else(|| "one without an id".into())
}

/// The SHA-256 that a text is: hexadecimal or base64, possibly with a word before it.
fn hash(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let digits = text
        .split_once([':', '$'])
        .map_or(text, |(word, rest)| if word.to_lowercase().replace('-', "") == "sha256" { rest } else { text });
    let bytes = match digits.len() {
        64 => HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?,
        44 => BASE64.decode(digits.as_bytes()).ok()?,
        43 => BASE64URL_NOPAD.decode(digits.replace('+', "-").replace('/', "_").as_bytes()).ok()?,
        _ => return None,
    };
    bytes.try_into().ok()
}

/// The hash of a key that is there itself. Errors: it is something else, such as a part of it.
fn of_plain(key: &str) -> Result<[u8; 32], &'static str> {
    let key = key.trim();
    if hash(key).is_some() {
        return Err(
            "its column says that it is the key, and it looks like a hash: call the column key_hash if it is one",
        );
    }
    let is_masked =
        key.contains("...") || key.contains(['*', '…']) || key.starts_with('$') || key.contains(char::is_whitespace);
    if is_masked || key.len() < SHORTEST {
        return Err("what is there of it is not the whole key; make a new one: belayd key create");
    }
    Ok(sha256(key.as_bytes()))
}

/// The shortest text that is taken for a key, in bytes.
const SHORTEST: usize = 16;

/// What a key has if nobody says otherwise.
const USUAL: [KeyScope; 3] = [KeyScope::Read, KeyScope::Write, KeyScope::Escalate];

/// What a word gives.
fn scope(word: &str) -> Option<&'static [KeyScope]> {
    Some(match word {
        "*" | "all" | "full" => &USUAL,
        "admin" => &[KeyScope::Admin],
        "read" | "usage" | "balance" => &[KeyScope::Read],
        "write" | "sync" | "sessions" | "settings" => &[KeyScope::Read, KeyScope::Write],
        "escalate" | "stream" | "chat" | "inference" | "completions" | "messages" => &[KeyScope::Escalate],
        _ => return None,
    })
}

/// What it may be used for. What is not known gives nothing; where nothing is said at all, it has what a key of belay's
/// has.
fn scopes(row: &Row) -> Vec<KeyScope> {
    let words: Vec<String> = match row.json(Field::Scopes) {
        None | Some(Value::Null) => return USUAL.to_vec(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::Object(all)) => {
            all.into_iter().filter(|(_, is_given)| *is_given == Value::Bool(true)).map(|(name, _)| name).collect()
        }
        Some(Value::String(text)) => text.split([' ', ',', ';', '|']).map(str::to_owned).collect(),
        Some(_) => vec![],
    };
    let mut scopes = vec![];
    for word in words {
        let word = word.trim().to_lowercase();
        // `read:usage` reads, whatever; `sessions:read` reads too.
        let given = match word.split_once(':') {
            None => scope(&word),
            Some((left @ ("read" | "write" | "admin" | "escalate"), _)) => scope(left),
            Some((_, right @ ("read" | "write" | "escalate"))) => scope(right),
            Some(_) => None,
        };
        scopes.extend_from_slice(given.unwrap_or_default());
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// Whether it is good. `None`: it says something that nobody knows.
fn is_good(row: &Row) -> Option<bool> {
    let status = row.text(Field::Status).unwrap_or_default().trim().to_lowercase();
    let good = match status.as_str() {
        "" | "active" | "enabled" | "ok" | "valid" | "live" => true,
        "revoked" | "disabled" | "inactive" | "deleted" | "expired" | "suspended" | "blocked" => false,
        _ => return None,
    };
    Some(good && !row.is_set(Field::Revoked) && !row.is_unset(Field::Active))
}

/// The hash that a key is found by. Errors, for people: there is none.
pub(super) fn hash_of(row: &Row) -> Result<[u8; 32], &'static str> {
    match (row.text(Field::Hash), row.text(Field::Key)) {
        (Some(text), _) => {
            hash(&text).ok_or("its hash is no SHA-256 in hexadecimal or base64; make a new key: belayd key create")
        }
        (None, Some(key)) => of_plain(&key),
        (None, None) => Err("neither its hash nor itself is there; make a new key: belayd key create"),
    }
}

/// A key as it is kept here, and the hash that it is found by. Errors: it cannot go on being good.
pub(super) fn key(user: &str, tenant: &TenantId, row: &Row, now_ms: u64) -> Result<(ApiKey, [u8; 32]), Left> {
    let left = |why: &str| Left { table: API_KEYS.name, user: user.into(), id: shown(row), why: why.into() };
    let hash = hash_of(row).map_err(left)?;
    let created_ms = row.time_ms(Field::Created).ok().flatten().unwrap_or(now_ms);
    let is_good = is_good(row).ok_or_else(|| left("whether it is good is not known from its status"))?;
    // Where it is no time, nobody knows when.
    let revoked_ms = (!is_good).then(|| row.time_ms(Field::Revoked).ok().flatten().unwrap_or(created_ms).max(1));
    let scopes = scopes(row);
    if scopes.is_empty() {
        return Err(left("none of its scopes is known here; make a new key: belayd key create"));
    }
    let expires_ms = row.time_ms(Field::Expires).map_err(|error| left(&error.to_string()))?;
    let key = ApiKey {
        id: key_id(user, &hash),
        tenant: tenant.clone(),
        label: row.text(Field::Name).unwrap_or_else(|| "imported".into()).chars().take(200).collect(),
        scopes,
        created_ms,
        // Nothing, in some: never.
        expires_ms: expires_ms.filter(|ms| *ms > 0),
        last_used_ms: row.time_ms(Field::Used).ok().flatten(),
        revoked_ms,
    };
    Ok((key, hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::old::Cell;

    #[test]
    fn hashes_are_known_in_their_usual_forms() {
        let digest = sha256(b"sk_live_1");
        for text in [
            data_encoding::HEXLOWER.encode(&digest),
            data_encoding::HEXUPPER.encode(&digest),
            format!("sha256:{}", data_encoding::HEXLOWER.encode(&digest)),
            format!("SHA-256${}", BASE64.encode(&digest)),
            BASE64.encode(&digest),
            BASE64URL_NOPAD.encode(&digest),
        ] {
            assert_eq!(hash(&text), Some(digest), "{text}");
        }
        for text in ["", "$2b$12$abcdefghijklmnopqrstuv", &"z".repeat(64), &"ab".repeat(20)] {
            assert_eq!(hash(text), None, "{text}");
        }
    }

    fn row(cells: &[(Field, Cell)]) -> Row {
        let mut cells = cells.to_vec();
        cells.push((Field::Hash, Cell::Text("ab".repeat(32))));
        Row::of(&API_KEYS, cells)
    }

    #[test]
    fn scopes_never_widen() {
        use KeyScope::{Admin, Escalate, Read, Write};
        let text = |text: &str| Cell::Text(text.into());
        for (said, given) in [
            (Cell::Null, &[Read, Write, Escalate][..]),
            (text("null"), &[Read, Write, Escalate]),
            (text("*"), &[Read, Write, Escalate]),
            (text("[\"read\",\"escalate\"]"), &[Read, Escalate]),
            (text("read write"), &[Read, Write]),
            (text("{\"read\":true,\"write\":false}"), &[Read]),
            (text("[\"read:*\"]"), &[Read]),
            (text("[\"read:admin\"]"), &[Read]),
            (text("sessions:read"), &[Read]),
            (text("admin"), &[Admin]),
            (text("[\"billing:refund\"]"), &[]),
            (text("7"), &[]),
            (text("[]"), &[]),
        ] {
            assert_eq!(scopes(&row(&[(Field::Scopes, said.clone())])), given, "{said:?}");
        }
    }

    #[test]
    fn whatever_says_that_a_key_is_off_is_heard() {
        let on = Cell::Integer(1);
        let off = Cell::Integer(0);
        let text = |text: &str| Cell::Text(text.into());
        for (cells, good) in [
            (vec![], Some(true)),
            (vec![(Field::Revoked, off.clone()), (Field::Active, on.clone())], Some(true)),
            (vec![(Field::Revoked, Cell::Null), (Field::Revoked, text("2026-01-01"))], Some(false)),
            (vec![(Field::Revoked, off.clone()), (Field::Revoked, on.clone())], Some(false)),
            (vec![(Field::Active, off.clone())], Some(false)),
            (vec![(Field::Status, text("Revoked"))], Some(false)),
            (vec![(Field::Status, text("pending review"))], None),
        ] {
            assert_eq!(is_good(&row(&cells)), good, "{cells:?}");
        }
        let never = row(&[(Field::Expires, off)]);
        let tenant = "acme".parse().expect("a name");
        assert_eq!(key("u", &tenant, &never, 1).expect("a key").0.expires_ms, None);
        assert!(key("u", &tenant, &row(&[(Field::Expires, text("soon"))]), 1).is_err());
    }

    #[test]
    fn only_whole_keys_are_keys() {
        assert!(of_plain("sk_live_0123456789abcdef").is_ok());
        for text in ["sk_...abcd", "sk_live_****************", "$2b$12$0123456789abcdefghij", "short", &"ab".repeat(32)]
        {
            assert!(of_plain(text).is_err(), "{text}");
        }
        let secret = Row::of(&API_KEYS, vec![(Field::Hash, Cell::Text("sk_live_secret".into()))]);
        let left = key("u", &"acme".parse().expect("a name"), &secret, 1).expect_err("no hash");
        assert!(!format!("{left:?}").contains("sk_live"), "{left:?}");
    }
}
