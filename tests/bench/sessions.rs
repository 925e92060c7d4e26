//! What the list of a tenant's sessions and the search in them take, however many there are.

use crate::report::{Report, Samples};
use anyhow::{Context, anyhow};
use belay_protocol::id::{MessageId, SessionId};
use belay_protocol::message::{Outcome, SessionRole};
use belay_protocol::money::NanoUsd;
use belay_relay::store::schema::{self, Durability, Kind};
use belay_relay::store::sessions::find::{list, search};
use belay_relay::store::sessions::{Addition, add};
use rusqlite::Connection;
use std::time::Instant;

/// The figures that come from here.
pub(crate) const NAMES: [&str; 2] = ["sessions_list", "sessions_search"];

/// Rows of a page.
const ROWS: u32 = 20;
/// One session in so many has the word that is looked for.
const RARE: u64 = 10;
const NOW: u64 = 1_790_000_000_000;
const WORDS: [&str; 8] = ["relay", "tunnel", "ledger", "stream", "token", "budget", "session", "window"];

/// So many rounds for each number of sessions.
pub(crate) fn measure(sizes: &[u64], rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let book = schema::open(&dir.path().join("tenant.db"), Kind::Tenant, Durability::None)?;
    let mut there = 0;
    for size in sizes {
        fill(&book, there, *size)?;
        there = *size;
        let mut took: [Samples; 2] = Default::default();
        for _ in 0..rounds {
            let start = Instant::now();
            let page = list(&book, false, "", ROWS)?.map_err(|_| anyhow!("a cursor"))?;
            took[0].push(u64::try_from(start.elapsed().as_nanos())?);
            anyhow::ensure!(page.rows.len() as u64 == u64::from(ROWS).min(*size));
            let start = Instant::now();
            let page = search(&book, "needle relay", "", ROWS)?.map_err(|_| anyhow!("a cursor"))?;
            took[1].push(u64::try_from(start.elapsed().as_nanos())?);
            anyhow::ensure!(!page.rows.is_empty());
        }
        report.times(&format!("sessions_list_{size}"), &took[0]);
        report.times(&format!("sessions_search_{size}"), &took[1]);
    }
    Ok(())
}

/// Two messages in each session from one number up to another.
fn fill(book: &Connection, from: u64, until: u64) -> anyhow::Result<()> {
    book.execute_batch("BEGIN")?;
    for number in from..until {
        let name: SessionId = format!("session-{number}").parse()?;
        for (turn, role) in [(0, SessionRole::USER), (1, SessionRole::ASSISTANT)] {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(number * 2 + turn).to_le_bytes());
            let needle = if number % RARE == 0 && turn == 1 { "needle" } else { "hay" };
            let word = |step: u64| WORDS[usize::try_from((number * 7 + step * 3) % 8).unwrap_or(0)];
            let text: Vec<&str> = (0..30).map(word).chain([needle, "relay"]).collect();
            let addition = Addition {
                message_id: MessageId(id),
                role,
                at_ms: NOW + number,
                device: "laptop".parse()?,
                request_id: None,
                outcome: Outcome::COMPLETE,
                model: String::new(),
                cost: NanoUsd::ZERO,
                text: text.join(" "),
            };
            add(book, &name, &addition, u64::MAX)?.map_err(|refusal| anyhow!("{refusal:?}"))?;
        }
    }
    book.execute_batch("COMMIT").context("cannot fill the book")
}
