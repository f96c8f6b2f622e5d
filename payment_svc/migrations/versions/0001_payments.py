"""Payments, captures, refunds, the webhook inbox, and the sandbox provider's own tables."""

import sqlalchemy as sa
from alembic import op

from mesh.db import outbox_trigger
from mesh.db.outbox import Xid8

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_APPEND_ONLY = """
CREATE FUNCTION refuse_sandbox_ledger_change() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'sandbox_ledger is append-only'; END $$;
CREATE TRIGGER sandbox_ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON sandbox_ledger
FOR EACH STATEMENT EXECUTE FUNCTION refuse_sandbox_ledger_change();
"""


def upgrade() -> None:
    _create_payments()
    _create_captures()
    _create_refunds()
    _create_messages()
    _create_sandbox()
    _create_sandbox_ledger()
    op.execute(outbox_trigger.CREATE)
    op.execute(_APPEND_ONLY)


def _create_payments() -> None:
    op.create_table(
        "payments",
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("customer_id", sa.UUID(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("success_url", sa.Text(), nullable=False),
        sa.Column("cancel_url", sa.Text(), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=True),
        sa.Column("payment_url", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("observed_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(status = 'PARTIALLY_REFUNDED') = (refunded_minor > 0 AND refunded_minor < amount_minor)",
            name=op.f("payments_partially_refunded_check"),
        ),
        sa.CheckConstraint(
            "(status = 'REFUNDED') = (refunded_minor = amount_minor)",
            name=op.f("payments_fully_refunded_check"),
        ),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("payments_currency_code_check")
        ),
        sa.CheckConstraint(
            "status IN ('CREATED', 'AUTHORIZED', 'CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'FAILED', 'VOIDED')",
            name=op.f("payments_status_check"),
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("payments_amount_check")),
        sa.CheckConstraint(
            "refunded_minor >= 0 AND refunded_minor <= amount_minor",
            name=op.f("payments_refunded_check"),
        ),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("payments_pkey")),
        sa.UniqueConstraint(
            "provider", "provider_reference", name=op.f("payments_provider_provider_reference_key")
        ),
    )
    op.create_index("payments_booking_id_idx", "payments", ["booking_id"], unique=False)


def _create_captures() -> None:
    op.create_table(
        "captures",
        sa.Column("capture_id", sa.UUID(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("refunding_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("captures_currency_code_check")
        ),
        sa.CheckConstraint(
            "verdict IN ('ACCEPTED', 'MISMATCHED', 'SECOND', 'AFTER_VOID')",
            name=op.f("captures_verdict_check"),
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("captures_amount_check")),
        sa.CheckConstraint(
            "refunded_minor >= 0 AND refunded_minor <= refunding_minor",
            name=op.f("captures_refunded_check"),
        ),
        sa.CheckConstraint(
            "refunding_minor >= 0 AND refunding_minor <= amount_minor",
            name=op.f("captures_refunding_check"),
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.payment_id"], name=op.f("captures_payment_id_fkey")
        ),
        sa.PrimaryKeyConstraint("capture_id", name=op.f("captures_pkey")),
        sa.UniqueConstraint(
            "provider", "provider_reference", name=op.f("captures_provider_provider_reference_key")
        ),
    )
    op.create_index(
        "captures_one_accepted_key",
        "captures",
        ["payment_id"],
        unique=True,
        postgresql_where=sa.text("verdict = 'ACCEPTED'"),
    )
    op.create_index("captures_payment_id_idx", "captures", ["payment_id"], unique=False)


def _create_refunds() -> None:
    op.create_table(
        "refunds",
        sa.Column("refund_id", sa.UUID(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("capture_id", sa.UUID(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("refusals", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(status = 'PROCESSED') = (due_time IS NULL)",
            name=op.f("refunds_due_until_processed_check"),
        ),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("refunds_currency_code_check")
        ),
        sa.CheckConstraint(
            "status IN ('PENDING', 'PROCESSED', 'FAILED')", name=op.f("refunds_status_check")
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("refunds_amount_check")),
        sa.ForeignKeyConstraint(
            ["capture_id"], ["captures.capture_id"], name=op.f("refunds_capture_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.payment_id"], name=op.f("refunds_payment_id_fkey")
        ),
        sa.PrimaryKeyConstraint("refund_id", name=op.f("refunds_pkey")),
    )
    op.create_index("refunds_capture_id_idx", "refunds", ["capture_id"], unique=False)
    op.create_index(
        "refunds_due_time_idx",
        "refunds",
        ["due_time"],
        unique=False,
        postgresql_where=sa.text("due_time IS NOT NULL"),
    )
    op.create_index("refunds_payment_id_idx", "refunds", ["payment_id"], unique=False)


def _create_messages() -> None:
    op.create_table(
        "webhook_inbox",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("receive_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('APPLIED', 'UNCHANGED', 'UNKNOWN_TYPE', 'UNEXPLAINED')",
            name=op.f("webhook_inbox_outcome_check"),
        ),
        sa.CheckConstraint("sha256 = sha256(payload)", name=op.f("webhook_inbox_sha256_check")),
        sa.PrimaryKeyConstraint("provider", "provider_event_id", name=op.f("webhook_inbox_pkey")),
    )
    op.create_index(
        "webhook_inbox_receive_time_idx", "webhook_inbox", ["receive_time"], unique=False
    )
    op.create_index(
        "webhook_inbox_unexplained_idx",
        "webhook_inbox",
        ["receive_time"],
        unique=False,
        postgresql_where=sa.text("outcome = 'UNEXPLAINED'"),
    )
    op.create_table(
        "outbox",
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "transaction_id", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False
        ),
        sa.Column("aggregate_id", sa.UUID(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("outbox_pkey")),
    )
    op.create_index(
        "outbox_transaction_id_sequence_idx", "outbox", ["transaction_id", "sequence"], unique=False
    )
    op.create_table(
        "idempotency_records",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("resource_id", sa.UUID(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("idempotency_records_pkey")),
    )
    op.create_index(
        "idempotency_records_create_time_idx", "idempotency_records", ["create_time"], unique=False
    )


def _create_sandbox() -> None:
    op.create_table(
        "sandbox_payments",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("captured_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("success_url", sa.Text(), nullable=False),
        sa.Column("cancel_url", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(state = 'PAID') = (captured_minor > 0)", name=op.f("sandbox_payments_paid_check")
        ),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("sandbox_payments_currency_code_check")
        ),
        sa.CheckConstraint(
            "state IN ('OPEN', 'PAID', 'VOIDED')", name=op.f("sandbox_payments_state_check")
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("sandbox_payments_amount_check")),
        sa.CheckConstraint(
            "refunded_minor >= 0 AND refunded_minor <= captured_minor",
            name=op.f("sandbox_payments_refunded_check"),
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("sandbox_payments_pkey")),
        sa.UniqueConstraint("payment_id", name=op.f("sandbox_payments_payment_id_key")),
    )


def _create_sandbox_ledger() -> None:
    op.create_table(
        "sandbox_ledger",
        sa.Column("entry_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(kind = 'REFUND') = (idempotency_key IS NOT NULL)",
            name=op.f("sandbox_ledger_refund_has_key_check"),
        ),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("sandbox_ledger_currency_code_check")
        ),
        sa.CheckConstraint("kind IN ('CAPTURE', 'REFUND')", name=op.f("sandbox_ledger_kind_check")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("sandbox_ledger_amount_check")),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sandbox_payments.session_id"],
            name=op.f("sandbox_ledger_session_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("sandbox_ledger_pkey")),
        sa.UniqueConstraint("idempotency_key", name=op.f("sandbox_ledger_idempotency_key_key")),
        sa.UniqueConstraint("reference", name=op.f("sandbox_ledger_reference_key")),
    )
    op.create_index("sandbox_ledger_session_id_idx", "sandbox_ledger", ["session_id"], unique=False)
    op.create_table(
        "sandbox_webhooks",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_answer", sa.Text(), nullable=True),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deliver_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "deliver_time IS NULL OR due_time IS NULL",
            name=op.f("sandbox_webhooks_delivered_once_check"),
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("sandbox_webhooks_pkey")),
    )
    op.create_index(
        "sandbox_webhooks_due_time_idx",
        "sandbox_webhooks",
        ["due_time"],
        unique=False,
        postgresql_where=sa.text("due_time IS NOT NULL"),
    )
