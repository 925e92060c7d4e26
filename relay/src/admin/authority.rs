//! Changing the relay's authority.

use super::http::{Body, Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::authority::{AuthorityError, AuthorityInfo, Step};
use crate::store::central::audit::Deed;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Asks for a step of a change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeStep {
    /// Which one.
    pub step: Step,
    /// Though devices wait.
    pub force: bool,
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/authority", get(authority).post(step))
}

async fn authority(State(service): Service) -> Result<Response, AdminError> {
    Ok(Json(service.authority().await?).into_response())
}

async fn step(State(service): Service, body: Body<TakeStep>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(TakeStep { step, force })) => Ok(Json(service.change_authority(step, force).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

impl AdminService {
    /// The relay's authority, the next one and the former one.
    pub async fn authority(&self) -> Result<AuthorityInfo, AdminError> {
        self.keeper.info().await.map_err(failed)
    }

    /// Takes a step of a change. Errors: devices wait, and `force` is not said.
    pub async fn change_authority(&self, step: Step, force: bool) -> Result<AuthorityInfo, AdminError> {
        let action = match step {
            Step::Prepare => "authority.prepare",
            Step::Switch => "authority.switch",
            Step::Retire => "authority.retire",
        };
        self.asked(Deed::operator(action, None).with(if force { "forced" } else { "" })).await?;
        self.keeper.step(step, force).await.map_err(failed)
    }
}

fn failed(error: AuthorityError) -> AdminError {
    match error {
        AuthorityError::Store(error) => error.into(),
        error => AdminError::Invalid(error.words()),
    }
}
