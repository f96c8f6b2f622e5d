"""The bookings' tables. Each invariant is a named constraint, too."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR, UUID

# The foreign keys to events need its table.
from booking_svc.catalogue import tables as _catalogue  # noqa: F401
from booking_svc.tables import metadata
from mesh.observability import request_context

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

bookings = sa.Table(
    "bookings",
    metadata,
    sa.Column("booking_id", _Uuid, primary_key=True),
    sa.Column("event_id", _Uuid, sa.ForeignKey("events.event_id"), nullable=False),
    sa.Column("customer_id", _Uuid, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("hold_expire_time", _Time, nullable=False),
    # In the ledger: the booking's own id, or another one after a late payment or a change.
    sa.Column("reservation_id", _Uuid, nullable=False, unique=True),
    sa.Column("payment_id", _Uuid, unique=True),
    sa.Column("payment_provider", sa.Text),
    sa.Column("payment_status", sa.Text),
    sa.Column("payment_url", sa.Text),
    # Of an embedded payment.
    sa.Column("payment_client_secret", sa.Text),
    # When reconciliation asks payment_svc about the payment, in case its event never arrives.
    sa.Column("payment_check_time", _Time),
    sa.Column("cancellation_policy", JSONB, nullable=False),
    # The limit of later refunds: what the policy granted when the booking was last rescheduled.
    sa.Column("max_refund_percent", sa.Integer, nullable=False, server_default="100"),
    sa.Column("attendees", JSONB, nullable=False, server_default="[]"),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.Column("confirm_time", _Time),
    sa.CheckConstraint(
        "status IN ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'COMPLETED', 'EXPIRED', 'CANCELLED',"
        " 'FAILED')",
        name="status",
    ),
    sa.CheckConstraint(
        "payment_status IN ('CREATED', 'CAPTURED', 'FAILED', 'VOIDED', 'REFUNDED')",
        name="payment_status",
    ),
    sa.CheckConstraint("total_minor >= 0", name="total"),
    # Nothing is sold unpaid: a confirmed booking is free or its payment was captured.
    sa.CheckConstraint(
        "status NOT IN ('CONFIRMED', 'COMPLETED') OR total_minor = 0"
        " OR payment_status IN ('CAPTURED', 'REFUNDED')",
        name="confirmed_is_paid",
    ),
    sa.CheckConstraint(
        "(status IN ('CONFIRMED', 'COMPLETED')) <= (confirm_time IS NOT NULL)",
        name="confirmed_has_time",
    ),
    # Rows are appended in the order of time: an index of a few pages is enough.
    sa.Index("bookings_create_time_idx", "create_time", postgresql_using="brin"),
    sa.Index("bookings_customer_id_booking_id_idx", "customer_id", "booking_id"),
    sa.Index("bookings_event_id_booking_id_idx", "event_id", "booking_id"),
    sa.Index(
        "bookings_hold_expire_time_idx",
        "hold_expire_time",
        postgresql_where=sa.text("status IN ('HELD', 'PENDING_PAYMENT')"),
    ),
    # For completion.py and event_cancellation.py: few bookings of past events are in these states.
    sa.Index(
        "bookings_live_event_id_idx",
        "event_id",
        "booking_id",
        postgresql_where=sa.text("status IN ('HELD', 'PENDING_PAYMENT', 'CONFIRMED')"),
    ),
    sa.Index(
        "bookings_payment_check_time_idx",
        "payment_check_time",
        postgresql_where=sa.text("payment_check_time IS NOT NULL"),
    ),
)

booking_items = sa.Table(
    "booking_items",
    metadata,
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), primary_key=True),
    sa.Column("item_index", sa.Integer, primary_key=True),
    sa.Column("offer_id", _Uuid, nullable=False),
    sa.Column("seat_id", _Uuid),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("unit_price_minor", sa.BigInteger, nullable=False),
    sa.CheckConstraint("quantity > 0", name="quantity"),
    sa.CheckConstraint("unit_price_minor >= 0", name="unit_price"),
)

booking_timeline = sa.Table(
    "booking_timeline",
    metadata,
    sa.Column("entry_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), nullable=False),
    sa.Column("time", _Time, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False, server_default="SYSTEM"),
    # The customer or the member of staff.
    sa.Column("actor_id", _Uuid),
    # Of a declined attempt to pay: payment_svc's id of it, and the provider's code.
    sa.Column("attempt_id", _Uuid),
    sa.Column("failure_code", sa.Text),
    sa.CheckConstraint("actor IN ('CUSTOMER', 'STAFF', 'ORGANISER', 'SYSTEM')", name="actor"),
    sa.Index("booking_timeline_booking_id_idx", "booking_id"),
    # An attempt is noted once.
    sa.Index(
        "booking_timeline_attempt_id_key",
        "attempt_id",
        unique=True,
        postgresql_where=sa.text("attempt_id IS NOT NULL"),
    ),
)

# Captured payments. The refunds of a payment never exceed it: refunds.py.
booking_payments = sa.Table(
    "booking_payments",
    metadata,
    sa.Column("payment_id", _Uuid, primary_key=True),
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), nullable=False),
    sa.Column("captured_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    # Taken by the customer's bank: disputes that are open or lost.
    sa.Column("disputed_minor", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("captured_minor > 0", name="captured"),
    sa.CheckConstraint("disputed_minor >= 0", name="disputed"),
    sa.Index("booking_payments_booking_id_idx", "booking_id"),
)

# Payments that another one has replaced before they were paid: payment_pages.py.
replaced_payments = sa.Table(
    "replaced_payments",
    metadata,
    sa.Column("payment_id", _Uuid, primary_key=True),
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), nullable=False),
    # The change whose difference it pays; not set for the booking's own price.
    sa.Column("change_id", _Uuid, sa.ForeignKey("booking_changes.change_id")),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("replaced_payments_booking_id_idx", "booking_id"),
)

# Refunds, from their promise on. payment_svc uses the same ids.
booking_refunds = sa.Table(
    "booking_refunds",
    metadata,
    sa.Column("refund_id", _Uuid, primary_key=True),
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), nullable=False),
    sa.Column("payment_id", _Uuid, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    # When reconciliation asks payment_svc about it, in case its event never arrives.
    sa.Column("check_time", _Time),
    sa.CheckConstraint("amount_minor > 0", name="amount"),
    sa.CheckConstraint(
        "status IN ('PENDING', 'PROCESSED', 'FAILED', 'SETTLED_ELSEWHERE', 'CANCELLED')",
        name="status",
    ),
    sa.Index("booking_refunds_booking_id_idx", "booking_id"),
    sa.Index("booking_refunds_payment_id_idx", "payment_id"),
    sa.Index(
        "booking_refunds_check_time_idx",
        "check_time",
        postgresql_where=sa.text("check_time IS NOT NULL"),
    ),
)

# Changes of a booking to other items or another event: modification_store.py.
booking_changes = sa.Table(
    "booking_changes",
    metadata,
    # Also the id of the new reservation.
    sa.Column("change_id", _Uuid, primary_key=True),
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("from_event_id", _Uuid, nullable=False),
    sa.Column("from_reservation_id", _Uuid, nullable=False),
    sa.Column("to_event_id", _Uuid, sa.ForeignKey("events.event_id"), nullable=False),
    sa.Column("items", JSONB, nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    # Refunded once the change is done.
    sa.Column("refund_minor", sa.BigInteger, nullable=False),
    sa.Column("max_refund_percent", sa.Integer, nullable=False),
    # Paid before the places are exchanged.
    sa.Column("difference_minor", sa.BigInteger, nullable=False),
    sa.Column("payment_id", _Uuid, unique=True),
    sa.Column("payment_provider", sa.Text),
    sa.Column("payment_url", sa.Text),
    sa.Column("payment_client_secret", sa.Text),
    sa.Column("expire_time", _Time, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("actor_id", _Uuid),
    sa.Column("refusal", sa.Text),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.CheckConstraint(
        "state IN ('PENDING_PAYMENT', 'EXCHANGING', 'DONE', 'REFUSED', 'EXPIRED', 'CANCELLED')",
        name="state",
    ),
    sa.CheckConstraint("refund_minor >= 0 AND difference_minor >= 0", name="money"),
    sa.CheckConstraint("(difference_minor > 0) = (payment_id IS NOT NULL)", name="payment"),
    # A booking has one open change at a time.
    sa.Index(
        "booking_changes_open_key",
        "booking_id",
        unique=True,
        postgresql_where=sa.text("state IN ('PENDING_PAYMENT', 'EXCHANGING')"),
    ),
    sa.Index(
        "booking_changes_expire_time_idx",
        "expire_time",
        postgresql_where=sa.text("state = 'PENDING_PAYMENT'"),
    ),
)

# Saga steps: calls to other services, enqueued in the transaction that makes them necessary.
booking_steps = sa.Table(
    "booking_steps",
    metadata,
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    # The id of a reservation, payment, refund or change.
    sa.Column("subject_id", _Uuid, primary_key=True),
    # The reservation's event: the booking may have been rescheduled since.
    sa.Column("event_id", _Uuid),
    sa.Column("due_time", _Time, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_error", sa.Text),
    sa.Column("create_time", _Time, nullable=False),
    # The request and trace that enqueued it.
    sa.Column("origin", sa.Text, default=request_context.origin),
    sa.CheckConstraint("kind IN ('CONFIRM', 'RELEASE', 'VOID', 'REFUND', 'EXCHANGE')", name="kind"),
    sa.Index("booking_steps_due_time_idx", "due_time"),
    # There can be very many others, after an event was cancelled.
    sa.Index(
        "booking_steps_urgent_due_time_idx",
        "due_time",
        postgresql_where=sa.text("kind IN ('CONFIRM', 'EXCHANGE')"),
    ),
)

is_urgent_step = booking_steps.c.kind.in_(
    [sa.literal_column("'CONFIRM'"), sa.literal_column("'EXCHANGE'")]
)
"""As literals: with parameters, prepared plans could not use the partial index."""

# Customers, from auth_svc's event stream: for mails, payment pages and the search of staff.
contacts = sa.Table(
    "contacts",
    metadata,
    sa.Column("user_id", _Uuid, primary_key=True),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("full_name", sa.Text, nullable=False),
    sa.Column("phone", sa.Text, nullable=False, server_default=""),
    # The words of name and address (customers.py).
    sa.Column("search", TSVECTOR, nullable=False, server_default=""),
    sa.Column("update_time", _Time, nullable=False),
    sa.Index("contacts_search_idx", "search", postgresql_using="gin"),
)
