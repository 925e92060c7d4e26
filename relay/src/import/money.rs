//! What a user had when the deployment before was exported.

use super::{ImportError, Options};
use crate::store::old::{Amount, BILLING_LEDGER, Field, Odd, Old, Row};
use belay_protocol::money::NanoUsd;

/// Which of the numbers of an export is the balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalanceSource {
    /// The sum of the ledger's entries.
    Ledger,
    /// What the user's own row says.
    Users,
    /// What the last entry of the ledger says was left after it.
    Last,
}

impl std::str::FromStr for BalanceSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ledger" => Ok(Self::Ledger),
            "users" => Ok(Self::Users),
            "last" => Ok(Self::Last),
            other => Err(format!("{other:?} is no source of balances; there are ledger, users and last")),
        }
    }
}

/// Kinds of entries that add to a balance, where amounts have no sign.
const CREDITS: [&str; 12] = [
    "credit", "topup", "top_up", "top-up", "deposit", "payment", "purchase", "grant", "bonus", "promo", "opening",
    "initial",
];
/// Those that take from it.
const DEBITS: [&str; 11] = [
    "debit",
    "charge",
    "usage",
    "spend",
    "deduction",
    "escalation",
    "inference",
    "withdrawal",
    "payout",
    "chargeback",
    "fee",
];

/// How entries of the ledger count.
#[derive(Debug)]
pub(super) struct Signs {
    /// Kinds of which the operator, or their name, says whether they add (true). Others count by their own sign.
    kinds: Vec<(String, bool)>,
}

impl Signs {
    /// Errors: whether entries add to a balance or take from it is not known.
    pub(super) fn of(old: &Old, options: &Options) -> Result<Self, ImportError> {
        let found = old.kinds(&BILLING_LEDGER, Field::Kind, Field::Amount)?;
        for (name, _) in &options.ledger_kinds {
            if !found.iter().any(|(kind, ..)| kind == name) {
                return Err(ImportError::Ambiguous(format!("billing_ledger has no entries of the kind {name:?}")));
            }
        }
        let signed = found.iter().any(|(.., below)| *below > 0);
        let (mut kinds, mut unknown) = (vec![], vec![]);
        for (kind, above, below) in found {
            let told = options.ledger_kinds.iter().find(|(name, _)| *name == kind).map(|(_, adds)| *adds);
            let is = |words: &[&str]| words.contains(&kind.as_str());
            match told {
                Some(adds) => kinds.push((kind, adds)),
                // Its sign says the same as its name, or it has one of both.
                None if signed && (!is(&DEBITS) || above == 0) && (!is(&CREDITS) || below == 0) => {}
                None if !signed && is(&CREDITS) => kinds.push((kind, true)),
                None if !signed && is(&DEBITS) => kinds.push((kind, false)),
                None if above + below == 0 => {}
                None => unknown.push(format!("{kind:?} ({above} above zero, {below} below)")),
            }
        }
        // Only where balances come from these sums.
        if !unknown.is_empty() && matches!(options.balances, None | Some(BalanceSource::Ledger)) {
            let why = format!(
                "whether these entries of billing_ledger add to a balance or take from it is not known: {}; say so with \
                 --ledger-kind NAME=credit or NAME=debit, or take balances from elsewhere with --balances",
                unknown.join(", ")
            );
            return Err(ImportError::Ambiguous(why));
        }
        Ok(Self { kinds })
    }

    fn apply(&self, row: &Row, amount: Amount) -> Amount {
        let kind = row.text(Field::Kind).unwrap_or_default().trim().to_lowercase();
        let size = if amount.is_negative() { amount.negated() } else { amount };
        match self.kinds.iter().find(|(known, _)| *known == kind) {
            None => amount,
            Some((_, true)) => size,
            Some((_, false)) => size.negated(),
        }
    }
}

/// A user's balance. `None`: the export says nothing of it. Errors, for people: it contradicts itself.
pub(super) fn balance(user: &Row, ledger: &[Row], signs: &Signs, options: &Options) -> Result<Option<NanoUsd>, String> {
    let unit = options.money_unit;
    let odd = |error: Odd| error.to_string();
    let mut sum = Amount::default();
    // The last is the last that was written, if they all say when.
    let times: Vec<Option<u64>> = ledger.iter().map(|row| row.time_ms(Field::Created).ok().flatten()).collect();
    let are_timed = times.iter().all(Option::is_some);
    let mut last: Option<(Option<u64>, Amount)> = None;
    for (row, time) in ledger.iter().zip(times) {
        let amount = row.amount(Field::Amount, unit).map_err(odd)?.ok_or("an entry of billing_ledger has no amount")?;
        sum = sum.plus(signs.apply(row, amount)).ok_or("its entries sum to more than the ledger can keep")?;
        if let Some(left) = row.amount(Field::Balance, unit).map_err(odd)?
            && last.is_none_or(|(known, _)| !are_timed || time >= known)
        {
            last = Some((time, left));
        }
    }
    let said = user.amount(Field::Balance, unit).map_err(odd)?;
    let known = [
        (BalanceSource::Ledger, "the entries of billing_ledger sum to", (!ledger.is_empty()).then_some(sum)),
        (BalanceSource::Last, "the last entry leaves", last.map(|(_, left)| left)),
        (BalanceSource::Users, "users says", said),
    ];
    let known: Vec<(BalanceSource, &str, Amount)> =
        known.into_iter().filter_map(|(of, what, amount)| Some((of, what, amount?))).collect();
    // Whoever has only one answer has no contradiction.
    let chosen = known.iter().find(|(of, ..)| options.balances == Some(*of)).map(|(.., amount)| *amount);
    let differ = known.windows(2).any(|pair| pair[0].2.nearest() != pair[1].2.nearest());
    if chosen.is_none() && differ {
        let nano = |amount: &Amount| amount.nearest().map_or("too much".into(), |nano| nano.to_string());
        let known: Vec<String> = known.iter().map(|(_, what, amount)| format!("{what} {}", nano(amount))).collect();
        return Err(format!("{}: say which holds with --balances ledger, users or last", known.join(", ")));
    }
    let found = chosen.or_else(|| known.first().map(|(.., amount)| *amount));
    let nano = |amount: Amount| amount.nearest().ok_or_else(|| "it is more than the ledger can keep".to_owned());
    found.map(nano).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::old::{Cell, USERS, Unit};

    fn entry(kind: &str, amount: i64, after: Option<i64>, at: i64) -> Row {
        let cells = vec![
            (Field::Kind, Cell::Text(kind.into())),
            (Field::Amount, Cell::Integer(amount)),
            (Field::Balance, after.map_or(Cell::Null, Cell::Integer)),
            (Field::Created, Cell::Integer(at)),
        ];
        Row::of(&BILLING_LEDGER, cells)
    }

    fn found(
        said: Option<i64>,
        ledger: &[Row],
        kinds: &[(&str, bool)],
        balances: Option<BalanceSource>,
    ) -> Result<Option<NanoUsd>, String> {
        let kinds = kinds.iter().map(|(name, adds)| ((*name).to_owned(), *adds)).collect();
        let user = Row::of(&USERS, vec![(Field::Balance, said.map_or(Cell::Null, Cell::Integer))]);
        let options = Options { money_unit: Some(Unit::Nano), balances, ..Options::default() };
        balance(&user, ledger, &Signs { kinds }, &options)
    }

    #[test]
    fn a_balance_is_what_the_export_agrees_on() {
        let ledger = [entry("topup", 1000, Some(1000), 5), entry("usage", 300, Some(700), 6)];
        let signs = [("topup", true), ("usage", false)];
        assert_eq!(found(None, &ledger, &signs, None), Ok(Some(NanoUsd(700))));
        assert_eq!(found(Some(700), &ledger, &signs, None), Ok(Some(NanoUsd(700))));
        assert_eq!(found(Some(5), &[], &signs, None), Ok(Some(NanoUsd(5))));
        assert_eq!(found(None, &[], &signs, None), Ok(None));
        assert!(found(Some(5), &ledger, &signs, None).expect_err("differs").contains("--balances"));
        for (source, nano) in [(BalanceSource::Users, 5), (BalanceSource::Ledger, 700), (BalanceSource::Last, 700)] {
            assert_eq!(found(Some(5), &ledger, &signs, Some(source)), Ok(Some(NanoUsd(nano))));
        }
        // Whoever has no such answer keeps the one that there is.
        assert_eq!(found(Some(5), &[], &signs, Some(BalanceSource::Ledger)), Ok(Some(NanoUsd(5))));
        // Told, a kind counts by that, whatever its sign.
        assert_eq!(found(None, &[entry("usage", -300, None, 1)], &signs, None), Ok(Some(NanoUsd(-300))));
    }

    #[test]
    fn the_last_entry_is_the_last_in_time() {
        let ledger = [entry("b", 0, Some(700), 9), entry("a", 0, Some(1000), 5)];
        assert_eq!(found(None, &ledger, &[], Some(BalanceSource::Last)), Ok(Some(NanoUsd(700))));
    }
}
