//! Usage outside of the relay that a device records: checked, priced and charged.

use super::refusal::{rate_limited, store_failed};
use super::{Caller, Escalator, failed};
use crate::pricing::PriceSnapshot;
use crate::settings::Settings;
use crate::store::executor::Db;
use crate::store::ledger::record::{Record, RecordOutcome, record};
use crate::store::ledger::request::Offer;
use crate::store::ledger::settle::Settled;
use crate::store::ledger::usage::Class;
use belay_certs::sha256;
use belay_protocol::codec::Message;
use belay_protocol::dialect::usage::MOST_UNITS;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Failed, FailureCode, RecordRequest, UnitKind, UsageClass};
use std::sync::Arc;
use tracing::info;

/// The longest name of a model that is recorded, in bytes.
const MAX_MODEL: usize = 200;

/// What is wrong with a record. `None`: nothing.
fn wrong(request: &RecordRequest) -> Option<String> {
    let model = &request.model;
    if model.is_empty() || model.len() > MAX_MODEL || model.chars().any(char::is_control) {
        return Some(format!("the model's name must have 1 to {MAX_MODEL} bytes and no control characters"));
    }
    if request.usage.iter().all(|line| line.units == 0) {
        return Some("there is no usage in it".into());
    }
    if request.usage.iter().any(|line| line.units > MOST_UNITS) {
        return Some(format!("more than {MOST_UNITS} units of a kind"));
    }
    let unknown = request.usage.iter().find(|line| !UnitKind::ALL.contains(&line.kind))?;
    Some(format!("there is no kind of unit {}", unknown.kind.0))
}

impl Escalator {
    /// Records usage and charges it. The same id with the same usage gets the same answer. Errors: what
    /// the caller is told.
    pub(crate) async fn record(&self, caller: &Caller, request: &RecordRequest) -> Result<Settled, Failed> {
        let id = request.request_id;
        if let Some(why) = wrong(request) {
            return Err(failed(id, FailureCode::INVALID_REQUEST, why, "correct the record"));
        }
        let settings = self.settings.get();
        let offer = self.recorded_offer(&settings, request)?;
        let class = if request.class == UsageClass::LOCAL { Class::Local } else { Class::Knowledge };
        let tenant = self.tenants.handle(&caller.tenant).await.map_err(|error| store_failed(id, &error))?;
        let encoded = request
            .encode_body()
            .map_err(|error| failed(id, FailureCode::INVALID_REQUEST, error.to_string(), "correct the record"))?;
        let now_ms = self.env.clock.now_ms();
        let wanted = Record {
            request_id: id,
            device: caller.device.clone(),
            key: caller.key.clone(),
            digest: sha256(&encoded),
            class,
            offer,
            allowance: settings.config.billing.free_allowance,
            usage: request.usage.clone(),
            boot: self.boot.clone(),
            now_ms,
            rates: Arc::clone(&tenant.rates),
            per_minute: settings.config.limits.per_minute(),
        };
        let db = Db::Tenant(caller.tenant.clone());
        let outcome = self.store.run(db, move |connection| record(connection, &wanted)).await;
        match outcome.map_err(|error| store_failed(id, &error))? {
            RecordOutcome::Recorded(settled) => {
                tenant.unflushed.add(settled.end.cost, now_ms);
                info!(class = %request.class, cost = %settled.end.cost, "usage recorded");
                Ok(*settled)
            }
            RecordOutcome::Short { missing } => Err(Failed {
                missing: Some(missing),
                ..failed(
                    id,
                    FailureCode::PAYMENT_REQUIRED,
                    format!("balance and budgets do not cover this record; {missing} is missing"),
                    "top up, and record it again with the same id",
                )
            }),
            RecordOutcome::RateLimited(refusal) => Err(rate_limited(id, &refusal)),
            RecordOutcome::Conflict => Err(failed(
                id,
                FailureCode::CONFLICT,
                "this id was used before, for another record or for a request",
                "make a new id for every new record",
            )),
            RecordOutcome::Suspended => {
                Err(failed(id, FailureCode::SUSPENDED, "the tenant is suspended", "ask the operator of the relay"))
            }
        }
    }

    /// What is charged for a record.
    fn recorded_offer(&self, settings: &Settings, request: &RecordRequest) -> Result<Offer, Failed> {
        let id: RequestId = request.request_id;
        let recorded = match request.class {
            UsageClass::LOCAL => &settings.config.billing.local,
            UsageClass::KNOWLEDGE => &settings.config.billing.knowledge,
            other => {
                let message = format!("usage of class {other} cannot be recorded; there are local and knowledge");
                return Err(failed(id, FailureCode::INVALID_REQUEST, message, "correct the record"));
            }
        };
        let list = recorded.models.get(&request.model).or(recorded.price.as_ref());
        let Some(prices) = list.and_then(|list| list.at(self.env.clock.now_ms())) else {
            let message = format!("there is no price for {} usage of {}", request.class, request.model);
            let remedy = "have the operator set one: recorded.CLASS.price in the relay's configuration";
            return Err(failed(id, FailureCode::NO_PRICE, message, remedy));
        };
        Ok(Offer {
            provider: request.class.to_string(),
            model: request.model.clone(),
            price: PriceSnapshot {
                version: settings.price_version,
                multiplier_bp: recorded.multiplier,
                lines: prices.lines.clone(),
                tiers: prices.tiers.clone(),
            },
            keyless: true,
        })
    }
}
