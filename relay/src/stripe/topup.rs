//! Top-ups by themselves, looked at now and then.

use super::event::Paid;
use super::{ApiError, CENT, Stripe, WebhookError};
use crate::store::StoreError;
use crate::store::central::stripe::{self as known, Attempt, AutoTopUp};
use belay_protocol::calendar;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// After a refusal, a card is not asked again for so long.
const AFTER_REFUSAL_MS: u64 = 24 * 3_600_000;
/// Stripe knows the name of a request for a day; after this it is not relied on.
const NAMES_LAST_MS: i64 = 20 * 3_600_000;
/// The longest pause while Stripe cannot be reached.
const LONGEST: Duration = Duration::from_secs(300);

impl Stripe {
    /// Looks after top-ups and meters until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = self.config.look_every;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = match self.look().await {
                Ok(()) => self.config.look_every,
                Err(error) => {
                    warn!(%error, "payments wait for Stripe");
                    (pause * 2).min(LONGEST)
                }
            };
        }
    }

    /// One look. What is due and cannot be done now is done by a later one, under the same names.
    pub(crate) async fn look(&self) -> Result<(), WebhookError> {
        let _looking = self.looking.lock().await;
        let mut failed = None;
        for auto in self.central(|connection| known::auto_topups(connection, None)).await? {
            // One whose card has died keeps no other from being topped up.
            if let Err(error) = self.top_up(&auto).await {
                failed = Some(error);
            }
        }
        if self.config.meter_event.is_some() {
            self.send_meters().await?;
        }
        failed.map_or(Ok(()), Err)
    }

    async fn top_up(&self, auto: &AutoTopUp) -> Result<(), WebhookError> {
        let summary = self.books.summary(&auto.tenant).await?;
        let wanted = summary.owned() < auto.threshold;
        let (wants, now_ms) = (auto.clone(), self.clock.now_ms());
        let month = calendar::month(now_ms);
        let attempt = self.central(move |connection| known::attempt(connection, &wants, wanted, month, now_ms)).await?;
        let Some(attempt) = attempt else { return Ok(()) };
        if !wanted || attempt.amount != auto.amount || attempt.amount > auto.monthly_cap {
            return self.give_up(&auto.tenant, &attempt).await;
        }
        let id = auto.tenant.clone();
        let customer = self.central(move |connection| known::customer(connection, &id)).await?;
        let Some((customer, method)) =
            customer.and_then(|customer| Some((customer.customer, customer.payment_method?)))
        else {
            return Ok(self.refused(&auto.tenant, attempt.number, "there is no stored way to pay").await?);
        };
        self.pay(&auto.tenant, &attempt, customer, method).await
    }

    async fn pay(
        &self,
        tenant: &TenantId,
        attempt: &Attempt,
        customer: String,
        method: String,
    ) -> Result<(), WebhookError> {
        let now_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        if now_ms - attempt.at_ms > NAMES_LAST_MS
            && let Some(intent) = self.made_before(tenant, attempt).await?
        {
            return self.answered(tenant, attempt, &intent).await;
        }
        let form = [
            ("amount", (attempt.amount.0 / CENT).to_string()),
            ("currency", "usd".to_owned()),
            ("customer", customer),
            ("payment_method", method),
            ("confirm", "true".into()),
            ("off_session", "true".into()),
            ("metadata[belay_tenant]", tenant.to_string()),
            ("metadata[belay_relay]", self.relay.clone()),
            ("metadata[belay_attempt]", attempt.number.to_string()),
        ];
        let name = format!("belay-{}-auto-{tenant}-{}", self.relay, attempt.number);
        match self.api.post("/v1/payment_intents", &form, &name).await {
            Ok(intent) => self.answered(tenant, attempt, &intent).await,
            Err(ApiError::Refused { message, .. }) => Ok(self.refused(tenant, attempt.number, &message).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// What an attempt has come to, if Stripe has heard of it: after most of a day it has forgotten its name.
    async fn made_before(&self, tenant: &TenantId, attempt: &Attempt) -> Result<Option<Value>, WebhookError> {
        let id = tenant.clone();
        let customer = self.central(move |connection| known::customer(connection, &id)).await?;
        let Some(customer) = customer else { return Ok(None) };
        let all = self.api.list(&format!("/v1/payment_intents?customer={}", customer.customer)).await?;
        let number = attempt.number.to_string();
        let is_it = |intent: &Value| {
            let text = |pointer: &str| intent.pointer(pointer).and_then(Value::as_str);
            self.is_ours(text("/metadata/belay_relay")) && text("/metadata/belay_attempt") == Some(&number)
        };
        Ok(all.into_iter().find(is_it))
    }

    /// Ends an attempt that nobody wants any more, unless it was paid already.
    async fn give_up(&self, tenant: &TenantId, attempt: &Attempt) -> Result<(), WebhookError> {
        if let Some(intent) = self.made_before(tenant, attempt).await? {
            return self.answered(tenant, attempt, &intent).await;
        }
        let (id, number) = (tenant.clone(), attempt.number);
        Ok(self.central(move |connection| known::attempted(connection, &id, number, Some(("", 0)))).await?)
    }

    async fn answered(&self, tenant: &TenantId, attempt: &Attempt, intent: &Value) -> Result<(), WebhookError> {
        let text = |name: &str| intent.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("status").as_str() {
            // The webhook says the same, once more.
            "succeeded" => {
                let paid = Paid {
                    payment_intent: text("id"),
                    tenant: Some(tenant.to_string()),
                    relay: Some(self.relay.clone()),
                    cents: u64::try_from(attempt.amount.0 / CENT).unwrap_or(0),
                    currency: "usd".into(),
                    payment_method: None,
                    attempt: Some(attempt.number),
                };
                info!(%tenant, amount = %attempt.amount, "topped up by itself");
                self.paid(paid).await
            }
            // A webhook will tell.
            "processing" => Ok(()),
            other => Ok(self.refused(tenant, attempt.number, &format!("the payment is {other}")).await?),
        }
    }

    /// Notes that an attempt was refused; the next one waits.
    pub(super) async fn refused(&self, tenant: &TenantId, number: i64, why: &str) -> Result<(), StoreError> {
        warn!(%tenant, why, "a top-up by itself was refused");
        let (id, why, until) = (tenant.clone(), why.to_owned(), self.clock.now_ms() + AFTER_REFUSAL_MS);
        self.central(move |connection| known::attempted(connection, &id, number, Some((&why, until)))).await
    }

    /// When a tenant is topped up by itself, if it is.
    pub(crate) async fn auto_topup(&self, tenant: &TenantId) -> Result<Option<AutoTopUp>, StoreError> {
        let id = tenant.clone();
        Ok(self.central(move |connection| known::auto_topups(connection, Some(&id))).await?.pop())
    }

    /// Sets threshold, amount and monthly cap; `None`: never.
    pub(crate) async fn set_auto_topup(
        &self,
        tenant: &TenantId,
        wanted: Option<(NanoUsd, NanoUsd, NanoUsd)>,
    ) -> Result<(), StoreError> {
        let id = tenant.clone();
        self.central(move |connection| known::set_auto_topup(connection, &id, wanted)).await
    }
}
