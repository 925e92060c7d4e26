//! Payments by Stripe: a page to pay at, what webhooks tell, top-ups by themselves, and meters for who pays later.
//!
//! Money moves in the tenants' own books, once for ever: an entry is named for Stripe's object (`stripe pi_…`), so
//! that an event may come twice, late, or from two sides. Whatever is asked of Stripe has a name that was written
//! down before, so that it may be asked again. A webhook is answered once its entry is durable.

mod api;
mod event;
mod meter;
mod signature;
mod topup;

pub use api::ApiError;
pub use signature::SignatureError;

use crate::config::{self, Timeouts};
use crate::store::StoreError;
use crate::store::books::Books;
use crate::store::central::audit::{self, Deed};
use crate::store::central::stripe as known;
use crate::store::executor::{Db, Store};
use crate::store::ledger::money::Operation;
use api::Api;
use belay_certs::sha256;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use belay_transport::env::Clock;
use event::{Dispute, Happened, Paid, Refund};
use serde_json::Value;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{error, info, warn};

/// Nano-dollars in a cent.
const CENT: i64 = 10_000_000;
/// The least and the most that is paid at once, in cents.
const LEAST: i64 = 100;
const MOST: i64 = 1_000_000;

/// Why a page to pay at was not made.
#[derive(Debug, Error)]
pub enum CheckoutError {
    /// The amount cannot be paid so.
    #[error("{0}")]
    Amount(String),
    /// Stripe did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a webhook was not taken.
#[derive(Debug, Error)]
pub enum WebhookError {
    /// It is not Stripe's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It makes no sense.
    #[error("the event makes no sense")]
    Malformed,
    /// What has to be asked of Stripe for it cannot be asked now: it is to come again.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It could not be booked: it is to come again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A name for a relay at Stripe, where several share an account: of the certificate (DER) of its authority.
pub(crate) fn relay_name(authority: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&sha256(authority)[..8])
}

/// Payments by Stripe.
#[derive(Debug)]
pub struct Stripe {
    api: Api,
    config: config::Stripe,
    store: Store,
    books: Books,
    clock: Arc<dyn Clock>,
    /// Tells this relay's payments from others' at the same account.
    relay: String,
    /// Held while top-ups and meters are looked at.
    looking: Mutex<()>,
}

impl Stripe {
    /// `relay` names this one at Stripe. Errors: the TLS set-up failed.
    pub(crate) fn new(
        config: config::Stripe,
        timeouts: &Timeouts,
        (store, books): (Store, Books),
        clock: Arc<dyn Clock>,
        relay: String,
    ) -> Result<Arc<Self>, String> {
        let api = Api::new(&config.url, config.key.clone(), timeouts, config.private)?;
        Ok(Arc::new(Self { api, config, store, books, clock, relay, looking: Mutex::default() }))
    }

    async fn central<T: Send + 'static>(
        &self,
        command: impl FnMut(&crate::store::Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.store.run(Db::Central, command).await
    }

    /// The tenant's customer at Stripe, made if there is none.
    async fn customer(&self, tenant: &TenantId) -> Result<known::Customer, CheckoutError> {
        let id = tenant.clone();
        if let Some(customer) = self.central(move |connection| known::customer(connection, &id)).await? {
            return Ok(customer);
        }
        let form = [
            ("name", tenant.to_string()),
            ("metadata[belay_tenant]", tenant.to_string()),
            ("metadata[belay_relay]", self.relay.clone()),
        ];
        let made = self.api.post("/v1/customers", &form, &format!("belay-{}-customer-{tenant}", self.relay)).await?;
        let customer = made.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (id, now_ms) = (tenant.clone(), self.clock.now_ms());
        let known = self.central(move |connection| known::set_customer(connection, &id, &customer, now_ms)).await?;
        known.ok_or_else(|| CheckoutError::Amount("there is no such tenant".into()))
    }

    /// A page where so much can be paid; it is credited once it was.
    pub(crate) async fn checkout(&self, tenant: &TenantId, amount: NanoUsd) -> Result<String, CheckoutError> {
        let cents = amount.0 / CENT;
        if amount.0 % CENT != 0 || !(LEAST..=MOST).contains(&cents) {
            let (least, most) = (NanoUsd(LEAST * CENT), NanoUsd(MOST * CENT));
            return Err(CheckoutError::Amount(format!(
                "{amount} cannot be paid: name whole cents from {least} to {most}"
            )));
        }
        let customer = self.customer(tenant).await?.customer;
        let mut form = vec![
            ("mode", "payment".to_owned()),
            ("customer", customer),
            ("client_reference_id", tenant.to_string()),
            ("line_items[0][quantity]", "1".into()),
            ("line_items[0][price_data][currency]", "usd".into()),
            ("line_items[0][price_data][unit_amount]", cents.to_string()),
            ("line_items[0][price_data][product_data][name]", format!("Balance of {tenant}")),
            ("metadata[belay_tenant]", tenant.to_string()),
            ("metadata[belay_relay]", self.relay.clone()),
            ("payment_intent_data[metadata][belay_tenant]", tenant.to_string()),
            ("payment_intent_data[metadata][belay_relay]", self.relay.clone()),
            ("payment_intent_data[setup_future_usage]", "off_session".into()),
            ("success_url", self.config.success_url.clone()),
        ];
        if let Some(url) = &self.config.cancel_url {
            form.push(("cancel_url", url.clone()));
        }
        // Asked again is another page: whoever asks twice may want two.
        let name = format!("belay-{}-checkout-{tenant}-{cents}-{}", self.relay, self.clock.now_ms());
        let session = self.api.post("/v1/checkout/sessions", &form, &name).await?;
        match session.get("url").and_then(Value::as_str) {
            Some(url) => Ok(url.to_owned()),
            None => Err(ApiError::Unreachable("it made no page".into()).into()),
        }
    }

    /// Errors: whatever its body is, a webhook with that header is not Stripe's of late.
    pub(crate) fn looks_signed(&self, signature: &str) -> Result<(), SignatureError> {
        signature::looks_signed(signature, (self.clock.now_ms(), self.config.tolerance_s))
    }

    /// Takes a webhook. When this returns, what it tells is in the book for good.
    pub(crate) async fn webhook(&self, signature: &str, body: &[u8]) -> Result<(), WebhookError> {
        let now = (self.clock.now_ms(), self.config.tolerance_s);
        signature::check(signature, body, &self.config.webhook_secrets, now)?;
        let event: Value = serde_json::from_slice(body).map_err(|_| WebhookError::Malformed)?;
        let happened = Happened::of(&event).ok_or(WebhookError::Malformed)?;
        match happened {
            Happened::Paid(paid) => self.paid(paid).await,
            Happened::NotPaid { tenant, relay, attempt, why } if self.is_ours(relay.as_deref()) => {
                self.not_paid(tenant, attempt, &why).await
            }
            Happened::NotPaid { .. } => Ok(()),
            Happened::BillPaid { invoice, customer, cents, currency } => {
                self.bill_paid(invoice, customer, cents, &currency).await
            }
            Happened::Refunded(refund) => self.refunded(&refund).await,
            Happened::RefundsOf { charge, payment_intent } => {
                let embedded = event.pointer("/data/object/refunds/data").and_then(Value::as_array);
                let refunds = match embedded {
                    Some(list) if event.pointer("/data/object/refunds/has_more") != Some(&Value::Bool(true)) => {
                        list.clone()
                    }
                    _ => self.refunds_of(&charge).await?,
                };
                for refund in &refunds {
                    // Some leave out what they stand below.
                    let mut refund = refund.clone();
                    if refund.get("payment_intent").is_none_or(Value::is_null) {
                        refund["payment_intent"] = payment_intent.clone().into();
                    }
                    if let Some(refund) = Refund::of(&refund) {
                        self.refunded(&refund).await?;
                    }
                }
                Ok(())
            }
            Happened::Disputed(dispute) => self.disputed(&dispute).await,
            Happened::Other => Ok(()),
        }
    }

    async fn refunds_of(&self, charge: &str) -> Result<Vec<Value>, ApiError> {
        self.api.list(&format!("/v1/refunds?charge={charge}")).await
    }

    /// Credits a payment that belay has asked for.
    async fn paid(&self, paid: Paid) -> Result<(), WebhookError> {
        let Some(tenant) = paid.tenant.as_deref().and_then(|name| name.parse::<TenantId>().ok()) else { return Ok(()) };
        if !self.is_ours(paid.relay.as_deref()) {
            return Ok(());
        }
        if paid.currency != "usd" {
            error!(%tenant, payment = paid.payment_intent, currency = paid.currency, "paid in another currency: not credited");
            return Ok(());
        }
        let amount = nanos(paid.cents);
        let (id, intent, now_ms) = (tenant.clone(), paid.payment_intent.clone(), self.clock.now_ms());
        let method = paid.payment_method.clone();
        let is_known = self
            .central(move |connection| {
                if let Some(method) = &method {
                    known::set_payment_method(connection, &id, method)?;
                }
                known::set_payment(connection, &id, &intent, amount, now_ms)
            })
            .await?;
        if !is_known {
            error!(%tenant, payment = paid.payment_intent, "paid for a tenant that is not here: not credited");
            return Ok(());
        }
        self.book(&tenant, Operation::Credit, amount, paid.payment_intent.clone()).await?;
        if let Some(number) = paid.attempt {
            let id = tenant.clone();
            self.central(move |connection| known::attempted(connection, &id, number, None)).await?;
        }
        info!(%tenant, payment = paid.payment_intent, %amount, "paid");
        Ok(())
    }

    async fn not_paid(&self, tenant: Option<String>, attempt: Option<i64>, why: &str) -> Result<(), WebhookError> {
        let (Some(tenant), Some(number)) = (tenant.and_then(|name| name.parse::<TenantId>().ok()), attempt) else {
            return Ok(());
        };
        self.refused(&tenant, number, why).await?;
        Ok(())
    }

    /// Whose payment it is: as it was credited, or as Stripe knows it, if the credit is still to come. `None`: it is
    /// none of belay's.
    async fn payer(&self, payment_intent: &str) -> Result<Option<TenantId>, WebhookError> {
        let intent = payment_intent.to_owned();
        if let Some(tenant) = self.central(move |connection| known::payment(connection, &intent)).await? {
            return Ok(Some(tenant));
        }
        let intent = match self.api.get(&format!("/v1/payment_intents/{payment_intent}")).await {
            Ok(intent) => intent,
            Err(ApiError::Unknown) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = |pointer: &str| intent.pointer(pointer).and_then(Value::as_str);
        // What was paid in another currency was never credited.
        if !self.is_ours(text("/metadata/belay_relay")) || text("/currency") != Some("usd") {
            return Ok(None);
        }
        let Some(tenant) = text("/metadata/belay_tenant").and_then(|name| name.parse::<TenantId>().ok()) else {
            return Ok(None);
        };
        let id = tenant.clone();
        let found = self.central(move |connection| crate::store::central::tenant(connection, &id)).await?;
        Ok(found.map(|_| tenant))
    }

    /// True for what this relay has asked for, and not another one at the same account.
    fn is_ours(&self, relay: Option<&str>) -> bool {
        relay == Some(&*self.relay)
    }

    /// Credits a bill for metered usage: the tenant was below zero by it. Whatever else a bill was for, it credits no more
    /// than was metered and not billed yet.
    async fn bill_paid(
        &self,
        invoice: String,
        customer: String,
        cents: u64,
        currency: &str,
    ) -> Result<(), WebhookError> {
        let found = self.central(move |connection| known::tenant_of(connection, &customer)).await?;
        let Some(tenant) = found.filter(|_| currency == "usd" && cents > 0) else { return Ok(()) };
        let (id, name) = (tenant.clone(), invoice.clone());
        let open = self.central(move |connection| known::unbilled(connection, &id, &name)).await?;
        // Bills are in whole cents, each rounded by itself.
        let open = NanoUsd(open.0.max(0).saturating_add(CENT));
        let (amount, id, name) = (nanos(cents).min(open), tenant.clone(), invoice.clone());
        if amount < nanos(cents) {
            error!(%tenant, invoice, paid = %nanos(cents), %amount, "a bill was for more than is known to be metered; that much is credited, and the rest is to be looked at: belayd tenant credit");
        }
        // In this order: a bill that counts before its money is there would be metered anew.
        self.book(&tenant, Operation::Credit, amount, invoice).await?;
        Ok(self.central(move |connection| known::billed(connection, &id, &name, amount)).await?)
    }

    async fn refunded(&self, refund: &Refund) -> Result<(), WebhookError> {
        let Some(tenant) = self.payer(&refund.payment_intent).await? else { return Ok(()) };
        let amount = nanos(refund.cents);
        // Also where only its failure is heard of: the two come in any order.
        self.book(&tenant, Operation::Refund, amount, refund.id.clone()).await?;
        if refund.failed {
            self.book(&tenant, Operation::Credit, amount, format!("{} failed", refund.id)).await?;
        }
        Ok(())
    }

    async fn disputed(&self, dispute: &Dispute) -> Result<(), WebhookError> {
        let Some(tenant) = self.payer(&dispute.payment_intent).await? else { return Ok(()) };
        let amount = nanos(dispute.cents);
        self.book(&tenant, Operation::Chargeback, amount, dispute.id.clone()).await?;
        if dispute.won {
            self.book(&tenant, Operation::Credit, amount, format!("{} won", dispute.id)).await?;
        }
        warn!(%tenant, dispute = dispute.id, %amount, won = dispute.won, "a payment is disputed");
        Ok(())
    }

    /// Moves money under Stripe's name for it.
    async fn book(&self, tenant: &TenantId, what: Operation, amount: NanoUsd, name: String) -> Result<(), StoreError> {
        if amount <= NanoUsd::ZERO {
            return Ok(());
        }
        let action = match what {
            Operation::Credit => "money.credit",
            Operation::Refund => "money.refund",
            Operation::Chargeback => "money.chargeback",
        };
        let deed =
            Deed::of("stripe".into(), action, Some(tenant)).on(format!("stripe {name}")).with(amount.to_string());
        let now_ms = self.clock.now_ms();
        // Stripe tells the same again and again.
        self.store.run(Db::Central, move |connection| audit::note_once(connection, &deed, now_ms)).await?;
        let moved = self.books.operate(tenant, what, amount, (format!("stripe {name}"), None)).await;
        match moved {
            Ok(_) => Ok(()),
            // It stands there already, with another amount: nothing that a repetition would put right.
            Err(StoreError::Failed { operation: "move money", why }) => {
                error!(%tenant, name, %amount, why, "Stripe tells another amount than before; the first one stays");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn nanos(cents: u64) -> NanoUsd {
    NanoUsd(i64::try_from(cents).unwrap_or(i64::MAX / CENT).saturating_mul(CENT))
}
