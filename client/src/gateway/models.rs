//! The list of models, as each of the two APIs gives it.

use super::api::Api;
use super::body::Body;
use super::refusal::Refusal;
use super::{Shared, json};
use crate::billing::offer_json;
use belay_protocol::message::ModelOffer;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// When a model was made is nobody's business here; the APIs want a time.
const CREATED: &str = "1970-01-01T00:00:00Z";

async fn offers(shared: &Shared) -> Result<Vec<ModelOffer>, Refusal> {
    shared.client.models(shared.settings.wait).await.map_err(|error| Refusal::from(&error))
}

/// All models.
pub(super) async fn list(shared: &Shared, api: Api) -> Result<Response<Body>, Refusal> {
    let offers = offers(shared).await?;
    let data: Vec<Value> = offers.iter().map(|offer| model(api, offer)).collect();
    Ok(json(&match api {
        Api::OpenAi => json!({ "object": "list", "data": data }),
        Api::Anthropic => json!({
            "data": data,
            "has_more": false,
            "first_id": offers.first().map(|offer| &offer.name),
            "last_id": offers.last().map(|offer| &offer.name),
        }),
    }))
}

/// One model.
pub(super) async fn one(shared: &Shared, api: Api, name: &str) -> Result<Response<Body>, Refusal> {
    let offers = offers(shared).await?;
    match offers.iter().find(|offer| offer.name == name) {
        Some(offer) => Ok(json(&model(api, offer))),
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
