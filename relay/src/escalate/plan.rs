//! What would be sent to which provider, and what it could cost. Pure: no I/O.

use super::{Caller, Escalator, failed};
use crate::config::{Config, Model, ProviderKind};
use crate::pricing::{BASIS_POINTS, PriceSnapshot};
use crate::store::ledger::hold::{HoldRequest, PerMinute};
use crate::store::ledger::rates::Rates;
use crate::store::ledger::request::Offer;
use belay_certs::sha256;
use belay_protocol::dialect::body::{BodyFacts, inspect};
use belay_protocol::dialect::edit::{self, Edits};
use belay_protocol::dialect::prompt::Prompt;
use belay_protocol::message::{Dialect, EscalateRequest, Failed, FailureCode, Operation};
use bytes::Bytes;
use std::sync::Arc;

/// Tokens that a provider may add to the text's own: roles, separators, a tool preamble.
const INPUT_OVERHEAD: u64 = 1024;

/// A request that may run if the money is there.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) provider: String,
    pub(crate) model: Model,
    pub(crate) dialect: Dialect,
    pub(crate) price: PriceSnapshot,
    pub(crate) stream: bool,
    /// The caller wants to see the usage event of its own accord.
    pub(crate) wants_usage_event: bool,
    source: Source,
    asked_output: Option<u32>,
}

#[derive(Debug)]
enum Source {
    Prompt(Prompt),
    Body(BodyFacts),
}

/// Decides what a request would be. Errors: `UNKNOWN_MODEL`, `UNSUPPORTED`, `INVALID_REQUEST`.
pub(crate) fn plan(
    config: &Config,
    price_version: i64,
    request: &EscalateRequest,
    body: &Bytes,
) -> Result<Plan, Failed> {
    let id = request.request_id;
    let fail = |code, message: String, remedy: &str| failed(id, code, message, remedy);
    let model = resolve(config, &request.model)
        .map_err(|message| fail(FailureCode::UNKNOWN_MODEL, message, "name one of the relay's models or aliases"))?;
    let provider = &config.providers[&model.provider];
    let dialect = provider.kind.dialect();
    check_operation(request, dialect).map_err(|message| {
        fail(FailureCode::UNSUPPORTED, message, "choose a model of that API, or the API of that model")
    })?;
    if request.max_output_tokens == Some(0) {
        let message = "max_output_tokens must be at least 1".to_owned();
        return Err(fail(FailureCode::INVALID_REQUEST, message, "ask for at least one token, or leave the cap out"));
    }
    let (source, stream, wants_usage_event, in_body) = if request.dialect == Dialect::PROMPT {
        let prompt = Prompt::from_json(body).map_err(|message| {
            fail(FailureCode::INVALID_REQUEST, message, "see PROTOCOL.md for the prompt's fields")
        })?;
        (Source::Prompt(prompt), request.stream, true, None)
    } else {
        let facts = inspect(dialect, body)
            .map_err(|error| fail(FailureCode::INVALID_REQUEST, error.to_string(), "correct the request body"))?;
        let (stream, usage, cap) = (facts.stream, facts.include_usage, facts.max_output_tokens);
        (Source::Body(facts), stream, usage, cap)
    };
    let asked_output = match (request.max_output_tokens, in_body) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Ok(Plan {
        provider: model.provider.clone(),
        dialect,
        price: PriceSnapshot {
            version: price_version,
            // The hold applies that of the tenant.
            multiplier_bp: BASIS_POINTS,
            lines: model.prices.clone(),
            tiers: model.tiers.clone(),
        },
        stream,
        wants_usage_event,
        source,
        // No model gives more than its ceiling, so nothing is held for more.
        asked_output: asked_output.map(|cap| cap.min(model.max_output_tokens)),
        model: model.clone(),
    })
}

/// Finds a model by name, alias, or the provider's own name.
pub(super) fn resolve<'a>(config: &'a Config, name: &str) -> Result<&'a Model, String> {
    let name = if name.is_empty() { "auto" } else { name };
    let key = config.aliases.get(name).map_or(name, String::as_str);
    config.models.get(key).or_else(|| config.models.values().find(|model| model.name == name)).ok_or_else(|| {
        let known: Vec<&str> = config.aliases.keys().chain(config.models.keys()).map(String::as_str).collect();
        let shown: String = name.chars().take(80).collect();
        format!("there is no model {shown:?} on this relay; it has {}", known.join(", "))
    })
}

fn check_operation(request: &EscalateRequest, dialect: Dialect) -> Result<(), String> {
    let fits = match request.operation {
        Operation::CHAT => {
            matches!(request.dialect, Dialect::PROMPT) || request.dialect == dialect && dialect == Dialect::OPENAI_CHAT
        }
        Operation::MESSAGES => request.dialect == dialect && dialect == Dialect::ANTHROPIC,
        _ => return Err(format!("the operation {} is not served", request.operation)),
    };
    if fits {
        return Ok(());
    }
    Err(format!(
        "operation {} with a body of dialect {} cannot go to model {:?}, whose provider speaks {dialect}",
        request.operation, request.dialect, request.model
    ))
}

impl Plan {
    /// What must be asked of the book. `body` is the caller's.
    pub(crate) fn hold_request(
        &self,
        escalator: &Escalator,
        caller: &Caller,
        request: &EscalateRequest,
        body: &Bytes,
        rates: &Arc<Rates>,
    ) -> HoldRequest {
        let limits = &escalator.config.limits;
        let context = u64::from(self.model.context_tokens);
        let (input_bytes, bound, choices, extra_output) = match &self.source {
            Source::Prompt(_) => {
                let rendered = self.outgoing(body, self.model.max_output_tokens);
                (rendered.len() as u64, rendered.len() as u64 + INPUT_OVERHEAD, 1, 0)
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
            offers: vec![Offer {
                provider: self.provider.clone(),
                model: self.model.name.clone(),
                price: self.price.clone(),
                keyless: escalator.config.providers[&self.provider].kind == ProviderKind::Demo,
            }],
            multipliers: escalator.config.billing.multipliers,
            allowance: escalator.config.billing.free_allowance,
            input_bound: bound.min(context),
            input_bytes,
            asked_output: self.asked_output,
            default_output: self.default_output(escalator),
            may_reduce: request.may_reduce_output,
            choices,
            extra_output,
            cost_cap: request.cost_cap,
            rates: Arc::clone(rates),
            per_minute: PerMinute { requests: limits.requests_per_minute, tokens: limits.tokens_per_minute },
            at_once: limits.requests_at_once,
        }
    }

    fn default_output(&self, escalator: &Escalator) -> u32 {
        self.model.max_output_tokens.min(escalator.config.billing.default_max_output)
    }

    /// The output cap that there will be if there is money enough.
    pub(crate) fn expected_output(&self, escalator: &Escalator) -> u32 {
        self.asked_output.unwrap_or_else(|| self.default_output(escalator))
    }

    /// The body for the provider, with the output cap that was paid for.
    pub(crate) fn outgoing(&self, body: &Bytes, output_cap: u32) -> Bytes {
        let (model, cap_field) = (self.model.name.as_str(), self.model.cap_field.as_str());
        match &self.source {
            Source::Prompt(prompt) => {
                Bytes::from(prompt.render(self.dialect, model, output_cap, cap_field, self.stream))
            }
            Source::Body(facts) => {
                let edits = Edits { model, max_output_tokens: output_cap, cap_field };
                edit::apply(self.dialect, body, facts, &edits)
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
    text.extend_from_slice(&sha256(body));
    sha256(&text)
}
