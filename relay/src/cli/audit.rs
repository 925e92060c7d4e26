//! `belayd audit`.

use super::admin::connect;
use super::money::day;
use super::{Global, print_json_line, table};
use belay_protocol::calendar;
use belay_protocol::id::TenantId;
use belay_relay::store::central::audit::Entry;
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only what concerns this tenant
    #[arg(long)]
    tenant: Option<TenantId>,
    /// The first day, as 2026-11-01, UTC (default: the first that there is)
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<i64>,
    /// The last day (default: today)
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<i64>,
}

pub(super) async fn audit(global: &Global, args: AuditArgs) -> anyhow::Result<()> {
    let client = connect(global)?;
    let start = |day: i64| calendar::day_start_ms(day);
    let (from_ms, until_ms) = (args.from.map_or(0, start), args.until.map_or(u64::MAX >> 1, |day| start(day + 1)));
    let of = args.tenant.map(|tenant| format!("&tenant={tenant}")).unwrap_or_default();
    let (mut after, mut rows) = (0, vec![]);
    loop {
        let path = format!("/audit?after={after}&from_ms={from_ms}&until_ms={until_ms}{of}");
        let entries: Vec<Entry> = client.get(&path).await?;
        let Some(last) = entries.last() else { break };
        after = last.id;
        for entry in &entries {
            if global.json {
                print_json_line(entry)?;
                continue;
            }
            let Entry { id, at_ms, actor, action, tenant, subject, detail } = entry.clone();
            rows.push(vec![id.to_string(), table::time(at_ms), actor, action, tenant, subject, detail]);
        }
    }
    if !global.json {
        table::print(&["ENTRY", "WHEN", "WHO", "WHAT", "TENANT", "ON", "DETAIL"], &[0], &rows);
    }
    Ok(())
}
