//! What a user had when the deployment before was exported.

use super::{ImportError, Options};
use crate::store::old::{Amount, BILLING_LEDGER, Field, Old, Row, USERS};
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
    /// Amounts have signs of their own.
    signed: bool,
    kinds: Vec<(String, bool)>,
}

impl Signs {
    /// Errors: amounts have no sign, and a kind of entry is not known.
    pub(super) fn of(old: &Old, options: &Options) -> Result<Self, ImportError> {
        let (kinds, signed) = old.kinds(&BILLING_LEDGER, Field::Kind, Field::Amount)?;
        let mut known = vec![];
        let mut unknown = vec![];
        for (kind, count) in kinds {
            let word = kind.trim().to_lowercase();
            let told = options.ledger_kinds.iter().find(|(name, _)| *name == word).map(|(_, adds)| *adds);
            let is = |words: &[&str]| words.contains(&word.as_str());
            match told.or(if is(&CREDITS) { Some(true) } else { is(&DEBITS).then_some(false) }) {
                Some(adds) => known.push((word, adds)),
                None => unknown.push(format!("{kind:?} ({count} entries)")),
            }
        }
        if !signed && !unknown.is_empty() {
            let why = format!(
                "the amounts of billing_ledger have no sign, and whether these kinds of entries add to a balance or take \
                 from it is not known: {}; say so with --ledger-kind NAME=credit or --ledger-kind NAME=debit",
                unknown.join(", ")
            );
            return Err(ImportError::Ambiguous(why));
        }
        Ok(Self { signed, kinds: known })
    }

    fn apply(&self, row: &Row, amount: Amount) -> Amount {
        let kind = row.text(Field::Kind).unwrap_or_default().trim().to_lowercase();
        let takes = !self.signed && self.kinds.iter().any(|(known, adds)| *known == kind && !adds);
        if takes { amount.negated() } else { amount }
    }
}

/// A user's balance. `None`: the export says nothing of it. Errors, for people: it contradicts itself.
pub(super) fn balance(user: &Row, ledger: &[Row], signs: &Signs, options: &Options) -> Result<Option<NanoUsd>, String> {
    let unit = options.money_unit;
    let mut sum = Amount::default();
    let mut last = None;
    for row in ledger {
        let odd = |error: crate::store::old::Odd| error.to_string();
        let amount = row.amount(Field::Amount, unit).map_err(odd)?.ok_or("an entry of billing_ledger has no amount")?;
        sum = sum.plus(signs.apply(row, amount)).ok_or("its entries sum to more than the ledger can keep")?;
        last = row.amount(Field::Balance, unit).map_err(odd)?.or(last);
    }
    let said = user.amount(Field::Balance, unit).map_err(|error| error.to_string())?;
    let summed = (!ledger.is_empty()).then_some(sum);
    let found = match options.balances {
        Some(BalanceSource::Ledger) => summed,
        Some(BalanceSource::Users) => said,
        Some(BalanceSource::Last) => last,
        None => {
            let known = [
                ("the entries of billing_ledger sum to", summed),
                ("the last entry leaves", last),
                ("users says", said),
            ];
            let known: Vec<(&str, Amount)> =
                known.into_iter().filter_map(|(what, amount)| Some((what, amount?))).collect();
            let differ = known.windows(2).any(|pair| pair[0].1.nearest() != pair[1].1.nearest());
            if differ {
                let known: Vec<String> = known
                    .iter()
                    .map(|(what, amount)| {
                        format!("{what} {}", amount.nearest().map_or("too much".into(), |nano| nano.to_string()))
                    })
                    .collect();
                return Err(format!("{}: say which holds with --balances ledger, users or last", known.join(", ")));
            }
            known.first().map(|(_, amount)| *amount)
        }
    };
    let nano = |amount: Amount| amount.nearest().ok_or_else(|| "it is more than the ledger can keep".to_owned());
    found.map(nano).transpose()
}

/// Whether the export says anything of balances.
pub(super) fn is_known(old: &Old) -> bool {
    old.says(&BILLING_LEDGER, Field::Amount) || old.says(&USERS, Field::Balance)
}
