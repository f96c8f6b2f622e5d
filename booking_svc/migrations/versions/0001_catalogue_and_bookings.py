"""Catalogue and bookings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_NO_OVERLAP = """
-- A range of one uuid: GiST can compare ranges for equality without an extension.
CREATE TYPE uuid_range AS RANGE (subtype = uuid);
ALTER TABLE events ADD CONSTRAINT events_no_overlap_excl EXCLUDE USING gist (
    uuid_range(auditorium_id, auditorium_id, '[]') WITH &&,
    tstzrange(start_time, end_time) WITH &&
) WHERE (auditorium_id IS NOT NULL AND status <> 'CANCELLED');
"""

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_cursors",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("event_cursors_pkey")),
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
    op.create_table(
        "venues",
        sa.Column("venue_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("venue_id", name=op.f("venues_pkey")),
    )
    op.create_table(
        "auditoriums",
        sa.Column("auditorium_id", sa.UUID(), nullable=False),
        sa.Column("venue_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["venue_id"], ["venues.venue_id"], name=op.f("auditoriums_venue_id_fkey")
        ),
        sa.PrimaryKeyConstraint("auditorium_id", name=op.f("auditoriums_pkey")),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("production_id", sa.UUID(), nullable=True),
        sa.Column("auditorium_id", sa.UUID(), nullable=True),
        sa.Column("venue_name", sa.Text(), nullable=True),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sale_start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sale_end_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.CHAR(length=3), nullable=False),
        sa.Column("cancellation_policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("total_capacity", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('UPCOMING', 'PAUSED', 'CANCELLED')", name=op.f("events_status_check")
        ),
        sa.CheckConstraint("end_time > start_time", name=op.f("events_end_after_start_check")),
        sa.CheckConstraint(
            "sale_end_time > sale_start_time", name=op.f("events_sale_end_after_start_check")
        ),
        sa.ForeignKeyConstraint(
            ["auditorium_id"], ["auditoriums.auditorium_id"], name=op.f("events_auditorium_id_fkey")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("events_pkey")),
    )
    op.create_table(
        "seats",
        sa.Column("seat_id", sa.UUID(), nullable=False),
        sa.Column("auditorium_id", sa.UUID(), nullable=False),
        sa.Column("row_index", sa.Integer(), nullable=False),
        sa.Column("seat_index", sa.Integer(), nullable=False),
        sa.Column("row_label", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("seat_type", sa.Text(), nullable=False),
        sa.Column("x", sa.Double(), nullable=True),
        sa.Column("y", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "seat_type IN ('REGULAR', 'PREMIUM', 'WHEELCHAIR')", name=op.f("seats_seat_type_check")
        ),
        sa.ForeignKeyConstraint(
            ["auditorium_id"], ["auditoriums.auditorium_id"], name=op.f("seats_auditorium_id_fkey")
        ),
        sa.PrimaryKeyConstraint("seat_id", name=op.f("seats_pkey")),
        sa.UniqueConstraint(
            "auditorium_id",
            "row_label",
            "number",
            name=op.f("seats_auditorium_id_row_label_number_key"),
        ),
    )
    op.create_table(
        "bookings",
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("customer_id", sa.UUID(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.CHAR(length=3), nullable=False),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("hold_expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reservation_id", sa.UUID(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=True),
        sa.Column("payment_provider", sa.Text(), nullable=True),
        sa.Column("payment_status", sa.Text(), nullable=True),
        sa.Column("payment_url", sa.Text(), nullable=True),
        sa.Column("refund_id", sa.UUID(), nullable=True),
        sa.Column("refund_minor", sa.BigInteger(), nullable=True),
        sa.Column("refund_status", sa.Text(), nullable=True),
        sa.Column("cancellation_policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("confirm_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status IN ('CONFIRMED', 'COMPLETED')) <= (confirm_time IS NOT NULL)",
            name=op.f("bookings_confirmed_has_time_check"),
        ),
        sa.CheckConstraint(
            "payment_status IN ('CREATED', 'CAPTURED', 'FAILED', 'VOIDED', 'REFUNDED')",
            name=op.f("bookings_payment_status_check"),
        ),
        sa.CheckConstraint(
            "refund_status IN ('PENDING', 'PROCESSED', 'FAILED')",
            name=op.f("bookings_refund_status_check"),
        ),
        sa.CheckConstraint(
            "status IN ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'COMPLETED', 'EXPIRED', 'CANCELLED', 'FAILED')",
            name=op.f("bookings_status_check"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('CONFIRMED', 'COMPLETED') OR total_minor = 0 OR payment_status IN ('CAPTURED', 'REFUNDED')",
            name=op.f("bookings_confirmed_is_paid_check"),
        ),
        sa.CheckConstraint("refund_minor > 0", name=op.f("bookings_refund_check")),
        sa.CheckConstraint("total_minor >= 0", name=op.f("bookings_total_check")),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.event_id"], name=op.f("bookings_event_id_fkey")
        ),
        sa.PrimaryKeyConstraint("booking_id", name=op.f("bookings_pkey")),
        sa.UniqueConstraint("payment_id", name=op.f("bookings_payment_id_key")),
        sa.UniqueConstraint("refund_id", name=op.f("bookings_refund_id_key")),
        sa.UniqueConstraint("reservation_id", name=op.f("bookings_reservation_id_key")),
    )
    op.create_index(
        "bookings_customer_id_booking_id_idx",
        "bookings",
        ["customer_id", "booking_id"],
        unique=False,
    )
    op.create_index(
        "bookings_event_id_booking_id_idx", "bookings", ["event_id", "booking_id"], unique=False
    )
    op.create_index(
        "bookings_hold_expire_time_idx",
        "bookings",
        ["hold_expire_time"],
        unique=False,
        postgresql_where=sa.text("status IN ('HELD', 'PENDING_PAYMENT')"),
    )
    op.create_table(
        "offers",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.Column("offer_index", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.BigInteger(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=True),
        sa.Column("seat_type", sa.Text(), nullable=True),
        sa.Column("per_customer_limit", sa.Integer(), nullable=False),
        sa.Column("max_per_booking", sa.Integer(), nullable=False),
        sa.CheckConstraint("price_minor >= 0", name=op.f("offers_price_check")),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.event_id"], name=op.f("offers_event_id_fkey")
        ),
        sa.PrimaryKeyConstraint("event_id", "offer_id", name=op.f("offers_pkey")),
    )
    op.create_table(
        "booking_items",
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("item_index", sa.Integer(), nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.Column("seat_id", sa.UUID(), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("quantity > 0", name=op.f("booking_items_quantity_check")),
        sa.CheckConstraint("unit_price_minor >= 0", name=op.f("booking_items_unit_price_check")),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_items_booking_id_fkey")
        ),
        sa.PrimaryKeyConstraint("booking_id", "item_index", name=op.f("booking_items_pkey")),
    )
    op.create_table(
        "booking_steps",
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.UUID(), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('CONFIRM', 'RELEASE', 'VOID', 'REFUND')",
            name=op.f("booking_steps_kind_check"),
        ),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_steps_booking_id_fkey")
        ),
        sa.PrimaryKeyConstraint(
            "booking_id", "kind", "subject_id", name=op.f("booking_steps_pkey")
        ),
    )
    op.create_index("booking_steps_due_time_idx", "booking_steps", ["due_time"], unique=False)
    op.create_table(
        "booking_timeline",
        sa.Column("entry_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_timeline_booking_id_fkey")
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("booking_timeline_pkey")),
    )
    op.create_index(
        "booking_timeline_booking_id_idx", "booking_timeline", ["booking_id"], unique=False
    )
    op.execute(_NO_OVERLAP)


def downgrade() -> None:
    op.drop_index("booking_timeline_booking_id_idx", table_name="booking_timeline")
    op.drop_table("booking_timeline")
    op.drop_index("booking_steps_due_time_idx", table_name="booking_steps")
    op.drop_table("booking_steps")
    op.drop_table("booking_items")
    op.drop_table("offers")
    op.drop_index(
        "bookings_hold_expire_time_idx",
        table_name="bookings",
        postgresql_where=sa.text("status IN ('HELD', 'PENDING_PAYMENT')"),
    )
    op.drop_index("bookings_event_id_booking_id_idx", table_name="bookings")
    op.drop_index("bookings_customer_id_booking_id_idx", table_name="bookings")
    op.drop_table("bookings")
    op.drop_table("seats")
    op.drop_table("events")
    op.drop_table("auditoriums")
    op.drop_table("venues")
    op.drop_index("idempotency_records_create_time_idx", table_name="idempotency_records")
    op.drop_table("idempotency_records")
    op.drop_table("event_cursors")
    op.execute("DROP TYPE uuid_range")
