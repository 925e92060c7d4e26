-- What is known of tenants at Stripe. Money itself is in the tenants' own books, under Stripe's names for it.
CREATE TABLE stripe_customer (
    tenant TEXT PRIMARY KEY REFERENCES tenant(id),
    customer TEXT NOT NULL UNIQUE,
    -- That of the last payment, where its payer let it be kept.
    payment_method TEXT,
    created_ms INTEGER NOT NULL
) STRICT;
-- Payments that were credited: refunds and disputes name them, and not the tenant.
CREATE TABLE stripe_payment (
    payment_intent TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant(id),
    amount_nano INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE auto_topup (
    tenant TEXT PRIMARY KEY REFERENCES tenant(id),
    threshold_nano INTEGER NOT NULL,
    amount_nano INTEGER NOT NULL,
    monthly_cap_nano INTEGER NOT NULL,
    -- After a refusal, not before then.
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    last_error TEXT NOT NULL DEFAULT ''
) STRICT;
-- Each is written down before Stripe is asked, and asked under its own name until the answer is known.
CREATE TABLE auto_topup_attempt (
    tenant TEXT NOT NULL REFERENCES tenant(id),
    number INTEGER NOT NULL,
    month INTEGER NOT NULL,
    amount_nano INTEGER NOT NULL,
    -- 0: not known yet, 1: paid, 2: refused.
    state INTEGER NOT NULL DEFAULT 0,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, number)
) STRICT;
-- What tenants owe that pay later, on its way to Stripe's meter.
CREATE TABLE stripe_meter (
    identifier TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant(id),
    customer TEXT NOT NULL,
    value_nano INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    -- 0: to be sent, 1: sent.
    state INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX stripe_meter_waiting ON stripe_meter(at_ms) WHERE state = 0;
-- Bills for it that were paid.
CREATE TABLE stripe_bill (
    invoice TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenant(id),
    amount_nano INTEGER NOT NULL
) STRICT;
