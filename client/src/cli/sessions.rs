//! `belay sessions`: conversations that the relay keeps.

pub(super) mod print;

pub(super) use print::plain;

use super::exit::Usage;
use super::{Global, print_json};
use anyhow::Context;
use belay_client::sessions::Said;
use belay_client::{Client, ClientError};
use belay_protocol::id::SessionId;
use belay_protocol::message::{
    FailureCode, Session, SessionDeed, SessionKnowledge, SessionRole, SessionRow, SessionUpdate,
};
use belay_protocol::transcript;
use clap::{Args, Subcommand, ValueEnum};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct SessionsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the sessions, the newest first
    #[command(
        after_help = "Examples:\n  belay sessions list\n  belay sessions list --deleted\n  belay sessions list --all --json"
    )]
    List {
        /// Those that were deleted in the last 30 days
        #[arg(long)]
        deleted: bool,
        /// At most so many
        #[arg(long, default_value_t = 20, value_name = "COUNT", conflicts_with = "all",
              value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Show what was said in a session
    #[command(after_help = "Examples:\n  belay sessions show rome\n  belay sessions show \"A trip to Rome\" --last 4")]
    Show {
        /// Its name, its title, or the beginning of one of them
        session: String,
        /// Only so many messages, the last ones
        #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
        last: u32,
    },
    /// Find words in titles and messages; the last word may be a beginning
    #[command(after_help = "Example:\n  belay sessions search relay heartb")]
    Search {
        /// Words, all of which must be there
        #[arg(required = true)]
        words: Vec<String>,
        /// At most so many places
        #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Give a session another title
    #[command(after_help = "Example:\n  belay sessions rename rome \"A week in Rome\"")]
    Rename {
        /// Its name, its title, or the beginning of one of them
        session: String,
        /// The new title; empty: that of its first message
        title: String,
    },
    /// Set what goes with every request of a session, and its model; what is not named stays
    #[command(after_help = "Examples:
  belay sessions set rome --framing \"like an old friend\" --constraint \"no museums\"
  belay sessions set rome --knowledge notes.md=0.9 --model claude
  belay sessions set rome --no-knowledge --model \"\"")]
    Set(SetArgs),
    /// Add a message to a session; without a text, stdin is read
    #[command(after_help = "Example:\n  belay sessions add rome --role assistant \"The Forum opens at nine.\"")]
    Add {
        /// Its name; it is made if it is not there
        session: SessionId,
        /// Who said it
        #[arg(long, value_enum, default_value_t = Role::User)]
        role: Role,
        /// What was said
        text: Option<String>,
    },
    /// Forget what was said in a session, for ever, and keep the session
    #[command(after_help = "Example:\n  belay sessions clear rome")]
    Clear {
        /// Its name
        session: String,
    },
    /// Delete a session; for 30 days it can be restored
    #[command(after_help = "Example:\n  belay sessions delete rome")]
    Delete {
        /// Its name, its title, or the beginning of one of them
        session: String,
    },
    /// Take the deletion of a session back
    #[command(after_help = "Example:\n  belay sessions restore rome")]
    Restore {
        /// Its name, its title, or the beginning of one of them
        session: String,
    },
    /// Write a session to a file, or to stdout
    #[command(
        after_help = "Examples:\n  belay sessions export rome > rome.md\n  belay sessions export rome --format json --output rome.json"
    )]
    Export {
        /// Its name, its title, or the beginning of one of them
        session: String,
        /// As what
        #[arg(long, value_enum, default_value_t = Format::Markdown)]
        format: Format,
        /// Where to; a file that is there is not overwritten
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Its name; it is made if it is not there
    session: SessionId,
    /// How you want to be met; "": no more
    #[arg(long, value_name = "TEXT")]
    framing: Option<String>,
    /// A file that answers should know, optionally with its relevance: notes.md or notes.md=0.9; takes the
    /// place of those before
    #[arg(long, value_name = "FILE[=RELEVANCE]", conflicts_with = "no_knowledge")]
    knowledge: Vec<String>,
    /// Forget those files
    #[arg(long)]
    no_knowledge: bool,
    /// What answers must respect; takes the place of those before
    #[arg(long, value_name = "TEXT", conflicts_with = "no_constraints")]
    constraint: Vec<String>,
    /// Forget those
    #[arg(long)]
    no_constraints: bool,
    /// The model or alias that is asked; "": the relay's choice
    #[arg(long, short)]
    model: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    User,
    Assistant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Markdown,
    Json,
}

pub(super) async fn run(global: &Global, args: SessionsArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let done = act(global, &client, args.what).await;
    client.close().await;
    done
}

async fn act(global: &Global, client: &Client, what: What) -> anyhow::Result<()> {
    match what {
        What::List { deleted, limit, all } => print::list(global, client, deleted, (!all).then_some(limit)).await,
        What::Show { session, last } => print::show(global, client, &session, last).await,
        What::Search { words, limit } => print::search(global, client, words.join(" "), limit).await,
        What::Rename { session, title } => {
            let session = find(global, client, &session, false).await?;
            let update = SessionUpdate { title: Some(title), ..SessionUpdate::nothing(session) };
            let changed = client.session_update(&update, global.wait()).await?;
            told(global, &changed, &format!("{} is called {:?} now", changed.row.session, changed.row.title))
        }
        What::Set(args) => {
            let changed = client.session_update(&update(args)?, global.wait()).await?;
            told(global, &changed, &format!("{} is set", changed.row.session))
        }
        What::Add { session, role, text } => {
            let text = text.map_or_else(stdin, Ok)?;
            let role = if role == Role::User { SessionRole::USER } else { SessionRole::ASSISTANT };
            let number = client.session_add(&session, (client.message_id(), role), text, global.wait()).await?;
            if global.json {
                return print_json(&serde_json::json!({ "session": session, "number": number }));
            }
            println!("message {number} of {session}");
            Ok(())
        }
        What::Clear { session } => deed(global, client, &session, SessionDeed::CLEAR).await,
        What::Delete { session } => deed(global, client, &session, SessionDeed::DELETE).await,
        What::Restore { session } => deed(global, client, &session, SessionDeed::RESTORE).await,
        What::Export { session, format, output } => print::export(global, client, &session, format, output).await,
    }
}

fn stdin() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        return Err(Usage("nothing is said: give a text, or pipe it in".into()).into());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    Ok(text)
}

fn update(args: SetArgs) -> anyhow::Result<SessionUpdate> {
    let read = |spec: &String| {
        let piece = super::ask::read_knowledge(spec)?;
        anyhow::Ok(SessionKnowledge { source: piece.source, relevance: piece.relevance, text: piece.text })
    };
    let knowledge = args.knowledge.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let update = SessionUpdate {
        model: args.model,
        framing: args.framing,
        sets_knowledge: args.no_knowledge || !knowledge.is_empty(),
        sets_constraints: args.no_constraints || !args.constraint.is_empty(),
        knowledge,
        constraints: args.constraint,
        ..SessionUpdate::nothing(args.session)
    };
    if update == SessionUpdate::nothing(update.session.clone()) {
        return Err(Usage("nothing is to be set; see belay sessions set --help".into()).into());
    }
    Ok(update)
}

pub(super) fn counted(messages: u64) -> String {
    if messages == 1 { "1 message".to_owned() } else { format!("{messages} messages") }
}

/// Says what was done.
fn told(global: &Global, session: &Session, words: &str) -> anyhow::Result<()> {
    if global.json {
        return print_json(&transcript::row_json(&session.row));
    }
    println!("{words}");
    Ok(())
}

async fn deed(global: &Global, client: &Client, given: &str, deed: SessionDeed) -> anyhow::Result<()> {
    let session = match deed {
        // Not by a slip of the hand.
        SessionDeed::CLEAR => given.parse().map_err(|error| Usage(format!("{error}")))?,
        deed => find(global, client, given, deed == SessionDeed::RESTORE).await?,
    };
    let done = client.session_act(&session, deed, global.wait()).await?;
    let words = match deed {
        SessionDeed::DELETE => format!("{session} is deleted; within 30 days: belay sessions restore {session:?}"),
        SessionDeed::RESTORE => format!("{session} is back, with {}", counted(done.row.messages)),
        _ => format!("{session} is empty now"),
    };
    told(global, &done, &words)
}

/// The session that is meant: by its name, else by its title or the beginning of one of the two, if that fits
/// one alone.
async fn find(global: &Global, client: &Client, given: &str, deleted: bool) -> anyhow::Result<SessionId> {
    let mut refusal = None;
    if let Ok(session) = given.parse::<SessionId>() {
        match client.session(&session, global.wait()).await {
            Ok(_) => return Ok(session),
            Err(ClientError::Failed(failed)) if deleted && failed.code == FailureCode::DELETED => return Ok(session),
            Err(ClientError::Failed(failed)) if failed.code == FailureCode::NOT_FOUND => {
                refusal = Some(ClientError::Failed(failed));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let rows = rows(global, client, deleted, None).await?;
    let fits = |what: &str| what.to_lowercase().starts_with(&given.to_lowercase());
    let same = |row: &&SessionRow| row.session.as_str() == given || row.title == given;
    let like = |row: &&SessionRow| fits(row.session.as_str()) || fits(&row.title);
    let mut found: Vec<&SessionRow> = rows.iter().filter(same).collect();
    if found.is_empty() {
        found = rows.iter().filter(like).collect();
    }
    match (found.as_slice(), refusal) {
        ([one], _) => Ok(one.session.clone()),
        ([], Some(refusal)) => Err(refusal.into()),
        ([], None) => Err(Usage(format!("there is no session {given:?}; see belay sessions list")).into()),
        (several, _) => {
            let names: Vec<_> = several.iter().take(5).map(|row| format!("{:?}", row.session.as_str())).collect();
            Err(Usage(format!("{given:?} may be any of {} sessions: {} …", several.len(), names.join(", "))).into())
        }
    }
}

/// The rows of a list, as many pages as it takes.
async fn rows(
    global: &Global,
    client: &Client,
    deleted: bool,
    limit: Option<u32>,
) -> Result<Vec<SessionRow>, ClientError> {
    let (mut rows, mut cursor) = (vec![], String::new());
    loop {
        let left = limit.map_or(0, |limit| limit - u32::try_from(rows.len()).unwrap_or(limit).min(limit));
        if limit.is_some() && left == 0 {
            return Ok(rows);
        }
        let (page, next) = client.session_list(deleted, cursor, left, global.wait()).await?;
        rows.extend(page);
        cursor = next;
        if cursor.is_empty() {
            return Ok(rows);
        }
    }
}

pub(super) async fn read(
    global: &Global,
    client: &Client,
    session: &SessionId,
    last: u32,
) -> Result<(Session, Vec<Said>), ClientError> {
    let mut said = vec![];
    let read = client.session_messages(session, (0, last), global.wait(), |message| {
        said.push(message);
        true
    });
    Ok((read.await?, said))
}
