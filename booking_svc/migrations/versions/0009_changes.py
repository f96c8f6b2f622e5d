"""Other items or another event for a booking; its attendees and a note."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _steps(kinds: str) -> None:
    op.drop_constraint(op.f("booking_steps_kind_check"), "booking_steps")
    op.create_check_constraint(
        op.f("booking_steps_kind_check"), "booking_steps", f"kind IN ({kinds})"
    )


def upgrade() -> None:
    for name, kind, default in (
        ("max_refund_percent", sa.Integer(), "100"),
        ("attendees", postgresql.JSONB(), "[]"),
        ("note", sa.Text(), ""),
    ):
        op.add_column("bookings", sa.Column(name, kind, nullable=False, server_default=default))
    op.create_table(
        "booking_changes",
        sa.Column("change_id", sa.UUID(), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("from_event_id", sa.UUID(), nullable=False),
        sa.Column("from_reservation_id", sa.UUID(), nullable=False),
        sa.Column("to_event_id", sa.UUID(), nullable=False),
        sa.Column("items", postgresql.JSONB(), nullable=False),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.CHAR(length=3), nullable=False),
        sa.Column("refund_minor", sa.BigInteger(), nullable=False),
        sa.Column("max_refund_percent", sa.Integer(), nullable=False),
        sa.Column("difference_minor", sa.BigInteger(), nullable=False),
        sa.Column("payment_id", sa.UUID()),
        sa.Column("payment_provider", sa.Text()),
        sa.Column("payment_url", sa.Text()),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.UUID()),
        sa.Column("refusal", sa.Text()),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING_PAYMENT', 'EXCHANGING', 'DONE', 'REFUSED', 'EXPIRED', 'CANCELLED')",
            name=op.f("booking_changes_state_check"),
        ),
        sa.CheckConstraint(
            "refund_minor >= 0 AND difference_minor >= 0", name=op.f("booking_changes_money_check")
        ),
        sa.CheckConstraint(
            "(difference_minor > 0) = (payment_id IS NOT NULL)",
            name=op.f("booking_changes_payment_check"),
        ),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.booking_id"], name=op.f("booking_changes_booking_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["to_event_id"], ["events.event_id"], name=op.f("booking_changes_to_event_id_fkey")
        ),
        sa.PrimaryKeyConstraint("change_id", name=op.f("booking_changes_pkey")),
        sa.UniqueConstraint("payment_id", name=op.f("booking_changes_payment_id_key")),
    )
    op.create_index(
        "booking_changes_open_key",
        "booking_changes",
        ["booking_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('PENDING_PAYMENT', 'EXCHANGING')"),
    )
    op.create_index(
        "booking_changes_expire_time_idx",
        "booking_changes",
        ["expire_time"],
        postgresql_where=sa.text("state = 'PENDING_PAYMENT'"),
    )
    _steps("'CONFIRM', 'RELEASE', 'VOID', 'REFUND', 'EXCHANGE'")


def downgrade() -> None:
    _steps("'CONFIRM', 'RELEASE', 'VOID', 'REFUND'")
    op.drop_table("booking_changes")
    for name in ("note", "attendees", "max_refund_percent"):
        op.drop_column("bookings", name)
