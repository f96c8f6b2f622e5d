"""booking_svc's tables. Each rule that must never break stands here as a constraint."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID

from mesh.consumer import cursor_table
from mesh.database import NAMING
from mesh.idempotency import idempotency_table

metadata = sa.MetaData(naming_convention=NAMING)

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

venues = sa.Table(
    "venues",
    metadata,
    sa.Column("venue_id", _Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
)

auditoriums = sa.Table(
    "auditoriums",
    metadata,
    sa.Column("auditorium_id", _Uuid, primary_key=True),
    sa.Column("venue_id", _Uuid, sa.ForeignKey("venues.venue_id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
)

seats = sa.Table(
    "seats",
    metadata,
    sa.Column("seat_id", _Uuid, primary_key=True),
    sa.Column("auditorium_id", _Uuid, sa.ForeignKey("auditoriums.auditorium_id"), nullable=False),
    sa.Column("row_index", sa.Integer, nullable=False),
    sa.Column("seat_index", sa.Integer, nullable=False),
    sa.Column("row_label", sa.Text, nullable=False),
    sa.Column("number", sa.Text, nullable=False),
    sa.Column("seat_type", sa.Text, nullable=False),
    sa.Column("x", sa.Double),
    sa.Column("y", sa.Double),
    sa.UniqueConstraint("auditorium_id", "row_label", "number"),
    sa.CheckConstraint("seat_type IN ('REGULAR', 'PREMIUM', 'WHEELCHAIR')", name="seat_type"),
)

# The migration adds what SQLAlchemy cannot say: EXCLUDE overlapping events of an auditorium.
events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", _Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("production_id", _Uuid),
    sa.Column("auditorium_id", _Uuid, sa.ForeignKey("auditoriums.auditorium_id")),
    sa.Column("venue_name", sa.Text),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("start_time", _Time),
    sa.Column("end_time", _Time),
    sa.Column("sale_start_time", _Time, nullable=False),
    sa.Column("sale_end_time", _Time),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    sa.Column("cancellation_policy", JSONB, nullable=False),
    sa.Column("total_capacity", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.CheckConstraint("status IN ('UPCOMING', 'PAUSED', 'CANCELLED')", name="status"),
    sa.CheckConstraint("end_time > start_time", name="end_after_start"),
    sa.CheckConstraint("sale_end_time > sale_start_time", name="sale_end_after_start"),
)

offers = sa.Table(
    "offers",
    metadata,
    sa.Column("event_id", _Uuid, sa.ForeignKey("events.event_id"), primary_key=True),
    sa.Column("offer_id", _Uuid, primary_key=True),
    sa.Column("offer_index", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("price_minor", sa.BigInteger, nullable=False),
    sa.Column("pool_id", _Uuid, nullable=False),
    sa.Column("capacity", sa.Integer),
    sa.Column("seat_type", sa.Text),
    sa.Column("per_customer_limit", sa.Integer, nullable=False),
    sa.Column("max_per_booking", sa.Integer, nullable=False),
    sa.CheckConstraint("price_minor >= 0", name="price"),
)

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
    # The claim in the ledger: the booking's own id, or a later one after a late payment.
    sa.Column("reservation_id", _Uuid, nullable=False, unique=True),
    sa.Column("payment_id", _Uuid, unique=True),
    sa.Column("payment_provider", sa.Text),
    sa.Column("payment_status", sa.Text),
    sa.Column("payment_url", sa.Text),
    sa.Column("refund_id", _Uuid, unique=True),
    sa.Column("refund_minor", sa.BigInteger),
    sa.Column("refund_status", sa.Text),
    sa.Column("cancellation_policy", JSONB, nullable=False),
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
    sa.CheckConstraint("refund_status IN ('PENDING', 'PROCESSED', 'FAILED')", name="refund_status"),
    sa.CheckConstraint("total_minor >= 0", name="total"),
    sa.CheckConstraint("refund_minor > 0", name="refund"),
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
    sa.Index("bookings_customer_id_booking_id_idx", "customer_id", "booking_id"),
    sa.Index("bookings_event_id_booking_id_idx", "event_id", "booking_id"),
    sa.Index(
        "bookings_hold_expire_time_idx",
        "hold_expire_time",
        postgresql_where=sa.text("status IN ('HELD', 'PENDING_PAYMENT')"),
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
    sa.Index("booking_timeline_booking_id_idx", "booking_id"),
)

# What a booking still owes to the other services; written with the change that owes it.
booking_steps = sa.Table(
    "booking_steps",
    metadata,
    sa.Column("booking_id", _Uuid, sa.ForeignKey("bookings.booking_id"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    # The reservation or the payment that the step is about.
    sa.Column("subject_id", _Uuid, primary_key=True),
    sa.Column("due_time", _Time, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_error", sa.Text),
    sa.Column("create_time", _Time, nullable=False),
    sa.CheckConstraint("kind IN ('CONFIRM', 'RELEASE', 'VOID', 'REFUND')", name="kind"),
    sa.Index("booking_steps_due_time_idx", "due_time"),
)

event_cursors = cursor_table(metadata)
idempotency_records = idempotency_table(metadata)
