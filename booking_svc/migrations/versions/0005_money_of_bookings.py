"""What came for a booking and what goes back, each by its own payment and refund."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MONEY_SO_FAR = """
INSERT INTO booking_payments
SELECT payment_id, booking_id, total_minor, currency_code, update_time FROM bookings
WHERE payment_status IN ('CAPTURED', 'REFUNDED') AND total_minor > 0
"""
_REFUNDS_SO_FAR = """
INSERT INTO booking_refunds
SELECT refund_id, booking_id, payment_id, refund_minor, currency_code, refund_status,
    'booking_not_possible', update_time, update_time
FROM bookings WHERE refund_id IS NOT NULL
"""
# A refund that was owed and not asked for: from now on it has an id of its own.
_REFUNDS_OWED = """
INSERT INTO booking_refunds
SELECT step.subject_id, step.booking_id, step.subject_id, total_minor, currency_code, 'PENDING',
    'booking_not_possible', step.create_time, step.create_time
FROM booking_steps step JOIN bookings USING (booking_id)
WHERE kind = 'REFUND' AND total_minor > 0
"""


def upgrade() -> None:
    op.create_table(
        "booking_payments",
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("captured_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.CHAR(length=3), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("captured_minor > 0", name=op.f("booking_payments_captured_check")),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_payments_booking_id_fkey")
        ),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("booking_payments_pkey")),
    )
    op.create_index(
        "booking_payments_booking_id_idx", "booking_payments", ["booking_id"], unique=False
    )
    op.create_table(
        "booking_refunds",
        sa.Column("refund_id", sa.UUID(), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.CHAR(length=3), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_minor > 0", name=op.f("booking_refunds_amount_check")),
        sa.CheckConstraint(
            "status IN ('PENDING', 'PROCESSED', 'FAILED')",
            name=op.f("booking_refunds_status_check"),
        ),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_refunds_booking_id_fkey")
        ),
        sa.PrimaryKeyConstraint("refund_id", name=op.f("booking_refunds_pkey")),
    )
    for column in ("booking_id", "payment_id"):
        op.create_index(f"booking_refunds_{column}_idx", "booking_refunds", [column], unique=False)
    op.add_column("booking_steps", sa.Column("event_id", sa.UUID(), nullable=True))
    op.execute(_MONEY_SO_FAR)
    op.execute(_REFUNDS_SO_FAR)
    op.execute(_REFUNDS_OWED)
    for column in ("refund_id", "refund_minor", "refund_status"):
        op.drop_column("bookings", column)


def downgrade() -> None:
    op.add_column("bookings", sa.Column("refund_id", sa.UUID(), nullable=True))
    op.add_column("bookings", sa.Column("refund_minor", sa.BigInteger(), nullable=True))
    op.add_column("bookings", sa.Column("refund_status", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("bookings_refund_check"), "bookings", "refund_minor > 0")
    op.create_check_constraint(
        op.f("bookings_refund_status_check"),
        "bookings",
        "refund_status IN ('PENDING', 'PROCESSED', 'FAILED')",
    )
    op.create_unique_constraint(op.f("bookings_refund_id_key"), "bookings", ["refund_id"])
    op.drop_column("booking_steps", "event_id")
    op.drop_table("booking_refunds")
    op.drop_table("booking_payments")
