//! `belayd ledger`: works on a running relay through its admin socket, and on a stopped one under
//! the state lock.

use super::{Global, print_json, table};
use anyhow::bail;
use belay_protocol::id::TenantId;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::service::{AdminError, Verified};
use belay_relay::secrets::MasterKey;
use belay_relay::store::books::Books;
use belay_relay::store::executor::{Db, Store, StoreConfig};
use belay_relay::store::lock::StateLock;
use belay_relay::store::schema::Durability;
use belay_relay::store::{StoreError, central};
use belay_transport::env::SystemClock;
use clap::Subcommand;
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Recompute every balance, hold and charge, and name what is wrong
    #[command(after_help = "Examples:\n  belayd ledger verify\n  belayd ledger verify acme --json")]
    Verify {
        /// Only this tenant
        tenant: Option<TenantId>,
    },
}

pub(super) async fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let Command::Verify { tenant } = command;
    let config = Config::load_without_keys(&global.config)?;
    let query = tenant.as_ref().map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
    let answer = AdminClient::new(&config.state_dir)?.get(&format!("/ledger/verify{query}")).await;
    let verified: Vec<Verified> = match answer {
        Err(ClientError::NotRunning { .. }) => offline(&config, tenant).await?,
        other => other?,
    };
    let problems: usize = verified.iter().map(|book| book.report.problems.len()).sum();
    if global.json {
        print_json(&verified)?;
    } else {
        let rows: Vec<Vec<String>> = verified
            .iter()
            .map(|book| {
                let report = &book.report;
                let state = if report.problems.is_empty() {
                    "clean".into()
                } else {
                    format!("{} PROBLEMS", report.problems.len())
                };
                let count = |number: u64| number.to_string();
                vec![
                    book.tenant.to_string(),
                    count(report.transfers),
                    count(report.settled),
                    count(report.voided),
                    count(report.open),
                    state,
                ]
            })
            .collect();
        table::print(&["TENANT", "TRANSFERS", "SETTLED", "VOIDED", "OPEN", "BOOK"], &[1, 2, 3, 4], &rows);
        for book in &verified {
            for problem in &book.report.problems {
                println!("{}: {problem}", book.tenant);
            }
        }
    }
    if problems > 0 {
        bail!("{problems} problems in the books");
    }
    Ok(())
}

async fn offline(config: &Config, tenant: Option<TenantId>) -> anyhow::Result<Vec<Verified>> {
    if !config.state_dir.join("central.db").exists() {
        bail!("{} holds no relay's state", config.state_dir.display());
    }
    let _lock = StateLock::acquire(&config.state_dir)?;
    let store = Store::start(&StoreConfig {
        dir: config.state_dir.clone(),
        threads: 1,
        durability: Durability::Full,
        idle_close: config.idle_close,
        max_open: 8,
    });
    let known: Result<_, StoreError> = store.run(Db::Central, central::tenants).await;
    let mut ids: Vec<TenantId> = known?.into_iter().map(|tenant| tenant.id).collect();
    if let Some(tenant) = tenant {
        if !ids.contains(&tenant) {
            // As a running relay would say it.
            return Err(ClientError::Refused(AdminError::NoTenant(tenant).to_string()).into());
        }
        ids = vec![tenant];
    }
    let master = MasterKey::load(&config.master_key, None)?;
    let books = Books::new(store.clone(), Arc::new(SystemClock), &master, config.billing.free_allowance);
    let mut verified = Vec::new();
    for id in ids {
        let report = books.verify(&id).await?;
        verified.push(Verified { tenant: id, report });
    }
    store.close();
    Ok(verified)
}
