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
    API_KEYS, BILLING_LEDGER, CHAT_MESSAGES, CHAT_SESSIONS, Field, KNOWLEDGE_DOCUMENTS, OldError, Row, USAGE_RECORDS,
    USER_LORAS, USER_SETTINGS, USERS,
};
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use std::collections::{HashMap, HashSet};

/// Rows of usage that are written in one transaction.
const ROWS: u32 = 4000;

impl Import {
    /// A page of a user's usage, and where the next one begins.
    pub(super) fn usage(
        &self,
        user: &str,
        after: i64,
        keys: &HashMap<String, String>,
        report: &mut Report,
    ) -> Result<(Vec<ImportedUsage>, Option<i64>), ImportError> {
        let page = self.old.rows(&USAGE_RECORDS, user, (after, ROWS))?;
        let next = (page.len() == ROWS as usize).then(|| page.last().map(|(place, _)| *place)).flatten();
        let mut rows = vec![];
        for (_, row) in page {
            report.usage.found += 1;
            match usage::row(user, &row, &self.options, keys) {
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
        let rows = match self.old.all(&USERS, id) {
            Err(error @ OldError::TooMany(_)) => return Ok(Err(left(error.to_string()))),
            rows => rows?,
        };
        // Who came before is called as then, whatever others are called now.
        let named = self.known.get(id).cloned().or_else(|| names::tenant(&self.options.prefix, id));
        let Some(tenant) = named else { return Ok(Err(left("no tenant can be called so".into()))) };
        if !self.taken.insert(tenant.clone()) {
            return Ok(Err(left(format!("another user has become the tenant {tenant}"))));
        }
        match self.planned(id, tenant, &rows) {
            Err(ImportError::Old(error @ OldError::TooMany(_))) => Ok(Err(left(error.to_string()))),
            planned => planned.map(Ok),
        }
    }

    fn planned(&mut self, id: &str, tenant: TenantId, rows: &[Row]) -> Result<(Arriving, Option<i64>), ImportError> {
        let mut report = Report::default();
        report.users.found = 1;
        let Some(row) = rows.first() else { return Err(ImportError::Lost(format!("the row of {id}"))) };
        if rows.iter().filter(|row| !row.is_entry()).count() > 1 {
            report.notes.push("some users have several rows: the first counts".into());
        }
        let (terms, note) = terms(row);
        report.notes.extend(note);
        let created_ms = row.time_ms(Field::Created).ok().flatten().unwrap_or(self.now_ms);
        let user = ImportedUser { user: id.into(), tenant: tenant.clone(), label: label(row), terms, created_ms };
        let (keys, key_names) = self.keys(id, &tenant, &mut report)?;
        let balance = self.balance(id, row, &mut report)?;
        let (usage, more) = self.usage(id, i64::MIN, &key_names, &mut report)?;
        let sessions = self.sessions(id, &mut report)?;
        let items = self.items(id, &mut report)?;
        let customer = row.text(Field::Customer).filter(|customer| {
            let is_new = self.customers.insert(customer.clone());
            if !is_new {
                report.notes.push(format!("{id} has the same customer at Stripe as another user: it is left out"));
            }
            is_new
        });
        let are_all_keys = self.old.says(&API_KEYS, Field::Hash) || self.old.says(&API_KEYS, Field::Key);
        let arriving =
            Arriving { user, customer, keys, are_all_keys, key_names, balance, usage, sessions, items, report };
        Ok((arriving, more))
    }

    /// Keys, and what those are called here that are called something there.
    #[expect(clippy::type_complexity, reason = "two lists of the same")]
    fn keys(
        &mut self,
        id: &str,
        tenant: &TenantId,
        report: &mut Report,
    ) -> Result<(Vec<(ApiKey, [u8; 32])>, HashMap<String, String>), ImportError> {
        let (mut keys, mut names) = (vec![], HashMap::new());
        for row in self.old.all(&API_KEYS, id)? {
            // What the key-value store kept of the table's.
            if row.is_entry() && keys::hash_of(&row).is_ok_and(|hash| self.in_table.contains(&hash)) {
                continue;
            }
            report.keys.found += 1;
            let left = match keys::key(id, tenant, &row, self.now_ms) {
                Ok((key, hash)) if self.hashes.insert(hash) => {
                    names.extend(row.text(Field::Id).map(|name| (name, key.id.clone())));
                    keys.push((key, hash));
                    continue;
                }
                Ok((key, _)) => {
                    let why = "the same key is there twice".into();
                    Left { table: API_KEYS.name, user: id.into(), id: row.text(Field::Id).unwrap_or(key.id), why }
                }
                Err(left) => left,
            };
            report.keys.left_out += 1;
            report.leave(left);
        }
        Ok((keys, names))
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
            let is_first = seen.insert(name.clone());
            if !is_first && row.is_entry() {
                continue;
            }
            report.sessions.found += 1;
            let mut beside = if is_first { self.old.all(&CHAT_MESSAGES, &name)? } else { vec![] };
            let says_whose = self.old.says(&CHAT_MESSAGES, Field::User);
            if says_whose {
                beside.retain(|message| message.text(Field::User).is_none_or(|user| user == id));
            } else if self.shared_sessions.contains(&name) && !beside.is_empty() {
                let lost = beside.len() as u64;
                report.messages.add(Tally { found: lost, left_out: lost, ..Tally::default() });
                let why = "several users have a session of that id, and its messages do not say whose they are".into();
                report.leave(Left { table: CHAT_MESSAGES.name, user: id.into(), id: name.clone(), why });
                beside.clear();
            }
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
        let mut come = vec![];
        let mut settings: HashMap<String, Item> = HashMap::new();
        for row in self.old.all(&USER_SETTINGS, id)? {
            for one in items::settings(id, &row) {
                match one {
                    // The table comes before what was kept beside it.
                    Ok(item) if row.is_entry() && settings.contains_key(&item.id) => {}
                    Ok(item) => {
                        report.settings.found += 1;
                        // Of two of the same name, the last that was written.
                        report.settings.known += u64::from(settings.insert(item.id.clone(), item).is_some());
                    }
                    Err(left) => {
                        report.settings.add(Tally { found: 1, left_out: 1, ..Tally::default() });
                        report.leave(left);
                    }
                }
            }
        }
        let mut settings: Vec<Item> = settings.into_values().collect();
        settings.sort_by(|a, b| a.id.cmp(&b.id));
        come.extend(settings);
        for (table, is_adapter) in [(&KNOWLEDGE_DOCUMENTS, false), (&USER_LORAS, true)] {
            let mut seen: HashMap<String, u32> = HashMap::new();
            for row in self.old.all(table, id)? {
                let count = seen.entry(row.text(Field::Id).unwrap_or_default()).or_default();
                *count += 1;
                if *count > 1 && row.is_entry() {
                    continue;
                }
                let count = *count;
                let objects = self.objects.as_mut();
                let found = if is_adapter {
                    report.adapters.found += 1;
                    items::adapter(id, &row, objects)
                } else {
                    report.documents.found += 1;
                    items::document(id, &row, objects)
                };
                match found {
                    // Others of the same id are told apart by their number.
                    Ok(item) if count > 1 => come.push(Item { id: format!("{}#{count}", item.id), ..item }),
                    Ok(item) => come.push(item),
                    Err(left) => {
                        let tally = if is_adapter { &mut report.adapters } else { &mut report.documents };
                        tally.left_out += 1;
                        report.leave(left);
                    }
                }
            }
        }
        Ok(come)
    }
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
        .then(|| format!("the tier {said:.40?} is not known here: whoever has it is managed now"));
    let status = row.text(Field::Status).unwrap_or_default().trim().to_lowercase();
    let good = ["", "active", "enabled", "ok", "verified", "confirmed", "trial", "trialing", "paid", "live"];
    let suspended = !good.contains(&status.as_str())
        || row.is_set(Field::Suspended)
        || row.is_set(Field::Deleted)
        || row.is_unset(Field::Active);
    let bad = ["suspended", "disabled", "banned", "blocked", "inactive", "deleted", "closed", "canceled", "cancelled"];
    let note = match status.as_str() {
        known if good.contains(&known) || bad.contains(&known) => note,
        other => Some(format!("the status {:.40?} is not known here: whoever has it is suspended now", other)),
    };
    (Terms { tier, suspended, ..Terms::default() }, note)
}
