//! Amounts of money, as other programs write them down.

use super::tables::Unit;
use belay_protocol::money::NanoUsd;

/// An amount of money, finer than the ledger keeps it: what was computed in fractions of cents adds up first, and is
/// rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Amount(i128);

/// Of a nano-dollar.
const PARTS: i128 = 1_000_000_000_000;
/// More than so many nano-dollars belong to nobody, and sums of a few such would leave the ledger's range.
const MOST: u64 = 1 << 60;
/// More decimals of a unit than these are rounded: they are the noise of binary fractions.
const DECIMALS: usize = 12;

impl Amount {
    /// Reads a decimal number, as JSON writes them too: `-12.5`, `3e-7`.
    pub(super) fn parse(text: &str, unit: Unit) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
        let exponent: i32 = exponent.parse().ok().filter(|exponent| (-40..=40).contains(exponent))?;
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() + decimals.len() > 36 || !is_number(whole) || !is_number(decimals) {
            return None;
        }
        let number: i128 = format!("{whole}{decimals}").parse().ok()?;
        // To twelve decimals of the unit.
        let shift = DECIMALS as i32 + exponent - i32::try_from(decimals.len()).ok()?;
        let power = 10_i128.checked_pow(shift.unsigned_abs());
        let fine = match power {
            Some(power) if shift >= 0 => number.checked_mul(power)?,
            Some(power) => (number + power / 2) / power,
            None => 0,
        };
        let parts = fine.checked_mul(unit.nanos())?;
        Some(Self(if negative { -parts } else { parts }))
    }

    /// The sum. `None`: too much for anybody.
    #[must_use]
    pub fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The other way.
    #[must_use]
    pub fn negated(self) -> Self {
        Self(-self.0)
    }

    /// Below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// What the ledger keeps of it: the nearest, and of two the higher. `None`: it is too much.
    #[must_use]
    pub fn nearest(self) -> Option<NanoUsd> {
        let nano = i64::try_from((self.0 + PARTS / 2).div_euclid(PARTS)).ok()?;
        (nano.unsigned_abs() <= MOST).then_some(NanoUsd(nano))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn binary_fractions_add_up_as_they_were_written() {
        let one = Amount::parse(&1_000_000.01_f64.to_string(), Unit::Usd).expect("an amount");
        let all = (0..20).fold(Amount::default(), |sum, _| sum.plus(one).expect("fits"));
        assert_eq!(all.nearest(), Some(NanoUsd(20_000_000_200_000_000)));
        for odd in ["1e-2147483648", "1e99999999999", "1e41"] {
            assert_eq!(Amount::parse(odd, Unit::Usd), None, "{odd}");
        }
        assert_eq!(Amount::parse("+5", Unit::Usd), Amount::parse("5", Unit::Usd));
    }

    proptest! {
        #[test]
        fn any_text_is_an_amount_or_none(text in "\\PC{0,30}") {
            let _ = Amount::parse(&text, Unit::Usd);
        }

        #[test]
        fn cents_with_decimals_add_up_exactly(amounts in proptest::collection::vec(0_i64..1_000_000_000, 1..50)) {
            let sum: i64 = amounts.iter().sum();
            let all = amounts.iter().map(|nano| {
                // As cents.
                Amount::parse(&format!("{}.{:07}", nano / 10_000_000, nano % 10_000_000), Unit::Cents).expect("a number")
            });
            let added = all.fold(Amount::default(), |sum, one| sum.plus(one).expect("fits"));
            prop_assert_eq!(added.nearest(), Some(NanoUsd(sum)));
        }
    }
}
