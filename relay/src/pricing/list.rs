//! A model's prices over time: some begin on a day, some hold at hours of the day.

use super::{PriceLine, PriceTier};
use belay_protocol::message::UnitKind;
use serde::{Deserialize, Serialize};

const SECONDS_OF_DAY: u64 = 86_400;

/// Prices that are in force together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PriceSet {
    /// From when on, milliseconds since 1970; `None`: ever since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<u64>,
    /// From which second of the day to which, UTC, the second excluded; it may lie beyond midnight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<(u32, u32)>,
    /// By kind of unit.
    pub lines: Vec<PriceLine>,
    /// For large inputs, by rising size.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<PriceTier>,
}

impl PriceSet {
    /// The price of a kind that is named, for small inputs.
    #[must_use]
    pub fn named(&self, kind: UnitKind) -> Option<i64> {
        self.lines.iter().find(|line| line.kind == kind).map(|line| line.nano_per_million)
    }

    /// What every answer has, input and output, has a price.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.named(UnitKind::INPUT).is_some() && self.named(UnitKind::OUTPUT).is_some()
    }

    fn is_in_force(&self, now_ms: u64) -> bool {
        let second = u32::try_from(now_ms / 1000 % SECONDS_OF_DAY).unwrap_or(0);
        let begun = self.from_ms.is_none_or(|from_ms| from_ms <= now_ms);
        begun
            && self.hours.is_none_or(|(start, end)| {
                if start <= end { (start..end).contains(&second) } else { second >= start || second < end }
            })
    }
}

/// All prices of a model, in the order in which they were set: of those in force, the last counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PriceList(pub Vec<PriceSet>);

impl PriceList {
    /// What is in force; before all of them, the first.
    #[must_use]
    pub fn at(&self, now_ms: u64) -> Option<&PriceSet> {
        self.0.iter().rev().find(|set| set.is_in_force(now_ms)).or_else(|| self.0.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn set(from_ms: Option<u64>, hours: Option<(u32, u32)>, input: i64) -> PriceSet {
        let lines = vec![PriceLine { kind: UnitKind::INPUT, nano_per_million: input }];
        PriceSet { from_ms, hours, lines, tiers: vec![] }
    }

    #[test]
    fn the_last_in_force_counts() {
        let list = PriceList(vec![
            set(None, None, 1),
            set(Some(10 * DAY_MS), None, 2),
            set(None, Some((3600, 7200)), 3),
            set(None, Some((23 * 3600, 1800)), 4),
        ]);
        let at =
            |day: u64, second: u64| list.at(day * DAY_MS + second * 1000).and_then(|set| set.named(UnitKind::INPUT));
        assert_eq!(at(9, 7200), Some(1));
        assert_eq!(at(9, 3600), Some(3));
        assert_eq!(at(9, 7199), Some(3));
        assert_eq!(at(9, 23 * 3600), Some(4));
        assert_eq!(at(10, 1799), Some(4));
        assert_eq!(at(10, 1800), Some(2));
        assert_eq!(at(9, 86_399), Some(4));
    }

    #[test]
    fn before_all_others_the_first_counts_and_of_nothing_none() {
        let list = PriceList(vec![set(Some(DAY_MS), None, 5)]);
        assert_eq!(list.at(0).and_then(|set| set.named(UnitKind::INPUT)), Some(5));
        assert!(PriceList::default().at(0).is_none());
        assert!(!list.0[0].is_complete());
        let mut both = list.0[0].clone();
        both.lines.push(PriceLine { kind: UnitKind::OUTPUT, nano_per_million: 0 });
        assert!(both.is_complete(), "free is a price too");
    }
}
