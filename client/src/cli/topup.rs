//! `belay topup`: a page to pay at, and the wait until the money is there.

use super::{Global, LONGEST_WAIT};
use anyhow::{Context, bail};
use belay_client::{Client, ClientError};
use belay_protocol::message::Balance;
use belay_protocol::money::NanoUsd;
use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the balance is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// So long a person at a terminal may take to pay.
const PATIENCE_S: u64 = 1800;

#[derive(Debug, Args)]
pub(super) struct TopUpArgs {
    /// How much, in dollars
    #[arg(value_name = "DOLLARS")]
    amount: Option<NanoUsd>,
    /// Open the page in a browser
    #[arg(long)]
    open: bool,
    /// How long to wait for the money, in seconds; 0: not at all [default: 1800 at a terminal, else 0]
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(..=LONGEST_WAIT))]
    wait_for_money: Option<u64>,
}

pub(super) async fn top_up(global: &Global, args: &TopUpArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let topped = run(global, &client, args).await;
    client.close().await;
    topped
}

async fn run(global: &Global, client: &Client, args: &TopUpArgs) -> anyhow::Result<()> {
    let before = client.balance(global.wait()).await?;
    let page = client.top_up(args.amount.unwrap_or(NanoUsd::ZERO), global.wait()).await?;
    if global.json {
        // A line each, so that a program reads the first while it waits for the second.
        println!("{}", serde_json::json!({ "url": page.url }));
    } else {
        println!("{}", page.url);
    }
    if args.open {
        open(&page.url)?;
    }
    let at_terminal = std::io::stdout().is_terminal() && !global.json;
    let patience = args.wait_for_money.unwrap_or(if at_terminal { PATIENCE_S } else { 0 });
    if patience == 0 {
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(patience);
    let line = progress();
    let paid = wait(global, client, &before, until).await;
    line.finish_and_clear();
    let (credited, balance) = paid?;
    if global.json {
        println!("{}", serde_json::json!({ "credited_nano_usd": credited.0, "balance_nano_usd": balance.0 }));
        return Ok(());
    }
    println!("{credited} have come; the balance is {balance}");
    Ok(())
}

/// What was ever credited, less what was given back: using money does not change it.
fn funded(balance: &Balance) -> NanoUsd {
    balance.balance + balance.held + balance.charged
}

/// Waits for money; how much has come, and the balance. Errors: none has, in time.
async fn wait(
    global: &Global,
    client: &Client,
    before: &Balance,
    until: Instant,
) -> anyhow::Result<(NanoUsd, NanoUsd)> {
    loop {
        sleep(LOOK).await;
        match client.balance(global.wait()).await {
            Ok(now) if funded(&now) > funded(before) => return Ok((funded(&now) - funded(before), now.balance)),
            // The tunnel comes back.
            Ok(_) | Err(ClientError::Unreachable { .. } | ClientError::Lost(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= until {
            let why = "no money has come yet; once it was paid it will be in: belay balance";
            bail!("{why}");
        }
    }
}

/// A line at a terminal that shows that it waits.
fn progress() -> ProgressBar {
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} waiting for the payment, {elapsed} so far") {
        line.set_style(style);
    }
    line.enable_steady_tick(Duration::from_millis(120));
    line
}

/// Opens a page in the user's browser. Errors: there is none.
fn open(url: &str) -> anyhow::Result<()> {
    let mut command = if cfg!(target_os = "macos") {
        Command::new("open")
    } else if cfg!(windows) {
        let mut command = Command::new("rundll32");
        command.arg("url.dll,FileProtocolHandler");
        command
    } else {
        Command::new("xdg-open")
    };
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("no browser can be opened; open the page yourself")?;
    Ok(())
}
