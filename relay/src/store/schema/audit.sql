-- What operators, payments and devices did to access and money, append only.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    -- operator, device:NAME, key:ID, stripe or relay.
    actor TEXT NOT NULL,
    -- As tenant.create.
    action TEXT NOT NULL,
    -- Whom it concerns; empty: nobody in particular.
    tenant TEXT NOT NULL,
    -- A device, a key, an operation.
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_tenant ON audit(tenant, id);
CREATE INDEX audit_subject ON audit(subject, action);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
