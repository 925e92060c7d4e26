//! Money in nano-dollars. Integers only: nothing is ever rounded but once, upward, per price line.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;
use thiserror::Error;

/// An amount in nano-US-dollars (10⁻⁹ USD); the range is ±9.2 thousand million dollars.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub i64);

/// Nano-dollars in a dollar.
pub const NANOS_PER_USD: i64 = 1_000_000_000;

/// Why a text is not an amount, or a sum cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// The text is not a decimal number of dollars with at most nine decimals.
    #[error("{0:?} is not an amount in dollars: write for example 5, 0.25 or 0.010815")]
    NotAnAmount(String),
    /// The amount leaves the range of 64-bit nano-dollars.
    #[error("the amount is outside the range of the ledger")]
    OutOfRange,
}

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum, or `OutOfRange`.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        self.0.checked_add(other.0).map(Self).ok_or(MoneyError::OutOfRange)
    }

    /// True below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }
}

impl Add for NanoUsd {
    type Output = Self;
    /// Saturates: amounts that are stored go through `checked_add`.
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for NanoUsd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for NanoUsd {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for NanoUsd {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for NanoUsd {
    /// Dollars with every decimal that is not a trailing zero, at least two: `$0.010815`, `-$1.50`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let magnitude = self.0.unsigned_abs();
        let decimals = format!("{:09}", magnitude % NANOS_PER_USD.unsigned_abs());
        let kept = decimals.trim_end_matches('0').len().max(2);
        let text = format!("{sign}${}.{}", magnitude / NANOS_PER_USD.unsigned_abs(), &decimals[..kept]);
        f.pad(&text)
    }
}

impl fmt::Debug for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}nUSD", self.0)
    }
}

impl FromStr for NanoUsd {
    type Err = MoneyError;
    /// Reads dollars: `5`, `$5.00`, `0.010815`, `-1.5`.
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let wrong = || MoneyError::NotAnAmount(text.chars().take(40).collect());
        let (negative, rest) = match text.trim().strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.trim()),
        };
        let rest = rest.strip_prefix('$').unwrap_or(rest);
        let (whole, decimals) = rest.split_once('.').unwrap_or((rest, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > 9 {
            return Err(wrong());
        }
        let whole: i64 = whole.parse().map_err(|_| MoneyError::OutOfRange)?;
        let nanos: i64 = format!("{decimals:0<9}").parse().map_err(|_| wrong())?;
        let magnitude =
            whole.checked_mul(NANOS_PER_USD).and_then(|n| n.checked_add(nanos)).ok_or(MoneyError::OutOfRange)?;
        Ok(Self(if negative { -magnitude } else { magnitude }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_read_and_print_exactly() {
        for (text, nanos, shown) in [
            ("5", 5_000_000_000, "$5.00"),
            ("$0.010815", 10_815_000, "$0.010815"),
            ("0.000000001", 1, "$0.000000001"),
            ("-1.5", -1_500_000_000, "-$1.50"),
        ] {
            let amount: NanoUsd = text.parse().expect(text);
            assert_eq!(amount, NanoUsd(nanos));
            assert_eq!(amount.to_string(), shown);
        }
        for bad in ["", "five", "1.0000000001", ".", "1e3", "--1", "1,5", "NaN"] {
            assert!(bad.parse::<NanoUsd>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn display_reads_back(nanos in (i64::MIN + 1)..=i64::MAX) {
            let amount = NanoUsd(nanos);
            prop_assert_eq!(amount.to_string().parse::<NanoUsd>().expect("own text"), amount);
        }
    }
}
