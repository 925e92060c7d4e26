//! Keys by the operator's hand: API keys for callers, and tenants' own keys for providers.

use super::http::{Body, OfTenant, Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::api_keys::KeyRefusal;
use crate::store::central::audit::Deed;
use crate::store::central::keys::{ApiKey, KeyScope};
use crate::store::ledger::provider_keys::KeyInfo;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Json, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use belay_protocol::id::TenantId;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest key that is taken, in bytes.
const MAX_KEY: usize = 4096;

/// Makes an API key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// Who pays for what is done with it.
    pub tenant: TenantId,
    /// What it is for, for people.
    pub label: String,
    /// What it may be used for.
    pub scopes: Vec<KeyScope>,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

/// An API key that was just made.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreatedKey {
    /// The whole key, shown once.
    pub secret: String,
    /// What is known of it.
    #[serde(flatten)]
    pub key: ApiKey,
}

/// Asks whose a key is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckKey {
    /// The whole key.
    pub secret: String,
}

/// Gives a tenant a key of its own for a provider, or takes it away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetProviderKey {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The key; absent: none any more.
    pub key: Option<String>,
}

/// The longest label of a key, in bytes.
const MAX_LABEL: usize = 200;

impl AdminService {
    /// Makes an API key.
    pub async fn create_key(&self, wanted: CreateKey) -> Result<CreatedKey, AdminError> {
        if wanted.scopes.is_empty() {
            return Err(AdminError::Invalid("a key without a scope is of no use; name at least one".into()));
        }
        if wanted.label.len() > MAX_LABEL || wanted.label.chars().any(char::is_control) {
            let why = format!("a label has at most {MAX_LABEL} bytes and no control characters");
            return Err(AdminError::Invalid(why));
        }
        let (tenant, mut scopes) = (wanted.tenant.clone(), wanted.scopes);
        scopes.sort_unstable();
        scopes.dedup();
        let names: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        self.not_erased(&tenant).await?;
        // Not its label: the log stays when the tenant is erased.
        let deed = Deed::operator("key.create", Some(&tenant)).with(names.join(" "));
        self.asked(deed).await?;
        let made = self.api_keys().create(wanted.tenant, wanted.label, scopes, wanted.expires_ms).await?;
        let made = made.ok_or(AdminError::NoTenant(tenant))?;
        Ok(CreatedKey { secret: made.secret.expose_secret().to_owned(), key: made.key })
    }

    /// All API keys, or those of one tenant.
    pub async fn keys(&self, tenant: Option<TenantId>) -> Result<Vec<ApiKey>, AdminError> {
        Ok(self.api_keys().list(tenant).await?)
    }

    /// Revokes an API key; what runs under it ends at once.
    pub async fn revoke_key(&self, id: &str) -> Result<(), AdminError> {
        // What runs ends at once, whatever the disk takes for the rest.
        self.cut_off_key(id);
        self.asked(Deed::operator("key.revoke", None).on(id)).await?;
        if !self.api_keys().revoke(id.to_owned()).await? {
            return Err(AdminError::NoKey(id.to_owned()));
        }
        self.cut_off_key(id);
        Ok(())
    }

    /// Whose an API key is, if it gives access now.
    pub async fn check_key(&self, secret: &SecretString) -> Result<ApiKey, AdminError> {
        self.api_keys().authenticate(secret).await.map_err(|refusal| match refusal {
            KeyRefusal::Store(error) => error.into(),
            refusal => AdminError::Invalid(refusal.to_string()),
        })
    }

    /// Gives a tenant a key of its own for a provider, or takes it away. Returns those that it has.
    pub async fn set_provider_key(
        &self,
        tenant: &TenantId,
        provider: String,
        key: Option<SecretString>,
    ) -> Result<Vec<KeyInfo>, AdminError> {
        self.tenant(tenant).await?;
        self.not_erased(tenant).await?;
        let config = self.config();
        let known = config.providers.contains_key(&provider);
        if key.is_some() && !known {
            let names: Vec<&str> = config.providers.keys().map(String::as_str).collect();
            let why = format!("there is no provider {provider:?} on this relay; it has {}", names.join(", "));
            return Err(AdminError::Invalid(why));
        }
        if let Some(key) = &key {
            let text = key.expose_secret();
            if text.is_empty() || text.len() > MAX_KEY || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                let why = "this is no key: it is empty, too long, or has characters that cannot stand in a header";
                return Err(AdminError::Invalid(why.into()));
            }
        }
        let sealed = key.map(|key| self.sealer().seal(tenant, &provider, &key, self.random())).transpose();
        let sealed = sealed.map_err(|error| AdminError::Invalid(error.to_string()))?;
        let action = if sealed.is_some() { "provider_key.set" } else { "provider_key.remove" };
        self.asked(Deed::operator(action, Some(tenant)).on(&provider)).await?;
        let name = provider.clone();
        let there = self.books().set_provider_key(tenant, provider, sealed).await?;
        if !there {
            return Err(AdminError::Invalid(format!("tenant {tenant} has no key for {name}")));
        }
        self.provider_keys(tenant).await
    }

    /// For which providers a tenant has keys of its own.
    pub async fn provider_keys(&self, tenant: &TenantId) -> Result<Vec<KeyInfo>, AdminError> {
        self.tenant(tenant).await?;
        Ok(self.books().provider_keys(tenant).await?)
    }
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new()
        .route("/keys", get(keys).post(create_key))
        .route("/keys/check", post(check_key))
        .route("/keys/{id}/revoke", post(revoke_key))
        .route("/tenants/{id}/provider-keys", get(provider_keys).post(set_provider_key))
}

async fn keys(State(service): Service, query: Result<Query<OfTenant>, QueryRejection>) -> Result<Response, AdminError> {
    match query {
        Ok(Query(query)) => Ok(Json(service.keys(query.tenant).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn create_key(State(service): Service, body: Body<CreateKey>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.create_key(body).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn check_key(State(service): Service, body: Body<CheckKey>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.check_key(&body.secret.into()).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn revoke_key(State(service): Service, Path(id): Path<String>) -> Result<Response, AdminError> {
    service.revoke_key(&id).await?;
    Ok(Json(serde_json::json!({ "revoked": id })).into_response())
}

async fn provider_keys(State(service): Service, Path(id): Path<TenantId>) -> Result<Response, AdminError> {
    Ok(Json(service.provider_keys(&id).await?).into_response())
}

async fn set_provider_key(
    State(service): Service,
    Path(id): Path<TenantId>,
    body: Body<SetProviderKey>,
) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => {
            let key = body.key.map(SecretString::from);
            Ok(Json(service.set_provider_key(&id, body.provider, key).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}
