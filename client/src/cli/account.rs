//! `belay balance`, `usage` and `record`.

use super::exit::Usage as UsageError;
use super::{Global, print_json};
use belay_client::billing::{Span, Usage, balance_json, usage_json};
use belay_protocol::calendar;
use belay_protocol::id::RequestId;
use belay_protocol::message::{
    PaysWith, RecordRequest, UnitKind, UsageBy, UsageClass, UsageGroup, UsageLine, UsagePeriod,
};
use belay_protocol::money::NanoUsd;
use belay_protocol::table;
use belay_transport::env::{Clock, SystemClock};
use clap::{Args, ValueEnum};

/// Characters of the longest bar.
const BAR: u64 = 30;

pub(super) async fn balance(global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let answer = client.balance(global.wait()).await;
    client.close().await;
    let balance = answer?;
    if global.json {
        return print_json(&balance_json(&balance));
    }
    println!("tenant   {}", balance.tenant);
    match balance.pays_with {
        PaysWith::FREE => println!("tier     free: an allowance every month"),
        PaysWith::BYOK => println!("tier     byok: its own provider keys, and a licence"),
        _ => {}
    }
    println!("balance  {}", balance.balance);
    if balance.credits != NanoUsd::ZERO {
        println!("credits  {}, used first", balance.credits);
    }
    if balance.ceiling != NanoUsd::ZERO {
        println!("ceiling  {} below zero", balance.ceiling);
    }
    println!("held     {} by {} running requests", balance.held, balance.open_holds);
    println!("charged  {} so far", balance.charged);
    Ok(())
}

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Of which days (UTC)
    #[arg(long, value_enum, default_value_t = Period::Month, conflicts_with = "from")]
    period: Period,
    /// The first day, as 2026-11-01, in place of a period
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<u32>,
    /// The last day (default: today)
    #[arg(long, value_name = "DAY", value_parser = day, requires = "from")]
    until: Option<u32>,
    /// By what it is told apart
    #[arg(long, value_enum, default_value_t = By::Model)]
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Period {
    Day,
    Week,
    Month,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Model,
    Day,
    Month,
    Device,
    Key,
    Class,
}

impl By {
    fn code(self) -> (UsageBy, &'static str) {
        match self {
            Self::Model => (UsageBy::MODEL, "MODEL"),
            Self::Day => (UsageBy::DAY, "DAY"),
            Self::Month => (UsageBy::MONTH, "MONTH"),
            Self::Device => (UsageBy::DEVICE, "DEVICE"),
            Self::Key => (UsageBy::KEY, "KEY"),
            Self::Class => (UsageBy::CLASS, "CLASS"),
        }
    }
}

pub(super) fn day(text: &str) -> Result<u32, String> {
    let day = calendar::parse_day(text).and_then(|day| u32::try_from(day).ok());
    day.ok_or_else(|| format!("{text:?} is no day; write for example 2026-11-01"))
}

fn today() -> u32 {
    u32::try_from(calendar::day(SystemClock.now_ms())).unwrap_or(0)
}

/// The days from the first of this month, or from `from`, up to today or `until`.
pub(super) fn days(from: Option<u32>, until: Option<u32>) -> anyhow::Result<(u32, u32)> {
    let first = calendar::day(calendar::month_start_ms(calendar::month(SystemClock.now_ms())));
    let from = from.unwrap_or_else(|| u32::try_from(first).unwrap_or(0));
    let until = until.unwrap_or_else(|| today().max(from)) + 1;
    if until <= from {
        return Err(UsageError("--until is before --from".into()).into());
    }
    Ok((from, until))
}

pub(super) async fn usage(global: &Global, args: &UsageArgs) -> anyhow::Result<()> {
    let span = match (args.from, args.period) {
        (Some(from), _) => {
            let (from, until) = days(Some(from), args.until)?;
            Span::Days(from, until)
        }
        (None, Period::Day) => Span::Period(UsagePeriod::DAY),
        (None, Period::Week) => Span::Period(UsagePeriod::WEEK),
        (None, Period::Month) => Span::Period(UsagePeriod::MONTH),
        (None, Period::All) => Span::Period(UsagePeriod::EVER),
    };
    let (by, header) = args.by.code();
    // Days that are many are shown as months.
    let chart = if args.from.is_none() && args.period == Period::All { UsageBy::MONTH } else { UsageBy::DAY };
    let client = global.client()?;
    let wait = global.wait();
    let asked = async {
        let groups = client.usage(span, by, wait).await?;
        let total = client.usage(span, UsageBy::TOTAL, wait).await?;
        let chart = client.usage(span, chart, wait).await?;
        Ok::<_, belay_client::ClientError>((groups, total, chart))
    };
    let answer = asked.await;
    client.close().await;
    let (groups, total, chart) = answer?;
    if global.json {
        return print_json(&usage_json(&total, by, &groups));
    }
    show(&groups, header, &total, &chart);
    Ok(())
}

fn show(usage: &Usage, header: &str, total: &Usage, chart: &Usage) {
    let span = if total.from_day == 0 {
        "since the book began".to_owned()
    } else {
        let last = i64::from(total.until_day) - 1;
        format!("from {} to {}", calendar::day_text(total.from_day.into()), calendar::day_text(last))
    };
    let none = UsageGroup::default();
    let sum = total.groups.first().unwrap_or(&none);
    let estimated = match sum.estimated {
        0 => String::new(),
        count => format!(", {count} charged by estimate"),
    };
    println!("{} {span}, {} requests{estimated}", sum.cost, sum.requests);
    if usage.groups.is_empty() {
        return;
    }
    println!();
    let row = |group: &UsageGroup| {
        let name = if group.name.is_empty() { "-" } else { group.name.as_str() };
        let cached = group.cache_read + group.cache_write;
        let numbers = [group.requests, group.input, cached, group.output].map(|number| number.to_string());
        let mut cells = vec![name.to_owned()];
        cells.extend(numbers);
        cells.push(group.cost.to_string());
        cells
    };
    let rows: Vec<Vec<String>> = usage.groups.iter().map(row).collect();
    print!("{}", table::render(&[header, "REQUESTS", "INPUT", "CACHED", "OUTPUT", "COST"], &[1, 2, 3, 4, 5], &rows));
    if chart.groups.len() > 1 {
        println!();
        print!("{}", bars(&chart.groups));
    }
}

/// A bar per group, as long as its cost.
fn bars(groups: &[UsageGroup]) -> String {
    let most = groups.iter().map(|group| group.cost.0).max().unwrap_or(0).max(1);
    let row = |group: &UsageGroup| {
        let share = i128::from(group.cost.0.max(0)) * i128::from(BAR);
        // What cost anything has a bar.
        let len = usize::try_from((share + i128::from(most) - 1) / i128::from(most)).unwrap_or(0);
        vec![group.name.clone(), group.cost.to_string(), "█".repeat(len)]
    };
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    table::render(&["", "", ""], &[1], &rows).trim_start_matches('\n').to_owned()
}

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// What kind of usage
    #[arg(value_enum)]
    class: Class,
    /// What did the work
    #[arg(long)]
    model: String,
    /// Input tokens
    #[arg(long, default_value_t = 0)]
    input: u64,
    /// Output tokens
    #[arg(long, default_value_t = 0)]
    output: u64,
    /// Names this record: repeating the command with the same id charges it once
    #[arg(long, value_name = "HEX")]
    id: Option<RequestId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    /// Inference on this computer
    Local,
    /// Indexing, embedding or search of knowledge
    Knowledge,
}

pub(super) async fn record(global: &Global, args: RecordArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let lines = [(UnitKind::INPUT, args.input), (UnitKind::OUTPUT, args.output)];
    let record = RecordRequest {
        request_id: args.id.unwrap_or_else(|| client.request_id()),
        class: if args.class == Class::Local { UsageClass::LOCAL } else { UsageClass::KNOWLEDGE },
        model: args.model,
        usage: lines
            .into_iter()
            .filter(|(_, units)| *units > 0)
            .map(|(kind, units)| UsageLine { kind, units })
            .collect(),
    };
    let answer = client.record(&record, global.wait()).await;
    client.close().await;
    let end = answer?;
    if global.json {
        return print_json(&serde_json::json!({
            "id": end.request_id,
            "cost_nano_usd": end.cost.0,
            "balance_nano_usd": end.balance.0,
        }));
    }
    println!("recorded as {}: {}, balance {}", end.request_id, end.cost, end.balance);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_what_was_spent() {
        let group = |name: &str, cost| UsageGroup { name: name.into(), cost: NanoUsd(cost), ..UsageGroup::default() };
        let shown = bars(&[group("2026-11-24", 1), group("2026-11-25", 30_000_000), group("2026-11-26", 0)]);
        let lens: Vec<usize> = shown.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(lens, [1, 30, 0], "{shown}");
    }
}
