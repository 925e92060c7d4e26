//! `belayd key` and `belayd provider-key`: through the admin socket.

use super::admin::connect;
use super::{Global, print_json, table};
use anyhow::Context;
use belay_protocol::calendar::DAY_MS;
use belay_protocol::id::TenantId;
use belay_relay::admin::keys::{CheckKey, CreateKey, CreatedKey, SetProviderKey};
use belay_relay::store::central::keys::{ApiKey, KeyScope};
use belay_relay::store::ledger::provider_keys::KeyInfo;
use belay_transport::env::{Clock, SystemClock};
use clap::Subcommand;
use std::io::Read;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make an API key; it is shown once
    #[command(after_help = "Examples:\n  belayd key create acme --label ci\n  \
        belayd key create acme --label dashboard --scope read --days 90")]
    Create {
        /// Who pays for what is done with it
        tenant: TenantId,
        /// What it is for
        #[arg(long, default_value = "")]
        label: String,
        /// What it may be used for: read, write, escalate, admin (several by commas)
        #[arg(long, value_delimiter = ',', default_value = "read,escalate")]
        scope: Vec<KeyScope>,
        /// For how many days it is good; without it, until it is revoked
        #[arg(long)]
        days: Option<u64>,
    },
    /// List API keys
    #[command(after_help = "Examples:\n  belayd key list\n  belayd key list --tenant acme --json")]
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Revoke an API key at once
    #[command(after_help = "Example:\n  belayd key revoke k7d2m4q6xz3a")]
    Revoke {
        /// Its id, the part after bly_live_
        id: String,
    },
    /// Say whose an API key is and what it may do; the key is read from stdin
    #[command(after_help = "Example:\n  belayd key check < key.txt")]
    Check,
}

#[derive(Debug, Subcommand)]
pub(super) enum ProviderKeyCommand {
    /// Give a tenant a key of its own for a provider, for tier "byok"; it is never shown again
    #[command(after_help = "Examples:\n  belayd provider-key set acme openai < key.txt\n  \
        belayd provider-key set acme anthropic --file /run/secrets/acme")]
    Set {
        /// Whose
        tenant: TenantId,
        /// The provider's name in the configuration
        provider: String,
        /// Where the key is; without it, stdin
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// List for which providers a tenant has keys
    #[command(after_help = "Example:\n  belayd provider-key list acme")]
    List {
        /// Whose
        tenant: TenantId,
    },
    /// Take a tenant's key for a provider away
    #[command(after_help = "Example:\n  belayd provider-key remove acme openai")]
    Remove {
        /// Whose
        tenant: TenantId,
        /// The provider's name in the configuration
        provider: String,
    },
}

fn secret(file: Option<&PathBuf>) -> anyhow::Result<String> {
    let mut text = String::new();
    match file {
        Some(path) => {
            text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        None => {
            std::io::stdin().read_to_string(&mut text).context("cannot read the key from stdin")?;
        }
    }
    Ok(text.trim().to_owned())
}

pub(super) async fn key(global: &Global, command: KeyCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    match command {
        KeyCommand::Create { tenant, label, scope, days } => {
            let expires_ms = days.map(|days| SystemClock.now_ms().saturating_add(days.saturating_mul(DAY_MS)));
            let body = CreateKey { tenant, label, scopes: scope, expires_ms };
            let made: CreatedKey = client.post("/keys", &body).await?;
            if global.json {
                return print_json(&made);
            }
            println!("{}", made.secret);
            #[expect(clippy::print_stderr, reason = "stdout carries the key alone")]
            {
                eprintln!(
                    "this is the only time that it is shown; take it back with: belayd key revoke {}",
                    made.key.id
                );
            }
        }
        KeyCommand::List { tenant } => {
            let query = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
            let keys: Vec<ApiKey> = client.get(&format!("/keys{query}")).await?;
            if global.json {
                return print_json(&keys);
            }
            list(&keys);
        }
        KeyCommand::Revoke { id } => {
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                anyhow::bail!("{id:?} is no key's id: that is the part after bly_live_, as belayd key list shows it");
            }
            let answer: serde_json::Value = client.post(&format!("/keys/{id}/revoke"), &()).await?;
            if global.json {
                return print_json(&answer);
            }
            println!("key {id} is revoked");
        }
        KeyCommand::Check => {
            let key: ApiKey = client.post("/keys/check", &CheckKey { secret: secret(None)? }).await?;
            if global.json {
                return print_json(&key);
            }
            println!("key {} of tenant {}: {}", key.id, key.tenant, scopes(&key));
        }
    }
    Ok(())
}

fn scopes(key: &ApiKey) -> String {
    key.scopes.iter().map(KeyScope::to_string).collect::<Vec<_>>().join(", ")
}

fn list(keys: &[ApiKey]) {
    if keys.is_empty() {
        println!("no API keys yet; make one with: belayd key create TENANT");
        return;
    }
    let now_ms = SystemClock.now_ms();
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let state = match (key.revoked_ms, key.expires_ms) {
                (Some(_), _) => "revoked".into(),
                (None, Some(end)) if end <= now_ms => "expired".into(),
                (None, Some(end)) => format!("until {}", &table::time(end)[..10]),
                (None, None) => "good".into(),
            };
            let used = key.last_used_ms.map_or_else(|| "never".into(), table::time);
            vec![key.id.clone(), key.tenant.to_string(), key.label.clone(), scopes(key), state, used]
        })
        .collect();
    table::print(&["KEY", "TENANT", "LABEL", "SCOPES", "STATE", "LAST USED"], &[], &rows);
}

pub(super) async fn provider_key(global: &Global, command: ProviderKeyCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    let (tenant, keys): (TenantId, Vec<KeyInfo>) = match command {
        ProviderKeyCommand::Set { tenant, provider, file } => {
            let body = SetProviderKey { provider, key: Some(secret(file.as_ref())?) };
            let keys = client.post(&format!("/tenants/{tenant}/provider-keys"), &body).await?;
            (tenant, keys)
        }
        ProviderKeyCommand::Remove { tenant, provider } => {
            let body = SetProviderKey { provider, key: None };
            let keys = client.post(&format!("/tenants/{tenant}/provider-keys"), &body).await?;
            (tenant, keys)
        }
        ProviderKeyCommand::List { tenant } => {
            let keys = client.get(&format!("/tenants/{tenant}/provider-keys")).await?;
            (tenant, keys)
        }
    };
    if global.json {
        return print_json(&keys);
    }
    if keys.is_empty() {
        println!("tenant {tenant} has no keys of its own; set one with: belayd provider-key set {tenant} PROVIDER");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = keys.iter().map(|key| vec![key.provider.clone(), table::time(key.set_ms)]).collect();
    table::print(&["PROVIDER", "SET"], &[], &rows);
    Ok(())
}
