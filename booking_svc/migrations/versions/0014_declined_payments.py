"""Declined attempts to pay in the timeline; payments that another one has replaced."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("booking_timeline", sa.Column("attempt_id", sa.Uuid(), nullable=True))
    op.add_column("booking_timeline", sa.Column("failure_code", sa.Text(), nullable=True))
    op.create_index(
        "booking_timeline_attempt_id_key",
        "booking_timeline",
        ["attempt_id"],
        unique=True,
        postgresql_where=sa.text("attempt_id IS NOT NULL"),
    )
    op.create_table(
        "replaced_payments",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("booking_id", sa.Uuid(), nullable=False),
        sa.Column("change_id", sa.Uuid(), nullable=True),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["booking_id"],
            ["bookings.booking_id"],
            name=op.f("replaced_payments_booking_id_fkey"),
        ),
        sa.ForeignKeyConstraint(
            ["change_id"],
            ["booking_changes.change_id"],
            name=op.f("replaced_payments_change_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("replaced_payments_pkey")),
    )
    op.create_index("replaced_payments_booking_id_idx", "replaced_payments", ["booking_id"])


def downgrade() -> None:
    op.drop_table("replaced_payments")
    op.drop_index("booking_timeline_attempt_id_key", table_name="booking_timeline")
    op.drop_column("booking_timeline", "failure_code")
    op.drop_column("booking_timeline", "attempt_id")
