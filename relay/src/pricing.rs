//! What usage costs: integer arithmetic, one rounding per line, upward, to the nano-dollar.
//!
//! A price is integer nano-dollars per million units. A [`PriceSnapshot`] is taken when money is
//! held and kept with the request, so that a later change of the list touches no running request.

mod catalogue;
mod list;

pub use catalogue::{Catalogue, ListedModel, ListedProvider};
pub use list::{PriceList, PriceSet};

use belay_protocol::message::{UnitKind, UsageLine};
use belay_protocol::money::{MoneyError, NanoUsd};
use serde::{Deserialize, Serialize};

const UNITS_PER_PRICE: i128 = 1_000_000;
/// Basis points that mean "unchanged".
pub const BASIS_POINTS: u32 = 10_000;

/// Who says what a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The configuration, for that model.
    Config,
    /// The catalogue of public prices.
    Catalogue,
    /// The configuration, for all models that have no other price.
    Default,
}

/// The price of one kind of unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceLine {
    /// What is priced.
    pub kind: UnitKind,
    /// Nano-USD per million units.
    pub nano_per_million: i64,
}

/// Other prices for requests whose input is large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceTier {
    /// It holds for requests with more input tokens than this, of all kinds together.
    pub above: u64,
    /// In place of the lines of the same kinds.
    pub lines: Vec<PriceLine>,
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
    /// By rising `above`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<PriceTier>,
}

/// Kinds that a provider may count input as.
const INPUT_KINDS: [UnitKind; 6] = [
    UnitKind::INPUT,
    UnitKind::CACHE_READ,
    UnitKind::CACHE_WRITE_5M,
    UnitKind::CACHE_WRITE_1H,
    UnitKind::INPUT_AUDIO,
    UnitKind::INPUT_IMAGE,
];
/// Kinds that a provider may count output as.
const OUTPUT_KINDS: [UnitKind; 3] = [UnitKind::OUTPUT, UnitKind::OUTPUT_AUDIO, UnitKind::OUTPUT_IMAGE];

impl PriceSnapshot {
    /// Nano-USD per million units of that kind, at that size of input. Input that is cached, and input
    /// and output that are sound or pictures, cost what the others cost where they have no price of
    /// their own; reasoning is part of the output and has none.
    fn per_million(&self, kind: UnitKind, input: u64) -> i64 {
        let named = |kind: UnitKind| {
            let tiers = self.tiers.iter().rev().filter(|tier| input > tier.above).map(|tier| &tier.lines);
            tiers.chain([&self.lines]).flatten().find(|line| line.kind == kind).map(|line| line.nano_per_million)
        };
        let price = match kind {
            UnitKind::REASONING => Some(0),
            // An hour's cache is never cheaper than that of five minutes.
            UnitKind::CACHE_WRITE_1H => {
                named(kind).or_else(|| named(UnitKind::CACHE_WRITE_5M)).or_else(|| named(UnitKind::INPUT))
            }
            kind if INPUT_KINDS.contains(&kind) => named(kind).or_else(|| named(UnitKind::INPUT)),
            kind if OUTPUT_KINDS.contains(&kind) => named(kind).or_else(|| named(UnitKind::OUTPUT)),
            kind => named(kind),
        };
        price.unwrap_or(0)
    }

    /// The dearest price of some kinds, for any input up to that size.
    fn dearest(&self, kinds: &[UnitKind], input: u64) -> i64 {
        let sizes = self.tiers.iter().map(|tier| tier.above).filter(|above| *above < input).map(|above| above + 1);
        let priced = |size| kinds.iter().map(move |kind| self.per_million(*kind, size));
        sizes.chain([0]).flat_map(priced).max().unwrap_or(0)
    }

    fn line_cost(&self, units: u64, per_million: i64) -> Result<NanoUsd, MoneyError> {
        let exact = (i128::from(units) * i128::from(per_million))
            .checked_mul(i128::from(self.multiplier_bp))
            .ok_or(MoneyError::OutOfRange)?;
        let divisor = UNITS_PER_PRICE * i128::from(BASIS_POINTS);
        let rounded_up = exact.div_euclid(divisor) + i128::from(exact.rem_euclid(divisor) > 0);
        i64::try_from(rounded_up).map(NanoUsd).map_err(|_| MoneyError::OutOfRange)
    }

    /// Usage with the call itself, where that has a price of its own and nobody has said how many there were.
    pub(crate) fn with_call(&self, usage: &[UsageLine]) -> Vec<UsageLine> {
        let is_calls = |kind: UnitKind| kind == UnitKind::CALLS;
        let is_missing =
            self.lines.iter().any(|line| is_calls(line.kind)) && !usage.iter().any(|line| is_calls(line.kind));
        let call = is_missing.then_some(UsageLine { kind: UnitKind::CALLS, units: 1 });
        usage.iter().cloned().chain(call).collect()
    }

    /// What this usage costs, in nano-USD, multiplier included. Errors: `OutOfRange`.
    pub fn cost(&self, usage: &[UsageLine]) -> Result<NanoUsd, MoneyError> {
        let input = usage
            .iter()
            .filter(|line| INPUT_KINDS.contains(&line.kind))
            .fold(0_u64, |sum, line| sum.saturating_add(line.units));
        usage.iter().try_fold(NanoUsd::ZERO, |sum, line| {
            sum.checked_add(self.line_cost(line.units, self.per_million(line.kind, input))?)
        })
    }

    /// The most that a call with input and output of that size can cost: both at their dearest kind, one
    /// nano-dollar of rounding for every line that a settlement may have.
    pub fn most(&self, input: u64, output: u64) -> Result<NanoUsd, MoneyError> {
        let rounding = NanoUsd((INPUT_KINDS.len() + OUTPUT_KINDS.len()) as i64 - 2);
        self.line_cost(input, self.dearest(&INPUT_KINDS, input))?
            .checked_add(self.line_cost(output, self.dearest(&OUTPUT_KINDS, input))?)?
            .checked_add(self.line_cost(1, self.per_million(UnitKind::CALLS, input))?)?
            .checked_add(rounding)
    }

    /// How many output tokens `money` buys beside `input` tokens; zero if not even the input.
    pub fn affordable_output(&self, money: NanoUsd, input: u64) -> Result<u64, MoneyError> {
        let left = i128::from(money.0) - i128::from(self.most(input, 0)?.0);
        let per_unit = i128::from(self.dearest(&OUTPUT_KINDS, input)) * i128::from(self.multiplier_bp);
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
            tiers: vec![],
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
    fn a_tier_begins_above_its_size_and_sound_and_pictures_cost_what_text_does() {
        let mut price = snapshot(10_000, 1_000_000, 2_000_000);
        let line = |kind, nano_per_million| PriceLine { kind, nano_per_million };
        price.tiers = vec![
            PriceTier { above: 100, lines: vec![line(UnitKind::INPUT, 3_000_000)] },
            PriceTier { above: 200, lines: vec![line(UnitKind::OUTPUT, 9_000_000)] },
        ];
        let cost = |input, output| price.cost(&usage(input, output)).expect("in range").0;
        assert_eq!([cost(100, 1), cost(101, 1), cost(200, 1), cost(201, 1)], [102, 305, 602, 612]);
        // What is held is the dearest for any input up to that size, and not of a tier that begins there.
        let rounding = 7;
        let most = |input| price.most(input, 1).expect("in range").0 - rounding;
        assert_eq!([most(100), most(101), most(200), most(201)], [102, 305, 602, 612]);
        let one = |kind| price.cost(&[UsageLine { kind, units: 1 }]).expect("in range").0;
        assert_eq!([one(UnitKind::OUTPUT_AUDIO), one(UnitKind::OUTPUT_IMAGE), one(UnitKind::INPUT_IMAGE)], [2, 2, 1]);
        assert_eq!([one(UnitKind::CALLS), one(UnitKind::WEB_SEARCHES)], [0, 0]);
        let hours = |kind| price.cost(&[UsageLine { kind, units: 1 }]).expect("in range").0;
        assert_eq!(hours(UnitKind::CACHE_WRITE_1H), 1, "no price of its own, nor of five minutes");
        let told = [UsageLine { kind: UnitKind::CALLS, units: 7 }, UsageLine { kind: UnitKind::INPUT, units: 1 }];
        assert_eq!(price.with_call(&told), told, "there is no price for them");
    }

    #[test]
    fn what_costs_nothing_is_affordable_without_end() {
        let free = snapshot(10_000, 1_000_000, 0);
        assert_eq!(free.affordable_output(NanoUsd(1_000), 10), Ok(u64::MAX));
        assert_eq!(free.affordable_output(NanoUsd(10), 10), Ok(0), "not even the input");
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
