//! Exit codes, and how an error is shown.

use belay_client::ClientError;
use belay_protocol::id::RequestId;
use belay_protocol::message::FailureCode;
use belay_protocol::trace::TraceContext;
use std::process::{ExitCode, ExitStatus};
use std::sync::{Mutex, PoisonError};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const BAD_CONFIG: u8 = 64;
const UNREACHABLE: u8 = 69;
const REFUSED: u8 = 77;
const PAYMENT_REQUIRED: u8 = 78;

/// A request that was settled, but not with a complete answer; it has been shown already.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not complete ({outcome}){}", if .message.is_empty() { String::new() } else { format!(": {}", .message) })]
pub(super) struct Incomplete {
    /// The outcome's name.
    pub(super) outcome: &'static str,
    /// The relay's words.
    pub(super) message: String,
}

/// A look for trouble that found some; it has been shown already.
#[derive(Debug, thiserror::Error)]
#[error("{bad} of {all} findings are bad")]
pub(super) struct Sick {
    /// So many.
    pub(super) bad: usize,
    /// Of so many.
    pub(super) all: usize,
}

/// What was given on the command line, or piped in, makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// A command that belay ran for its user, and that did not succeed: belay ends as it did.
#[derive(Debug, thiserror::Error)]
#[error("{program} failed ({status})")]
pub(super) struct CommandFailed {
    /// What was run.
    pub(super) program: String,
    /// How it ended.
    pub(super) status: ExitStatus,
}

impl CommandFailed {
    /// The command's own code; 128 and the signal's number where a signal ended it, as in a shell.
    fn code(&self) -> u8 {
        #[cfg(unix)]
        let code = {
            use std::os::unix::process::ExitStatusExt;
            self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal))
        };
        #[cfg(not(unix))]
        let code = self.status.code();
        // Windows knows more codes than a byte has, and success never comes here.
        code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(FAILED)
    }
}

/// The documented code of an error.
fn code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        return USAGE;
    }
    if let Some(failed) = error.downcast_ref::<CommandFailed>() {
        return failed.code();
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NotJoined(_) | ClientError::State { .. } | ClientError::Cert(_)) => BAD_CONFIG,
        Some(ClientError::AlreadyJoined { .. } | ClientError::Closed(_) | ClientError::Superseded) => REFUSED,
        Some(ClientError::Unreachable { .. } | ClientError::Lost(_)) => UNREACHABLE,
        Some(ClientError::Failed(failed)) => match failed.code {
            FailureCode::PAYMENT_REQUIRED => PAYMENT_REQUIRED,
            FailureCode::PROVIDER_UNAVAILABLE
            | FailureCode::TIMED_OUT
            | FailureCode::STORE_UNAVAILABLE
            | FailureCode::INTERNAL
            | FailureCode::CANCELLED => FAILED,
            _ => REFUSED,
        },
        _ => FAILED,
    }
}

/// Shows an error on stderr (and as JSON on stdout, if asked for) and gives its code.
#[expect(clippy::print_stderr, reason = "a command line prints")]
pub(super) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let code = code(error);
    let mut text = format!("{error:#}");
    if let Some((request, trace)) = names(error) {
        text += &format!(" (request {request}");
        text += &if trace == request { ")".to_owned() } else { format!(", trace {trace})") };
    }
    if json && !error.is::<Incomplete>() && !error.is::<Sick>() {
        println!("{}", object(error));
    }
    eprintln!("belay: {text}");
    ExitCode::from(code)
}

/// An error as JSON.
pub(super) fn object(error: &anyhow::Error) -> serde_json::Value {
    let mut object = serde_json::json!({ "error": format!("{error:#}"), "exit_code": code(error) });
    if let Some(ClientError::Failed(failed)) = error.downcast_ref::<ClientError>() {
        object["code"] = failed.code.name().into();
        object["retry_after_ms"] = failed.retry_after_ms.into();
        object["missing_nano_usd"] = failed.missing.map(|missing| missing.0).into();
    }
    if let Some((request, trace)) = names(error) {
        object["request_id"] = request.into();
        object["trace_id"] = trace.into();
    }
    object
}

/// The request that this command has made, and the trace that it is in.
static ASKED: Mutex<Option<(RequestId, RequestId)>> = Mutex::new(None);

/// Whatever goes wrong from now on is of this request, which is in that trace.
pub(super) fn asked(id: RequestId, trace: Option<TraceContext>) {
    let named = (id, TraceContext::name(trace, id));
    *ASKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(named);
}

/// What the relay's log and those who collect spans find a request by.
fn names(error: &anyhow::Error) -> Option<(String, String)> {
    let of_request = error.is::<Incomplete>()
        || matches!(
            error.downcast_ref(),
            Some(ClientError::Failed(_) | ClientError::Lost(_) | ClientError::Superseded | ClientError::Protocol(_))
        );
    let asked = *ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let (id, trace) = asked.filter(|_| of_request).or_else(|| match error.downcast_ref() {
        Some(ClientError::Failed(failed)) => failed.request_id.map(|id| (id, id)),
        _ => None,
    })?;
    Some((id.to_string(), trace.to_string()))
}

/// The trace of the request, for what is said of it.
pub(super) fn trace_id() -> Option<String> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner).map(|(_, trace)| trace.to_string())
}
