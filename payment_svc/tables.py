"""Tables of payment_svc. Only the sandbox provider uses those named sandbox_*.

Each invariant is a named constraint, in addition to the statements that keep it.
"""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.database import NAMING
from mesh.db.idempotent import idempotency_table
from mesh.db.outbox import outbox_table

metadata = sa.MetaData(naming_convention=NAMING)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _currency() -> sa.CheckConstraint:
    return sa.CheckConstraint("currency_code ~ '^[A-Z]{3}$'", name="currency_code")


payments = sa.Table(
    "payments",
    metadata,
    sa.Column("payment_id", sa.Uuid, primary_key=True),
    sa.Column("booking_id", sa.Uuid, nullable=False),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    # Of the accepted capture. Refunds of other captures are counted on their own rows.
    sa.Column("refunded_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("success_url", sa.Text, nullable=False),
    sa.Column("cancel_url", sa.Text, nullable=False),
    sa.Column("provider_reference", sa.Text),
    sa.Column("payment_url", sa.Text),
    sa.Column("method", sa.Text),
    sa.Column("failure_code", sa.Text),
    # The provider's time of the latest applied report. Older reports have no effect.
    _time("observed_time", nullable=True),
    _time("create_time"),
    _time("update_time"),
    # The event of the booking, if the caller gives it. The ledger groups by it.
    sa.Column("event_id", sa.Uuid),
    # The provider's id of an authorisation that is not captured.
    sa.Column("authorization_reference", sa.Text),
    # Time of the next check at the provider, and the number of checks.
    _time("check_time", nullable=True),
    sa.Column("checks", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("embedded", sa.Boolean, nullable=False, server_default=sa.text("false")),
    # Of an embedded payment, while it can be paid.
    sa.Column("client_secret", sa.Text),
    # Of the customer, until the payment is opened at its provider.
    sa.Column("customer_email", sa.Text),
    sa.Column("customer_phone", sa.Text),
    _time("expire_time", nullable=True),
    sa.UniqueConstraint("provider", "provider_reference"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint(
        "status IN ('CREATED', 'AUTHORIZED', 'CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED',"
        " 'FAILED', 'VOIDED')",
        name="status",
    ),
    sa.CheckConstraint("refunded_minor >= 0 AND refunded_minor <= amount_minor", name="refunded"),
    sa.CheckConstraint(
        "(status = 'REFUNDED') = (refunded_minor = amount_minor)", name="fully_refunded"
    ),
    sa.CheckConstraint(
        "(status = 'PARTIALLY_REFUNDED') = (refunded_minor > 0 AND refunded_minor < amount_minor)",
        name="partially_refunded",
    ),
    sa.CheckConstraint(
        "check_time IS NULL OR status IN ('CREATED', 'AUTHORIZED', 'FAILED')",
        name="checked_until_final",
    ),
    sa.Index("payments_booking_id_idx", "booking_id"),
    sa.Index(
        "payments_check_time_idx", "check_time", postgresql_where=sa.text("check_time IS NOT NULL")
    ),
)

# Every capture of a payment by a provider. At most one capture of a payment is ACCEPTED; the
# others are refunded in full.
captures = sa.Table(
    "captures",
    metadata,
    sa.Column("capture_id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payments.payment_id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("provider_reference", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    # The amounts of all refunds, and of the completed ones.
    sa.Column("refunding_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("refunded_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # Refunds that staff paid outside of the provider.
    sa.Column("settled_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # Taken by the customer's bank: disputes that are open or lost.
    sa.Column("disputed_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    _time("create_time"),
    # The provider's time of the capture. Days are compared by it.
    _time("event_time", nullable=True),
    sa.UniqueConstraint("provider", "provider_reference"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint(
        "verdict IN ('ACCEPTED', 'MISMATCHED', 'SECOND', 'AFTER_VOID')", name="verdict"
    ),
    sa.CheckConstraint(
        "refunding_minor >= 0 AND refunding_minor <= amount_minor", name="refunding"
    ),
    sa.CheckConstraint(
        "refunded_minor >= 0 AND refunded_minor <= refunding_minor", name="refunded"
    ),
    sa.CheckConstraint("settled_minor >= 0 AND settled_minor <= amount_minor", name="settled"),
    sa.CheckConstraint("disputed_minor >= 0 AND disputed_minor <= amount_minor", name="disputed"),
    sa.Index(
        "captures_one_accepted_key",
        "payment_id",
        unique=True,
        postgresql_where=sa.text("verdict = 'ACCEPTED'"),
    ),
    sa.Index("captures_payment_id_idx", "payment_id"),
    sa.Index("captures_event_time_idx", "event_time"),
)

# Every attempt to pay that a provider declined, once.
declined_attempts = sa.Table(
    "declined_attempts",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payments.payment_id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    # The provider's id of the attempt.
    sa.Column("provider_reference", sa.Text, nullable=False),
    sa.Column("failure_code", sa.Text, nullable=False),
    _time("decline_time"),
    _time("create_time"),
    sa.UniqueConstraint("provider", "provider_reference"),
    sa.Index("declined_attempts_payment_id_idx", "payment_id"),
)

refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("refund_id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payments.payment_id"), nullable=False),
    sa.Column("capture_id", sa.Uuid, sa.ForeignKey("captures.capture_id"), nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # The number of attempts, and of those that the provider rejected.
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("refusals", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("provider_reference", sa.Text),
    sa.Column("failure_code", sa.Text),
    _time("due_time", nullable=True),
    _time("create_time"),
    _time("update_time"),
    # The provider's time of completion.
    _time("event_time", nullable=True),
    # The provider's ids of attempts that failed: a late report of their success is outdated.
    sa.Column(
        "failed_references",
        postgresql.ARRAY(sa.Text),
        nullable=False,
        server_default=sa.text("'{}'"),
    ),
    # How often it failed after it was completed.
    sa.Column("reversals", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Written by staff who settled it outside of the provider.
    sa.Column("note", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint(
        "status IN ('PENDING', 'PROCESSED', 'FAILED', 'SETTLED_ELSEWHERE', 'CANCELLED')",
        name="status",
    ),
    # A refund without a due time is not attempted: it has ended, waits for staff, or was made at
    # the provider.
    sa.CheckConstraint(
        "due_time IS NULL OR status IN ('PENDING', 'FAILED')", name="due_while_open"
    ),
    sa.CheckConstraint("(status = 'SETTLED_ELSEWHERE') <= (note <> '')", name="settled_has_note"),
    sa.Index("refunds_due_time_idx", "due_time", postgresql_where=sa.text("due_time IS NOT NULL")),
    sa.Index(
        "refunds_for_staff_idx",
        "refund_id",
        postgresql_where=sa.text("status = 'FAILED' AND due_time IS NULL"),
    ),
    sa.Index("refunds_payment_id_idx", "payment_id"),
    sa.Index("refunds_provider_reference_idx", "provider_reference"),
    sa.Index("refunds_event_time_idx", "event_time"),
    sa.Index("refunds_capture_id_idx", "capture_id"),
)

# Captures that the customer's bank contests. Staff answer them at the provider.
disputes = sa.Table(
    "disputes",
    metadata,
    sa.Column("dispute_id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payments.payment_id"), nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("provider_reference", sa.Text, nullable=False),
    sa.Column("capture_reference", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    _time("create_time"),
    _time("update_time"),
    sa.UniqueConstraint("provider", "provider_reference"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint(
        "status IN ('INQUIRY', 'INQUIRY_CLOSED', 'OPEN', 'WON', 'LOST')", name="status"
    ),
    sa.Index("disputes_payment_id_idx", "payment_id"),
)

# Webhooks of providers, written in the transaction of their effect. The payload contains
# personal data: it is kept as evidence for disputes and never logged.
webhook_inbox = sa.Table(
    "webhook_inbox",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("provider_event_id", sa.Text, primary_key=True),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    _time("receive_time"),
    sa.CheckConstraint(
        "outcome IN ('APPLIED', 'UNCHANGED', 'UNKNOWN_TYPE', 'UNEXPLAINED')", name="outcome"
    ),
    sa.CheckConstraint("sha256 = sha256(payload)", name="sha256"),
    sa.Index("webhook_inbox_receive_time_idx", "receive_time"),
    sa.Index(
        "webhook_inbox_unexplained_idx",
        "receive_time",
        postgresql_where=sa.text("outcome = 'UNEXPLAINED'"),
    ),
)

# Webhooks of other senders, unchanged, once each.
inbound_webhooks = sa.Table(
    "inbound_webhooks",
    metadata,
    sa.Column("inbound_id", sa.Uuid, primary_key=True),
    sa.Column("sender", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    _time("receive_time"),
    sa.UniqueConstraint("sender", "sha256"),
    sa.CheckConstraint("sha256 = sha256(body)", name="sha256"),
    sa.Index("inbound_webhooks_receive_time_idx", "receive_time"),
)

# Webhooks and movements that match no record, once each. `unexplained` is their contract name.
unmatched_items = sa.Table(
    "unexplained",
    metadata,
    sa.Column("unexplained_id", sa.Uuid, primary_key=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid),
    sa.Column("amount_minor", sa.BigInteger),
    sa.Column("currency_code", sa.Text),
    sa.Column("note", sa.Text, nullable=False, server_default=sa.text("''")),
    _time("create_time"),
    _time("close_time", nullable=True),
    sa.UniqueConstraint("provider", "kind", "reference"),
    sa.CheckConstraint(
        "kind IN ('WEBHOOK', 'CAPTURE', 'REFUND', 'OTHER_AMOUNT', 'MISSING_CAPTURE',"
        " 'MISSING_REFUND')",
        name="kind",
    ),
    sa.Index(
        "unexplained_open_idx", "unexplained_id", postgresql_where=sa.text("close_time IS NULL")
    ),
)

# Days that were compared with a provider, and their totals of both sides.
compared_days = sa.Table(
    "compared_days",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    _time("compare_time"),
)
provider_days = sa.Table(
    "provider_days",
    metadata,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("currency_code", sa.Text, primary_key=True),
    sa.Column("provider_minor", sa.BigInteger, nullable=False),
    sa.Column("our_minor", sa.BigInteger, nullable=False),
    sa.CheckConstraint("kind IN ('CAPTURE', 'REFUND')", name="kind"),
)

# The double-entry ledger. Triggers keep it append-only, and balanced at each commit.
book_entries = sa.Table(
    "book_entries",
    metadata,
    # Derived from the capture, refund or dispute, so that it is posted once.
    sa.Column("entry_id", sa.Uuid, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payments.payment_id"), nullable=False),
    sa.Column("event_id", sa.Uuid),
    sa.Column("day", sa.Date, nullable=False),
    _time("create_time"),
    sa.CheckConstraint(
        "kind IN ('CAPTURE', 'REFUND', 'FEE', 'DISPUTE', 'SETTLEMENT')", name="kind"
    ),
    sa.Index("book_entries_day_idx", "day"),
    sa.Index("book_entries_event_id_idx", "event_id"),
)
book_lines = sa.Table(
    "book_lines",
    metadata,
    sa.Column("entry_id", sa.Uuid, sa.ForeignKey("book_entries.entry_id"), primary_key=True),
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("currency_code", sa.Text, primary_key=True),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount_minor <> 0", name="amount"),
    _currency(),
    sa.CheckConstraint(
        "account IN ('PROVIDER', 'EVENT', 'FEES', 'SUSPENSE', 'DISPUTED', 'ELSEWHERE')",
        name="account",
    ),
)

outbox = outbox_table(metadata)
idempotency_records = idempotency_table(metadata)

sandbox_payments = sa.Table(
    "sandbox_payments",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    # The merchant's id of the payment: also the idempotency key of opening it.
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    sa.Column("captured_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("refunded_minor", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("success_url", sa.Text, nullable=False),
    sa.Column("cancel_url", sa.Text, nullable=False),
    _time("create_time"),
    _time("update_time"),
    # Time of the last declined attempt.
    _time("decline_time", nullable=True),
    # Shown on the page while the session is open.
    sa.Column("customer_email", sa.Text),
    sa.Column("customer_phone", sa.Text),
    sa.UniqueConstraint("payment_id"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint("state IN ('OPEN', 'PAID', 'VOIDED')", name="state"),
    sa.CheckConstraint("(state = 'PAID') = (captured_minor > 0)", name="paid"),
    sa.CheckConstraint("refunded_minor >= 0 AND refunded_minor <= captured_minor", name="refunded"),
)

# Append-only by a trigger. Tests compare the merchant's records with it.
sandbox_ledger = sa.Table(
    "sandbox_ledger",
    metadata,
    sa.Column("entry_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("session_id", sa.Text, sa.ForeignKey("sandbox_payments.session_id"), nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    # The sandbox's own id of the capture or refund.
    sa.Column("reference", sa.Text, nullable=False),
    # The merchant's key of a refund. A repetition of it moves no money.
    sa.Column("idempotency_key", sa.Text),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.Text, nullable=False),
    _time("create_time"),
    sa.UniqueConstraint("reference"),
    sa.UniqueConstraint("idempotency_key"),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    _currency(),
    sa.CheckConstraint("kind IN ('CAPTURE', 'REFUND')", name="kind"),
    sa.CheckConstraint("(kind = 'REFUND') = (idempotency_key IS NOT NULL)", name="refund_has_key"),
    sa.Index("sandbox_ledger_session_id_idx", "session_id"),
    sa.Index("sandbox_ledger_create_time_idx", "create_time"),
)

# Scripted faults of a payment, with the number of times that each still occurs.
sandbox_faults = sa.Table(
    "sandbox_faults",
    metadata,
    sa.Column("fault_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("fault", sa.Text, nullable=False),
    sa.Column("remaining", sa.Integer, nullable=False),
    _time("create_time"),
    sa.CheckConstraint("remaining >= 0", name="remaining"),
    sa.Index("sandbox_faults_payment_id_idx", "payment_id"),
)

# Queued webhooks. `due_time` is null when delivered or when the last retry failed.
sandbox_webhooks = sa.Table(
    "sandbox_webhooks",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("payment_id", sa.Uuid),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    # Result of the last attempt, e.g. `503` or `ConnectError`.
    sa.Column("last_answer", sa.Text),
    _time("due_time", nullable=True),
    _time("deliver_time", nullable=True),
    _time("create_time"),
    sa.CheckConstraint("deliver_time IS NULL OR due_time IS NULL", name="delivered_once"),
    sa.Index(
        "sandbox_webhooks_due_time_idx",
        "due_time",
        postgresql_where=sa.text("due_time IS NOT NULL"),
    ),
)
