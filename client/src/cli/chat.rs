//! `belay chat`: a conversation in the terminal, kept in a session of the relay.

use super::answer::{Asked, show};
use super::ask::RequestArgs;
use super::exit::{self, Incomplete, Usage};
use super::{Global, sessions};
use anyhow::{Context, bail};
use belay_client::{Client, ClientError};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::id::SessionId;
use belay_protocol::message::{Dialect, FailureCode, SessionDeed, SessionRole, SessionUpdate};
use belay_protocol::money::NanoUsd;
use belay_protocol::transcript;
use clap::Args;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const HISTORY: &str = "chat_history";
/// Lines that are remembered.
const LINES: usize = 1000;
/// Messages of a session that are shown when it is opened again.
const SHOWN: u32 = 4;
const PROMPT: &str = "> ";
const HELP: &str = "\
/model [NAME]     show or change the model of this session (\"auto\": the relay's choice)
/session [NAME]   show this session, or go to another one
/cost             what this conversation has cost
/clear            forget what was said in this session
/help             this
/exit             leave (also Ctrl-D); Ctrl-C stops an answer
A line that ends with \\ goes on in the next.";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  belay chat
  belay chat --session rome --model claude
  belay sessions list                 (conversations that can be gone on with)")]
pub(super) struct ChatArgs {
    /// The session; it is made if it is not there (default: a new one)
    #[arg(long, value_name = "NAME")]
    session: Option<SessionId>,
    /// Take at most so many tokens of what was said along (default: as the relay does)
    #[arg(long, value_name = "TOKENS")]
    history_tokens: Option<u32>,
    #[command(flatten)]
    request: RequestArgs,
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Said(&'a str),
    Command(&'a str, &'a str),
}

fn understand(line: &str) -> Line<'_> {
    let line = line.trim();
    match line.strip_prefix('/') {
        _ if line.is_empty() => Line::Nothing,
        // A text that begins with a slash.
        Some(rest) if rest.starts_with('/') => Line::Said(rest),
        Some(command) => match command.split_once(char::is_whitespace) {
            Some((name, rest)) => Line::Command(name, rest.trim()),
            None => Line::Command(command, ""),
        },
        None => Line::Said(line),
    }
}

struct Chat<'a> {
    global: &'a Global,
    client: &'a Client,
    request: RequestArgs,
    history_tokens: Option<u32>,
    session: SessionId,
    /// Of this conversation, since it was opened here.
    cost: NanoUsd,
    answers: u32,
}

pub(super) async fn run(global: &Global, args: ChatArgs) -> anyhow::Result<()> {
    let client = global.client()?;
    let session = match args.session {
        Some(session) => session,
        None => new_name(&client)?,
    };
    if args.request.request_id.is_some() {
        return Err(Usage("a conversation has many requests: --request-id is for belay ask".into()).into());
    }
    let mut chat = Chat {
        global,
        client: &client,
        request: args.request,
        history_tokens: args.history_tokens,
        session,
        cost: NanoUsd::ZERO,
        answers: 0,
    };
    let result = chat.talk().await;
    client.close().await;
    result
}

fn new_name(client: &Client) -> anyhow::Result<SessionId> {
    let id = client.request_id().to_string();
    Ok(format!("chat-{}", &id[..8]).parse()?)
}

impl Chat<'_> {
    async fn talk(&mut self) -> anyhow::Result<()> {
        let is_person = std::io::stdin().is_terminal() && !self.global.json;
        // From here on Ctrl-C ends an answer, or a line, and not the program. Where no terminal reads a line,
        // nobody would hear it meanwhile.
        let reads = Arc::new(AtomicBool::new(false));
        tokio::spawn(leave_at_ctrl_c(Arc::clone(&reads)));
        or_interrupted(self.open(is_person)).await?;
        let config = Config::builder().max_history_size(LINES)?.auto_add_history(true).build();
        let mut editor: Editor<(), FileHistory> = Editor::with_config(config)?;
        let history: PathBuf = self.global.state()?.path().join(HISTORY);
        // There is none the first time.
        let _ = editor.load_history(&history);
        let mut failure = None;
        loop {
            reads.store(!is_person, Ordering::Release);
            let line = self.line(&mut editor, is_person)?;
            reads.store(false, Ordering::Release);
            let Some(line) = line else { break };
            let done = match understand(&line) {
                Line::Nothing => Ok(()),
                Line::Command("exit" | "quit", _) => break,
                Line::Command(name, rest) => or_interrupted(self.command(name, rest, is_person)).await,
                Line::Said(text) => self.say(text).await,
            };
            if let Err(error) = done {
                self.failed(&error);
                failure.get_or_insert(error);
            }
            if is_person {
                // A conversation that is killed keeps its lines, too.
                let _ = editor.save_history(&history);
            }
        }
        if is_person && self.answers > 0 {
            let answers = counted(self.answers);
            println!("{answers}, {}; go on with: belay chat --session {:?}", self.cost, self.session);
        }
        match failure {
            // A script wants to know; a person has read it.
            Some(error) if !is_person => Err(error.context("the first failure of this conversation")),
            _ => Ok(()),
        }
    }

    /// A line, or several of which each but the last ends with a backslash. `None`: there are no more.
    fn line(&self, editor: &mut Editor<(), FileHistory>, is_person: bool) -> anyhow::Result<Option<String>> {
        let mut text = String::new();
        loop {
            let prompt = match (is_person, text.is_empty()) {
                (false, _) => "",
                (true, true) => PROMPT,
                (true, false) => "  ",
            };
            match editor.readline(prompt) {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(line) => {
                        text += line;
                        text.push('\n');
                    }
                    None => return Ok(Some(text + &line)),
                },
                Err(ReadlineError::Interrupted) => {
                    println!("Ctrl-D or /exit leaves");
                    text.clear();
                }
                Err(ReadlineError::Eof) => return Ok((!text.is_empty()).then_some(text)),
                Err(error) => return Err(error).context("cannot read a line"),
            }
        }
    }

    /// Shows where the conversation stands.
    async fn open(&self, is_person: bool) -> anyhow::Result<()> {
        let found = sessions::read(self.global, self.client, &self.session, SHOWN).await;
        let (session, said) = match found {
            Ok(found) => found,
            Err(ClientError::Failed(failed)) if failed.code == FailureCode::NOT_FOUND => {
                if is_person {
                    println!("a new session, {}; /help shows what else can be said", self.session);
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if is_person {
            let row = &session.row;
            let count = sessions::counted(row.messages);
            println!("{}  ({}, {count}, {})", transcript::heading(&session), row.session, row.cost);
            for said in said {
                let mark = if said.message.role == SessionRole::USER { PROMPT } else { "" };
                println!("\n{mark}{}", sessions::plain(said.text.trim_end()));
            }
            println!();
        }
        Ok(())
    }

    async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let body = serde_json::to_vec(&Prompt::new(text))?;
        let mut request = self.request.to_request(self.client.request_id(), Dialect::PROMPT, body);
        (request.session, request.history_tokens) = (Some(self.session.clone()), self.history_tokens);
        exit::asked(request.request_id, request.trace);
        let escalation = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => bail!("interrupted before it was asked"),
            begun = self.client.escalate(request, self.global.wait()) => begun?,
        };
        let asked = show(self.global, escalation, begun).await?;
        self.cost = self.cost.checked_add(asked.cost()).unwrap_or(self.cost);
        self.answers += 1;
        self.told(&asked);
        asked.check()
    }

    #[expect(clippy::print_stderr, reason = "stdout carries the answers alone")]
    fn told(&self, asked: &Asked) {
        if self.global.json {
            println!("{}", asked.to_json());
        } else {
            eprintln!("[{}]\n", asked.summary());
        }
    }

    /// A failure ends a turn and not the conversation.
    #[expect(clippy::print_stderr, reason = "stdout carries the answers alone")]
    fn failed(&self, error: &anyhow::Error) {
        if self.global.json && !error.is::<Incomplete>() {
            println!("{}", exit::object(error));
        } else if !self.global.json {
            eprintln!("[{error:#}]\n");
        }
    }

    async fn command(&mut self, name: &str, rest: &str, is_person: bool) -> anyhow::Result<()> {
        let within = self.global.wait();
        match (name, rest) {
            ("help", _) => self.note(HELP),
            ("cost", _) => self.costs().await?,
            ("clear", _) => {
                self.client.session_act(&self.session, SessionDeed::CLEAR, within).await?;
                self.note(&format!("{} is empty now", self.session));
            }
            ("session", "") => self.note(self.session.as_str()),
            ("session", other) => {
                self.session = other.parse()?;
                self.open(is_person).await?;
            }
            ("model", "") => {
                let own = match self.client.session(&self.session, within).await {
                    Ok(session) => session.row.model,
                    Err(ClientError::Failed(failed)) if failed.code == FailureCode::NOT_FOUND => String::new(),
                    Err(error) => return Err(error.into()),
                };
                let model = self.request.model.clone().unwrap_or(own);
                self.note(if model.is_empty() { "auto" } else { &model });
            }
            ("model", model) => {
                // What the command line said is over.
                self.request.model = None;
                let update = SessionUpdate {
                    model: Some(if model == "auto" { String::new() } else { model.to_owned() }),
                    ..SessionUpdate::nothing(self.session.clone())
                };
                self.client.session_update(&update, within).await?;
                self.note(&format!("{model} answers from now on"));
            }
            (other, _) => self.note(&format!("there is no /{other}; /help shows what there is")),
        }
        Ok(())
    }

    async fn costs(&self) -> anyhow::Result<()> {
        let balance = self.client.balance(self.global.wait()).await?;
        let session = match self.client.session(&self.session, self.global.wait()).await {
            Ok(session) => session.row.cost,
            Err(ClientError::Failed(failed)) if failed.code == FailureCode::NOT_FOUND => NanoUsd::ZERO,
            Err(error) => return Err(error.into()),
        };
        if self.global.json {
            let costs = serde_json::json!({
                "answers": self.answers, "cost_nano_usd": self.cost.0,
                "session_cost_nano_usd": session.0, "balance_nano_usd": balance.balance.0,
            });
            println!("{costs}");
            return Ok(());
        }
        let (answers, cost) = (counted(self.answers), self.cost);
        self.note(&format!("{answers} now, {cost}; this session in all {session}; balance {}", balance.balance));
        Ok(())
    }

    /// Says something that no model has said.
    fn note(&self, text: &str) {
        if self.global.json {
            println!("{}", serde_json::json!({ "note": text }));
        } else {
            println!("{text}\n");
        }
    }
}

fn counted(answers: u32) -> String {
    if answers == 1 { "1 answer".to_owned() } else { format!("{answers} answers") }
}

/// What is waited for, or that somebody did not want to.
async fn or_interrupted(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        done = work => done,
    }
}

/// Ends the program at Ctrl-C while it `reads` where no terminal would tell of it.
#[expect(clippy::exit, reason = "a thread that waits for input cannot be woken")]
async fn leave_at_ctrl_c(reads: Arc<AtomicBool>) {
    while tokio::signal::ctrl_c().await.is_ok() {
        if reads.load(Ordering::Acquire) {
            std::process::exit(130);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_commands() {
        assert_eq!(understand("  "), Line::Nothing);
        assert_eq!(understand("why? "), Line::Said("why?"));
        assert_eq!(understand("/model  claude 4 "), Line::Command("model", "claude 4"));
        assert_eq!(understand("/cost"), Line::Command("cost", ""));
        assert_eq!(understand("//etc/hosts is a file"), Line::Said("/etc/hosts is a file"));
    }
}
