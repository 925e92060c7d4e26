//! `belay ask`.

use super::answer::{Asked, show};
use super::exit::{Usage, asked};
use super::{Global, print_json};
use anyhow::{Context, bail};
use belay_client::Client;
use belay_client::escalation::EscalationRequest;
use belay_protocol::dialect::prompt::{Knowledge, Preferences, Prompt, Role, Turn};
use belay_protocol::id::{RequestId, SessionId};
use belay_protocol::message::Dialect;
use belay_protocol::money::NanoUsd;
use belay_protocol::trace::TraceContext;
use belay_transport::env::Env;
use clap::Args;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Instant;

/// What `--resume` without an id means.
const LAST: &str = "last";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  belay ask \"Why is the sky blue?\"
  git diff | belay ask --query \"Review this change\" --constraint \"only real defects\"
  belay ask --model claude --max-tokens 200 --cost-cap 0.01 --json \"Summarise RFC 9000\"
  belay ask --session rome \"And in the evening?\"
  belay ask --dialect anthropic --body request.json
  belay ask --resume                  (go on with the last answer whose end was not seen)")]
pub(super) struct AskArgs {
    /// The question; without it, stdin is read
    question: Option<String>,
    /// The question, when stdin is something that it is about
    #[arg(long, conflicts_with = "question", value_name = "TEXT")]
    query: Option<String>,
    /// Go on with this session: what was said in it goes with the question, and question and answer are kept
    /// there; it is made if it is not there
    #[arg(long, value_name = "NAME", conflicts_with_all = ["body", "history"])]
    session: Option<SessionId>,
    /// Take at most so many tokens of the session's history along (default: as the relay does)
    #[arg(long, value_name = "TOKENS", requires = "session")]
    history_tokens: Option<u32>,
    #[command(flatten)]
    pub(super) request: RequestArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Send a provider's own request body from this file ("-": stdin) instead of a question
    #[arg(long, value_name = "FILE", requires = "dialect", conflicts_with_all = ["question", "query"])]
    body: Option<PathBuf>,
    /// Go on with an answer whose end was not seen: the request with this id, or the last one
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = LAST,
          conflicts_with_all = ["question", "query", "body", "request_id"])]
    resume: Option<String>,
    /// The format of --body
    #[arg(long, value_parser = ["openai", "responses", "anthropic"])]
    dialect: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct RequestArgs {
    /// A model or alias of the relay (default: the session's own, or auto)
    #[arg(long, short)]
    pub(super) model: Option<String>,
    /// The most output tokens
    #[arg(long, value_name = "TOKENS")]
    pub(super) max_tokens: Option<u32>,
    /// Accept a shorter answer if the money does not reach for --max-tokens
    #[arg(long)]
    pub(super) may_reduce: bool,
    /// Never spend more than this on the answer, in dollars
    #[arg(long, value_name = "DOLLARS")]
    pub(super) cost_cap: Option<NanoUsd>,
    /// End the request after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) deadline: Option<u32>,
    /// Do not stream: wait for the whole answer
    #[arg(long)]
    pub(super) no_stream: bool,
    /// Repeat a request: the same id with the same content is charged once
    #[arg(long, value_name = "ID")]
    pub(super) request_id: Option<RequestId>,
}

impl RequestArgs {
    /// The request that these make of a body.
    pub(super) fn to_request(&self, id: RequestId, dialect: Dialect, body: Vec<u8>) -> EscalationRequest {
        let mut request = EscalationRequest::new(id, dialect, self.model.as_deref().unwrap_or_default(), body);
        request.stream = !self.no_stream;
        request.max_output_tokens = self.max_tokens;
        request.may_reduce_output = self.may_reduce;
        request.cost_cap = self.cost_cap;
        request.deadline_ms = self.deadline.map(|seconds| seconds.saturating_mul(1000));
        request.trace = callers_trace();
        request
    }
}

/// The trace of whoever started this command, where that says so in the environment.
pub(super) fn callers_trace() -> Option<TraceContext> {
    std::env::var("TRACEPARENT").ok()?.parse().ok()
}

#[derive(Debug, Args)]
struct PromptArgs {
    /// How you want to be met
    #[arg(long, value_name = "TEXT")]
    framing: Option<String>,
    /// A file that the answer should know, optionally with its relevance: notes.md or notes.md=0.9
    #[arg(long, value_name = "FILE[=RELEVANCE]")]
    knowledge: Vec<String>,
    /// What the answer must respect
    #[arg(long, value_name = "TEXT")]
    constraint: Vec<String>,
    /// The conversation so far: a JSON list of {"role": "user"|"assistant", "content": "..."}
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// The answer's language
    #[arg(long)]
    language: Option<String>,
    /// How long the answer should be
    #[arg(long)]
    verbosity: Option<String>,
    /// How the answer should sound
    #[arg(long)]
    tone: Option<String>,
}

pub(super) async fn run(global: &Global, args: AskArgs) -> anyhow::Result<()> {
    let result = if let Some(resume) = &args.resume {
        let id = to_resume(global, resume)?;
        let client = global.client()?;
        let result = resumed(global, &client, id).await;
        client.close().await;
        result
    } else {
        let (dialect, body) = body(&args)?;
        let client = global.client()?;
        let result = ask(global, &client, &args.request, (args.session, args.history_tokens), (dialect, body)).await;
        client.close().await;
        result
    };
    let asked = result?;
    if global.json {
        print_json(&asked.to_json())?;
    } else {
        #[expect(clippy::print_stderr, reason = "stdout carries the answer alone")]
        {
            eprintln!("{}", asked.summary());
        }
    }
    asked.check()
}

/// The request that is meant.
fn to_resume(global: &Global, given: &str) -> anyhow::Result<RequestId> {
    if given != LAST {
        return given.parse().map_err(|error| Usage(format!("--resume: {error}")).into());
    }
    let pending = global.state()?.pending().list(Env::system().clock.now_ms())?;
    let last = pending.first().ok_or_else(|| Usage("there is no answer whose end was not seen".into()))?;
    Ok(last.request_id)
}

fn body(args: &AskArgs) -> anyhow::Result<(Dialect, Vec<u8>)> {
    if let Some(path) = &args.body {
        let bytes = if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes
        } else {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
        };
        let dialect = match args.dialect.as_deref() {
            Some("anthropic") => Dialect::ANTHROPIC,
            Some("responses") => Dialect::OPENAI_RESPONSES,
            _ => Dialect::OPENAI_CHAT,
        };
        return Ok((dialect, bytes));
    }
    Ok((Dialect::PROMPT, serde_json::to_vec(&prompt(args)?)?))
}

fn prompt(args: &AskArgs) -> anyhow::Result<Prompt> {
    let given = &args.prompt;
    let mut knowledge = given.knowledge.iter().map(|spec| read_knowledge(spec)).collect::<anyhow::Result<Vec<_>>>()?;
    let query = match (&args.question, &args.query) {
        (Some(question), _) => question.clone(),
        (None, Some(query)) => {
            knowledge.extend(stdin_text()?.map(|text| Knowledge {
                source: "stdin".into(),
                relevance: Some(1.0),
                text,
            }));
            query.clone()
        }
        (None, None) => {
            stdin_text()?.ok_or_else(|| Usage("nothing is asked: give a question, or pipe it in".into()))?
        }
    };
    let history = match &given.history {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice::<Vec<Turn>>(&text)
                .with_context(|| format!("{} is no conversation", path.display()))?
        }
        None => vec![],
    };
    if history.last().is_some_and(|turn| turn.role == Role::User) {
        bail!("the conversation ends with a question; its answer, or nothing, must come before yours");
    }
    let preferences =
        Preferences { language: given.language.clone(), verbosity: given.verbosity.clone(), tone: given.tone.clone() };
    Ok(Prompt {
        query,
        framing: given.framing.clone(),
        knowledge,
        constraints: given.constraint.clone(),
        history,
        preferences,
    })
}

pub(super) fn read_knowledge(spec: &str) -> anyhow::Result<Knowledge> {
    let split = spec.rsplit_once('=').and_then(|(path, number)| Some((path, number.parse::<f64>().ok()?)));
    let (path, relevance) = split.map_or((spec, None), |(path, number)| (path, Some(number)));
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(Knowledge { source: path.to_owned(), relevance, text })
}

/// What was piped in, if anything.
fn stdin_text() -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// Sends a request and, unless JSON is wanted, prints the answer as it comes.
pub(super) async fn ask(
    global: &Global,
    client: &Client,
    args: &RequestArgs,
    (session, history_tokens): (Option<SessionId>, Option<u32>),
    (dialect, body): (Dialect, Vec<u8>),
) -> anyhow::Result<Asked> {
    let begun = Instant::now();
    let mut request = args.to_request(args.request_id.unwrap_or_else(|| client.request_id()), dialect, body);
    (request.session, request.history_tokens) = (session, history_tokens);
    asked(request.request_id, request.trace);
    let escalation = client.escalate(request, global.wait()).await?;
    show(global, escalation, begun).await
}

/// Goes on with a request that was sent before.
async fn resumed(global: &Global, client: &Client, id: RequestId) -> anyhow::Result<Asked> {
    let begun = Instant::now();
    asked(id, None);
    let escalation = client.resume(id, global.wait()).await?;
    show(global, escalation, begun).await
}
