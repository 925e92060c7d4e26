//! An answer as the command line shows it: pieces as they come, then its figures.

use super::Global;
use super::exit::{Incomplete, trace_id};
use super::sessions::print::plain;
use anyhow::{Context, bail};
use belay_client::{Answer, ClientError, Escalation};
use belay_protocol::dialect::answer::body_text;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Content, End, Outcome, ResponseHead, UnitKind};
use belay_protocol::money::NanoUsd;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Instant;

/// How many messages of its session went with a request, and how many did not.
const SESSION_MESSAGES: &str = "belay-session-messages";
const SESSION_LEFT_OUT: &str = "belay-session-left-out";

/// An answer with its figures.
#[derive(Debug)]
pub(super) struct Asked {
    request_id: RequestId,
    text: String,
    head: Option<ResponseHead>,
    end: End,
    first_token_ms: Option<u64>,
    total_ms: u64,
}

/// Reads an answer to its end and prints it as it comes, unless JSON is wanted.
pub(super) async fn show(global: &Global, mut escalation: Escalation, begun: Instant) -> anyhow::Result<Asked> {
    let request_id = escalation.id();
    let result = read(global, &mut escalation, begun).await;
    result.map_err(|error| match error.downcast_ref::<ClientError>() {
        Some(ClientError::Lost(_) | ClientError::Superseded) => {
            error.context(format!("the end of the answer was not seen; go on with: belay ask --resume {request_id}"))
        }
        _ => error,
    })
}

async fn read(global: &Global, escalation: &mut Escalation, begun: Instant) -> anyhow::Result<Asked> {
    let request_id = escalation.id();
    let mut printer = Printer { live: !global.json, stdout: std::io::stdout(), ends_line: true };
    let (mut text, mut head, mut first_token_ms, mut refusal) = (String::new(), None, None, Vec::new());
    let mut cancelled = false;
    // One listener for the whole answer: a signal that comes while nobody listens is lost.
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    loop {
        let answer = tokio::select! {
            // First, so that it listens from the beginning.
            biased;
            _ = &mut interrupt => {
                if cancelled {
                    bail!("interrupted twice: left without waiting for the end of the request");
                }
                cancelled = true;
                interrupt.set(tokio::signal::ctrl_c());
                escalation.cancel("interrupted by the user").await?;
                continue;
            }
            answer = escalation.next() => answer?,
        };
        let Some(answer) = answer else { bail!("the relay ended the answer without saying how") };
        let mut piece = escalation.text(&answer);
        match answer {
            Answer::Head(new) => head = Some(new),
            Answer::Chunk(chunk) => refusal.extend_from_slice(&chunk),
            Answer::Event(_) => {}
            Answer::Interrupted { why } => note(global, &format!("connection lost ({why}); waiting for another")),
            Answer::Resumed { after, content, missed } => {
                let rest = match (content, missed) {
                    (Content::GONE, _) => ", but the rest of the text is no longer kept",
                    (_, 0) => "",
                    _ => ", but another reader has taken a part of the text",
                };
                note(global, &format!("back after {:.1} s{rest}", after.as_secs_f64()));
            }
            Answer::Failed(failed) => {
                let provider = plain(&String::from_utf8_lossy(&refusal));
                let error = anyhow::Error::new(ClientError::from(failed));
                return Err(if provider.is_empty() {
                    error
                } else {
                    error.context(format!("the provider said: {provider}"))
                });
            }
            Answer::End(end) => {
                if let Some(head) =
                    head.as_ref().filter(|head: &&ResponseHead| !head.stream && head.content != Content::GONE)
                {
                    piece = body_text(head.dialect, &refusal);
                }
                printer.print(&piece)?;
                text += &piece;
                printer.end_line()?;
                let total_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(Asked { request_id, text, head, end, first_token_ms, total_ms });
            }
        }
        if !piece.is_empty() && first_token_ms.is_none() {
            first_token_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        }
        printer.print(&piece)?;
        text += &piece;
    }
}

/// Tells the user what happens, where a person reads it.
#[expect(clippy::print_stderr, reason = "stdout carries the answer alone")]
fn note(global: &Global, text: &str) {
    if !global.json && std::io::stderr().is_terminal() {
        eprintln!("\n[{text}]");
    }
}

/// Prints pieces of an answer as they come.
struct Printer {
    live: bool,
    stdout: std::io::Stdout,
    ends_line: bool,
}

impl Printer {
    fn print(&mut self, piece: &str) -> anyhow::Result<()> {
        if self.live && !piece.is_empty() {
            self.ends_line = piece.ends_with('\n');
            // A model may say anything; a terminal would obey some of it.
            let piece = if self.stdout.is_terminal() { Cow::Owned(plain(piece)) } else { Cow::Borrowed(piece) };
            self.stdout
                .write_all(piece.as_bytes())
                .and_then(|()| self.stdout.flush())
                .context("cannot write the answer")?;
        }
        Ok(())
    }

    fn end_line(&mut self) -> anyhow::Result<()> {
        if !self.ends_line {
            self.print("\n")?;
        }
        Ok(())
    }
}

impl Asked {
    /// One line: model, tokens, cost, balance, first token.
    pub(super) fn summary(&self) -> String {
        let end = &self.end;
        let about = if end.estimated { "about " } else { "" };
        let gone = self.head.as_ref().is_some_and(|head| head.content == Content::GONE);
        let when = match self.first_token_ms {
            _ if gone => "settled before; its text is no longer kept".into(),
            Some(ms) => format!("first token after {ms} ms"),
            None if end.units(UnitKind::OUTPUT) > 0 => format!("whole answer after {} ms", self.total_ms),
            None => "no token".into(),
        };
        let input = end.units(UnitKind::INPUT)
            + end.units(UnitKind::CACHE_READ)
            + end.units(UnitKind::CACHE_WRITE_5M)
            + end.units(UnitKind::CACHE_WRITE_1H);
        let left_out = match self.header(SESSION_LEFT_OUT) {
            None | Some(0) => String::new(),
            Some(1) => ", an older message of the session left out".to_owned(),
            Some(count) => format!(", {count} older messages of the session left out"),
        };
        format!(
            "{} at {}: {input} tokens in, {} out, cost {about}{}, balance {}, {when}{left_out}",
            end.model,
            end.provider,
            end.units(UnitKind::OUTPUT),
            end.cost,
            end.balance
        )
    }

    /// What the relay says of it in a header, as a number.
    fn header(&self, name: &str) -> Option<u64> {
        let headers = &self.head.as_ref()?.headers;
        headers.iter().find(|(header, _)| header == name)?.1.parse().ok()
    }

    /// What it cost.
    pub(super) fn cost(&self) -> NanoUsd {
        self.end.cost
    }

    /// The documented object.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let end = &self.end;
        let usage: serde_json::Map<String, serde_json::Value> =
            end.usage.iter().map(|line| (line.kind.name().to_owned(), line.units.into())).collect();
        let mut value = serde_json::json!({
            "request_id": self.request_id.to_string(),
            "trace_id": trace_id(),
            "text": self.text,
            "model": end.model,
            "provider": end.provider,
            "usage": usage,
            "cost_nano_usd": end.cost.0,
            "balance_nano_usd": end.balance.0,
            "estimated": end.estimated,
            "outcome": end.outcome.name(),
            "content": self.head.as_ref().map_or("live", |head| head.content.name()),
            "first_token_ms": self.first_token_ms,
            "total_ms": self.total_ms,
        });
        for (name, header) in [("session_messages", SESSION_MESSAGES), ("session_left_out", SESSION_LEFT_OUT)] {
            if let Some(count) = self.header(header) {
                value[name] = count.into();
            }
        }
        value
    }

    /// An answer that is not complete is a failure of the command.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.end.outcome == Outcome::COMPLETE {
            return Ok(());
        }
        Err(Incomplete { outcome: self.end.outcome.name(), message: self.end.message.clone() }.into())
    }
}
