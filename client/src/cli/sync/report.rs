//! What `belay sync` shows: lines and bars for people, objects for programs.

use super::super::{Global, print_json};
use super::{configured, engine, short, with_client};
use belay_client::state::StateDir;
use belay_client::sync::config::{SyncConfig, SyncLock, index_path, is_paused};
use belay_client::sync::engine::{Event, Report};
use belay_client::sync::follow::{State, words};
use belay_client::sync::index::{Entry, Index, KindState};
use belay_client::sync::reconcile::Action;
use belay_protocol::item::ItemKind;
use belay_protocol::message::{SyncRevision, SyncStatus};
use belay_protocol::{calendar, table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;

/// Transfers below this have no bar.
const LONG: u64 = 1 << 20;

/// Shows what happens.
pub(super) struct Shown {
    json: bool,
    bar: Option<ProgressBar>,
    current: String,
    /// What stood in the way when it was told last: it is told once.
    problems: HashMap<(ItemKind, String), String>,
}

impl Shown {
    pub(super) fn new(json: bool) -> Self {
        Self { json, bar: None, current: String::new(), problems: HashMap::new() }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::Begins(_, key, _) => {
                self.current = key.to_string();
                // That of one that failed is there still.
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
            Event::Progress(done, size) => self.progress(*done, *size),
            Event::Problem(kind, problem)
                if self.problems.insert((*kind, problem.key.clone()), problem.why.clone()).as_ref()
                    == Some(&problem.why) =>
            {
                return;
            }
            Event::Done(..) => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
        if self.json {
            if let Some(object) = object(event) {
                println!("{object}");
            }
        } else if let Some(words) = words(event) {
            println!("{}", plain(&words));
        }
    }

    fn progress(&mut self, done: u64, size: u64) {
        if self.json || size < LONG || !std::io::stderr().is_terminal() {
            return;
        }
        let current = &self.current;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
            let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}";
            // The template is a constant that is right.
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(plain(current));
            bar
        });
        bar.set_position(done);
    }
}

/// Without what a terminal takes for commands.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Push => "send",
        Action::Delete => "delete_at_relay",
        Action::Fetch => "receive",
        Action::Remove => "remove_here",
        Action::Agree | Action::Nothing => "agree",
    }
}

fn object(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Resync(why) => json!({ "event": "resync", "why": why.name() }),
        Event::Done(kind, key, what) => {
            json!({ "event": "done", "kind": kind.name(), "item": key, "action": action(*what) })
        }
        Event::Conflict(kind, key, copy) => {
            json!({ "event": "conflict", "kind": kind.name(), "item": key, "copy": copy })
        }
        Event::Kept(kind, key) => json!({ "event": "kept", "kind": kind.name(), "item": key }),
        Event::Problem(kind, problem) => {
            json!({ "event": "problem", "kind": kind.name(), "item": problem.key, "why": problem.why })
        }
        Event::Begins(..) | Event::Progress(..) => return None,
    })
}

/// What would be done.
pub(super) fn planned(global: &Global, report: &Report) -> anyhow::Result<()> {
    let rows = report.planned.iter().filter(|(_, _, what)| *what != Action::Agree);
    if global.json {
        let rows = rows.map(|(kind, key, what)| json!({ "kind": kind.name(), "item": key, "action": action(*what) }));
        let problems = problems(report);
        return print_json(
            &json!({ "planned": rows.collect::<Vec<_>>(), "problems": problems, "unsettled": report.total().unsettled }),
        );
    }
    let mut count = 0;
    for (_, key, what) in rows {
        count += 1;
        let words = match what {
            Action::Push => "send",
            Action::Delete => "delete at the relay",
            Action::Fetch => "receive",
            _ => "remove here",
        };
        println!("would {words}: {}", plain(key.as_str()));
    }
    for (kind, problem) in &report.problems {
        println!("{}", plain(&words(&Event::Problem(*kind, problem.clone())).unwrap_or_default()));
    }
    if count == 0 {
        println!("nothing is to be done");
    }
    Ok(())
}

fn problems(report: &Report) -> Vec<Value> {
    let one = |(kind, problem): &(ItemKind, belay_client::sync::place::Problem)| json!({ "kind": kind.name(), "item": problem.key, "why": problem.why });
    report.problems.iter().map(one).collect()
}

fn totals(report: &Report) -> Value {
    let total = report.total();
    json!({
        "sent": total.pushed,
        "received": total.pulled,
        "conflicts": total.conflicts,
        "unsettled": total.unsettled,
        "problems": problems(report),
    })
}

/// The end of a sync that ran once. Errors: something stood in the way.
pub(super) fn ended(global: &Global, report: &Report) -> anyhow::Result<()> {
    if global.json {
        println!("{}", json!({ "event": "ended", "totals": totals(report) }));
    } else {
        println!("{}", line(report));
    }
    match (report.problems.len(), report.total().unsettled) {
        (0, 0) => Ok(()),
        (0, unsettled) => Err(anyhow::anyhow!("{unsettled} files are being written; sync again when they are whole")),
        (problems, _) => Err(anyhow::anyhow!("{problems} items were not synced; see above")),
    }
}

fn line(report: &Report) -> String {
    let (total, mut waits) = (report.total(), vec![]);
    if !report.problems.is_empty() {
        waits.push(format!("{} not synced", report.problems.len()));
    }
    if total.unsettled > 0 {
        waits.push(format!("{} being written", total.unsettled));
    }
    if (total.pushed, total.pulled, total.conflicts) == (0, 0, 0) {
        return if waits.is_empty() { "both sides are the same".into() } else { waits.join(", ") };
    }
    let mut line = format!("{} sent, {} received", total.pushed, total.pulled);
    if total.conflicts > 0 {
        line += &format!(", {} in conflict", total.conflicts);
    }
    waits.iter().for_each(|wait| line += &format!(", {wait}"));
    line
}

/// How a sync that goes on stands.
pub(super) struct States {
    json: bool,
    last: Option<String>,
}

impl States {
    pub(super) fn new(json: bool, config: &SyncConfig) -> Self {
        if !json {
            let paths: Vec<_> = config.paths().iter().map(|path| path.display().to_string()).collect();
            println!("following {}; Ctrl-C ends it", paths.join(", "));
        }
        Self { json, last: None }
    }

    pub(super) fn show(&mut self, state: State) {
        let (words, object) = match &state {
            State::InStep(report) => (line(report), json!({ "event": "in_step", "totals": totals(report) })),
            State::Waiting(why) => (format!("waiting   {why}"), json!({ "event": "waiting", "why": why })),
            State::Unwatched(why) => {
                (format!("problem   {why}; it is looked at now and then"), json!({ "event": "unwatched", "why": why }))
            }
            State::Paused => ("paused    to go on: belay sync resume".into(), json!({ "event": "paused" })),
        };
        // The same again says nothing.
        let is_new = self.last.replace(words.clone()).as_ref() != Some(&words);
        if self.json {
            println!("{object}");
        } else if is_new {
            println!("{}", plain(&words));
        }
    }
}

/// What is told of a kind.
#[derive(Default)]
struct Row {
    kind: KindState,
    items: u64,
    bytes: u64,
    conflicts: u64,
    pending: u64,
}

pub(super) async fn status(global: &Global, state: &StateDir) -> anyhow::Result<()> {
    let config = configured(state)?;
    with_client(global, async |client| {
        // What runs already knows what waits; else it is looked up.
        let planned = match SyncLock::take(state) {
            Ok(_lock) => Some(engine(global, client, (&config, state))?.round(true, &mut |_| {}).await?),
            Err(_) => None,
        };
        let (of_relay, relay) = client.sync_status(global.wait()).await?;
        let index = Index::open(&index_path(state))?;
        let mut rows = BTreeMap::new();
        for kind in config.places()?.into_keys() {
            rows.insert(kind, Row { kind: index.kind(kind)?, ..Row::default() });
        }
        for ((kind, _), entry) in index.entries()? {
            if let Some(row) = rows.get_mut(&kind) {
                count(row, &entry);
            }
        }
        for (kind, row) in &mut rows {
            row.pending = planned.as_ref().map_or(row.kind.pending, |report| {
                let waits = |(of, _, what): &&(ItemKind, _, Action)| of == kind && *what != Action::Agree;
                report.planned.iter().filter(waits).count() as u64
            });
        }
        // Conversations lie at the relay alone.
        if let Some(history) = of_relay.iter().find(|status| status.kind == ItemKind::HISTORY) {
            let kind =
                KindState { pushed_ms: history.changed_ms, pulled_ms: history.changed_ms, ..KindState::default() };
            rows.insert(ItemKind::HISTORY, Row { kind, items: history.items, ..Row::default() });
        }
        show(global, state, &rows, &relay, planned.is_none())
    })
    .await
}

fn count(row: &mut Row, entry: &Entry) {
    let sig = entry.base.as_ref().and_then(|base| base.sig.as_ref());
    if let Some(sig) = sig {
        row.items += 1;
        row.bytes += sig.size;
        row.conflicts += u64::from(!entry.conflict_of.is_empty());
    }
}

fn show(
    global: &Global,
    state: &StateDir,
    rows: &BTreeMap<ItemKind, Row>,
    relay: &SyncStatus,
    runs: bool,
) -> anyhow::Result<()> {
    let paused = is_paused(state);
    if global.json {
        let kinds = rows.iter().map(|(kind, row)| {
            json!({
                "kind": kind.name(),
                "items": row.items,
                "bytes": row.bytes,
                "last_pushed_ms": row.kind.pushed_ms,
                "last_pulled_ms": row.kind.pulled_ms,
                "pending": row.pending,
                "conflicts": row.conflicts,
                "problems": row.kind.problems,
            })
        });
        return print_json(&json!({
            "kinds": kinds.collect::<Vec<_>>(),
            "used_bytes": relay.used,
            "quota_bytes": relay.quota,
            "paused": paused,
            "running": runs,
        }));
    }
    let time = |ms: u64| if ms == 0 { "never".to_owned() } else { calendar::time_text(ms) };
    let cells = rows.iter().map(|(kind, row)| {
        vec![
            kind.to_string(),
            row.items.to_string(),
            bytes(row.bytes),
            time(row.kind.pushed_ms),
            time(row.kind.pulled_ms),
            row.pending.to_string(),
            row.conflicts.to_string(),
            row.kind.problems.to_string(),
        ]
    });
    let header = ["KIND", "ITEMS", "SIZE", "LAST PUSHED", "LAST PULLED", "PENDING", "CONFLICTS", "PROBLEMS"];
    print!("{}", table::render(&header, &[1, 2, 5, 6, 7], &cells.collect::<Vec<_>>()));
    println!("the relay keeps {} of {} for this tenant", bytes(relay.used), bytes(relay.quota));
    match (paused, runs) {
        (true, _) => println!("sync is paused; to go on: belay sync resume"),
        (_, true) => println!("belay sync runs"),
        _ => {}
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

pub(super) fn log(global: &Global, log: &[SyncRevision]) -> anyhow::Result<()> {
    if global.json {
        let rows = log.iter().map(|row| {
            json!({
                "revision": row.revision.to_string(),
                "parent": row.parent.map(|parent| parent.to_string()),
                "state": row.state.name(),
                "deleted": row.content == belay_protocol::message::SyncContent::NONE,
                "device": row.device,
                "at_ms": row.at_ms,
                "replaced_ms": row.replaced_ms,
                "size": row.size,
                "digest": row.digest.to_string(),
            })
        });
        return print_json(&rows.collect::<Vec<_>>());
    }
    let cells = log.iter().map(|row| {
        let is_deleted = row.content == belay_protocol::message::SyncContent::NONE;
        vec![
            short(row.revision),
            calendar::time_text(row.at_ms),
            row.device.to_string(),
            if is_deleted { "deleted".into() } else { bytes(row.size) },
            row.state.to_string(),
        ]
    });
    print!("{}", table::render(&["REVISION", "TIME", "DEVICE", "SIZE", "STATE"], &[3], &cells.collect::<Vec<_>>()));
    Ok(())
}
