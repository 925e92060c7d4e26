//! Comparing providers' own figures with the books, and putting charges by estimate right.

use super::http::{Body, Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::reconcile::{Booked, ProviderUsage, Tokens, divide};
use crate::store::books::Days;
use crate::store::ledger::correct::Estimated;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Json, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use belay_protocol::calendar;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Compares, and puts right what was estimated if `apply`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconcile {
    /// The provider's name in the configuration.
    pub provider: String,
    /// What it says.
    pub usage: Vec<ProviderUsage>,
    /// Correct charges.
    pub apply: bool,
    /// Correct them too on days that are not over, and where the provider counts less than it had told.
    #[serde(default)]
    pub force: bool,
}

/// A day and a model, by the provider and by the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Days since 1970.
    pub day: i64,
    /// The model, as the books call it, if they do.
    pub model: String,
    /// By the provider.
    pub theirs: Tokens,
    /// By the books of all tenants.
    pub ours: Tokens,
    /// Charges by estimate in it.
    pub estimated: u64,
    /// Of these, those that were put right.
    pub corrected: u64,
    /// What the corrections added to the charges, in nano-USD.
    pub difference_nano_usd: i64,
    /// Why nothing was corrected although something was estimated.
    #[serde(default)]
    pub left: Option<String>,
}

/// Asks for charges by estimate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EstimatedQuery {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// The first day, days since 1970.
    pub from: i64,
    /// The one after the last.
    pub until: i64,
}

/// A charge by estimate.
#[derive(Debug, Serialize, Deserialize)]
pub struct EstimatedInfo {
    /// Whose.
    pub tenant: TenantId,
    /// Which request, in hex.
    pub request: String,
    /// The rest.
    #[serde(flatten)]
    pub charge: Estimated,
}

impl AdminService {
    /// Charges by estimate that nobody has corrected, of one tenant or of all.
    pub async fn estimated(&self, tenant: Option<TenantId>, days: Days) -> Result<Vec<EstimatedInfo>, AdminError> {
        let tenants = match tenant {
            Some(id) => vec![self.tenant(&id).await?.id],
            None => self.tenant_ids().await?,
        };
        let mut found = vec![];
        for tenant in tenants {
            let charges = self.books().estimated(&tenant, days).await?;
            found.extend(charges.into_iter().map(|charge| EstimatedInfo {
                tenant: tenant.clone(),
                request: charge.request_id.to_string(),
                charge,
            }));
        }
        Ok(found)
    }

    /// Compares a provider's figures with the books; see [`Reconcile`].
    pub async fn reconcile(&self, wanted: Reconcile) -> Result<Vec<Compared>, AdminError> {
        let config = self.config();
        let Some(provider) = config.providers.get(&wanted.provider) else {
            let names: Vec<&str> = config.providers.keys().map(String::as_str).collect();
            let why = format!("there is no provider {:?} on this relay; it has {}", wanted.provider, names.join(", "));
            return Err(AdminError::Invalid(why));
        };
        let days = wanted.usage.iter().map(|usage| usage.day);
        let (Some(first), Some(last)) = (days.clone().min(), days.max()) else { return Ok(vec![]) };
        let booked = self.booked(&wanted.provider, (first, last + 1)).await?;
        // The same model under the name that the provider's bill has for it: by the catalogue.
        let listed = |name: &str| {
            let id = provider.prices.as_deref()?;
            config.catalogue().find(id, name).map(|model| model.id.as_str())
        };
        let ours: BTreeMap<&str, &String> =
            booked.keys().filter_map(|(_, model)| Some((listed(model)?, model))).collect();
        let mut known_as: BTreeMap<&String, &String> = booked.keys().map(|(_, model)| (model, model)).collect();
        for usage in &wanted.usage {
            if !known_as.contains_key(&usage.model) {
                let model = listed(&usage.model).and_then(|id| ours.get(id).copied());
                known_as.insert(&usage.model, model.unwrap_or(&usage.model));
            }
        }
        let mut theirs: BTreeMap<(i64, String), Tokens> = BTreeMap::new();
        for usage in &wanted.usage {
            let model = known_as[&usage.model].clone();
            theirs.entry((usage.day, model)).or_default().add(usage.tokens);
        }
        let keys: Vec<(i64, String)> = {
            let mut keys: Vec<_> = theirs.keys().chain(booked.keys()).cloned().collect();
            keys.sort();
            keys.dedup();
            keys
        };
        let today = calendar::day(self.now_ms());
        let mut compared = vec![];
        for key in keys {
            let known = booked.get(&key).cloned().unwrap_or_default();
            let mut line = Compared {
                day: key.0,
                model: key.1.clone(),
                theirs: theirs.get(&key).copied().unwrap_or_default(),
                ours: known.tokens,
                estimated: known.estimated.len() as u64,
                corrected: 0,
                difference_nano_usd: 0,
                left: None,
            };
            // A day or a model that the file does not have says nothing of the estimates.
            if let (true, false, Some(theirs)) = (wanted.apply, known.estimated.is_empty(), theirs.get(&key)) {
                // A charge is corrected once: not on figures that are not whole yet.
                line.left = if key.0 >= today && !wanted.force {
                    Some("the day is not over; --force corrects all the same".into())
                } else if theirs.lacks(&known.told()) && !wanted.force {
                    Some("the provider counts less than it had told; --force corrects all the same".into())
                } else {
                    None
                };
                if line.left.is_some() {
                    compared.push(line);
                    continue;
                }
                for share in divide(*theirs, &known) {
                    let done = self.books().correct(&share.tenant, share.request_id, share.usage).await?;
                    if let Some(corrected) = done {
                        line.corrected += 1;
                        let more = corrected.after - corrected.before;
                        line.difference_nano_usd += more.0;
                        let handle = self.open_tenants().handle(&share.tenant).await?;
                        handle.unflushed.add(more.max(NanoUsd::ZERO), self.now_ms());
                    }
                }
            }
            compared.push(line);
        }
        Ok(compared)
    }

    /// What the books of all tenants say of a provider, by day and model.
    async fn booked(&self, provider: &str, days: Days) -> Result<BTreeMap<(i64, String), Booked>, AdminError> {
        let mut booked: BTreeMap<(i64, String), Booked> = BTreeMap::new();
        for tenant in self.tenant_ids().await? {
            for (day, model, totals) in self.books().usage_of_provider(&tenant, provider, days).await? {
                booked.entry((day, model)).or_default().tokens.add(totals.into());
            }
            for charge in self.books().estimated(&tenant, days).await? {
                if charge.provider == provider && !charge.own_key {
                    let day = calendar::day(u64::try_from(charge.at_ms).unwrap_or(0));
                    let entry = booked.entry((day, charge.model.clone())).or_default();
                    entry.estimated.push((tenant.clone(), charge));
                }
            }
        }
        Ok(booked)
    }
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/estimated", get(estimated)).route("/reconcile", post(reconcile))
}

async fn estimated(
    State(service): Service,
    query: Result<Query<EstimatedQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(EstimatedQuery { tenant, from, until })) => {
            Ok(Json(service.estimated(tenant, (from, until)).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn reconcile(State(service): Service, body: Body<Reconcile>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.reconcile(body).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}
