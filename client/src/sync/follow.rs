//! Sync that goes on: a round when something has changed in the folders, or at the relay.
//!
//! The system's notifications say where to look, not what to do: a round looks at everything that could have changed.
//! They come in bursts, and are waited out. Where they get lost, a round every few minutes finds what they would have
//! told. The relay's feed says when somebody else has changed something.

use super::config::{SyncConfig, is_paused};
use super::engine::{Engine, Event, Events, Report};
use super::remote::Tunnelled;
use crate::client::Client;
use crate::error::ClientError;
use crate::state::StateDir;
use belay_protocol::message::{Resync, SyncChange, SyncPage};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// A burst of changes is over once nothing came for so long; or after so long in any case.
const QUIET: Duration = Duration::from_millis(250);
const BURST: Duration = Duration::from_secs(5);
/// When files that were being written are looked at again.
const UNSETTLED: Duration = Duration::from_millis(600);
/// When what stood in the way is tried again.
const PROBLEMS: Duration = Duration::from_secs(60);
/// When everything is looked at, whatever was told.
const ROUND: Duration = Duration::from_secs(300);
/// When folders are looked at that cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(20);
/// How soon and how late a relay that does not answer is asked again.
const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(60);
/// How often it is looked whether sync is paused.
const PAUSED: Duration = Duration::from_secs(1);

/// What a follower tells beside what the engine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A round is over.
    InStep(Report),
    /// The relay cannot be reached, and why; it is tried again.
    Waiting(String),
    /// It is paused.
    Paused,
    /// A folder is not watched, and why; it is looked at now and then.
    Unwatched(String),
}

/// Watches folders, until it is dropped, as far as that is possible: which cannot be, and why.
fn watch(config: &SyncConfig, changed: Arc<Notify>) -> (Option<RecommendedWatcher>, Vec<String>) {
    let is_own = |path: &Path| path.components().any(|name| name.as_os_str() == super::disk::OWN);
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        // Looking at a file changes nothing; what belay does itself is known.
        Ok(event) if matches!(event.kind, EventKind::Access(access) if !matches!(access, AccessKind::Close(AccessMode::Write))) =>
            {}
        Ok(event) if !event.paths.is_empty() && event.paths.iter().all(|path| is_own(path)) => {}
        // An error may have swallowed something: a look costs little.
        _ => changed.notify_one(),
    });
    let mut watcher = match made {
        Ok(watcher) => watcher,
        Err(error) => return (None, vec![error.to_string()]),
    };
    let folders = [config.knowledge.as_deref(), config.adapters.as_deref()].into_iter().flatten();
    let folders = folders.map(|path| (path, RecursiveMode::Recursive));
    let settings = config.settings.as_deref().and_then(Path::parent).map(|path| (path, RecursiveMode::NonRecursive));
    let failed = folders.chain(settings).filter_map(|(path, mode)| {
        watcher.watch(path, mode).err().map(|error| format!("{} cannot be watched: {error}", path.display()))
    });
    let failed = failed.collect();
    (Some(watcher), failed)
}

/// What the folders are: another one under the same name is not watched by a watch of the first.
fn identities(config: &SyncConfig) -> Vec<Option<(u64, u64)>> {
    let one = |path: std::path::PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Some((meta.dev(), meta.ino()))
        }
        #[cfg(not(unix))]
        Some((0, meta.created().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()))
    };
    config.paths().into_iter().map(one).collect()
}

/// Waits until a burst of changes is over.
async fn burst(changed: &Notify) {
    let until = Instant::now() + BURST;
    while timeout_at(until.min(Instant::now() + QUIET), changed.notified()).await.is_ok() && Instant::now() < until {}
}

/// Follows the relay's feed over one tunnel after the other, each time from where it stands: what was before is read by
/// the round that begins then.
async fn feed(client: &Client, within: Duration, changed: &Notify) {
    let mut wait = SOON;
    loop {
        let began = Instant::now();
        let followed = async {
            let mut cursor = client.sync_status(within).await?.1.cursor;
            changed.notify_one();
            let each = |changes: Vec<SyncChange>, _: &SyncPage| {
                if !changes.is_empty() {
                    changed.notify_one();
                }
                true
            };
            client.sync_feed(&mut cursor, within, each).await
        };
        if let Err(error) = followed.await {
            tracing::debug!(%error, "the feed ended");
        }
        wait = if began.elapsed() > LATE { SOON } else { (wait * 2).min(LATE) };
        sleep(wait).await;
    }
}

/// Keeps folders and relay the same until it is dropped. `events` is told what the engine does, `states` how it stands.
pub async fn follow(
    (client, within): (&Client, Duration),
    (config, state): (&SyncConfig, &StateDir),
    engine: &mut Engine<Tunnelled<'_>>,
    events: &mut Events<'_>,
    states: &mut (dyn FnMut(State) + Send),
) -> Result<(), ClientError> {
    let (here, there) = (Arc::new(Notify::new()), Notify::new());
    let mut watched = identities(config);
    let (mut watcher, mut unwatched) = watch(config, Arc::clone(&here));
    let (mut backoff, mut restless) = (SOON, UNSETTLED);
    // What was told before a first round is in it.
    let mut next = Instant::now();
    let feed = feed(client, within, &there);
    tokio::pin!(feed);
    loop {
        tokio::select! {
            biased;
            () = here.notified() => {
                burst(&here).await;
                restless = UNSETTLED;
            }
            () = there.notified() => {}
            () = sleep_until(next) => {}
            () = &mut feed => {}
        }
        while is_paused(state) {
            states(State::Paused);
            // Nobody tells when that file goes.
            while is_paused(state) {
                sleep(PAUSED).await;
            }
        }
        let now = identities(config);
        if now != watched || !unwatched.is_empty() {
            watched = now;
            drop(watcher.take());
            (watcher, unwatched) = watch(config, Arc::clone(&here));
            unwatched.iter().for_each(|why| states(State::Unwatched(why.clone())));
        }
        next = Instant::now()
            + match engine.round(false, events).await {
                Ok(report) => {
                    backoff = SOON;
                    let is_unsettled = report.total().unsettled > 0;
                    let wait = if is_unsettled {
                        restless
                    } else if !report.problems.is_empty() {
                        PROBLEMS
                    } else if !unwatched.is_empty() {
                        UNWATCHED
                    } else {
                        ROUND
                    };
                    // What is written to without end is looked at less and less often.
                    restless = if is_unsettled { (restless * 2).min(UNWATCHED) } else { UNSETTLED };
                    states(State::InStep(report));
                    wait
                }
                Err(error) if may_pass(&error) => {
                    states(State::Waiting(error.to_string()));
                    backoff = (backoff * 2).min(LATE);
                    backoff
                }
                Err(error) => return Err(error),
            };
    }
}

/// Another time it may be different.
fn may_pass(error: &ClientError) -> bool {
    match error {
        // The index is on a disk that may be full for a while.
        ClientError::Unreachable { .. } | ClientError::Lost(_) | ClientError::Failed(_) | ClientError::State { .. } => {
            true
        }
        ClientError::Protocol(_) => true,
        // As the tunnel does, which is tried on for.
        ClientError::Closed(code) => !ClientError::is_final(*code),
        _ => false,
    }
}

/// Rounds until everything is the same, or nothing more can be done: files that are being written are waited for, for
/// some seconds.
pub async fn once(engine: &mut Engine<Tunnelled<'_>>, events: &mut Events<'_>) -> Result<Report, ClientError> {
    let until = Instant::now() + BURST;
    let mut whole = Report::default();
    loop {
        whole = engine.round(false, events).await?.after(&whole);
        if whole.total().unsettled == 0 || Instant::now() >= until {
            return Ok(whole);
        }
        sleep(UNSETTLED).await;
    }
}

/// Items and problems, for whoever shows one event a line.
#[must_use]
pub fn words(event: &Event) -> Option<String> {
    use super::reconcile::Action;
    Some(match event {
        Event::Resync(why) => format!("everything is read anew: {}", why_anew(*why)),
        Event::Done(_, key, Action::Push) => format!("sent      {key}"),
        Event::Done(_, key, Action::Delete) => format!("deleted   {key} at the relay"),
        Event::Done(_, key, Action::Fetch) => format!("received  {key}"),
        Event::Done(_, key, Action::Remove) => format!("removed   {key}, which was deleted elsewhere"),
        Event::Conflict(_, key, Some(copy)) => {
            format!("conflict  {key} was changed elsewhere at the same time; what was here is now {copy}")
        }
        Event::Conflict(kind, key, None) => format!(
            "conflict  {key} was changed elsewhere at the same time; what was here: belay sync log {key} --kind {kind}"
        ),
        Event::Kept(_, key) => format!("kept      {key} was deleted here and edited elsewhere: it comes back"),
        Event::Problem(_, problem) if problem.key.is_empty() => format!("problem   {}", problem.why),
        Event::Problem(_, problem) => format!("problem   {}: {}", problem.key, problem.why),
        Event::Begins(..) | Event::Progress(..) | Event::Done(..) => return None,
    })
}

fn why_anew(why: Resync) -> &'static str {
    match why {
        Resync::TOO_OLD => "this computer was away for so long that the relay has forgotten what happened since",
        _ => "the relay's state was restored from a backup",
    }
}
