//! What a webhook tells.

use serde_json::Value;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Happened {
    /// Money was paid.
    Paid(Paid),
    /// It was tried, and refused.
    NotPaid { tenant: Option<String>, relay: Option<String>, attempt: Option<i64>, why: String },
    /// Of a payment, something was given back.
    Refunded(Refund),
    /// The same, but which refunds these are has to be asked for.
    RefundsOf { charge: String, payment_intent: String },
    /// A payment was taken back by its payer, or that has come to nothing.
    Disputed(Dispute),
    /// The bill for what a tenant was to pay later was paid.
    BillPaid { invoice: String, customer: String, cents: u64, currency: String },
    /// Nothing of interest here.
    Other,
}

/// A payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paid {
    pub(super) payment_intent: String,
    /// As it was named when the payment was asked for; `None`: it was not belay that asked.
    pub(super) tenant: Option<String>,
    /// Which relay has asked.
    pub(super) relay: Option<String>,
    pub(super) cents: u64,
    pub(super) currency: String,
    pub(super) payment_method: Option<String>,
    pub(super) attempt: Option<i64>,
}

/// Something that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refund {
    pub(super) id: String,
    pub(super) payment_intent: String,
    pub(super) cents: u64,
    /// It came to nothing.
    pub(super) failed: bool,
}

/// A payer's complaint at his bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dispute {
    pub(super) id: String,
    pub(super) payment_intent: String,
    pub(super) cents: u64,
    /// The money is back.
    pub(super) won: bool,
}

fn text(object: &Value, pointer: &str) -> Option<String> {
    object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The id of something that may stand there whole.
fn id(object: &Value, name: &str) -> Option<String> {
    text(object, &format!("/{name}")).or_else(|| text(object, &format!("/{name}/id")))
}

fn cents(object: &Value, name: &str) -> Option<u64> {
    object.get(name).and_then(Value::as_u64)
}

impl Refund {
    pub(super) fn of(object: &Value) -> Option<Self> {
        let status = text(object, "/status").unwrap_or_default();
        Some(Self {
            id: text(object, "/id")?,
            payment_intent: id(object, "payment_intent")?,
            cents: cents(object, "amount")?,
            failed: matches!(status.as_str(), "failed" | "canceled"),
        })
    }
}

impl Happened {
    /// What an event says; `None`: it makes no sense.
    pub(super) fn of(event: &Value) -> Option<Self> {
        let kind = event.get("type")?.as_str()?;
        let object = event.pointer("/data/object")?;
        let attempt = || text(object, "/metadata/belay_attempt").and_then(|number| number.parse().ok());
        let tenant = || text(object, "/metadata/belay_tenant");
        let relay = || text(object, "/metadata/belay_relay");
        Some(match kind {
            "checkout.session.completed" | "checkout.session.async_payment_succeeded" => {
                let is_paid = text(object, "/payment_status").as_deref() == Some("paid");
                if !is_paid || text(object, "/mode").is_some_and(|mode| mode != "payment") {
                    return Some(Self::Other);
                }
                Self::Paid(Paid {
                    payment_intent: id(object, "payment_intent")?,
                    tenant: tenant(),
                    relay: relay(),
                    cents: cents(object, "amount_total")?,
                    currency: text(object, "/currency")?,
                    payment_method: None,
                    attempt: None,
                })
            }
            "payment_intent.succeeded" => Self::Paid(Paid {
                payment_intent: text(object, "/id")?,
                tenant: tenant(),
                relay: relay(),
                cents: cents(object, "amount_received").or_else(|| cents(object, "amount"))?,
                currency: text(object, "/currency")?,
                payment_method: id(object, "payment_method"),
                attempt: attempt(),
            }),
            "payment_intent.payment_failed" => Self::NotPaid {
                tenant: tenant(),
                relay: relay(),
                attempt: attempt(),
                why: text(object, "/last_payment_error/message").unwrap_or_else(|| "the payment was refused".into()),
            },
            "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => {
                // One without a payment is none of ours.
                Refund::of(object).map_or(Self::Other, Self::Refunded)
            }
            "charge.refunded" => match (text(object, "/id"), id(object, "payment_intent")) {
                (Some(charge), Some(payment_intent)) => Self::RefundsOf { charge, payment_intent },
                _ => Self::Other,
            },
            "charge.dispute.created"
            | "charge.dispute.funds_withdrawn"
            | "charge.dispute.funds_reinstated"
            | "charge.dispute.closed" => {
                let status = text(object, "/status").unwrap_or_default();
                let closed = kind == "charge.dispute.closed";
                // An inquiry takes no money; one that is closed without being won leaves things as they are.
                if status.starts_with("warning") || closed && status != "won" {
                    return Some(Self::Other);
                }
                let Some(payment_intent) = id(object, "payment_intent") else { return Some(Self::Other) };
                Self::Disputed(Dispute {
                    id: text(object, "/id")?,
                    payment_intent,
                    cents: cents(object, "amount")?,
                    won: closed || kind == "charge.dispute.funds_reinstated",
                })
            }
            "invoice.paid" => match (text(object, "/id"), id(object, "customer"), text(object, "/currency")) {
                (Some(invoice), Some(customer), Some(currency)) => {
                    // Tax is nobody's credit.
                    let paid = cents(object, "amount_paid")?;
                    let cents = cents(object, "total_excluding_tax").map_or(paid, |total| total.min(paid));
                    Self::BillPaid { invoice, customer, cents, currency }
                }
                _ => Self::Other,
            },
            _ => Self::Other,
        })
    }
}
