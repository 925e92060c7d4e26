//! What the relay itself can see of its health, and what it is told of backups.

use super::http::{Body, Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::doctor::{self, Finding};
use crate::store::central::audit::{Deed, last};
use crate::store::executor::Db;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use belay_protocol::id::TenantId;
use belay_protocol::vitals::RelayState;
use belay_transport::env::receive_buffer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a finished backup is called in the audit log.
pub const BACKED_UP: &str = "backup.take";

/// Tells of copies that the command line has made of what the relay keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Taken {
    /// A backup is finished, and lies there.
    Backup {
        /// A directory.
        dir: String,
    },
    /// All of a tenant was written there.
    Export {
        /// Whose.
        tenant: TenantId,
        /// A directory.
        dir: String,
    },
}

impl Taken {
    /// For the audit log.
    #[must_use]
    pub fn deed(self) -> Deed {
        match self {
            Self::Backup { dir } => Deed::operator(BACKED_UP, None).with(dir),
            Self::Export { tenant, dir } => Deed::operator("tenant.export", Some(&tenant)).with(dir),
        }
    }
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/doctor", get(look)).route("/taken", post(taken))
}

async fn look(State(service): Service) -> Result<Response, AdminError> {
    Ok(Json(service.doctor().await?).into_response())
}

async fn taken(State(service): Service, body: Body<Taken>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => {
            service.asked(body.deed()).await?;
            Ok(Json(()).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

impl AdminService {
    /// Looks at everything that the relay can see from inside. Providers are asked for their models, which costs nothing.
    pub async fn doctor(&self) -> Result<Vec<Finding>, AdminError> {
        let (now_ms, status) = (self.now_ms(), self.status());
        let mut findings = vec![];
        let serves = format!("belayd {} on {}, tunnels: {}", status.version, status.listen, status.tunnels.len());
        findings.push(match &status.state {
            RelayState::Healthy => Finding::good("relay", serves),
            RelayState::Degraded { reason } => Finding::warn("relay", format!("{serves}; {reason}"), "see its log"),
            RelayState::Maintenance { .. } => {
                Finding::warn("relay", format!("{serves}; in maintenance"), "when it is over: belayd maintenance --off")
            }
        });
        findings.push(match (&status.reload.error, &status.reload.needs_restart[..]) {
            (Some(error), _) => {
                Finding::warn("reload", format!("refused: {error}"), "put the configuration right, then: belayd reload")
            }
            (None, []) => Finding::good("reload", "what is written is in force"),
            (None, keys) => Finding::warn("reload", keys.join(", "), "these wait for a restart"),
        });
        findings.push(doctor::receive_buffer(receive_buffer()));
        findings.push(doctor::open_files());
        let standing = self.keeper.authorities.standing();
        findings.push(doctor::authority(standing.ends_ms(), now_ms, standing.next.is_some()));
        if let Some(ends_ms) = self.reloader.http_certificate_ends_ms() {
            let remedy = "put a new certificate in place of http.cert_file; it is taken within seconds";
            findings.push(doctor::certificate("certificate for HTTP", ends_ms, now_ms, remedy));
        }
        let backup = self.store.run(Db::Central, |connection| last(connection, BACKED_UP)).await?;
        findings.push(doctor::backup(backup, now_ms));
        findings.extend(self.escalator.tracer.as_ref().map(|tracer| doctor::traces(tracer.traces.counts())));
        let settings = self.escalator.settings.get();
        findings.extend(doctor::providers(&settings.providers, self.env.clock.as_ref()).await);
        Ok(findings)
    }
}
