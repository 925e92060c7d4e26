//! A row of the old deployment, and what its cells say.

use super::amount::Amount;
use super::tables::{Field, Table, Unit};
use belay_protocol::calendar;
use serde_json::Value;
use thiserror::Error;

/// What a cell has.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A whole number.
    Integer(i64),
    /// Another one.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(set) => Self::Integer(set.into()),
            Value::String(text) => Self::Text(text),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Self::Integer(whole),
                None => number.as_f64().map_or(Self::Null, Self::Real),
            },
            other => Self::Text(other.to_string()),
        }
    }
}

/// Why a cell cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{table}: {field:?} is {said:?}, {why}")]
pub struct Odd {
    table: &'static str,
    field: Field,
    said: String,
    why: &'static str,
}

/// A row of a known table.
#[derive(Debug, Clone)]
pub struct Row {
    pub(super) table: &'static Table,
    pub(super) cells: Vec<(Field, Cell, Option<Unit>)>,
    pub(super) is_entry: bool,
}

impl Row {
    /// One that says that.
    #[must_use]
    pub fn of(table: &'static Table, cells: Vec<(Field, Cell)>) -> Self {
        Self { table, cells: cells.into_iter().map(|(field, cell)| (field, cell, None)).collect(), is_entry: false }
    }

    /// It is from the key-value store, where things are kept for speed: a row of the table comes before it.
    #[must_use]
    pub fn is_entry(&self) -> bool {
        self.is_entry
    }

    /// What it says of something.
    #[must_use]
    pub fn cell(&self, field: Field) -> &Cell {
        self.cells.iter().find(|(known, ..)| *known == field).map_or(&Cell::Null, |(_, cell, _)| cell)
    }

    fn odd(&self, field: Field, why: &'static str) -> Odd {
        let said = self.text(field).unwrap_or_default().chars().take(60).collect();
        Odd { table: self.table.name, field, said, why }
    }

    /// As text; `None`: nothing, or nothing but blanks.
    #[must_use]
    pub fn text(&self, field: Field) -> Option<String> {
        let text = match self.cell(field) {
            Cell::Null => return None,
            Cell::Integer(number) => number.to_string(),
            Cell::Real(number) => number.to_string(),
            Cell::Text(text) => text.clone(),
            Cell::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        };
        (!text.trim().is_empty()).then_some(text)
    }

    /// The bytes of a text or of bytes.
    #[must_use]
    pub fn bytes(&self, field: Field) -> Option<Vec<u8>> {
        match self.cell(field) {
            Cell::Bytes(bytes) => Some(bytes.clone()),
            Cell::Text(text) => Some(text.clone().into_bytes()),
            _ => None,
        }
    }

    /// As JSON; text that is none stands for itself.
    #[must_use]
    pub fn json(&self, field: Field) -> Option<Value> {
        let text = self.text(field)?;
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Yes or no. A time means yes: that it was revoked at some time.
    fn flags(&self, field: Field) -> impl Iterator<Item = bool> {
        let of = self.cells.iter().filter(move |(known, ..)| *known == field);
        of.filter_map(|(_, cell, _)| match cell {
            Cell::Null => None,
            Cell::Integer(number) => Some(*number != 0),
            Cell::Real(number) => Some(*number != 0.0),
            Cell::Bytes(_) => Some(true),
            Cell::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "" | "null" => None,
                text => Some(!matches!(text, "0" | "false" | "no" | "n" | "off")),
            },
        })
    }

    /// Anything of it says yes.
    #[must_use]
    pub fn is_set(&self, field: Field) -> bool {
        self.flags(field).any(|set| set)
    }

    /// Anything of it says no.
    #[must_use]
    pub fn is_unset(&self, field: Field) -> bool {
        self.flags(field).any(|set| !set)
    }

    /// A whole number that is not negative. Errors: it is something else.
    pub fn count(&self, field: Field) -> Result<Option<i64>, Odd> {
        let number = match self.cell(field) {
            Cell::Null => return Ok(None),
            Cell::Integer(number) => Some(*number),
            #[expect(clippy::cast_possible_truncation, reason = "it is a whole number of few digits")]
            Cell::Real(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
            _ => self.text(field).and_then(|text| text.trim().parse().ok()),
        };
        match number {
            Some(number) if number >= 0 => Ok(Some(number)),
            _ => Err(self.odd(field, "which is no whole number from 0")),
        }
    }

    /// A time, in milliseconds since 1970: seconds, milliseconds or microseconds as a number, or a date. Errors: it
    /// is something else.
    pub fn time_ms(&self, field: Field) -> Result<Option<u64>, Odd> {
        let scaled = |number: f64| {
            let ms = match number.abs() {
                seconds if seconds < 1e11 => number * 1000.0,
                ms if ms < 1e14 => number,
                micros if micros < 1e17 => number / 1000.0,
                _ => number / 1e6,
            };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is checked just before")]
            (ms >= 0.0 && ms < LAST_MS as f64).then_some(ms as u64)
        };
        let ms = match self.cell(field) {
            Cell::Null => return Ok(None),
            Cell::Integer(number) => scaled(*number as f64),
            Cell::Real(number) => scaled(*number),
            _ => match self.text(field) {
                None => return Ok(None),
                Some(text) => text.trim().parse().ok().map_or_else(|| date_ms(text.trim()), scaled),
            },
        };
        ms.map(Some)
            .ok_or_else(|| self.odd(field, "which is no time: write seconds since 1970 or 2026-11-25T13:00:00Z"))
    }

    /// Why an amount cannot be read without being told its unit. `None`: it can.
    #[must_use]
    pub fn lacks_unit(&self, field: Field) -> Option<Odd> {
        let named = self.cells.iter().find(|(known, ..)| *known == field).and_then(|(.., unit)| *unit);
        named.is_none().then(|| self.odd(field, NO_UNIT))
    }

    /// An amount. `unit` counts where the column's name says none. Errors: it is none, or has no unit.
    pub fn amount(&self, field: Field, unit: Option<Unit>) -> Result<Option<Amount>, Odd> {
        let Some((_, cell, named)) = self.cells.iter().find(|(known, ..)| *known == field) else { return Ok(None) };
        let digits = match cell {
            Cell::Null => return Ok(None),
            Cell::Integer(number) => number.to_string(),
            Cell::Real(number) => number.to_string(),
            _ => match self.text(field) {
                None => return Ok(None),
                Some(text) => text.trim().to_owned(),
            },
        };
        let unit = named.or(unit).ok_or_else(|| self.odd(field, NO_UNIT))?;
        Amount::parse(&digits, unit).map(Some).ok_or_else(|| self.odd(field, "which is no amount of money"))
    }
}

const NO_UNIT: &str = "and nothing says in what; name it with --money-unit";

/// The last millisecond that dates can name.
const LAST_MS: u64 = 253_402_300_800_000;

/// `2026-11-25`, with `T13:00:00.5` or a blank and the like after it, and with `Z` or `+01:00` after that.
fn date_ms(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut ms = calendar::parse_day(date)?.checked_mul(86_400_000)?;
    if let Some(clock) = rest.strip_prefix(['T', 't', ' ']) {
        let (clock, sign, zone) = match clock.find(['Z', 'z', '+', '-']) {
            None => (clock, 0, ""),
            Some(at) => match clock.as_bytes()[at] {
                b'+' => (&clock[..at], -1, &clock[at + 1..]),
                b'-' => (&clock[..at], 1, &clock[at + 1..]),
                _ if at + 1 == clock.len() => (&clock[..at], 0, ""),
                _ => return None,
            },
        };
        ms += clock_ms(clock.trim_end())?;
        if sign != 0 {
            let zone = if zone.len() == 4 { format!("{}:{}", zone.get(..2)?, zone.get(2..)?) } else { zone.to_owned() };
            ms += sign * clock_ms(&zone)?;
        }
    } else if !rest.is_empty() {
        return None;
    }
    u64::try_from(ms).ok()
}

/// `13:00`, `13:00:00`, `13:00:00.123456`.
fn clock_ms(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = whole.split(':').map(|part| part.parse::<i64>().ok().filter(|_| part.len() == 2));
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    let is_clock = parts.next().is_none() && hour < 24 && minute < 60 && second < 61;
    if !is_clock || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(((hour * 60 + minute) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::super::tables::{BILLING_LEDGER, USAGE_RECORDS};
    use super::*;
    use belay_protocol::money::NanoUsd;
    use proptest::prelude::*;

    fn row(field: Field, cell: Cell, unit: Option<Unit>) -> Row {
        Row { table: &USAGE_RECORDS, cells: vec![(field, cell, unit)], is_entry: false }
    }

    fn text(text: &str) -> Cell {
        Cell::Text(text.into())
    }

    #[test]
    fn times_of_all_kinds() {
        let at = |cell| row(Field::Created, cell, None).time_ms(Field::Created);
        let noon = 1_795_611_600_000;
        for cell in [
            Cell::Integer(1_795_611_600),
            Cell::Integer(1_795_611_600_000),
            Cell::Integer(1_795_611_600_000_000),
            Cell::Real(1_795_611_600.0),
            text("1795611600"),
            text("2026-11-25T13:00:00Z"),
            text("2026-11-25 13:00:00"),
            text("2026-11-25T13:00:00.000Z"),
            text("2026-11-25T14:00:00+01:00"),
            text("2026-11-25T08:00:00-0500"),
            text("2026-11-25T13:00"),
        ] {
            assert_eq!(at(cell.clone()), Ok(Some(noon)), "{cell:?}");
        }
        assert_eq!(at(text("2026-11-25 13:00:00.25")), Ok(Some(noon + 250)));
        assert_eq!(at(text("2026-11-25")), Ok(Some(noon - 13 * 3_600_000)));
        assert_eq!(at(Cell::Null), Ok(None));
        assert_eq!(date_ms("2026-11-25T13:00:00+1é2"), None);
        for wrong in ["yesterday", "2026-02-30", "2026-11-25T25:00:00Z", "2026-11-25T13:00:00Zulu", "2026-11-25x", "-5"]
        {
            let error = at(text(wrong)).expect_err(wrong).to_string();
            assert!(error.contains(wrong) && error.starts_with("usage_records: Created"), "{error}");
        }
    }

    #[test]
    fn amounts_are_exact_and_need_a_unit() {
        let nano = |cell, unit| row(Field::Cost, cell, unit).amount(Field::Cost, None).map(|found| found?.nearest());
        let cents = Some(Unit::Cents);
        for (cell, unit, expected) in [
            (Cell::Integer(250), cents, 2_500_000_000),
            (Cell::Real(0.1 + 0.2), cents, 3_000_000),
            (text("0.30000000000000004"), cents, 3_000_000),
            (text("1e-5"), Some(Unit::Usd), 10_000),
            (text("-12.5"), cents, -125_000_000),
            (text("0.0000001"), cents, 1),
            (text("0.00000005"), cents, 1),
            (text("0.00000004"), cents, 0),
            (text("7"), Some(Unit::Nano), 7),
            (text("7"), Some(Unit::Micro), 7_000),
        ] {
            assert_eq!(nano(cell.clone(), unit), Ok(Some(NanoUsd(expected))), "{cell:?}");
        }
        assert!(nano(Cell::Integer(5), None).expect_err("no unit").to_string().contains("--money-unit"));
        for wrong in ["$5", "1,5", "five", "", "--1", "1e", "1e400", ".5"] {
            assert!(nano(text(wrong), cents).is_err() || wrong.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn what_is_set() {
        let said = |cell| {
            let row = row(Field::Revoked, cell, None);
            (row.is_set(Field::Revoked), row.is_unset(Field::Revoked))
        };
        for cell in [Cell::Null, text(""), text("null")] {
            assert_eq!(said(cell), (false, false));
        }
        assert_eq!([Cell::Integer(0), text("false"), text("0")].map(said), [(false, true); 3]);
        assert_eq!([Cell::Integer(1), text("true"), text("2026-11-25")].map(said), [(true, false); 3]);
        // Of several that may say so, one is enough.
        let cells = vec![(Field::Revoked, Cell::Integer(0), None), (Field::Revoked, text("2026-11-25"), None)];
        assert!(Row { table: &BILLING_LEDGER, cells, is_entry: false }.is_set(Field::Revoked));
        assert_eq!(Row::of(&BILLING_LEDGER, vec![]).cell(Field::Amount), &Cell::Null);
    }

    proptest! {
        #[test]
        fn dates_come_back(ms in 0..LAST_MS) {
            let written = calendar::time_text(ms);
            prop_assert_eq!(date_ms(&written.replacen(' ', "T", 1)), Some(ms / 1000 * 1000));
        }

        #[test]
        fn any_text_is_a_time_or_none(text in "\\PC{0,30}") {
            let _ = date_ms(&text);
        }
    }
}
