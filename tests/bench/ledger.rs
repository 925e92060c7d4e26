//! What the books cost: durable holds and settlements through the store beside raw SQLite transactions
//! that write the same rows, and a hold and a question in books of any length.

use crate::report::Report;
use belay_protocol::calendar;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::message::{Outcome, UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use belay_relay::pricing::{PriceLine, PriceSnapshot};
use belay_relay::store::StoreError;
use belay_relay::store::executor::{Db, Store, StoreConfig};
use belay_relay::store::ledger::Boot;
use belay_relay::store::ledger::hold::{HoldOutcome, HoldRequest, Multipliers, PerMinute, hold};
use belay_relay::store::ledger::money::{Operation, operate};
use belay_relay::store::ledger::rates::Rates;
use belay_relay::store::ledger::request::Offer;
use belay_relay::store::ledger::settle::{Settlement, settle};
use belay_relay::store::ledger::usage::{Grouping, report as usage_report};
use belay_relay::store::schema::{Durability, Kind, open};
use rusqlite::{Connection, params};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 4] = ["raw_pair", "ledger_pair", "hold_at", "usage_at"];

/// Requests at once.
const AT_ONCE: usize = 64;
const THREADS: usize = 4;
/// At least 0.7 times as many pairs per second as raw SQLite.
const PAIR_BAR: f64 = 1.0 / 0.7;
/// A book that is a thousand times as long may cost so much more.
const GROWTH_BAR: f64 = 1.2;
const NOW: u64 = 1_795_600_000_000;
const PRICE: i64 = 1_000_000_000;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Rounds, each by the store and raw in turn.
    pub(crate) rounds: usize,
    /// Pairs of a hold and a settlement in a round.
    pub(crate) pairs: usize,
    /// Entries of the longest book.
    pub(crate) entries: usize,
}

pub(crate) async fn measure(size: Size, report: &mut Report) -> anyhow::Result<()> {
    for tenants in [1, AT_ONCE] {
        let dir = tempfile::tempdir()?;
        let store = Store::start(&StoreConfig {
            dir: dir.path().join("store"),
            threads: THREADS,
            durability: Durability::Full,
            idle_close: Duration::from_secs(600),
            max_open: 1000,
        });
        let tenants: Arc<Vec<TenantId>> =
            Arc::new((0..tenants).map(|number| format!("t{number}").parse()).collect::<Result<_, _>>()?);
        for tenant in tenants.iter() {
            store.run(Db::Tenant(tenant.clone()), credit).await?;
        }
        let raw_dir = dir.path().join("raw");
        std::fs::create_dir_all(&raw_dir)?;
        let (mut by_store, mut raw) = (Duration::ZERO, Duration::ZERO);
        // The first round opens files and fills caches.
        for round in 0..=size.rounds {
            let before = store.commits();
            let stored = through_store(&store, &tenants, round, size.pairs).await?;
            // As many to a transaction as the store has put into one.
            let commits = usize::try_from(store.commits() - before)?.max(1);
            let batch = (2 * size.pairs / commits).clamp(1, AT_ONCE / tenants.len());
            let plain = through_raw(&raw_dir, tenants.len(), (round, size.pairs, batch)).await?;
            if round > 0 {
                by_store += stored;
                raw += plain;
            }
        }
        store.close();
        let per_pair = |took: Duration| took.as_secs_f64() * 1e6 / (size.rounds * size.pairs) as f64;
        report.figure(format!("raw_pair_{}", tenants.len()), per_pair(raw), "us");
        report.figure(format!("ledger_pair_{}", tenants.len()), per_pair(by_store), "us").bar(per_pair(raw), PAIR_BAR);
    }
    growth(size.entries, report)
}

fn credit(connection: &Connection) -> Result<NanoUsd, StoreError> {
    operate(connection, Operation::Credit, NanoUsd(1 << 60), "opening", None, NOW)
}

fn request(id: u128, rates: &Arc<Rates>, now_ms: u64) -> HoldRequest {
    let line = |kind| PriceLine { kind, nano_per_million: PRICE };
    HoldRequest {
        request_id: RequestId(spread(id)),
        device: "laptop-1f2e3d4c".parse().expect("a name"),
        key: None,
        digest: [7; 32],
        boot: Boot { machine: "0f6e7a5e-5c33-4a56-8e0c-3c0a0b9d2a11".into(), process: "0123456789abcdef".into() },
        now_ms,
        offers: vec![Offer {
            provider: "anthropic".into(),
            model: "claude-sonnet-4-5".into(),
            price: PriceSnapshot {
                version: 1,
                multiplier_bp: 10_000,
                lines: vec![line(UnitKind::INPUT), line(UnitKind::OUTPUT)],
                tiers: vec![],
            },
            keyless: false,
        }],
        multipliers: Multipliers { free: 10_000, managed: 10_300, byok: 3_000 },
        allowance: NanoUsd::ZERO,
        input_bound: 1000,
        refers: None,
        input_bytes: 800,
        asked_output: Some(500),
        default_output: 4096,
        may_reduce: false,
        choices: 1,
        extra_output: 0,
        question: None,
        cost_cap: None,
        rates: Arc::clone(rates),
        per_minute: PerMinute { requests: 100_000_000, tokens: None },
        at_once: 10_000,
    }
}

/// Ids are random: neighbours in time are none in the index.
fn spread(id: u128) -> [u8; 16] {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
}

fn settlement(id: u128, now_ms: u64) -> Settlement {
    Settlement {
        request_id: RequestId(spread(id)),
        offer: 0,
        outcome: Outcome::COMPLETE,
        message: String::new(),
        usage: vec![UsageLine { kind: UnitKind::INPUT, units: 300 }, UsageLine { kind: UnitKind::OUTPUT, units: 200 }],
        estimated: false,
        events: 200,
        first_event_ms: Some(350),
        answer: Arc::default(),
        now_ms,
    }
}

fn held(outcome: &HoldOutcome) -> Result<(), StoreError> {
    match outcome {
        HoldOutcome::Held(_) => Ok(()),
        other => Err(StoreError::Failed { operation: "hold", why: format!("{other:?}") }),
    }
}

/// So many pairs, [`AT_ONCE`] at once.
async fn through_store(
    store: &Store,
    tenants: &Arc<Vec<TenantId>>,
    round: usize,
    pairs: usize,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for lane in 0..AT_ONCE {
        let (store, tenants) = (store.clone(), Arc::clone(tenants));
        running.spawn(async move {
            let rates = Arc::<Rates>::default();
            let db = || Db::Tenant(tenants[lane % tenants.len()].clone());
            for number in 0..pairs / AT_ONCE {
                let id = ((round * AT_ONCE + lane) as u128) << 64 | number as u128 | 1 << 127;
                let ask = request(id, &rates, NOW);
                store.run(db(), move |connection| held(&hold(connection, &ask)?)).await?;
                let settlement = settlement(id, NOW + 5);
                store.run(db(), move |connection| settle(connection, &settlement).map(|_| ())).await?;
            }
            Ok::<_, StoreError>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(begun.elapsed())
}

/// The same rows in plain SQL: one thread for each that the store has, a transaction for all that would
/// wait for the same book.
async fn through_raw(
    dir: &Path,
    tenants: usize,
    (round, pairs, batch): (usize, usize, usize),
) -> anyhow::Result<Duration> {
    let books: Vec<_> = (0..tenants).map(|number| dir.join(format!("{number}.db"))).collect();
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for thread in 0..THREADS.min(tenants) {
        let books: Vec<_> = books.iter().skip(thread).step_by(THREADS).cloned().collect();
        running.spawn_blocking(move || {
            let opened = books.iter().map(|path| open(path, Kind::Tenant, Durability::Full));
            let opened = opened.collect::<Result<Vec<_>, _>>()?;
            for number in 0..pairs / tenants / batch {
                for connection in &opened {
                    for rows in [raw_hold, raw_settle] {
                        connection.execute_batch("BEGIN IMMEDIATE")?;
                        for lane in 0..batch {
                            rows(connection, spread((round as u128) << 64 | (number * batch + lane) as u128))?;
                        }
                        connection.execute_batch("COMMIT")?;
                    }
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(begun.elapsed())
}

fn raw_transfer(connection: &Connection, from: i64, to: i64, id: [u8; 16]) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO transfer (at_ms, kind, from_account, to_account, amount_nano, from_after_nano, to_after_nano,
                                   request_id, evidence, hash) VALUES (?1, 2, ?2, ?3, 5, 6, 7, ?4, ?5, ?5)",
        )?
        .execute(params![NOW as i64, from, to, id, [9_u8; 32]])?;
    for account in [from, to] {
        connection
            .prepare_cached("UPDATE account SET balance_nano = balance_nano + 1, last_transfer = 5 WHERE id = ?1")?
            .execute([account])?;
    }
    Ok(())
}

fn raw_hold(connection: &Connection, id: [u8; 16]) -> rusqlite::Result<()> {
    connection.prepare_cached("INSERT OR IGNORE INTO terms VALUES (1, x'00', '{}')")?.execute([])?;
    connection
        .prepare_cached(
            "INSERT INTO request (request_id, device, key, class, digest, state, boot, terms, input_bytes, held_nano,
                                  credits_nano, created_ms)
             VALUES (?1, 'laptop-1f2e3d4c', '', 1, ?2, 0, ?3, 1, 800, 1500000, 0, ?4)",
        )?
        .execute(params![id, [7_u8; 32], "0f6e7a5e-5c33-4a56-8e0c-3c0a0b9d2a11/0123456789abcdef", NOW as i64])?;
    raw_transfer(connection, 2, 3, id)
}

fn raw_settle(connection: &Connection, id: [u8; 16]) -> rusqlite::Result<()> {
    raw_transfer(connection, 3, 2, id)?;
    raw_transfer(connection, 3, 4, id)?;
    connection
        .prepare_cached(
            "UPDATE request SET state = 1, provider = 'anthropic', model = 'claude-sonnet-4-5', cost_nano = 5,
                 end = ?2, finished_ms = ?3 WHERE request_id = ?1",
        )?
        .execute(params![id, [1_u8; 80], NOW as i64])?;
    for (table, period) in [("usage_day", "day"), ("usage_month", "month")] {
        connection
            .prepare_cached(&format!(
                "INSERT INTO {table} ({period}, device, key, class, provider, model, requests, estimated, input, output,
                                      cache_read, cache_write, reasoning, cost_nano, absorbed_nano)
                 VALUES (5, 'laptop-1f2e3d4c', '', 1, 'anthropic', 'claude-sonnet-4-5', 1, 0, 300, 200, 0, 0, 0, 5, 0)
                 ON CONFLICT DO UPDATE SET requests = requests + 1, input = input + excluded.input,
                     output = output + excluded.output, cost_nano = cost_nano + excluded.cost_nano"
            ))?
            .execute([])?;
    }
    connection
        .prepare_cached(
            "INSERT INTO outbox (request_id, at_ms, device, key, class, provider, model, requests, estimated, input,
                                 output, cache_read, cache_write, reasoning, cost_nano, absorbed_nano)
             VALUES (?1, ?2, 'laptop-1f2e3d4c', '', 1, 'anthropic', 'claude-sonnet-4-5', 1, 0, 300, 200, 0, 0, 0, 5, 0)",
        )?
        .execute(params![id, NOW as i64])?;
    Ok(())
}

/// A hold, and the usage of the month, in a book of one entry, of a thousandth of the longest, and of the
/// longest: in one process, without the disk, which costs the same for all.
fn growth(entries: usize, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let sizes = [1, entries / 1000, entries];
    let mut books = vec![];
    for size in sizes {
        let connection = open(&dir.path().join(format!("{size}.db")), Kind::Tenant, Durability::None)?;
        fill(&connection, size)?;
        books.push(connection);
    }
    let mut best = [[f64::MAX; 2]; 3];
    // In turn, and the best of many rounds: what a busy moment adds is not the book's.
    for round in 0..40_u128 {
        for (at, connection) in books.iter().enumerate() {
            let took = [hold_time(connection, round)?, usage_time(connection)?];
            for (best, took) in best[at].iter_mut().zip(took) {
                *best = best.min(took);
            }
        }
    }
    for (kind, name) in ["hold_at", "usage_at"].into_iter().enumerate() {
        for (at, size) in sizes.into_iter().enumerate() {
            let row = report.figure(format!("{name}_{size}"), best[at][kind], "us");
            if at > 0 {
                row.bar(best[at - 1][kind], GROWTH_BAR);
            }
        }
    }
    Ok(())
}

/// Requests over the last year, until there are so many entries.
fn fill(connection: &Connection, entries: usize) -> anyhow::Result<()> {
    credit(connection)?;
    // One at least: there must be something to sum up.
    let pairs = (entries / 3).max(1) as u64;
    let year = 365 * calendar::DAY_MS;
    connection.execute_batch("BEGIN")?;
    for number in 0..pairs {
        let now_ms = NOW - year + year / pairs * (number + 1) - 1;
        let id = u128::from(number) | 1 << 120;
        // A minute of its own: the rates are not what is measured.
        held(&hold(connection, &request(id, &Arc::default(), now_ms))?)?;
        settle(connection, &settlement(id, now_ms))?;
        if number % 1000 == 999 {
            // Central has taken them.
            connection.execute_batch("DELETE FROM outbox; COMMIT; PRAGMA wal_checkpoint; BEGIN")?;
        }
    }
    connection.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(())
}

/// Microseconds per hold, of a few in one transaction that is undone.
fn hold_time(connection: &Connection, round: u128) -> anyhow::Result<f64> {
    const HOLDS: u128 = 25;
    let rates = Arc::default();
    let asks: Vec<_> = (0..HOLDS).map(|number| request(round << 32 | number | 1 << 126, &rates, NOW)).collect();
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let begun = Instant::now();
    for ask in &asks {
        held(&hold(connection, ask)?)?;
    }
    let took = begun.elapsed();
    connection.execute_batch("ROLLBACK")?;
    Ok(took.as_secs_f64() * 1e6 / HOLDS as f64)
}

/// Microseconds for the usage of this month by model.
fn usage_time(connection: &Connection) -> anyhow::Result<f64> {
    const QUESTIONS: usize = 25;
    let month = calendar::month(NOW);
    let days = [month, month + 1].map(|month| calendar::day(calendar::month_start_ms(month)));
    let begun = Instant::now();
    for _ in 0..QUESTIONS {
        usage_report(connection, days[0], days[1], Grouping::Model)?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / QUESTIONS as f64)
}
