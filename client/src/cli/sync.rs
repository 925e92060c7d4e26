//! `belay sync`: keeps folders of this computer and the relay the same.

mod lock;
mod report;

use super::signals::Signals;
use super::{Global, print_json};
use crate::cli::exit::Usage;
use belay_client::Client;
use belay_client::state::StateDir;
use belay_client::sync::config::{SyncConfig, SyncLock, index_path, is_paused, set_paused};
use belay_client::sync::engine::Engine;
use belay_client::sync::follow::{follow, once};
use belay_client::sync::index::Index;
use belay_client::sync::remote::Tunnelled;
use belay_protocol::id::RevisionId;
use belay_protocol::item::{ItemKey, ItemKind};
use belay_protocol::message::{PushOutcome, RevisionState, SyncContent, SyncRevision};
use belay_transport::env::Env;
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  belay sync folders --knowledge ~/notes --adapters ~/adapters --settings ~/.config/ai/settings.json
  belay sync                       follow them, until Ctrl-C
  belay sync --once --dry-run      show what would be done
  belay sync log plan.md           what the document was in the last 30 days")]
pub(super) struct SyncArgs {
    /// Bring both sides together, then end
    #[arg(long)]
    once: bool,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show or set what is synced on this computer
    #[command(after_help = "Examples:
  belay sync folders
  belay sync folders --knowledge ~/notes --ignore '*.pdf'
  belay sync folders --remove adapters")]
    Folders(FoldersArgs),
    /// Show for each kind what was sent and received last, what waits, conflicts and bytes
    #[command(after_help = "Example:\n  belay sync status --json")]
    Status,
    /// Stop syncing until resumed; a running belay sync notices
    #[command(after_help = "Example:\n  belay sync pause")]
    Pause,
    /// Go on syncing
    #[command(after_help = "Example:\n  belay sync resume")]
    Resume,
    /// Show what an item was in the last 30 days
    #[command(after_help = "Examples:\n  belay sync log plan.md\n  belay sync log theme --kind setting")]
    Log(ItemArgs),
    /// Make an item again what it was
    #[command(after_help = "Examples:
  belay sync restore plan.md              what it was before
  belay sync restore plan.md --to 3f9c    a revision of its log")]
    Restore {
        #[command(flatten)]
        item: ItemArgs,
        /// Which revision: the beginning of its name in the log
        #[arg(long, value_name = "REVISION")]
        to: Option<String>,
    },
    /// Run a command while holding a lock that all computers of the tenant share; ends as it does
    #[command(after_help = "Example:
  belay sync lock nightly-index -- ./index.sh    BELAY_FENCE is the lock's fence")]
    Lock(lock::LockArgs),
}

#[derive(Debug, Args)]
struct FoldersArgs {
    /// A folder of documents
    #[arg(long, value_name = "DIR")]
    knowledge: Option<PathBuf>,
    /// A folder of LoRA adapters
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// A settings file (a JSON object)
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Files that are ignored, in the syntax of .gitignore; takes the place of what was set
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Sync this no more; what is there stays on both sides
    #[arg(long, value_name = "WHICH")]
    remove: Vec<Kind>,
}

#[derive(Debug, Args)]
struct ItemArgs {
    /// The document's path in its folder, the adapter's directory, or the setting's key
    #[arg(value_name = "ITEM")]
    key: ItemKey,
    /// What it is
    #[arg(long, value_enum, default_value = "document")]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "knowledge")]
    Document,
    #[value(alias = "adapters")]
    Adapter,
    #[value(alias = "settings")]
    Setting,
}

impl From<Kind> for ItemKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Document => Self::DOCUMENT,
            Kind::Adapter => Self::ADAPTER,
            Kind::Setting => Self::SETTING,
        }
    }
}

pub(super) async fn run(global: &Global, args: SyncArgs) -> anyhow::Result<()> {
    let state = global.state()?;
    match args.what {
        None => sync(global, &state, args.once, args.dry_run).await,
        Some(_) if args.once || args.dry_run => {
            Err(Usage("--once and --dry-run are for belay sync itself".into()).into())
        }
        Some(What::Folders(folders)) => set_folders(global, &state, folders),
        Some(What::Status) => report::status(global, &state).await,
        Some(What::Pause) => paused(global, &state, true),
        Some(What::Resume) => paused(global, &state, false),
        Some(What::Log(item)) => with_client(global, async |client| log(global, client, &item).await).await,
        Some(What::Restore { item, to }) => {
            with_client(global, async |client| restore(global, client, &item, to.as_deref()).await).await
        }
        Some(What::Lock(args)) => with_client(global, async |client| lock::run(global, client, &args).await).await,
    }
}

async fn with_client(global: &Global, work: impl AsyncFnOnce(&Client) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let client = global.client()?;
    let done = work(&client).await;
    client.close().await;
    done
}

fn configured(state: &StateDir) -> anyhow::Result<SyncConfig> {
    let config = SyncConfig::load(state)?;
    if config.is_empty() {
        return Err(Usage("nothing is set up to be synced; see belay sync folders --help".into()).into());
    }
    Ok(config)
}

/// What a sync of this process needs.
fn engine<'a>(
    global: &Global,
    client: &'a Client,
    (config, state): (&SyncConfig, &StateDir),
) -> anyhow::Result<Engine<Tunnelled<'a>>> {
    let env = Env::system();
    let index = Index::open(&index_path(state))?;
    let remote = Tunnelled { client, within: global.wait() };
    Ok(Engine::new(remote, index, config.places()?, env.clock, env.random)?)
}

async fn sync(global: &Global, state: &StateDir, is_once: bool, dry_run: bool) -> anyhow::Result<()> {
    let config = configured(state)?;
    let _lock = SyncLock::take(state)?;
    with_client(global, async |client| {
        let mut engine = engine(global, client, (&config, state))?;
        let mut shown = report::Shown::new(global.json);
        if dry_run {
            let planned = engine.round(true, &mut |event| shown.event(&event)).await?;
            return report::planned(global, &planned);
        }
        if is_once {
            if is_paused(state) {
                return Err(Usage("sync is paused; to go on: belay sync resume".into()).into());
            }
            let report = once(&mut engine, &mut |event| shown.event(&event)).await?;
            return report::ended(global, &report);
        }
        let mut signals = Signals::listen()?;
        let mut states = report::States::new(global.json, &config);
        let mut show = |event| shown.event(&event);
        let mut told = |state| states.show(state);
        let followed = follow((client, global.wait()), (&config, state), &mut engine, &mut show, &mut told);
        tokio::select! {
            biased;
            () = signals.any() => Ok(()),
            ended = followed => Ok(ended?),
        }
    })
    .await
}

fn paused(global: &Global, state: &StateDir, paused: bool) -> anyhow::Result<()> {
    set_paused(state, paused)?;
    if global.json {
        return print_json(&serde_json::json!({ "paused": paused }));
    }
    println!("{}", if paused { "sync is paused; to go on: belay sync resume" } else { "sync goes on" });
    Ok(())
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}

fn set_folders(global: &Global, state: &StateDir, args: FoldersArgs) -> anyhow::Result<()> {
    let mut config = SyncConfig::load(state)?;
    let before = config.clone();
    for kind in &args.remove {
        match kind {
            Kind::Document => config.knowledge = None,
            Kind::Adapter => config.adapters = None,
            Kind::Setting => config.settings = None,
        }
    }
    let mut named = vec![];
    let mut given = |kind, path: Option<PathBuf>, now: Option<PathBuf>| match path {
        Some(path) => {
            named.push(kind);
            absolute(&path).map(Some)
        }
        None => Ok(now),
    };
    config.knowledge = given(ItemKind::DOCUMENT, args.knowledge, config.knowledge)?;
    config.adapters = given(ItemKind::ADAPTER, args.adapters, config.adapters)?;
    config.settings = given(ItemKind::SETTING, args.settings, config.settings)?;
    // One that is named again and is not what it was is set up anew.
    let anew: Vec<ItemKind> = named.into_iter().filter(|kind| config.forget_if_lost(*kind)).collect();
    if !args.ignore.is_empty() {
        config.ignore = args.ignore;
    }
    if config != before {
        config.check(state)?;
        // Nobody else is at work in what changes.
        let _lock = SyncLock::take(state)?;
        config.set_up(&Env::system().random)?;
        // In this order: with what was agreed on of the other folder, an empty one would mean that all was deleted.
        forget_moved(state, &anew, &before, &config)?;
        config.save(state)?;
    }
    if global.json {
        return print_json(&config);
    }
    let shown = |path: &Option<PathBuf>| path.as_ref().map_or("-".to_owned(), |path| path.display().to_string());
    println!("knowledge  {}", shown(&config.knowledge));
    println!("adapters   {}", shown(&config.adapters));
    println!("settings   {}", shown(&config.settings));
    for pattern in &config.ignore {
        println!("ignored    {pattern}");
    }
    if !config.is_empty() {
        println!("to sync them: belay sync");
    }
    Ok(())
}

/// What was agreed on of one folder says nothing of another: what is not in it was not deleted.
fn forget_moved(state: &StateDir, anew: &[ItemKind], before: &SyncConfig, now: &SyncConfig) -> anyhow::Result<()> {
    let kinds = [
        (ItemKind::DOCUMENT, &before.knowledge, &now.knowledge),
        (ItemKind::ADAPTER, &before.adapters, &now.adapters),
        (ItemKind::SETTING, &before.settings, &now.settings),
    ];
    let is_moved = |(kind, before, now): &(ItemKind, &Option<PathBuf>, &Option<PathBuf>)| {
        before.is_some() && before != now || anew.contains(kind)
    };
    let moved: Vec<_> = kinds.into_iter().filter(is_moved).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let index = Index::open(&index_path(state))?;
    moved.iter().try_for_each(|(kind, ..)| index.forget_bases(*kind))?;
    Ok(())
}

fn short(revision: RevisionId) -> String {
    revision.to_string().chars().take(12).collect()
}

async fn log(global: &Global, client: &Client, item: &ItemArgs) -> anyhow::Result<()> {
    let log = client.sync_log(item.kind.into(), &item.key, global.wait()).await?;
    report::log(global, &log)
}

async fn restore(global: &Global, client: &Client, item: &ItemArgs, to: Option<&str>) -> anyhow::Result<()> {
    let kind = ItemKind::from(item.kind);
    let log = client.sync_log(kind, &item.key, global.wait()).await?;
    let head = log.iter().find(|row| row.state == RevisionState::CURRENT);
    let has_content = |row: &&SyncRevision| row.content != SyncContent::NONE && row.state != RevisionState::CURRENT;
    let mut candidates = log.iter().filter(has_content);
    let earlier = match to {
        // What it was; not what somebody else wanted it to be.
        None => candidates
            .find(|row| row.state == RevisionState::REPLACED)
            .ok_or_else(|| Usage(format!("nothing is kept of what {} was", item.key)))?,
        Some(to) => {
            let found: Vec<_> = candidates.filter(|row| row.revision.to_string().starts_with(to)).collect();
            match found[..] {
                [one] => one,
                [] => {
                    let why = format!(
                        "no earlier revision of {} begins with {to}; see belay sync log {}",
                        item.key, item.key
                    );
                    return Err(Usage(why).into());
                }
                _ => return Err(Usage(format!("{to} is the beginning of several revisions; name more of it")).into()),
            }
        }
    };
    let head = head.map(|row| row.revision);
    let answer = client.sync_restore((kind, &item.key), earlier.revision, head, global.wait()).await?;
    let pushed = answer.map_err(belay_client::ClientError::Failed)?;
    if pushed.outcome == PushOutcome::CONFLICT {
        return Err(anyhow::anyhow!("{} changed meanwhile; look at its log and try again", item.key));
    }
    if global.json {
        return print_json(&serde_json::json!({
            "restored": earlier.revision.to_string(),
            "revision": pushed.head.to_string(),
            "outcome": pushed.outcome.name(),
        }));
    }
    if pushed.outcome == PushOutcome::SAME {
        println!("{} is what it was in {} already", item.key, short(earlier.revision));
        return Ok(());
    }
    println!("{} is again what it was in {}; belay sync brings it here", item.key, short(earlier.revision));
    Ok(())
}
