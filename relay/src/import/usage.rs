//! Rows of usage.

use super::Options;
use super::report::Left;
use crate::store::ledger::import::ImportedUsage;
use crate::store::ledger::usage::{Class, Totals};
use crate::store::old::{Field, Odd, Row, USAGE_RECORDS};
use belay_protocol::money::NANOS_PER_USD;
use std::collections::HashMap;

/// What the name of a model begins with, and whose it is.
const MAKERS: [(&str, &str); 10] = [
    ("claude", "anthropic"),
    ("gpt", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
    ("text-embedding", "openai"),
    ("gemini", "google"),
    ("mistral", "mistral"),
    ("deepseek", "deepseek"),
    ("llama", "meta"),
];

/// What kind of usage it was, by the words that its kind is made of.
fn class(kind: &str) -> Class {
    let kind = kind.to_lowercase();
    let words: Vec<&str> = kind.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let is = |known: &[&str]| words.iter().any(|word| known.contains(word));
    if is(&["byok", "own"]) {
        Class::Byok
    } else if is(&["local"]) {
        Class::Local
    } else if is(&["knowledge", "embed", "embedding", "embeddings", "index", "indexing", "rag"]) {
        Class::Knowledge
    } else {
        Class::Cloud
    }
}

/// More than so many nano-dollars costs no request.
const DEAREST: i64 = 1_000_000 * NANOS_PER_USD;
/// More tokens than these nobody can have used in one.
const MOST: i64 = 1 << 40;

/// A row as it is kept here. Errors: it cannot be.
pub(super) fn row(
    user: &str,
    row: &Row,
    options: &Options,
    keys: &HashMap<String, String>,
) -> Result<ImportedUsage, Left> {
    let id = row.text(Field::Id).or_else(|| row.text(Field::Request));
    let left =
        |why: String| Left { table: USAGE_RECORDS.name, user: user.into(), id: id.clone().unwrap_or_default(), why };
    let odd = |error: Odd| left(error.to_string());
    let source =
        id.clone().ok_or_else(|| left("it has no id: it could not be told from others the next time".into()))?;
    let at_ms = row.time_ms(Field::Created).map_err(odd)?.ok_or_else(|| left("it does not say when it was".into()))?;
    let count = |field| row.count(field).map(Option::unwrap_or_default).map_err(odd);
    let (input, mut output) = (count(Field::Input)?, count(Field::Output)?);
    if input == 0 && output == 0 {
        // There is only a sum: of what the two cost, output is the greater part.
        output = count(Field::Tokens)?;
    }
    let cost = row.amount(Field::Cost, options.money_unit).map_err(odd)?.unwrap_or_default();
    let cost = match cost.nearest() {
        Some(nano) if !cost.is_negative() && nano.0 <= DEAREST => nano.0,
        _ => return Err(left("its cost is below zero, or above a million dollars".into())),
    };
    let model = row.text(Field::Model).unwrap_or_else(|| "unknown".into());
    let provider = row.text(Field::Provider).map(|provider| provider.to_lowercase()).unwrap_or_else(|| {
        let name = model.to_lowercase();
        MAKERS.iter().find(|(start, _)| name.starts_with(start)).map_or("unknown", |(_, maker)| maker).to_owned()
    });
    let (cache_read, cache_write) = (count(Field::CacheRead)?, count(Field::CacheWrite)?);
    let totals = Totals {
        requests: 1,
        input,
        output,
        cache_read,
        cache_write,
        reasoning: count(Field::Reasoning)?,
        cost_nano: cost,
        ..Totals::default()
    };
    if [totals.input, totals.output, totals.cache_read, totals.cache_write, totals.reasoning].iter().any(|n| *n > MOST)
    {
        return Err(left("it counts more tokens than anybody could have used".into()));
    }
    let key = row.text(Field::Key).and_then(|id| keys.get(&id).cloned()).unwrap_or_default();
    let class = class(&row.text(Field::Kind).unwrap_or_default());
    Ok(ImportedUsage { source, at_ms, key, class, provider, model, totals })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::old::{Cell, Unit};

    fn said(cells: &[(Field, Cell)]) -> Result<ImportedUsage, Left> {
        let mut all = vec![(Field::Id, Cell::Text("1".into())), (Field::Created, Cell::Integer(1_700_000_000))];
        all.retain(|(field, _)| !cells.iter().any(|(known, _)| known == field));
        all.extend_from_slice(cells);
        let options = Options { money_unit: Some(Unit::Usd), ..Options::default() };
        row("u", &Row::of(&USAGE_RECORDS, all), &options, &HashMap::from([("k1".into(), "ours".into())]))
    }

    #[test]
    fn usage_is_what_it_was_and_what_cannot_be_is_left() {
        let text = |text: &str| Cell::Text(text.into());
        let known = said(&[
            (Field::Model, text("Claude-3")),
            (Field::Key, text("k1")),
            (Field::Tokens, Cell::Integer(9)),
            (Field::Kind, text("research")),
            (Field::Cost, Cell::Integer(1_000_000)),
        ])
        .expect("usage");
        assert_eq!((known.provider.as_str(), known.key.as_str(), known.class), ("anthropic", "ours", Class::Cloud));
        assert_eq!((known.totals.output, known.totals.cost_nano), (9, DEAREST));
        for (kind, class) in
            [("local-inference", Class::Local), ("knowledge_index", Class::Knowledge), ("byok", Class::Byok)]
        {
            assert_eq!(said(&[(Field::Kind, text(kind))]).expect("usage").class, class);
        }
        for (field, cell) in [
            (Field::Cost, text("1000000.01")),
            (Field::Cost, Cell::Integer(-1)),
            (Field::Input, Cell::Integer(MOST + 1)),
            (Field::Output, Cell::Integer(-1)),
            (Field::Created, Cell::Null),
            (Field::Created, text("soon")),
            (Field::Id, Cell::Null),
        ] {
            assert!(said(&[(field, cell.clone())]).is_err(), "{field:?} {cell:?}");
        }
    }
}
