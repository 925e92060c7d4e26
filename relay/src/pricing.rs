//! What usage costs: integer arithmetic, one rounding per line, upward, to the nano-dollar.
//!
//! A price is integer nano-dollars per million units. A [`PriceSnapshot`] is taken when money is
//! held and kept with the request, so that a later change of the list touches no running request.

use belay_protocol::message::{UnitKind, UsageLine};
use belay_protocol::money::{MoneyError, NanoUsd};
use serde::{Deserialize, Serialize};

const UNITS_PER_PRICE: i128 = 1_000_000;
/// Basis points that mean "unchanged".
pub const BASIS_POINTS: u32 = 10_000;

/// The price of one kind of unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceLine {
    /// What is priced.
    pub kind: UnitKind,
    /// Nano-USD per million units.
    pub nano_per_million: i64,
}

/// A model's prices and the tenant's multiplier at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceSnapshot {
    /// Version of the price list in central.
    pub version: i64,
    /// Applied to every line, in basis points.
    pub multiplier_bp: u32,
    /// At least input and output.
    pub lines: Vec<PriceLine>,
}

impl PriceSnapshot {
    /// Nano-USD per million units of that kind. Cached input without a price of its own costs what
    /// other input costs; reasoning is part of the output and has none.
    fn per_million(&self, kind: UnitKind) -> i64 {
        let find = |kind| self.lines.iter().find(|line| line.kind == kind).map(|line| line.nano_per_million);
        let input = || find(UnitKind::INPUT).unwrap_or(0);
        match kind {
            UnitKind::REASONING => 0,
            UnitKind::CACHE_READ | UnitKind::CACHE_WRITE_5M | UnitKind::CACHE_WRITE_1H => {
                find(kind).unwrap_or_else(input)
            }
            _ => find(kind).unwrap_or(0),
        }
    }

    fn line_cost(&self, units: u64, per_million: i64) -> Result<NanoUsd, MoneyError> {
        let exact = (i128::from(units) * i128::from(per_million))
            .checked_mul(i128::from(self.multiplier_bp))
            .ok_or(MoneyError::OutOfRange)?;
        let divisor = UNITS_PER_PRICE * i128::from(BASIS_POINTS);
        let rounded_up = exact.div_euclid(divisor) + i128::from(exact.rem_euclid(divisor) > 0);
        i64::try_from(rounded_up).map(NanoUsd).map_err(|_| MoneyError::OutOfRange)
    }

    /// What this usage costs, in nano-USD, multiplier included. Errors: `OutOfRange`.
    pub fn cost(&self, usage: &[UsageLine]) -> Result<NanoUsd, MoneyError> {
        usage.iter().try_fold(NanoUsd::ZERO, |sum, line| {
            sum.checked_add(self.line_cost(line.units, self.per_million(line.kind))?)
        })
    }

    /// The most that input and output of that size can cost: input at its dearest kind, one
    /// nano-dollar of rounding for every line that a settlement may have.
    pub fn most(&self, input: u64, output: u64) -> Result<NanoUsd, MoneyError> {
        const INPUT_KINDS: [UnitKind; 4] =
            [UnitKind::INPUT, UnitKind::CACHE_READ, UnitKind::CACHE_WRITE_5M, UnitKind::CACHE_WRITE_1H];
        let dearest = INPUT_KINDS.into_iter().map(|kind| self.per_million(kind)).max().unwrap_or(0);
        let rounding = NanoUsd(INPUT_KINDS.len() as i64);
        self.line_cost(input, dearest)?
            .checked_add(self.line_cost(output, self.per_million(UnitKind::OUTPUT))?)?
            .checked_add(rounding)
    }

    /// How many output tokens `money` buys beside `input` tokens; zero if not even the input.
    pub fn affordable_output(&self, money: NanoUsd, input: u64) -> Result<u64, MoneyError> {
        let left = i128::from(money.0) - i128::from(self.most(input, 0)?.0);
        let per_unit = i128::from(self.per_million(UnitKind::OUTPUT)) * i128::from(self.multiplier_bp);
        if left <= 0 {
            return Ok(0);
        }
        if per_unit == 0 {
            return Ok(u64::MAX);
        }
        let units = left * UNITS_PER_PRICE * i128::from(BASIS_POINTS) / per_unit;
        Ok(u64::try_from(units).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn snapshot(multiplier_bp: u32, input: i64, output: i64) -> PriceSnapshot {
        let line = |kind, nano_per_million| PriceLine { kind, nano_per_million };
        PriceSnapshot {
            version: 1,
            multiplier_bp,
            lines: vec![line(UnitKind::INPUT, input), line(UnitKind::OUTPUT, output)],
        }
    }

    fn usage(input: u64, output: u64) -> Vec<UsageLine> {
        vec![UsageLine { kind: UnitKind::INPUT, units: input }, UsageLine { kind: UnitKind::OUTPUT, units: output }]
    }

    #[test]
    fn the_worked_example_comes_out_exactly() {
        let dollars = 1_000_000_000;
        let price = snapshot(10_300, 3 * dollars, 15 * dollars);
        assert_eq!(price.cost(&usage(1000, 500)), Ok(NanoUsd(10_815_000)));
        assert_eq!(snapshot(10_000, 3 * dollars, 15 * dollars).cost(&usage(1000, 500)), Ok(NanoUsd(10_500_000)));
    }

    #[test]
    fn each_line_is_rounded_up_once() {
        // A third of a nano-dollar per token: one token costs one nano-dollar, three cost one.
        let price = snapshot(10_000, 333_333, 1);
        assert_eq!(price.cost(&usage(1, 0)), Ok(NanoUsd(1)));
        assert_eq!(price.cost(&usage(3, 0)), Ok(NanoUsd(1)));
        assert_eq!(price.cost(&usage(4, 1)), Ok(NanoUsd(2 + 1)));
    }

    #[test]
    fn cached_input_has_its_own_price_or_that_of_input_and_reasoning_is_free_of_a_second_charge() {
        let mut price = snapshot(10_000, 1_000_000, 2_000_000);
        let line = |kind, units| [UsageLine { kind, units }];
        assert_eq!(price.cost(&line(UnitKind::CACHE_READ, 10)), Ok(NanoUsd(10)));
        price.lines.push(PriceLine { kind: UnitKind::CACHE_READ, nano_per_million: 100_000 });
        assert_eq!(price.cost(&line(UnitKind::CACHE_READ, 10)), Ok(NanoUsd(1)));
        assert_eq!(price.cost(&line(UnitKind::REASONING, 10)), Ok(NanoUsd(0)));
    }

    #[test]
    fn what_cannot_be_kept_is_an_error() {
        assert_eq!(snapshot(10_000, i64::MAX, 0).cost(&usage(u64::MAX, 0)), Err(MoneyError::OutOfRange));
    }

    proptest! {
        /// Whatever is used within the bounds costs no more than what was held for it.
        #[test]
        fn the_most_is_never_exceeded(
            input in 0u64..1 << 24, output in 0u64..1 << 24, read in 0u64..=100, write in 0u64..=100,
            prices in proptest::array::uniform4(0i64..100_000_000_000), multiplier in 1u32..30_000,
        ) {
            let mut price = snapshot(multiplier, prices[0], prices[1]);
            price.lines.push(PriceLine { kind: UnitKind::CACHE_READ, nano_per_million: prices[2] });
            price.lines.push(PriceLine { kind: UnitKind::CACHE_WRITE_5M, nano_per_million: prices[3] });
            let part = |percent: u64| input * percent / 200;
            let (read, write) = (part(read), part(write));
            let usage = [
                UsageLine { kind: UnitKind::INPUT, units: input - read - write },
                UsageLine { kind: UnitKind::CACHE_READ, units: read },
                UsageLine { kind: UnitKind::CACHE_WRITE_5M, units: write },
                UsageLine { kind: UnitKind::OUTPUT, units: output },
            ];
            prop_assert!(price.cost(&usage).expect("in range") <= price.most(input, output).expect("in range"));
        }

        #[test]
        fn what_is_affordable_can_be_paid(money in 0i64..1 << 50, input in 0u64..1 << 20, out in 1i64..100_000_000_000) {
            let price = snapshot(10_300, 3_000_000_000, out);
            let output = price.affordable_output(NanoUsd(money), input).expect("in range");
            prop_assert!(output == 0 || price.most(input, output).expect("in range") <= NanoUsd(money));
        }
    }
}
