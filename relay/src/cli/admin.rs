//! `belayd tenant`, `invite`, `device` and `status`: through the admin socket.

use super::{Global, leaving, print_json, table};
use belay_certs::invite::Invite;
use belay_protocol::calendar::DAY_MS;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::http::{CreateTenant, Grant, Maintenance, Money, Revoke, Suspend};
use belay_relay::admin::labels::Label;
use belay_relay::admin::service::{DeviceInfo, InviteInfo, Status, TenantInfo, TermsChange};
use belay_relay::config::Difference;
use belay_relay::store::ledger::money::Operation;
use belay_relay::store::ledger::standing::Tier;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Create a tenant
    #[command(after_help = "Example:\n  belayd tenant create acme --credit 5.00")]
    Create {
        /// Its name: a-z, 0-9, '-' and '_'
        id: TenantId,
        /// Credit it at once, in dollars
        #[arg(long, value_name = "DOLLARS")]
        credit: Option<NanoUsd>,
        /// What people call it
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
    },
    /// Change what people call a tenant
    #[command(after_help = "Example:\n  belayd tenant label acme \"Acme Inc <ops@acme.example>\"")]
    Label {
        /// Its name
        id: TenantId,
        /// What people call it; empty: nothing else than its name
        label: String,
    },
    /// List all tenants with their money
    #[command(after_help = "Example:\n  belayd tenant list --json")]
    List,
    /// Add money to a tenant
    #[command(after_help = "Example:\n  belayd tenant credit acme 20 --note \"invoice 7\" --operation invoice-7")]
    Credit(MoneyArgs),
    /// Take money from a tenant whose payment was given back; the balance may go below its floor
    #[command(after_help = "Example:\n  belayd tenant refund acme 20 --note \"invoice 7\" --operation refund-7")]
    Refund(MoneyArgs),
    /// Take money from a tenant whose payment was taken back by its payer
    #[command(after_help = "Example:\n  belayd tenant chargeback acme 20 --operation dispute-7")]
    Chargeback(MoneyArgs),
    /// Give a tenant credits that expire; they are used before its balance
    #[command(after_help = "Example:\n  belayd tenant grant acme 5 --days 90 --note \"knowledge credits\"")]
    Grant {
        #[command(flatten)]
        money: MoneyArgs,
        /// For how many days
        #[arg(long, default_value_t = 365)]
        days: u64,
    },
    /// Change what a tenant pays with, and how far below zero it may go
    #[command(
        after_help = "Examples:\n  belayd tenant terms acme --tier free\n  belayd tenant terms acme --ceiling 50"
    )]
    Terms {
        /// Which tenant
        id: TenantId,
        /// "free" (an allowance every month), "managed" (its balance) or "byok" (its own provider keys)
        #[arg(long)]
        tier: Option<Tier>,
        /// How far below zero its balance may go, in dollars
        #[arg(long, value_name = "DOLLARS")]
        ceiling: Option<NanoUsd>,
        /// Suspend it when it comes to its ceiling
        #[arg(long, value_name = "true|false")]
        suspend_at_ceiling: Option<bool>,
    },
    /// Stop a tenant: its tunnels close, its requests end at once
    #[command(after_help = "Examples:\n  belayd tenant suspend acme\n  belayd tenant suspend acme --off")]
    Suspend {
        /// Which tenant
        id: TenantId,
        /// Let it go on
        #[arg(long)]
        off: bool,
    },
    /// Write everything that the relay knows of a tenant into a new directory
    #[command(after_help = "Example:\n  belayd tenant export acme acme-2026-11")]
    Export {
        /// Which tenant
        id: TenantId,
        /// A directory that is not there, or empty
        dir: PathBuf,
    },
    /// Erase what a tenant has said and kept, for ever; its book stays, as the law wants
    #[command(after_help = "Example:\n  belayd tenant erase acme --confirm acme")]
    Erase {
        /// Which tenant
        id: TenantId,
        /// Its name once more
        #[arg(long, value_name = "NAME")]
        confirm: TenantId,
    },
}

#[derive(Debug, Args)]
pub(super) struct MoneyArgs {
    /// Which tenant
    id: TenantId,
    /// How much, in dollars
    #[arg(value_name = "DOLLARS")]
    amount: NanoUsd,
    /// Stands in the book
    #[arg(long)]
    note: Option<String>,
    /// Names this operation: repeating the command with the same name does it once
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    /// Who will pay for the computer
    tenant: TenantId,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// List devices
    #[command(after_help = "Examples:\n  belayd device list\n  belayd device list --tenant acme --json")]
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Revoke a device: its tunnels close within a second and it never comes back
    #[command(after_help = "Example:\n  belayd device revoke laptop-1f2e3d4c --why \"stolen\"")]
    Revoke {
        /// Which device
        id: DeviceId,
        /// For the record
        #[arg(long, default_value = "revoked by the operator")]
        why: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct MaintenanceArgs {
    /// How long it will take, in minutes; without it, nobody knows
    #[arg(long = "for", value_name = "MINUTES")]
    minutes: Option<u64>,
    /// Why, for the people at the clients
    #[arg(long, default_value = "maintenance")]
    reason: String,
    /// It is over
    #[arg(long, conflicts_with_all = ["minutes", "reason"])]
    off: bool,
}

/// Tells clients, with their next heartbeat, that the relay is being worked on.
pub(super) async fn maintenance(global: &Global, args: MaintenanceArgs) -> anyhow::Result<()> {
    let now_ms = belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock);
    let until_ms = args.minutes.map_or(0, |minutes| now_ms.saturating_add(minutes.saturating_mul(60_000)));
    let body = Maintenance { on: !args.off, until_ms, reason: args.reason };
    let status: Status = connect(global)?.post("/maintenance", &body).await?;
    if global.json {
        return print_json(&status.state);
    }
    println!("{}", status.state.describe(now_ms));
    Ok(())
}

pub(super) fn connect(global: &Global) -> anyhow::Result<AdminClient> {
    let config = Config::load_without_keys(&global.config)?;
    Ok(AdminClient::new(&config.state_dir)?)
}

pub(super) async fn tenant(global: &Global, command: TenantCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    let info: TenantInfo = match command {
        TenantCommand::List => return list_tenants(global, &client).await,
        TenantCommand::Export { id, dir } => return leaving::export(global, &id, &dir).await,
        TenantCommand::Erase { id, confirm } => return leaving::erase(global, &client, &id, &confirm).await,
        TenantCommand::Label { id, label } => client.post(&format!("/tenants/{id}/label"), &Label { label }).await?,
        TenantCommand::Create { id, credit, label } => {
            // Looked at first, or the tenant would be made all the same.
            if let Some(amount) = credit.filter(|amount| *amount <= NanoUsd::ZERO) {
                return Err(ClientError::Refused(format!("the amount must be above zero, not {amount}")).into());
            }
            let mut created = client.post("/tenants", &CreateTenant { id: id.clone() }).await?;
            if let Some(label) = label {
                created = client.post(&format!("/tenants/{id}/label"), &Label { label }).await?;
            }
            match credit {
                Some(amount) => {
                    let (operation, note) = (Some(format!("opening-{id}")), Some("opening credit".into()));
                    move_money(&client, Operation::Credit, MoneyArgs { id, amount, note, operation }).await?
                }
                None => created,
            }
        }
        TenantCommand::Credit(args) => move_money(&client, Operation::Credit, args).await?,
        TenantCommand::Refund(args) => move_money(&client, Operation::Refund, args).await?,
        TenantCommand::Chargeback(args) => move_money(&client, Operation::Chargeback, args).await?,
        TenantCommand::Grant { money: MoneyArgs { id, amount, note, operation }, days } => {
            let now_ms = belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock);
            let expires_ms = now_ms.saturating_add(days.saturating_mul(DAY_MS));
            let body = Grant { amount_nano_usd: amount.0, expires_ms, operation, note };
            client.post(&format!("/tenants/{id}/grants"), &body).await?
        }
        TenantCommand::Terms { id, tier, ceiling, suspend_at_ceiling } => {
            let change = TermsChange { tier, ceiling, suspend_at_ceiling };
            client.post(&format!("/tenants/{id}/terms"), &change).await?
        }
        TenantCommand::Suspend { id, off } => {
            client.post(&format!("/tenants/{id}/suspended"), &Suspend { suspended: !off }).await?
        }
    };
    if global.json {
        return print_json(&info);
    }
    let mut parts = vec![format!("balance {}", NanoUsd(info.balance_nano_usd))];
    if info.credits_nano_usd != 0 {
        parts.push(format!("credits {}", NanoUsd(info.credits_nano_usd)));
    }
    if info.terms.ceiling != NanoUsd::ZERO {
        parts.push(format!("ceiling {}", info.terms.ceiling));
    }
    if info.terms.tier != Tier::Managed {
        parts.push(format!("tier {}", info.terms.tier));
    }
    if info.terms.suspended {
        parts.push("suspended".into());
    }
    println!("tenant {}: {}", info.id, parts.join(", "));
    Ok(())
}

async fn move_money(client: &AdminClient, what: Operation, args: MoneyArgs) -> anyhow::Result<TenantInfo> {
    let MoneyArgs { id, amount, note, operation } = args;
    let body = Money { what, amount_nano_usd: amount.0, operation, note };
    Ok(client.post(&format!("/tenants/{id}/money"), &body).await?)
}

async fn list_tenants(global: &Global, client: &AdminClient) -> anyhow::Result<()> {
    let tenants: Vec<TenantInfo> = client.get("/tenants").await?;
    if global.json {
        return print_json(&tenants);
    }
    if tenants.is_empty() {
        println!("no tenants yet; create one with: belayd tenant create NAME --credit 5");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = tenants
        .iter()
        .map(|tenant| {
            vec![
                tenant.id.to_string(),
                NanoUsd(tenant.balance_nano_usd).to_string(),
                NanoUsd(tenant.credits_nano_usd).to_string(),
                NanoUsd(tenant.held_nano_usd).to_string(),
                NanoUsd(tenant.charged_nano_usd).to_string(),
                tenant.terms.tier.to_string(),
                match (&tenant.problem, tenant.terms.suspended) {
                    (Some(_), _) => "unreadable",
                    (None, true) => "suspended",
                    (None, false) => "active",
                }
                .into(),
                table::time(tenant.created_ms),
                if tenant.label.is_empty() { "-".into() } else { tenant.label.clone() },
            ]
        })
        .collect();
    table::print(
        &["TENANT", "BALANCE", "CREDITS", "HELD", "CHARGED", "TIER", "STATE", "CREATED", "LABEL"],
        &[1, 2, 3, 4],
        &rows,
    );
    for tenant in &tenants {
        if let Some(problem) = &tenant.problem {
            println!("{}: {problem}", tenant.id);
        }
    }
    Ok(())
}

pub(super) async fn invite(global: &Global, args: &InviteArgs) -> anyhow::Result<()> {
    let client = connect(global)?;
    let info: InviteInfo = client.post(&format!("/tenants/{}/invites", args.tenant), &()).await?;
    if global.json {
        return print_json(&info);
    }
    println!("{}", info.invite);
    #[expect(clippy::print_stderr, reason = "stdout carries the join string alone")]
    {
        eprintln!("good for one computer until {}; there, run: belay join <this>", table::time(info.expires_ms));
        let is_near = |address: &String| address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
        if Invite::decode(&info.invite).is_ok_and(|invite| invite.addresses.iter().all(is_near)) {
            eprintln!("it leads to this computer alone; for others, name the relay's address in listen.public");
        }
    }
    Ok(())
}

pub(super) async fn device(global: &Global, command: DeviceCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    match command {
        DeviceCommand::List { tenant } => {
            let query = tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
            let devices: Vec<DeviceInfo> = client.get(&format!("/devices{query}")).await?;
            if global.json {
                return print_json(&devices);
            }
            list_devices(&devices);
        }
        DeviceCommand::Revoke { id, why } => {
            let answer: serde_json::Value = client.post(&format!("/devices/{id}/revoke"), &Revoke { why }).await?;
            if global.json {
                return print_json(&answer);
            }
            println!("device {id} is revoked; its tunnels are closed");
        }
    }
    Ok(())
}

fn list_devices(devices: &[DeviceInfo]) {
    if devices.is_empty() {
        println!("no devices yet; invite one with: belayd invite TENANT");
        return;
    }
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|info| {
            let device = &info.device;
            let state = match (device.revoked_ms, info.tunnels) {
                (Some(_), _) => "revoked".into(),
                (None, 0) => "offline".into(),
                (None, 1) => "connected".into(),
                (None, tunnels) => format!("connected x{tunnels}"),
            };
            let seen = device.last_seen_ms.map_or_else(|| "never".into(), table::time);
            vec![
                device.id.to_string(),
                device.tenant.to_string(),
                device.label.clone(),
                state,
                seen,
                table::time(device.expires_ms),
            ]
        })
        .collect();
    table::print(&["DEVICE", "TENANT", "LABEL", "STATE", "LAST SEEN", "CERTIFICATE UNTIL"], &[], &rows);
}

pub(super) async fn reload(global: &Global) -> anyhow::Result<()> {
    let difference: Difference = connect(global)?.post("/reload", &()).await?;
    if global.json {
        return print_json(&difference);
    }
    let Difference { applied, needs_restart } = &difference;
    if applied.is_empty() && needs_restart.is_empty() {
        println!("nothing has changed");
    }
    applied.iter().for_each(|key| println!("in force now:     {key}"));
    needs_restart.iter().for_each(|key| println!("needs a restart:  {key}"));
    Ok(())
}
