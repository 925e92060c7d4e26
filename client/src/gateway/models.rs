//! The models that the relay offers.

use super::body::Body;
use super::{Shared, json};
use belay_http::api::Api;
use belay_http::models;
use belay_http::refusal::Refusal;
use http::Response;

/// All models, or one.
pub(super) async fn answer(shared: &Shared, api: Api, one: Option<&str>) -> Result<Response<Body>, Refusal> {
    let offers = shared.client.models(shared.settings.wait).await.map_err(|error| Refusal::from(&error))?;
    Ok(json(&match one {
        None => models::list(api, &offers),
        Some(name) => models::one(api, &offers, name)?,
    }))
}
