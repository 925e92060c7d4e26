//! Which of the models that are meant can serve a request, in which dialect, and what they charge now.

use crate::config::{Config, Model, ProviderKind};
use crate::pricing::{BASIS_POINTS, PriceSet, PriceSnapshot};
use crate::store::ledger::request::Offer;
use belay_protocol::dialect::translate::{self, Asked};
use belay_protocol::message::{Dialect, EscalateRequest, FailureCode, Operation};
use bytes::Bytes;
use std::sync::Arc;

/// Why a request cannot be planned, and what to do about it.
pub(super) type Refused = (FailureCode, String, &'static str);

/// A model that may serve a request, and what it charges now.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) model: Arc<Model>,
    /// The provider's, in which it is asked and answers.
    pub(crate) dialect: Dialect,
    /// The request, if its caller speaks another one.
    pub(super) translated: Option<Asked>,
    pub(crate) price: PriceSnapshot,
    keyless: bool,
}

impl Candidate {
    pub(super) fn offer(&self) -> Offer {
        Offer {
            provider: self.model.provider.clone(),
            model: self.model.name.clone(),
            price: self.price.clone(),
            keyless: self.keyless,
        }
    }
}

/// Of those models, the ones that have a price and serve the request's operation.
pub(super) fn candidates(
    config: &Config,
    price_version: i64,
    request: &EscalateRequest,
    body: &Bytes,
    models: Vec<Arc<Model>>,
    now_ms: u64,
) -> Result<Vec<Candidate>, Refused> {
    let (mut found, mut reason) = (vec![], None);
    for model in models {
        let kind = config.providers[&model.provider].kind;
        let dialect = match check_operation(request, kind) {
            Ok(dialect) => dialect,
            Err(message) => {
                let remedy = "choose a model of that API, or the API of that model";
                reason.get_or_insert((FailureCode::UNSUPPORTED, message, remedy));
                continue;
            }
        };
        let translated = if dialect == request.dialect || request.dialect == Dialect::PROMPT {
            None
        } else {
            match translate::request(request.dialect, dialect, body) {
                Ok(asked) => Some(asked),
                Err(error) => {
                    let remedy = "leave it out, or choose a model of your own API";
                    reason.get_or_insert((FailureCode::INVALID_REQUEST, error.to_string(), remedy));
                    continue;
                }
            }
        };
        let prices = model.prices.as_ref().and_then(|list| list.at(now_ms));
        let covers = |prices: &&PriceSet| prices.is_complete() || !has_output(request.operation);
        let Some(prices) = prices.filter(covers) else {
            let message = format!("model {} of provider {} has no price on this relay", model.name, model.provider);
            let remedy = "have the operator name its price (belayd prices check), or choose another model";
            reason.get_or_insert((FailureCode::NO_PRICE, message, remedy));
            continue;
        };
        let (lines, tiers) = match request.operation {
            // Providers charge nothing for it, and neither does the relay.
            Operation::COUNT_TOKENS => (vec![], vec![]),
            _ => (prices.lines.clone(), prices.tiers.clone()),
        };
        found.push(Candidate {
            price: PriceSnapshot {
                version: price_version,
                // The hold applies that of the tenant.
                multiplier_bp: BASIS_POINTS,
                lines,
                tiers,
            },
            dialect,
            translated,
            keyless: kind == ProviderKind::Demo,
            model,
        });
    }
    match reason {
        Some(reason) if found.is_empty() => Err(reason),
        _ => Ok(found),
    }
}

/// The answer has output tokens, which are charged and bounded.
pub(super) fn has_output(operation: Operation) -> bool {
    !matches!(operation, Operation::EMBEDDINGS | Operation::COUNT_TOKENS)
}

/// The dialect in which a provider of that kind is asked. Errors: it does not have the operation.
fn check_operation(request: &EscalateRequest, kind: ProviderKind) -> Result<Dialect, String> {
    let dialect = kind.dialect();
    let fits = match (request.operation, request.dialect) {
        // What one API does not have is carried over to the other.
        (Operation::RESPONSES, Dialect::OPENAI_RESPONSES) if kind == ProviderKind::OpenAi => {
            return Ok(Dialect::OPENAI_RESPONSES);
        }
        (Operation::RESPONSES, wanted) => wanted == Dialect::OPENAI_RESPONSES,
        (Operation::EMBEDDINGS, wanted) => wanted == Dialect::OPENAI_CHAT && kind == ProviderKind::OpenAi,
        (Operation::COUNT_TOKENS, wanted) => wanted == Dialect::ANTHROPIC && kind == ProviderKind::Anthropic,
        (Operation::CHAT, wanted) => matches!(wanted, Dialect::PROMPT | Dialect::OPENAI_CHAT),
        (Operation::MESSAGES, wanted) => wanted == Dialect::ANTHROPIC,
        _ => return Err(format!("the operation {} is not served", request.operation)),
    };
    if fits {
        return Ok(dialect);
    }
    Err(format!(
        "operation {} with a body of dialect {} cannot go to model {:?}, whose provider speaks {dialect}",
        request.operation, request.dialect, request.model
    ))
}
