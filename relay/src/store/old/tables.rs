//! The tables of the old deployment, and the names under which their columns are known. Deployments of different ages
//! differ in them: of several names that a table has, the first counts.

use serde::Serialize;

/// What a cell is about, whatever its column is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[expect(missing_docs, reason = "their names are what they are about")]
pub enum Field {
    Id,
    Owner,
    User,
    Name,
    Email,
    Tier,
    Customer,
    Status,
    Active,
    Suspended,
    Balance,
    Hash,
    Scopes,
    Expires,
    Used,
    Revoked,
    Key,
    Value,
    All,
    Kind,
    Amount,
    Request,
    Provider,
    Model,
    Input,
    Output,
    CacheRead,
    CacheWrite,
    Reasoning,
    Tokens,
    Cost,
    Content,
    Object,
    Base,
    Rank,
    Alpha,
    Modules,
    Config,
    ConfigObject,
    Messages,
    Framing,
    Knowledge,
    Constraints,
    Context,
    Role,
    Created,
    Updated,
    Deleted,
}

/// A column: what it is about, and what it may be called. Columns of money have a unit in their name
/// (`amount_cents`), or the operator says which.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) field: Field,
    pub(super) names: &'static [&'static str],
    pub(super) is_money: bool,
    /// Several of them may be there, and each counts.
    pub(super) is_flag: bool,
}

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    pub(super) columns: &'static [Column],
    /// What entries of a key-value store begin with that stand for rows of it.
    pub(super) prefixes: &'static [&'static str],
}

const fn column(field: Field, names: &'static [&'static str]) -> Column {
    Column { field, names, is_money: false, is_flag: false }
}

const fn money(field: Field, names: &'static [&'static str]) -> Column {
    Column { field, names, is_money: true, is_flag: false }
}

const fn flag(field: Field, names: &'static [&'static str]) -> Column {
    Column { field, names, is_money: false, is_flag: true }
}

const ID: Column = column(Field::Id, &["id", "uuid"]);
const OWNER: Column = column(Field::Owner, &["user_id", "userid", "owner_id", "tenant_id", "account_id"]);
const CREATED: Column = column(Field::Created, &["created_at", "created", "inserted_at"]);
const UPDATED: Column = column(Field::Updated, &["updated_at", "modified_at", "updated", "last_modified"]);
const DELETED: Column = flag(Field::Deleted, &["deleted_at", "is_deleted", "deleted"]);
const ACTIVE: Column = flag(Field::Active, &["is_active", "active", "enabled"]);
const OBJECT: Column =
    column(Field::Object, &["r2_key", "object_key", "storage_key", "blob_key", "file_key", "r2_path"]);

/// Who pays.
pub static USERS: Table = Table {
    name: "users",
    columns: &[
        column(Field::Id, &["id", "user_id", "uuid"]),
        column(Field::Name, &["name", "display_name", "full_name", "company"]),
        column(Field::Email, &["email", "email_address"]),
        column(Field::Tier, &["tier", "plan", "subscription_tier", "subscription"]),
        column(Field::Customer, &["stripe_customer_id", "stripe_customer", "customer_id"]),
        column(Field::Status, &["status", "state"]),
        flag(
            Field::Suspended,
            &[
                "suspended",
                "is_suspended",
                "disabled",
                "is_disabled",
                "banned",
                "is_banned",
                "blocked",
                "suspended_at",
                "disabled_at",
                "banned_at",
            ],
        ),
        money(Field::Balance, &["balance", "credit", "credits", "prepaid"]),
        ACTIVE,
        DELETED,
        CREATED,
    ],
    prefixes: &["user", "users"],
};

/// What they show themselves with.
pub static API_KEYS: Table = Table {
    name: "api_keys",
    columns: &[
        ID,
        OWNER,
        column(Field::Hash, &["key_hash", "hash", "api_key_hash", "token_hash", "hashed_key", "sha256"]),
        column(Field::Key, &["key", "api_key", "token", "secret"]),
        column(Field::Name, &["name", "label", "description"]),
        column(Field::Scopes, &["scopes", "permissions", "scope"]),
        column(Field::Expires, &["expires_at", "expires", "expiry"]),
        column(Field::Used, &["last_used_at", "last_used"]),
        flag(
            Field::Revoked,
            &["revoked_at", "revoked", "is_revoked", "deleted_at", "is_deleted", "deleted", "disabled", "disabled_at"],
        ),
        column(Field::Status, &["status", "state"]),
        ACTIVE,
        CREATED,
    ],
    prefixes: &["apikey", "api_key", "api-key", "api_keys", "key"],
};

/// One row per setting, or one with all of a user's.
pub static USER_SETTINGS: Table = Table {
    name: "user_settings",
    columns: &[
        OWNER,
        column(Field::Key, &["key", "name", "setting", "setting_key"]),
        column(Field::Value, &["value", "setting_value"]),
        column(Field::All, &["settings", "preferences", "settings_json", "data", "json"]),
        UPDATED,
        CREATED,
    ],
    prefixes: &["settings", "setting", "user_settings", "user-settings", "preferences"],
};

/// What was paid and charged.
pub static BILLING_LEDGER: Table = Table {
    name: "billing_ledger",
    columns: &[
        ID,
        OWNER,
        column(Field::Kind, &["type", "kind", "entry_type", "transaction_type", "operation", "direction"]),
        money(Field::Amount, &["amount", "delta", "change", "value"]),
        money(Field::Balance, &["balance_after", "running_balance", "new_balance", "balance"]),
        column(Field::Created, &["created_at", "created", "timestamp", "at", "inserted_at"]),
    ],
    // What is kept there for speed would count twice.
    prefixes: &[],
};

/// What was asked, and what it cost.
pub static USAGE_RECORDS: Table = Table {
    name: "usage_records",
    columns: &[
        ID,
        OWNER,
        column(Field::Request, &["request_id", "request"]),
        column(Field::Key, &["api_key_id", "key_id"]),
        column(Field::Kind, &["type", "kind", "usage_type", "category", "operation", "source"]),
        column(Field::Provider, &["provider", "vendor"]),
        column(Field::Model, &["model", "model_used", "model_id", "model_name"]),
        column(Field::Input, &["input_tokens", "prompt_tokens", "tokens_in", "tokens_input"]),
        column(Field::Output, &["output_tokens", "completion_tokens", "tokens_out", "tokens_output"]),
        column(Field::CacheRead, &["cache_read_tokens", "cache_read_input_tokens", "cached_tokens"]),
        column(Field::CacheWrite, &["cache_write_tokens", "cache_creation_input_tokens", "cache_creation_tokens"]),
        column(Field::Reasoning, &["reasoning_tokens", "thinking_tokens"]),
        column(Field::Tokens, &["tokens_used", "total_tokens", "tokens", "quantity"]),
        money(Field::Cost, &["cost", "amount", "charge", "price"]),
        column(Field::Created, &["created_at", "timestamp", "recorded_at", "created", "at", "date"]),
    ],
    prefixes: &[],
};

/// Files of knowledge.
pub static KNOWLEDGE_DOCUMENTS: Table = Table {
    name: "knowledge_documents",
    columns: &[
        ID,
        OWNER,
        column(Field::Name, &["path", "file_path", "filename", "file_name", "title", "name"]),
        column(Field::Content, &["content", "body", "text"]),
        column(Field::Kind, &["content_type", "mime_type", "mime", "type"]),
        OBJECT,
        UPDATED,
        DELETED,
        CREATED,
    ],
    prefixes: &["knowledge", "document", "documents", "doc", "knowledge_documents"],
};

/// Adapters of models.
pub static USER_LORAS: Table = Table {
    name: "user_loras",
    columns: &[
        ID,
        OWNER,
        column(Field::Name, &["name", "adapter_name", "title"]),
        column(Field::Base, &["base_model", "base_model_name_or_path", "base_model_name", "base"]),
        column(Field::Rank, &["rank", "r", "lora_rank"]),
        column(Field::Alpha, &["alpha", "lora_alpha"]),
        column(Field::Modules, &["target_modules", "modules"]),
        column(Field::Config, &["config", "adapter_config", "config_json"]),
        column(Field::ConfigObject, &["config_key", "config_r2_key", "config_object_key"]),
        OBJECT,
        UPDATED,
        DELETED,
        CREATED,
    ],
    prefixes: &["lora", "loras", "user_loras", "adapter"],
};

/// Conversations.
pub static CHAT_SESSIONS: Table = Table {
    name: "chat_sessions",
    columns: &[
        column(Field::Id, &["id", "session_id", "uuid"]),
        OWNER,
        column(Field::Name, &["title", "name"]),
        column(Field::Model, &["model", "model_preference", "preferred_model"]),
        column(Field::Messages, &["messages", "message_history", "history", "conversation"]),
        column(Field::Framing, &["pathos_framing", "framing", "system_prompt"]),
        column(Field::Knowledge, &["local_knowledge", "knowledge"]),
        column(Field::Constraints, &["constraints"]),
        column(Field::Context, &["context", "context_json", "state"]),
        UPDATED,
        DELETED,
        CREATED,
    ],
    prefixes: &["session", "sessions", "chat", "chat_session", "chat_sessions"],
};

/// Their messages, where they have a table of their own. The owner is the session.
pub static CHAT_MESSAGES: Table = Table {
    name: "chat_messages",
    columns: &[
        ID,
        column(Field::Owner, &["session_id", "chat_session_id", "chat_id"]),
        column(Field::User, &["user_id", "userid", "owner_id", "tenant_id", "account_id"]),
        column(Field::Role, &["role", "author", "sender"]),
        column(Field::Content, &["content", "text", "message", "body"]),
        column(Field::Model, &["model", "model_used"]),
        column(Field::Created, &["created_at", "timestamp", "created", "at"]),
    ],
    prefixes: &[],
};

/// All of them.
pub(super) static ALL: [&Table; 9] = [
    &USERS,
    &API_KEYS,
    &USER_SETTINGS,
    &BILLING_LEDGER,
    &USAGE_RECORDS,
    &KNOWLEDGE_DOCUMENTS,
    &USER_LORAS,
    &CHAT_SESSIONS,
    &CHAT_MESSAGES,
];

/// In what money is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// 10⁻⁹ dollars.
    Nano,
    /// 10⁻⁶ dollars.
    Micro,
    /// Cents.
    Cents,
    /// Dollars.
    Usd,
}

impl Unit {
    /// What columns of that unit end with.
    const ENDINGS: [(&'static str, Self); 10] = [
        ("_nano_usd", Self::Nano),
        ("_nanos", Self::Nano),
        ("_nano", Self::Nano),
        ("_micro_usd", Self::Micro),
        ("_micros", Self::Micro),
        ("_microusd", Self::Micro),
        ("_cents", Self::Cents),
        ("_cent", Self::Cents),
        ("_dollars", Self::Usd),
        ("_usd", Self::Usd),
    ];

    /// Nano-dollars in one of it.
    #[must_use]
    pub fn nanos(self) -> i128 {
        match self {
            Self::Nano => 1,
            Self::Micro => 1_000,
            Self::Cents => 10_000_000,
            Self::Usd => 1_000_000_000,
        }
    }
}

impl std::str::FromStr for Unit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nano" => Ok(Self::Nano),
            "micro" => Ok(Self::Micro),
            "cents" => Ok(Self::Cents),
            "usd" => Ok(Self::Usd),
            other => Err(format!("{other:?} is no unit; there are nano, micro, cents and usd")),
        }
    }
}

impl Column {
    /// Which of those names are this one's, with their units: the one that fits best, or all of them if each counts.
    pub(super) fn choose<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<(String, Option<Unit>)> {
        let fits = names.filter_map(|name| self.fits(name).map(|(place, unit)| (place, name.clone(), unit)));
        let mut fits: Vec<_> = fits.collect();
        fits.sort_by_key(|(place, ..)| *place);
        let most = if self.is_flag { fits.len() } else { 1 };
        fits.into_iter().take(most).map(|(_, name, unit)| (name, unit)).collect()
    }

    /// Whether a column of that name is this one, how well it fits (0 is best), and its unit, if its name says one.
    fn fits(&self, name: &str) -> Option<(usize, Option<Unit>)> {
        let name = name.to_ascii_lowercase();
        let place = |stem: &str| self.names.iter().position(|known| *known == stem);
        if let Some(place) = place(&name) {
            return Some((place, None));
        }
        let endings = Unit::ENDINGS.into_iter().filter(|_| self.is_money);
        let (stem, unit) = endings.filter_map(|(end, unit)| Some((name.strip_suffix(end)?, unit))).next()?;
        place(stem).map(|place| (place, Some(unit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_known_by_their_names_and_money_by_its_unit() {
        let amount = BILLING_LEDGER.columns.iter().find(|column| column.field == Field::Amount).expect("there");
        assert_eq!(amount.fits("amount"), Some((0, None)));
        assert_eq!(amount.fits("Amount_Cents"), Some((0, Some(Unit::Cents))));
        assert_eq!(amount.fits("delta_nano_usd"), Some((1, Some(Unit::Nano))));
        assert_eq!(amount.fits("amount_eur"), None);
        let model = USAGE_RECORDS.columns.iter().find(|column| column.field == Field::Model).expect("there");
        assert_eq!(model.fits("model_usd"), None, "no money");
    }

    #[test]
    fn no_table_has_a_name_for_two_columns() {
        for table in ALL {
            let mut names: Vec<&str> = table.columns.iter().flat_map(|column| column.names.iter().copied()).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", table.name);
        }
    }
}
