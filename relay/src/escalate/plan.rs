//! What would be sent to which provider, and what it could cost. Pure: no I/O.

use super::candidates::{Candidate, Refused, candidates, has_output};
use super::route::{Chooser, Chosen, Needs, choose};
use super::session::{Conversation, Told};
use super::{Caller, Escalator, failed};
use crate::config::{Config, Model};
use crate::store::ledger::hold::HoldRequest;
use crate::store::ledger::rates::Rates;
use crate::store::sessions::turn::Question;
use belay_certs::sha256;
use belay_protocol::dialect::body::{BodyFacts, inspect};
use belay_protocol::dialect::edit::{self, Edits};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::dialect::translate::{self, Answers, Sending};
use belay_protocol::dialect::usage::UsageMeter;
use belay_protocol::message::{Dialect, EscalateRequest, Failed, FailureCode, Operation};
use bytes::Bytes;
use std::sync::Arc;

/// Tokens that a provider may add to the text's own: roles, separators, a tool preamble.
const INPUT_OVERHEAD: u64 = 1024;

/// The longest name of a model, in bytes.
const MAX_MODEL: usize = 256;

/// A request that may run if the money is there.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Who may serve it, the first choice first; at least one.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) stream: bool,
    pub(crate) operation: Operation,
    /// The caller's.
    dialect: Dialect,
    /// The caller wants to see the usage event of its own accord.
    pub(crate) wants_usage_event: bool,
    source: Source,
    asked_output: Option<u32>,
    /// Which of several models was chosen, and why not the others, for the caller.
    picked: Option<String>,
    /// What is asked in which session.
    question: Option<Question>,
    /// What went with it from there.
    told: Option<Told>,
}

#[derive(Debug)]
enum Source {
    Prompt(Prompt),
    Body(BodyFacts),
}

/// The body that is meant: some programs send one of the Responses API where one of Chat Completions
/// belongs, and want to be answered so.
pub(crate) fn meant(request: &EscalateRequest, body: Bytes) -> Result<Bytes, Failed> {
    if request.model.len() > MAX_MODEL {
        let message = format!("no model has a name of {} bytes; at most {MAX_MODEL} are taken", request.model.len());
        return Err(failed(request.request_id, FailureCode::UNKNOWN_MODEL, message, "name one of: belay models"));
    }
    let is_chat = (request.operation, request.dialect) == (Operation::CHAT, Dialect::OPENAI_CHAT);
    if !is_chat || !translate::is_responses_body(&body) {
        return Ok(body);
    }
    translate::responses_as_chat(&request.model, &body).map_err(|error| {
        let message = format!("a body of the Responses API on the path of Chat Completions: {error}");
        failed(request.request_id, FailureCode::INVALID_REQUEST, message, "leave it out, or ask for /v1/responses")
    })
}

/// Decides what a request would be. Errors: `UNKNOWN_MODEL`, `NO_PRICE`, `UNSUPPORTED`, `INVALID_REQUEST`.
pub(crate) fn plan(
    config: &Config,
    price_version: i64,
    request: &EscalateRequest,
    (body, conversation): (&Bytes, Option<Conversation>),
    chooser: &Chooser<'_>,
) -> Result<Plan, Failed> {
    let id = request.request_id;
    let fail = |code, message: String, remedy: &str| failed(id, code, message, remedy);
    if request.max_output_tokens == Some(0) {
        let message = "max_output_tokens must be at least 1".to_owned();
        return Err(fail(FailureCode::INVALID_REQUEST, message, "ask for at least one token, or leave the cap out"));
    }
    let (mut source, stream, wants_usage_event, in_body) = if request.dialect == Dialect::PROMPT {
        let prompt = Prompt::from_json(body).map_err(|message| {
            fail(FailureCode::INVALID_REQUEST, message, "see PROTOCOL.md for the prompt's fields")
        })?;
        (Source::Prompt(prompt), request.stream, true, None)
    } else {
        let facts = inspect(request.dialect, body)
            .map_err(|error| fail(FailureCode::INVALID_REQUEST, error.to_string(), "correct the request body"))?;
        let stream = facts.stream && has_output(request.operation);
        let (usage, cap) = (facts.include_usage, facts.max_output_tokens);
        (Source::Body(facts), stream, usage, cap)
    };
    let asked_output = match (request.max_output_tokens, in_body) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let (images, tools) = match &source {
        Source::Prompt(_) => (false, false),
        Source::Body(facts) => (facts.non_text, facts.tools),
    };
    let history = conversation.as_ref().map_or(0, Conversation::bytes);
    let needs = Needs { bytes: body.len() as u64 + history, output: asked_output, images, tools };
    let (models, picked) = models(config, request, &needs, chooser)
        // A model in whose window not all of the history fits is better than none.
        .or_else(|refused| match conversation {
            Some(_) => models(config, request, &Needs { bytes: body.len() as u64, ..needs }, chooser),
            None => Err(refused),
        })
        .map_err(|(code, message, remedy)| fail(code, message, remedy))?;
    let candidates = candidates(config, price_version, request, body, models, chooser.now_ms)
        .map_err(|(code, message, remedy)| fail(code, message, remedy))?;
    // No model gives more than its ceiling, so nothing is held for more.
    let ceiling = candidates.iter().map(|candidate| candidate.model.max_output_tokens).min();
    let asked_output = asked_output.map(|cap| ceiling.map_or(cap, |ceiling| cap.min(ceiling)));
    let (question, told) = match (conversation, &mut source) {
        (Some(conversation), Source::Prompt(prompt)) => {
            let window = candidates.iter().map(|candidate| candidate.model.context_tokens).min().unwrap_or(0);
            let output = asked_output.or(ceiling).unwrap_or(0).min(config.billing.default_max_output);
            let (question, told) = conversation.surround(prompt, window.into(), INPUT_OVERHEAD + u64::from(output));
            (Some(question), Some(told))
        }
        _ => (None, None),
    };
    let operation = request.operation;
    // Such an answer has nothing that a cap could bound.
    let asked_output = if has_output(operation) { asked_output } else { Some(0) };
    Ok(Plan {
        candidates,
        stream,
        operation,
        dialect: request.dialect,
        wants_usage_event,
        source,
        asked_output,
        picked,
        question,
        told,
    })
}

/// The models that may serve the request, in the order in which they are asked, and words about it where
/// there was a choice.
fn models(
    config: &Config,
    request: &EscalateRequest,
    needs: &Needs,
    chooser: &Chooser<'_>,
) -> Result<(Vec<Arc<Model>>, Option<String>), Refused> {
    let models = config
        .resolve(&request.model)
        .map_err(|message| (FailureCode::UNKNOWN_MODEL, message, "name one of the relay's models or aliases"))?;
    let Some(route) = config.route(&request.model).filter(|route| models.len() > 1 || route.has_bounds()) else {
        return Ok((models, None));
    };
    let Chosen { models, unfit } = choose(route, models, needs, chooser);
    let others = unfit.join("; ");
    let Some(first) = models.first() else {
        let shown: String = request.model.chars().take(80).collect();
        let message = format!("no model of {shown:?} fits this request: {others}");
        return Err((FailureCode::INVALID_REQUEST, message, "ask for less, or for another model"));
    };
    let mut words = format!("{}/{}", first.provider, first.name);
    if !others.is_empty() {
        words = format!("{words} ({others})");
    }
    Ok((models, Some(words)))
}

impl Plan {
    /// What must be asked of the book. `body` is the caller's.
    pub(crate) fn hold_request(
        &self,
        (escalator, config): (&Escalator, &Config),
        caller: &Caller,
        request: &EscalateRequest,
        body: &Bytes,
        rates: &Arc<Rates>,
    ) -> HoldRequest {
        let context = self.candidates.iter().map(|candidate| candidate.model.context_tokens).max();
        let context = u64::from(context.unwrap_or(u32::MAX));
        let (input_bytes, bound, choices, extra_output) = match &self.source {
            // Counting is free.
            Source::Body(_) if self.operation == Operation::COUNT_TOKENS => (0, 0, 1, 0),
            Source::Prompt(_) => {
                let rendered = |candidate| self.outgoing(candidate, body, u32::MAX).len() as u64;
                let longest = self.candidates.iter().map(rendered).max().unwrap_or(0);
                (longest, longest + INPUT_OVERHEAD, 1, 0)
            }
            Source::Body(facts) => {
                let text = facts.len as u64;
                // What bytes do not bound, only the model's window does.
                let bound = if facts.non_text { context } else { text + INPUT_OVERHEAD };
                (text, bound, facts.choices, facts.extra_output_tokens)
            }
        };
        HoldRequest {
            request_id: request.request_id,
            device: caller.device.clone(),
            key: caller.key.clone(),
            digest: digest(request, body),
            boot: escalator.boot.clone(),
            now_ms: escalator.env.clock.now_ms(),
            offers: self.candidates.iter().map(Candidate::offer).collect(),
            multipliers: config.billing.multipliers,
            allowance: config.billing.free_allowance,
            input_bound: bound.min(context),
            refers: match &self.source {
                Source::Prompt(_) => None,
                Source::Body(facts) => facts.refers,
            },
            input_bytes,
            asked_output: self.asked_output,
            default_output: self.default_output(config),
            may_reduce: request.may_reduce_output,
            choices,
            extra_output,
            question: self.question.clone(),
            cost_cap: request.cost_cap,
            rates: Arc::clone(rates),
            per_minute: config.limits.per_minute(),
            at_once: config.limits.requests_at_once,
        }
    }

    /// Watches an answer of a candidate go by.
    pub(super) fn meter(&self, candidate: &Candidate) -> UsageMeter {
        let mut meter = UsageMeter::new(candidate.dialect);
        match self.operation {
            Operation::EMBEDDINGS => meter.expects_no_output(),
            Operation::COUNT_TOKENS => meter.expects_no_usage(),
            _ => {}
        }
        meter
    }

    /// Carries an answer of a candidate over to its caller, if the two speak different dialects.
    pub(super) fn answers(&self, candidate: &Candidate, now_ms: u64) -> Option<Box<Answers>> {
        candidate.translated.as_ref()?;
        let (caller, model) = (self.dialect, candidate.model.name.as_str());
        Some(Box::new(Answers::new(candidate.dialect, caller, model, now_ms / 1000, self.wants_usage_event)))
    }

    /// Which of several models was chosen, and what went with the request from its session, as headers.
    pub(super) fn headers(&self) -> impl Iterator<Item = (String, String)> {
        let picked = self.picked.clone().map(|picked| ("belay-picked".to_owned(), picked));
        picked.into_iter().chain(self.told.into_iter().flat_map(Told::headers))
    }

    /// It goes on with a session, which is to have the answer.
    pub(super) fn is_in_session(&self) -> bool {
        self.question.is_some()
    }

    /// The dialect in which the caller is answered by a candidate.
    pub(super) fn shown(&self, candidate: &Candidate) -> Dialect {
        if candidate.translated.is_some() { self.dialect } else { candidate.dialect }
    }

    fn default_output(&self, config: &Config) -> u32 {
        let ceilings = self.candidates.iter().map(|candidate| candidate.model.max_output_tokens);
        ceilings.fold(config.billing.default_max_output, u32::min)
    }

    /// The output cap that there will be if there is money enough.
    pub(crate) fn expected_output(&self, config: &Config) -> u32 {
        self.asked_output.unwrap_or_else(|| self.default_output(config))
    }

    /// The body for a candidate's provider, with the output cap that was paid for.
    pub(crate) fn outgoing(&self, candidate: &Candidate, body: &Bytes, output_cap: u32) -> Bytes {
        let (model, cap_field) = (candidate.model.name.as_str(), candidate.model.cap_field.as_str());
        match &self.source {
            Source::Prompt(prompt) => {
                Bytes::from(prompt.render(candidate.dialect, model, output_cap, cap_field, self.stream))
            }
            Source::Body(_) if let Some(asked) = &candidate.translated => {
                translate::write(asked, candidate.dialect, &Sending { model, cap: Some(output_cap), cap_field })
            }
            Source::Body(facts) => {
                let cap_field = match candidate.dialect {
                    Dialect::OPENAI_RESPONSES => "max_output_tokens",
                    Dialect::ANTHROPIC => "max_tokens",
                    _ => cap_field,
                };
                let max_output_tokens = has_output(self.operation).then_some(output_cap);
                edit::apply(candidate.dialect, body, facts, &Edits { model, max_output_tokens, cap_field })
            }
        }
    }
}

/// What makes two requests the same: everything that changes what is run or paid.
fn digest(request: &EscalateRequest, body: &Bytes) -> [u8; 32] {
    let mut text = format!(
        "{}\n{}\n{}\n{}\n{:?}\n",
        request.operation.0, request.dialect.0, request.model, request.stream, request.max_output_tokens
    )
    .into_bytes();
    if let Some(session) = &request.session_id {
        text.extend_from_slice(format!("session {session}\n").as_bytes());
    }
    text.extend_from_slice(&sha256(body));
    sha256(&text)
}
