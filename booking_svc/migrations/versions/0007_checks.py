"""When bookings are compared with payment_svc, and an index of those that are live."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LIVE = "status IN ('HELD', 'PENDING_PAYMENT', 'CONFIRMED')"


def upgrade() -> None:
    op.add_column("bookings", sa.Column("payment_check_time", sa.DateTime(timezone=True)))
    op.add_column("booking_refunds", sa.Column("check_time", sa.DateTime(timezone=True)))
    op.execute(
        "UPDATE bookings SET payment_check_time = update_time WHERE status = 'PENDING_PAYMENT'"
    )
    op.execute("UPDATE booking_refunds SET check_time = update_time WHERE status <> 'PROCESSED'")
    op.create_index(
        "bookings_live_event_id_idx",
        "bookings",
        ["event_id", "booking_id"],
        postgresql_where=sa.text(_LIVE),
    )
    op.create_index(
        "bookings_payment_check_time_idx",
        "bookings",
        ["payment_check_time"],
        postgresql_where=sa.text("payment_check_time IS NOT NULL"),
    )
    op.create_index(
        "booking_refunds_check_time_idx",
        "booking_refunds",
        ["check_time"],
        postgresql_where=sa.text("check_time IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("bookings_live_event_id_idx", "bookings")
    op.drop_column("booking_refunds", "check_time")
    op.drop_column("bookings", "payment_check_time")
