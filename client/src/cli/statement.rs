//! `belay statement`: every entry of the tenant's book, as it comes.

use super::Global;
use super::account::{day, days};
use anyhow::Context;
use belay_protocol::calendar;
use belay_protocol::message::StatementLine;
use clap::Args;
use std::io::Write;

#[derive(Debug, Args)]
pub(super) struct StatementArgs {
    /// The first day, as 2026-11-01 (default: the first of this month, UTC)
    #[arg(long, value_name = "DAY", value_parser = day)]
    from: Option<u32>,
    /// The last day (default: today)
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<u32>,
    /// Print CSV, with exact nano-dollars
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

pub(super) async fn statement(global: &Global, args: &StatementArgs) -> anyhow::Result<()> {
    let days = days(args.from, args.until)?;
    let client = global.client()?;
    let out = std::io::stdout().lock();
    let mut printer = if args.csv {
        Printer::csv(out)?
    } else if global.json {
        Printer::Json(out)
    } else {
        Printer::people(out)?
    };
    let mut broken = None;
    let told = client.statement(days, global.wait(), |line| {
        broken = printer.print(&line).err();
        broken.is_none()
    });
    let rows = told.await;
    client.close().await;
    let rows = rows?;
    match broken {
        // Who reads it has had enough.
        Some(error) if is_broken_pipe(&error) => return Ok(()),
        Some(error) => return Err(error),
        None => {}
    }
    printer.end(rows)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// How entries are printed, as they come.
enum Printer<W: Write> {
    People(W),
    Json(W),
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Printer<W> {
    fn people(mut out: W) -> anyhow::Result<Self> {
        writeln!(out, "{:>7}  {:<20}  {:<15}  {:>14}  {:>14}  ABOUT", "ENTRY", "TIME", "KIND", "AMOUNT", "BALANCE")?;
        Ok(Self::People(out))
    }

    fn csv(out: W) -> anyhow::Result<Self> {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record([
            "entry",
            "time",
            "kind",
            "from",
            "to",
            "amount_nano_usd",
            "balance_nano_usd",
            "request_id",
            "model",
            "operation",
            "note",
        ])?;
        Ok(Self::Csv(Box::new(writer)))
    }

    fn print(&mut self, line: &StatementLine) -> anyhow::Result<()> {
        let request = line.request_id.map(|id| id.to_string());
        match self {
            Self::People(out) => {
                let about = [line.model.as_str(), line.operation.as_str(), line.note.as_str()];
                let about: Vec<&str> = about.into_iter().filter(|text| !text.is_empty()).collect();
                let about = if about.is_empty() { request.unwrap_or_default() } else { about.join(", ") };
                let (amount, balance) = (line.amount.to_string(), line.balance.to_string());
                let time = calendar::time_text(line.at_ms);
                let text =
                    format!("{:>7}  {time:<20}  {:<15}  {amount:>14}  {balance:>14}  {about}", line.entry, line.kind);
                writeln!(out, "{}", text.trim_end())?;
            }
            Self::Json(out) => {
                let object = serde_json::json!({
                    "entry": line.entry,
                    "at_ms": line.at_ms,
                    "kind": line.kind,
                    "from": line.from,
                    "to": line.to,
                    "amount_nano_usd": line.amount.0,
                    "balance_nano_usd": line.balance.0,
                    "request_id": request,
                    "model": line.model,
                    "operation": line.operation,
                    "note": line.note,
                });
                writeln!(out, "{object}")?;
            }
            Self::Csv(writer) => writer.write_record([
                line.entry.to_string(),
                calendar::time_text(line.at_ms),
                line.kind.clone(),
                line.from.clone(),
                line.to.clone(),
                line.amount.0.to_string(),
                line.balance.0.to_string(),
                request.unwrap_or_default(),
                line.model.clone(),
                line.operation.clone(),
                line.note.clone(),
            ])?,
        }
        Ok(())
    }

    fn end(self, rows: u64) -> anyhow::Result<()> {
        match self {
            Self::People(mut out) => {
                if rows == 0 {
                    writeln!(out, "no entries in these days")?;
                }
                Ok(out.flush()?)
            }
            Self::Json(mut out) => Ok(out.flush()?),
            Self::Csv(mut writer) => writer.flush().context("cannot write the statement"),
        }
    }
}
