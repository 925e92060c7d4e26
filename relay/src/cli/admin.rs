//! `belayd tenant`, `invite`, `device` and `status`: through the admin socket.

use super::{Global, print_json, table};
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use belay_protocol::vitals::Vitals;
use belay_relay::Config;
use belay_relay::admin::client::{AdminClient, ClientError};
use belay_relay::admin::http::{CreateTenant, Credit, Maintenance, Revoke, Suspend};
use belay_relay::admin::service::{DeviceInfo, InviteInfo, Status, TenantInfo};
use clap::{Args, Subcommand};

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
    },
    /// List all tenants with their money
    #[command(after_help = "Example:\n  belayd tenant list --json")]
    List,
    /// Add money to a tenant
    #[command(after_help = "Example:\n  belayd tenant credit acme 20 --note \"invoice 7\" --operation invoice-7")]
    Credit {
        /// Which tenant
        id: TenantId,
        /// How much, in dollars
        #[arg(value_name = "DOLLARS")]
        amount: NanoUsd,
        /// Stands in the book
        #[arg(long)]
        note: Option<String>,
        /// Names this credit: repeating the command with the same name credits once
        #[arg(long, value_name = "NAME")]
        operation: Option<String>,
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

fn connect(global: &Global) -> anyhow::Result<AdminClient> {
    let config = Config::load_without_keys(&global.config)?;
    Ok(AdminClient::new(&config.state_dir)?)
}

pub(super) async fn tenant(global: &Global, command: TenantCommand) -> anyhow::Result<()> {
    let client = connect(global)?;
    let credit_body = |amount: NanoUsd, operation, note| Credit { amount_nano_usd: amount.0, operation, note };
    let info: TenantInfo = match command {
        TenantCommand::List => return list_tenants(global, &client).await,
        TenantCommand::Create { id, credit } => {
            // Looked at first, or the tenant would be made all the same.
            if let Some(amount) = credit.filter(|amount| *amount <= NanoUsd::ZERO) {
                return Err(ClientError::Refused(format!("a credit must be above zero, not {amount}")).into());
            }
            let created = client.post("/tenants", &CreateTenant { id: id.clone() }).await?;
            match credit {
                Some(amount) => {
                    let body = credit_body(amount, Some(format!("opening-{id}")), Some("opening credit".into()));
                    client.post(&format!("/tenants/{id}/credit"), &body).await?
                }
                None => created,
            }
        }
        TenantCommand::Credit { id, amount, note, operation } => {
            client.post(&format!("/tenants/{id}/credit"), &credit_body(amount, operation, note)).await?
        }
        TenantCommand::Suspend { id, off } => {
            client.post(&format!("/tenants/{id}/suspended"), &Suspend { suspended: !off }).await?
        }
    };
    if global.json {
        return print_json(&info);
    }
    let state = if info.suspended { ", suspended" } else { "" };
    println!("tenant {}: balance {}{state}", info.id, NanoUsd(info.balance_nano_usd));
    Ok(())
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
                NanoUsd(tenant.held_nano_usd).to_string(),
                NanoUsd(tenant.charged_nano_usd).to_string(),
                if tenant.suspended { "suspended" } else { "active" }.into(),
                table::time(tenant.created_ms),
            ]
        })
        .collect();
    table::print(&["TENANT", "BALANCE", "HELD", "CHARGED", "STATE", "CREATED"], &[1, 2, 3], &rows);
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

pub(super) async fn status(global: &Global) -> anyhow::Result<()> {
    let client = connect(global)?;
    let status: Status = client.get("/status").await?;
    if global.json {
        return print_json(&status);
    }
    let now_ms = belay_transport::env::Clock::now_ms(&belay_transport::env::SystemClock);
    println!(
        "belayd {} on {}, {}: {} tunnels, {} tenants open, {} requests running, {} answers waiting, {} MiB in use",
        status.version,
        status.listen,
        status.state.describe(now_ms),
        status.tunnels.len(),
        status.open_tenants,
        status.running_requests,
        status.waiting_answers,
        status.memory_bytes >> 20
    );
    let rows: Vec<Vec<String>> = status
        .tunnels
        .iter()
        .map(|tunnel| {
            let trip = match tunnel.round_trip_us {
                0 => "-".into(),
                us => format!("{}.{:03} ms", us / 1000, us % 1000),
            };
            vec![
                tunnel.device.to_string(),
                tunnel.tenant.to_string(),
                tunnel.path.clone(),
                tunnel.remote.to_string(),
                trip,
                tunnel.vitals.map_or_else(|| "-".into(), vitals),
                table::time(tunnel.since_ms),
            ]
        })
        .collect();
    if !rows.is_empty() {
        table::print(&["DEVICE", "TENANT", "PATH", "FROM", "ROUND TRIP", "CPU MEM GPU", "SINCE"], &[4], &rows);
    }
    Ok(())
}

/// Processor, memory and GPU load in percent.
fn vitals(vitals: Vitals) -> String {
    let percent = |permille: Option<u32>| permille.map_or_else(|| "-".into(), |load| format!("{}%", load / 10));
    format!("{} {} {}", percent(vitals.cpu_permille), percent(vitals.memory_permille), percent(vitals.gpu_permille))
}
