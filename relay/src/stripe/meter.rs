//! The meter of tenants that pay later: those with a ceiling, for what they are below zero.
//!
//! What is prepaid is never metered, nor what is only set aside. A row is what a tenant owes beyond what was metered before
//! and not paid yet; a bill that is paid is credited like any payment.

use super::{ApiError, Stripe, WebhookError};
use crate::store::central::stripe::{self as known, Metered};
use belay_protocol::money::NanoUsd;
use std::collections::HashSet;
use tracing::warn;

/// Rows that are sent in a turn.
const TURN: u32 = 100;

impl Stripe {
    /// Puts what is owed into the outbox, and sends what waits there.
    pub(super) async fn send_meters(&self) -> Result<(), WebhookError> {
        let Some(event) = self.config.meter_event.clone() else { return Ok(()) };
        for owing in self.central(known::owing).await? {
            let summary = self.books.summary(&owing.tenant).await?;
            let due = NanoUsd::ZERO - summary.owned() - owing.metered + owing.billed;
            if due > NanoUsd::ZERO {
                let now_ms = self.clock.now_ms();
                self.central(move |connection| known::meter(connection, &owing, due, now_ms)).await?;
            }
        }
        self.send_waiting(&event).await
    }

    /// Sends what waits. One customer that Stripe does not take anything for holds up nobody else.
    async fn send_waiting(&self, event: &str) -> Result<(), WebhookError> {
        let (mut outcome, mut refused, mut after) = (Ok(()), HashSet::new(), None);
        loop {
            let from = after.take();
            let rows = self.central(move |connection| known::unmetered(connection, from.as_ref(), TURN)).await?;
            let Some(last) = rows.last() else { return outcome };
            after = Some(last.clone());
            for row in rows {
                if refused.contains(&row.customer) {
                    continue;
                }
                match self.send(event, &row).await {
                    Ok(()) => self.central(move |connection| known::sent(connection, &row.identifier)).await?,
                    Err(error @ ApiError::Unreachable(_)) => return Err(error.into()),
                    // Whatever else it is, the usage stays here until it is taken.
                    Err(error) => {
                        warn!(identifier = row.identifier, %error, "usage waits for Stripe's meter");
                        outcome = Err(error.into());
                        refused.insert(row.customer);
                    }
                }
            }
        }
    }

    async fn send(&self, event: &str, row: &Metered) -> Result<(), ApiError> {
        let form = [
            ("event_name", event.to_owned()),
            ("identifier", format!("belay-{}-{}", self.relay, row.identifier)),
            ("timestamp", (row.at_ms / 1000).to_string()),
            ("payload[stripe_customer_id]", row.customer.clone()),
            ("payload[value]", row.value.0.to_string()),
        ];
        let name = format!("belay-{}-meter-{}", self.relay, row.identifier);
        match self.api.post("/v1/billing/meter_events", &form, &name).await {
            Ok(_) => Ok(()),
            // It has it already: the answer was lost, and more than a day is over.
            Err(ApiError::Ours { code, .. }) if code == "resource_already_exists" => Ok(()),
            Err(error) => Err(error),
        }
    }
}
