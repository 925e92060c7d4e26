//! Sessions as the command line shows and writes them.

use super::{Format, counted};
use crate::cli::{Global, print_json};
use anyhow::Context;
use belay_client::Client;
use belay_client::sessions::Said;
use belay_protocol::calendar;
use belay_protocol::message::{Outcome, SessionHit, SessionRole, SessionRow};
use belay_protocol::{table, transcript};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Characters of a title in a table.
const TITLE: usize = 52;

pub(super) async fn list(global: &Global, client: &Client, deleted: bool, limit: Option<u32>) -> anyhow::Result<()> {
    let rows = super::rows(global, client, deleted, limit).await?;
    if global.json {
        return print_json(&rows.iter().map(transcript::row_json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        println!(
            "{}",
            if deleted { "no session was deleted" } else { "there is no session yet; begin one: belay chat" }
        );
        return Ok(());
    }
    let cells = |row: &SessionRow| {
        vec![
            row.session.to_string(),
            short(&row.title),
            row.messages.to_string(),
            row.cost.to_string(),
            calendar::time_text(row.deleted_ms.unwrap_or(row.updated_ms)),
        ]
    };
    let header = ["SESSION", "TITLE", "MESSAGES", "COST", if deleted { "DELETED" } else { "LAST USED" }];
    print!("{}", table::render(&header, &[2, 3], &rows.iter().map(cells).collect::<Vec<_>>()));
    Ok(())
}

fn short(title: &str) -> String {
    if title.chars().count() <= TITLE {
        return title.to_owned();
    }
    title.chars().take(TITLE - 1).chain(['…']).collect()
}

pub(super) async fn show(global: &Global, client: &Client, given: &str, last: u32) -> anyhow::Result<()> {
    let session = super::find(global, client, given, false).await?;
    let (session, said) = super::read(global, client, &session, last).await?;
    if global.json {
        return print_json(&transcript::json(&session, pairs(&said)));
    }
    let row = &session.row;
    println!("{}  ({}, {}, {})", plain(transcript::heading(&session)), row.session, counted(row.messages), row.cost);
    for said in &said {
        println!("\n{}\n{}", line(said), plain(said.text.trim_end()));
        if said.message.outcome != Outcome::COMPLETE {
            println!("[cut: {}]", said.message.outcome);
        }
    }
    Ok(())
}

/// A text without what a terminal takes for commands: it may come from another computer.
pub(in crate::cli) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Who said it, when, where, at which price.
fn line(said: &Said) -> String {
    let message = &said.message;
    let time = calendar::time_text(message.at_ms);
    match message.role {
        SessionRole::USER => format!("> you, {time}, {}", message.device),
        _ if message.model.is_empty() => format!("> assistant, {time}"),
        _ => format!("> {}, {time}, {}", message.model, message.cost),
    }
}

fn pairs(said: &[Said]) -> impl Iterator<Item = transcript::Said<'_>> {
    said.iter().map(|said| (&said.message, said.text.as_str()))
}

pub(super) async fn search(global: &Global, client: &Client, words: String, limit: u32) -> anyhow::Result<()> {
    let (mut hits, mut cursor) = (vec![], String::new());
    loop {
        let left = limit - u32::try_from(hits.len()).unwrap_or(limit).min(limit);
        if left == 0 {
            break;
        }
        let (page, next) = client.session_search(words.clone(), cursor, left, global.wait()).await?;
        hits.extend(page);
        cursor = next;
        if cursor.is_empty() {
            break;
        }
    }
    if global.json {
        let json = |hit: &SessionHit| {
            let mut value = transcript::row_json(&hit.row);
            value["message"] = hit.message.into();
            value["snippet"] = marked(&hit.snippet, "", "").into();
            value
        };
        return print_json(&hits.iter().map(json).collect::<Vec<_>>());
    }
    if hits.is_empty() {
        println!("nothing was found");
    }
    let (on, off) = if std::io::stdout().is_terminal() { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
    for hit in &hits {
        let place = if hit.message == 0 { "title".to_owned() } else { format!("message {}", hit.message) };
        let text = marked(&hit.snippet, on, off);
        println!("{}  {place}: {text}", hit.row.session);
    }
    Ok(())
}

/// A snippet in one line, with what was found between two texts.
fn marked(snippet: &str, on: &str, off: &str) -> String {
    let line: String = snippet.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    let line: String = line.chars().filter(|c| matches!(c, '\u{2}' | '\u{3}') || !c.is_control()).collect();
    line.replace('\u{2}', on).replace('\u{3}', off)
}

pub(super) async fn export(
    global: &Global,
    client: &Client,
    given: &str,
    format: Format,
    output: Option<PathBuf>,
) -> anyhow::Result<()> {
    let session = super::find(global, client, given, false).await?;
    let (session, said) = super::read(global, client, &session, 0).await?;
    let text = match format {
        Format::Markdown => transcript::markdown(&session, pairs(&said)),
        Format::Json => format!("{:#}\n", transcript::json(&session, pairs(&said))),
    };
    let Some(path) = output else {
        print!("{text}");
        return Ok(());
    };
    let mut options = std::fs::File::options();
    options.write(true).create_new(true);
    // What was said is nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path);
    file = file.and_then(|mut file| file.write_all(text.as_bytes()).map(|()| file));
    file.with_context(|| format!("cannot write {}", path.display()))?;
    super::told(global, &session, &format!("{} are in {}", counted(said.len() as u64), path.display()))
}
