//! What a user brings along: read from the export, and counted. Pure but for the files of objects.

use super::items::{self, Item};
use super::report::{Left, Report, Tally};
use super::sessions::{self, Conversation};
use super::{Arriving, Import, ImportError, keys, money, names, usage};
use crate::store::central::import::ImportedUser;
use crate::store::central::keys::ApiKey;
use crate::store::ledger::import::ImportedUsage;
use crate::store::ledger::standing::{Terms, Tier};
use crate::store::old::{
    API_KEYS, BILLING_LEDGER, CHAT_MESSAGES, CHAT_SESSIONS, Field, KNOWLEDGE_DOCUMENTS, Row, USAGE_RECORDS, USER_LORAS,
    USER_SETTINGS, USERS,
};
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use std::collections::HashSet;

/// Rows of usage that are written in one transaction.
const ROWS: u32 = 4000;

impl Import {
    /// A page of a user's usage, and where the next one begins.
    pub(super) fn usage(
        &self,
        user: &str,
        after: i64,
        report: &mut Report,
    ) -> Result<(Vec<ImportedUsage>, Option<i64>), ImportError> {
        let page = self.old.rows(&USAGE_RECORDS, user, (after, ROWS))?;
        let next = (page.len() == ROWS as usize).then(|| page.last().map(|(place, _)| *place)).flatten();
        let mut rows = vec![];
        for (_, row) in page {
            report.usage.found += 1;
            match usage::row(user, &row, &self.options) {
                Ok(row) => rows.push(row),
                Err(left) => {
                    report.usage.left_out += 1;
                    report.leave(left);
                }
            }
        }
        Ok((rows, next))
    }

    /// What a user brings along, and where the rest of the usage begins. Errors: the user cannot come.
    pub(super) fn plan(&mut self, id: &str) -> Result<Result<(Arriving, Option<i64>), Left>, ImportError> {
        let left = |why: String| Left { table: USERS.name, user: id.into(), id: id.into(), why };
        let rows = self.old.all(&USERS, id)?;
        let Some(row) = rows.first() else { return Ok(Err(left("it is not there any more".into()))) };
        let Some(tenant) = names::tenant(&self.options.prefix, id) else {
            return Ok(Err(left("no tenant can be called so".into())));
        };
        if !self.taken.insert(tenant.clone()) {
            return Ok(Err(left(format!("another user has become the tenant {tenant}"))));
        }
        let mut report = Report::default();
        report.users.found = 1;
        let (terms, note) = terms(row);
        report.notes.extend(note);
        let created_ms = match row.time_ms(Field::Created) {
            Ok(created) => created.unwrap_or(self.now_ms),
            Err(error) => return Ok(Err(left(error.to_string()))),
        };
        let user = ImportedUser { user: id.into(), tenant: tenant.clone(), label: label(row), terms, created_ms };
        let keys = self.keys(id, &tenant, &mut report)?;
        let balance = self.balance(id, row, &mut report)?;
        let (usage, more) = self.usage(id, i64::MIN, &mut report)?;
        let sessions = self.sessions(id, &mut report)?;
        let items = self.items(id, &mut report)?;
        let customer = row.text(Field::Customer);
        Ok(Ok((Arriving { user, customer, keys, balance, usage, sessions, items, report }, more)))
    }

    fn keys(
        &mut self,
        id: &str,
        tenant: &TenantId,
        report: &mut Report,
    ) -> Result<Vec<(ApiKey, [u8; 32])>, ImportError> {
        let mut keys = vec![];
        let mut own = HashSet::new();
        for row in self.old.all(&API_KEYS, id)? {
            match keys::key(id, tenant, &row, self.now_ms) {
                // The same key in the key-value store, where it was kept for speed.
                Ok((_, hash)) if own.contains(&hash) => {}
                Ok((key, hash)) => {
                    report.keys.found += 1;
                    own.insert(hash);
                    if self.hashes.insert(hash) {
                        keys.push((key, hash));
                    } else {
                        report.keys.left_out += 1;
                        let why = "another user has the same key".into();
                        report.leave(Left { table: API_KEYS.name, user: id.into(), id: key.id, why });
                    }
                }
                Err(left) => {
                    report.keys.found += 1;
                    report.keys.left_out += 1;
                    report.leave(left);
                }
            }
        }
        Ok(keys)
    }

    fn balance(&self, id: &str, user: &Row, report: &mut Report) -> Result<Option<NanoUsd>, ImportError> {
        let ledger = self.old.all(&BILLING_LEDGER, id)?;
        let found = money::balance(user, &ledger, &self.signs, &self.options);
        if !matches!(found, Ok(None)) {
            report.balances.found = 1;
        }
        Ok(found.unwrap_or_else(|why| {
            report.balances.left_out = 1;
            report.leave(Left { table: BILLING_LEDGER.name, user: id.into(), id: String::new(), why });
            None
        }))
    }

    fn sessions(&self, id: &str, report: &mut Report) -> Result<Vec<Conversation>, ImportError> {
        let (mut sessions, mut seen) = (vec![], HashSet::new());
        for row in self.old.all(&CHAT_SESSIONS, id)? {
            let name = row.text(Field::Id).unwrap_or_default();
            // What the key-value store kept beside the table.
            if !seen.insert(name.clone()) {
                continue;
            }
            report.sessions.found += 1;
            if row.is_set(Field::Deleted) == Some(true) {
                report.sessions.deleted += 1;
                continue;
            }
            let beside = self.old.all(&CHAT_MESSAGES, &name)?;
            match sessions::conversation(id, &row, &beside, self.now_ms) {
                Ok(session) => {
                    report.messages.found += (session.messages.len() + session.left.len()) as u64;
                    report.messages.left_out += session.left.len() as u64;
                    session.left.iter().for_each(|left| report.leave(left.clone()));
                    sessions.push(session);
                }
                Err(left) => {
                    report.sessions.left_out += 1;
                    report.leave(left);
                }
            }
        }
        Ok(sessions)
    }

    fn items(&mut self, id: &str, report: &mut Report) -> Result<Vec<Item>, ImportError> {
        let mut all = vec![];
        let mut settings: Vec<Result<Item, Left>> = vec![];
        for row in self.old.all(&USER_SETTINGS, id)? {
            for one in items::settings(id, &row) {
                // The table comes before what was kept beside it.
                let is_there =
                    one.as_ref().is_ok_and(|item| settings.iter().flatten().any(|other| other.id == item.id));
                if !is_there {
                    settings.push(one);
                }
            }
        }
        all.extend(tallied(settings, id, &mut report.settings, &mut report.left));
        for (table, is_adapter) in [(&KNOWLEDGE_DOCUMENTS, false), (&USER_LORAS, true)] {
            let (mut found, mut seen) = (vec![], HashSet::new());
            for row in self.old.all(table, id)? {
                let tally = if is_adapter { &mut report.adapters } else { &mut report.documents };
                if !seen.insert(row.text(Field::Id)) && row.text(Field::Id).is_some() {
                    continue;
                }
                if row.is_set(Field::Deleted) == Some(true) {
                    tally.add(Tally { found: 1, deleted: 1, ..Tally::default() });
                    continue;
                }
                let objects = self.objects.as_mut();
                found.push(if is_adapter {
                    items::adapter(id, &row, objects)
                } else {
                    items::document(id, &row, objects)
                });
            }
            let tally = if is_adapter { &mut report.adapters } else { &mut report.documents };
            all.extend(tallied(found, id, tally, &mut report.left));
        }
        Ok(all)
    }
}

/// Counts items, puts those apart that would be called the same, and those aside that cannot come.
fn tallied(items: Vec<Result<Item, Left>>, user: &str, tally: &mut Tally, left: &mut Vec<Left>) -> Vec<Item> {
    let (mut good, mut bad) = (vec![], vec![]);
    tally.found += items.len() as u64;
    for item in items {
        match item {
            Ok(item) => good.push(item),
            Err(left) => bad.push(left),
        }
    }
    let mut come = vec![];
    for item in items::apart(good, user) {
        match item {
            Ok(item) => come.push(item),
            Err(left) => bad.push(left),
        }
    }
    tally.left_out += bad.len() as u64;
    left.extend(bad);
    come
}

/// What people call a user.
fn label(row: &Row) -> String {
    let label = match (row.text(Field::Name), row.text(Field::Email)) {
        (Some(name), Some(email)) if name != email => format!("{name} <{email}>"),
        (Some(name), _) => name,
        (None, email) => email.unwrap_or_default(),
    };
    label.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What a user pays with, and whether it may do anything; and what should be known of that.
fn terms(row: &Row) -> (Terms, Option<String>) {
    let said = row.text(Field::Tier).unwrap_or_default().trim().to_lowercase();
    let usual = ["", "managed", "pro", "premium", "team", "business", "enterprise", "paid", "basic", "starter", "plus"];
    let tier = match said.as_str() {
        "free" | "trial" => Tier::Free,
        "byok" | "own_key" | "own-key" => Tier::Byok,
        _ => Tier::Managed,
    };
    let note = (tier == Tier::Managed && !usual.contains(&said.as_str()))
        .then(|| format!("the tier {said:?} is not known here: whoever has it is managed now"));
    let status = row.text(Field::Status).unwrap_or_default().trim().to_lowercase();
    let suspended = ["suspended", "disabled", "banned", "blocked", "inactive", "deleted"].contains(&status.as_str())
        || [Field::Suspended, Field::Deleted].iter().any(|field| row.is_set(*field) == Some(true))
        || row.is_set(Field::Active) == Some(false);
    (Terms { tier, suspended, ..Terms::default() }, note)
}
