//! API keys. Of each there is a hash; the key itself stays with whoever has it, and goes on being good.

use super::names::mark;
use super::report::Left;
use crate::store::central::keys::{ApiKey, KeyScope};
use crate::store::old::{API_KEYS, Field, Odd, Row};
use belay_certs::sha256;
use belay_protocol::id::TenantId;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};

/// Letters of a key's id.
const ID_LEN: usize = 12;

/// The id here of a key that had that id there.
pub(super) fn key_id(user: &str, id: &str) -> String {
    mark(&format!("imported key\n{user}\n{id}"), ID_LEN)
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

/// What it may be used for. What is not known gives nothing; no list at all gives what a key of belay's has if nobody
/// says otherwise.
fn scopes(row: &Row) -> Vec<KeyScope> {
    let usual = vec![KeyScope::Read, KeyScope::Write, KeyScope::Escalate];
    let Some(said) = row.json(Field::Scopes) else { return usual };
    let text = match said {
        serde_json::Value::Array(list) => {
            list.iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>().join(" ")
        }
        serde_json::Value::String(text) => text,
        _ => return usual,
    };
    let mut scopes = vec![];
    for word in text.split([' ', ',', ';', '|']).map(|word| word.trim().to_lowercase()).filter(|word| !word.is_empty())
    {
        let word = word.split_once(':').map_or(word.as_str(), |(_, right)| right);
        match word {
            "*" | "all" | "full" => scopes.extend_from_slice(&usual),
            "admin" => scopes.push(KeyScope::Admin),
            "read" | "usage" | "balance" => scopes.push(KeyScope::Read),
            "write" | "sync" | "sessions" | "settings" => scopes.extend([KeyScope::Read, KeyScope::Write]),
            "escalate" | "stream" | "chat" | "inference" | "completions" | "messages" => {
                scopes.push(KeyScope::Escalate)
            }
            _ => {}
        }
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// A key as it is kept here, and the hash that it is found by. Errors: it cannot go on being good.
pub(super) fn key(user: &str, tenant: &TenantId, row: &Row, now_ms: u64) -> Result<(ApiKey, [u8; 32]), Left> {
    let id = row.text(Field::Id).or_else(|| row.text(Field::Hash)).unwrap_or_default();
    // Never the key itself, where it is all that there is.
    let left = |why: &str| Left { table: API_KEYS.name, user: user.into(), id: id.clone(), why: why.into() };
    let odd = |error: Odd| left(&error.to_string());
    let hash = match (row.text(Field::Hash), row.text(Field::Key)) {
        (Some(text), _) => hash(&text).ok_or_else(|| {
            left("its hash is no SHA-256 in hexadecimal or base64; make a new key: belayd key create")
        })?,
        (None, Some(key)) => sha256(key.as_bytes()),
        (None, None) => return Err(left("neither its hash nor itself is there; make a new key: belayd key create")),
    };
    let named = if id.is_empty() { data_encoding::HEXLOWER.encode(&hash) } else { id.clone() };
    let created_ms = row.time_ms(Field::Created).map_err(odd)?.unwrap_or(now_ms);
    let is_off = row.is_set(Field::Revoked) == Some(true) || row.is_set(Field::Active) == Some(false);
    // Where it is no time, nobody knows when.
    let revoked_ms = is_off.then(|| row.time_ms(Field::Revoked).ok().flatten().unwrap_or(created_ms).max(1));
    let scopes = scopes(row);
    if scopes.is_empty() {
        return Err(left("none of its scopes is known here; make a new key: belayd key create"));
    }
    let key = ApiKey {
        id: key_id(user, &named),
        tenant: tenant.clone(),
        label: row.text(Field::Name).unwrap_or_else(|| "imported".into()).chars().take(200).collect(),
        scopes,
        created_ms,
        expires_ms: row.time_ms(Field::Expires).map_err(odd)?,
        last_used_ms: row.time_ms(Field::Used).map_err(odd)?,
        revoked_ms,
    };
    Ok((key, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
