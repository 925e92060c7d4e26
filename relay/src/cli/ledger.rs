//! `belayd ledger`: works on a running relay through its admin socket, and on a stopped one under
//! the state lock.

use super::backup::stopped;
use super::exit::Told;
use super::money::day;
use super::reconcile::{self, EstimatedArgs, ReconcileArgs};
use super::{Global, print_json, table};
use anyhow::bail;
use belay_protocol::id::TenantId;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::service::{AdminError, Verified};
use belay_relay::secrets::MasterKey;
use belay_relay::store::books::Books;
use belay_relay::store::executor::{CENTRAL, Db, Store};
use belay_relay::store::ledger::statement::Line;
use belay_relay::store::lock::StateLock;
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
    /// Print a tenant's book as CSV, or with --json as one JSON object per line
    #[command(after_help = "Examples:\n  belayd ledger export acme > acme.csv\n  \
        belayd ledger export acme --from 2026-11-01 --until 2026-11-30")]
    Export {
        /// Whose
        tenant: TenantId,
        /// The first day, as 2026-11-01, UTC (default: the book's first)
        #[arg(long, value_name = "DAY", value_parser = day)]
        from: Option<i64>,
        /// The last day (default: today)
        #[arg(long, value_name = "DAY", value_parser = day)]
        until: Option<i64>,
    },
    /// List charges that were made by estimate and not corrected since
    #[command(after_help = "Examples:\n  belayd ledger estimated\n  belayd ledger estimated --tenant acme --json")]
    Estimated(EstimatedArgs),
    /// Compare a provider's own figures with the books, by day and model, and correct estimates by them
    #[command(after_help = "Examples:\n  belayd ledger reconcile anthropic usage.csv\n  \
        belayd ledger reconcile openai usage.csv --input-includes-cache --apply")]
    Reconcile(ReconcileArgs),
}

/// Beyond every book.
const EVER: i64 = 1_000_000;

/// Where entries come from: a running relay, or the files of one that is not.
enum Source {
    Running(AdminClient),
    Stopped(Box<Offline>),
}

async fn export(global: &Global, tenant: TenantId, days: (i64, i64)) -> anyhow::Result<()> {
    let config = Config::load_without_keys(&global.config)?;
    let client = AdminClient::new(&config.state_dir)?;
    let probe: Result<serde_json::Value, ClientError> = client.get("/status").await;
    let source = match probe {
        Err(ClientError::NotRunning { .. }) => Source::Stopped(Box::new(Offline::open(&config)?)),
        other => {
            other?;
            Source::Running(client)
        }
    };
    if let Source::Stopped(offline) = &source {
        offline.tenants(Some(tenant.clone())).await?;
    }
    let mut csv = csv::Writer::from_writer(std::io::stdout().lock());
    let mut after = 0;
    loop {
        let page: Vec<Line> = match &source {
            Source::Running(client) => {
                let (from, until) = days;
                client.get(&format!("/tenants/{tenant}/entries?from={from}&until={until}&after={after}")).await?
            }
            Source::Stopped(offline) => offline.books.entries(&tenant, days, after).await?,
        };
        let Some(last) = page.last() else { break };
        after = last.entry;
        for line in &page {
            if global.json {
                println!("{}", serde_json::to_string(line)?);
            } else {
                csv.serialize(line)?;
            }
        }
    }
    csv.flush()?;
    if let Source::Stopped(offline) = source {
        offline.store.close();
    }
    Ok(())
}

pub(super) async fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let tenant = match command {
        Command::Verify { tenant } => tenant,
        Command::Export { tenant, from, until } => {
            return export(global, tenant, (from.unwrap_or(0), until.map_or(EVER, |day| day + 1))).await;
        }
        Command::Estimated(args) => return reconcile::estimated(global, args).await,
        Command::Reconcile(args) => return reconcile::reconcile(global, args).await,
    };
    let config = Config::load_without_keys(&global.config)?;
    let query = tenant.as_ref().map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
    let answer = AdminClient::new(&config.state_dir)?.get(&format!("/ledger/verify{query}")).await;
    let verified: Vec<Verified> = match answer {
        Err(ClientError::NotRunning { .. }) => offline(&config, tenant).await?,
        other => other?,
    };
    let count_problems = |book: &Verified| book.report.problems.len() as u64 + book.report.further_problems;
    let problems: u64 = verified.iter().map(count_problems).sum();
    if global.json {
        print_json(&verified)?;
    } else {
        let rows: Vec<Vec<String>> = verified
            .iter()
            .map(|book| {
                let report = &book.report;
                let state = match count_problems(book) {
                    0 => "clean".into(),
                    found => format!("{found} PROBLEMS"),
                };
                let count = |number: u64| number.to_string();
                vec![
                    book.tenant.to_string(),
                    count(report.transfers),
                    count(report.sealed),
                    count(report.settled),
                    count(report.voided),
                    count(report.open),
                    state,
                ]
            })
            .collect();
        table::print(
            &["TENANT", "TRANSFERS", "SEALED TO", "SETTLED", "VOIDED", "OPEN", "BOOK"],
            &[1, 2, 3, 4, 5],
            &rows,
        );
        for book in &verified {
            for problem in &book.report.problems {
                println!("{}: {problem}", book.tenant);
            }
            if book.report.further_problems > 0 {
                println!("{}: and {} more", book.tenant, book.report.further_problems);
            }
        }
    }
    if problems > 0 {
        return Err(Told(format!("{problems} problems in the books")).into());
    }
    Ok(())
}

async fn offline(config: &Config, tenant: Option<TenantId>) -> anyhow::Result<Vec<Verified>> {
    let offline = Offline::open(config)?;
    let mut verified = Vec::new();
    for id in offline.tenants(tenant).await? {
        let report = offline.books.verify(&id).await?;
        verified.push(Verified { tenant: id, report });
    }
    offline.store.close();
    Ok(verified)
}

/// The books of a relay that is not running, under its lock.
struct Offline {
    store: Store,
    books: Books,
    _lock: StateLock,
}

impl Offline {
    fn open(config: &Config) -> anyhow::Result<Self> {
        if !config.state_dir.join(CENTRAL).exists() {
            bail!("{} holds no relay's state", config.state_dir.display());
        }
        let (store, lock) = stopped(config)?;
        let master = MasterKey::load(&config.master_key, None)?;
        let books = Books::new(store.clone(), Arc::new(SystemClock), &master, config.billing.free_allowance);
        Ok(Self { store, books, _lock: lock })
    }

    /// All tenants, or that one.
    async fn tenants(&self, one: Option<TenantId>) -> anyhow::Result<Vec<TenantId>> {
        let known: Result<_, StoreError> = self.store.run(Db::Central, central::tenants).await;
        let ids: Vec<TenantId> = known?.into_iter().map(|tenant| tenant.id).collect();
        match one {
            None => Ok(ids),
            Some(tenant) if ids.contains(&tenant) => Ok(vec![tenant]),
            // As a running relay would say it.
            Some(tenant) => Err(ClientError::Refused(AdminError::NoTenant(tenant).to_string()).into()),
        }
    }
}
