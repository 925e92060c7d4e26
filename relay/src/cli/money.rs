//! `belayd budget` and `belayd usage`: through the admin socket.

use super::admin::connect;
use super::{Global, print_json, table};
use belay_protocol::calendar;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use belay_relay::admin::http::SetBudget;
use belay_relay::store::central::usage::CentralGroup;
use belay_relay::store::ledger::budget::{Budget, Measure, Scope};
use belay_relay::store::ledger::usage::Totals;
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(super) enum BudgetCommand {
    /// List a tenant's budgets
    #[command(after_help = "Example:\n  belayd budget list acme")]
    List {
        /// Whose
        tenant: TenantId,
    },
    /// Bound what a tenant, a device or a key may spend or ask for; "none" takes a bound away
    #[command(after_help = "Examples:\n  belayd budget set acme --month 50\n  \
        belayd budget set acme --device laptop-1f2e3d4c --day 2 --requests-per-minute 20\n  \
        belayd budget set acme --day none")]
    Set(Box<SetArgs>),
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Whose
    tenant: TenantId,
    /// Bind one of its devices
    #[arg(long, conflicts_with = "key")]
    device: Option<String>,
    /// Bind one of its API keys
    #[arg(long)]
    key: Option<String>,
    /// Dollars in a day (UTC)
    #[arg(long, value_name = "DOLLARS|none")]
    day: Option<Bound>,
    /// Dollars in a calendar month (UTC)
    #[arg(long, value_name = "DOLLARS|none")]
    month: Option<Bound>,
    /// Requests in any minute
    #[arg(long, value_name = "COUNT|none")]
    requests_per_minute: Option<Count>,
    /// Tokens, in and out, in any minute
    #[arg(long, value_name = "COUNT|none")]
    tokens_per_minute: Option<Count>,
}

/// Dollars, or no bound.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<NanoUsd>);

impl std::str::FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(|amount| Self(Some(amount))).map_err(|error| format!("{error}")),
        }
    }
}

/// A number, or no bound.
#[derive(Debug, Clone, Copy)]
struct Count(Option<u32>);

impl std::str::FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => text.parse().map(|count| Self(Some(count))).map_err(|error| format!("{error}")),
        }
    }
}

pub(super) async fn budget(global: &Global, command: BudgetCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    let (tenant, budgets) = match command {
        BudgetCommand::List { tenant } => {
            let budgets: Vec<Budget> = client.get(&format!("/tenants/{tenant}/budgets")).await?;
            (tenant, budgets)
        }
        BudgetCommand::Set(args) => {
            let SetArgs { tenant, device, key, day, month, requests_per_minute, tokens_per_minute } = *args;
            let scope = match (device, key) {
                (Some(device), _) => Scope::Device(device),
                (None, Some(key)) => Scope::Key(key),
                (None, None) => Scope::Tenant,
            };
            let spend = |bound: Option<Bound>| bound.map(|bound| bound.0.map(|amount| amount.0));
            let count = |bound: Option<Count>| bound.map(|bound| bound.0.map(i64::from));
            let changes = [
                (Measure::SpendDay, spend(day)),
                (Measure::SpendMonth, spend(month)),
                (Measure::RequestsMinute, count(requests_per_minute)),
                (Measure::TokensMinute, count(tokens_per_minute)),
            ];
            let mut budgets = None;
            for (measure, amount) in changes {
                let Some(amount) = amount else { continue };
                let body = SetBudget { scope: scope.clone(), measure, amount };
                budgets = Some(client.post(&format!("/tenants/{tenant}/budgets"), &body).await?);
            }
            let Some(budgets) = budgets else {
                anyhow::bail!("nothing to set; name --day, --month, --requests-per-minute or --tokens-per-minute");
            };
            (tenant, budgets)
        }
    };
    if global.json {
        return print_json(&budgets);
    }
    if budgets.is_empty() {
        println!("tenant {tenant} has no budgets; set one with: belayd budget set {tenant} --month 50");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = budgets
        .iter()
        .map(|budget| {
            let amount = match budget.measure {
                Measure::SpendDay => format!("{} a day", NanoUsd(budget.amount)),
                Measure::SpendMonth => format!("{} a month", NanoUsd(budget.amount)),
                Measure::RequestsMinute => format!("{} requests a minute", budget.amount),
                Measure::TokensMinute => format!("{} tokens a minute", budget.amount),
            };
            vec![budget.scope.to_string(), amount]
        })
        .collect();
    table::print(&["SCOPE", "AT MOST"], &[], &rows);
    Ok(())
}

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// By what it is told apart
    #[arg(long, value_enum, default_value_t = By::Tenant)]
    by: By,
    /// The first day, as 2026-11-01 (default: the first of this month, UTC)
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<i64>,
    /// The last day (default: today)
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<i64>,
    /// Have every tenant's book hand over what waits first
    #[arg(long)]
    flush: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Tenant,
    Day,
    Model,
}

pub(super) fn day(text: &str) -> Result<i64, String> {
    calendar::parse_day(text).ok_or_else(|| format!("{text:?} is no day; write for example 2026-11-01"))
}

pub(super) async fn usage(global: &Global, args: UsageArgs) -> anyhow::Result<()> {
    let client = connect(global)?;
    let now_ms = belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock);
    let first = calendar::day(calendar::month_start_ms(calendar::month(now_ms)));
    let (from, until) = (args.from.unwrap_or(first), args.until.unwrap_or_else(|| calendar::day(now_ms)) + 1);
    let (by, name) = match args.by {
        By::Tenant => ("tenant", "TENANT"),
        By::Day => ("day", "DAY"),
        By::Model => ("model", "MODEL"),
    };
    if from >= until {
        anyhow::bail!(
            "{} is after {}: there is no day between",
            calendar::day_text(from),
            calendar::day_text(until - 1)
        );
    }
    let mut unflushed = vec![];
    if args.flush {
        let tenants: Vec<belay_relay::admin::service::TenantInfo> = client.get("/tenants").await?;
        for tenant in tenants {
            // One that cannot is no reason to leave the others.
            let flushed: Result<serde_json::Value, _> =
                client.post(&format!("/tenants/{}/flush", tenant.id), &()).await;
            unflushed.extend(flushed.err().map(|error| format!("tenant {}: {error}", tenant.id)));
        }
    }
    let of = args.tenant.map(|tenant| format!("&tenant={tenant}")).unwrap_or_default();
    let groups: Vec<CentralGroup> = client.get(&format!("/usage?from={from}&until={until}&by={by}{of}")).await?;
    if global.json {
        print_json(&groups)?;
        return complain(&unflushed);
    }
    println!("usage from {} to {}, as handed over to central", calendar::day_text(from), calendar::day_text(until - 1));
    let rows: Vec<Vec<String>> = groups.iter().map(|group| row(&group.name, &group.totals)).collect();
    table::print(&[name, "REQUESTS", "INPUT", "CACHED", "OUTPUT", "ESTIMATED", "COST"], &[1, 2, 3, 4, 5, 6], &rows);
    complain(&unflushed)
}

/// What could not be handed over is not in the sums.
fn complain(unflushed: &[String]) -> anyhow::Result<()> {
    if unflushed.is_empty() {
        return Ok(());
    }
    anyhow::bail!("not all usage could be handed over; {}", unflushed.join("; "))
}

fn row(name: &str, totals: &Totals) -> Vec<String> {
    vec![
        name.to_owned(),
        totals.requests.to_string(),
        totals.input.to_string(),
        (totals.cache_read + totals.cache_write).to_string(),
        totals.output.to_string(),
        totals.estimated.to_string(),
        NanoUsd(totals.cost_nano).to_string(),
    ]
}
