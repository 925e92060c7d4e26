//! The list of models, as each of the two APIs gives it.

use crate::api::Api;
use crate::refusal::Refusal;
use belay_protocol::message::ModelOffer;
use http::StatusCode;
use serde_json::{Value, json};

/// When a model was made is nobody's business here; the APIs want a time.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A model in belay's own words.
#[must_use]
pub fn offer_json(offer: &ModelOffer) -> Value {
    json!({
        "name": offer.name,
        "provider": offer.provider,
        "model": offer.model,
        "dialect": offer.dialect.name(),
        "context_tokens": offer.context_tokens,
        "max_output_tokens": offer.max_output_tokens,
        "input_nano_usd_per_million": offer.input.map(|price| price.0),
        "output_nano_usd_per_million": offer.output.map(|price| price.0),
    })
}

/// All models.
#[must_use]
pub fn list(api: Api, offers: &[ModelOffer]) -> Value {
    let data: Vec<Value> = offers.iter().map(|offer| model(api, offer)).collect();
    match api {
        Api::OpenAi => json!({ "object": "list", "data": data }),
        Api::Anthropic => json!({
            "data": data,
            "has_more": false,
            "first_id": offers.first().map(|offer| &offer.name),
            "last_id": offers.last().map(|offer| &offer.name),
        }),
    }
}

/// One model. Errors: there is none of that name.
pub fn one(api: Api, offers: &[ModelOffer], name: &str) -> Result<Value, Refusal> {
    match offers.iter().find(|offer| offer.name == name) {
        Some(offer) => Ok(model(api, offer)),
        None => {
            let known: Vec<&str> = offers.iter().map(|offer| offer.name.as_str()).collect();
            let message = format!("there is no model {name:?}; there is {}", known.join(", "));
            Err(Refusal::new(StatusCode::NOT_FOUND, "unknown_model", message))
        }
    }
}

fn model(api: Api, offer: &ModelOffer) -> Value {
    let belay = offer_json(offer);
    match api {
        Api::OpenAi => {
            json!({ "id": offer.name, "object": "model", "created": 0, "owned_by": offer.provider, "belay": belay })
        }
        Api::Anthropic => {
            json!({ "type": "model", "id": offer.name, "display_name": offer.name, "created_at": CREATED, "belay": belay })
        }
    }
}
