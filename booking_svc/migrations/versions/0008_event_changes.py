"""Changes of sold events, removed events, and the cancellation of whole events."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("changing_until", sa.DateTime(timezone=True)))
    op.create_table(
        "unwanted_stock",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("unwanted_stock_pkey")),
    )
    op.create_index("unwanted_stock_due_time_idx", "unwanted_stock", ["due_time"])
    op.create_table(
        "event_cancellations",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("bookings_found", sa.Integer(), nullable=False),
        sa.Column("bookings_cancelled", sa.Integer(), nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finish_time", sa.DateTime(timezone=True)),
        sa.Column("next_time", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.event_id"], name=op.f("event_cancellations_event_id_fkey")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("event_cancellations_pkey")),
    )
    op.create_index(
        "event_cancellations_next_time_idx",
        "event_cancellations",
        ["next_time"],
        postgresql_where=sa.text("next_time IS NOT NULL"),
    )
    # Events that were cancelled before: their bookings are cancelled too.
    op.execute(
        "INSERT INTO event_cancellations SELECT event_id, '', 0, 0, update_time, NULL, update_time"
        " FROM events WHERE status = 'CANCELLED'"
    )


def downgrade() -> None:
    op.drop_table("event_cancellations")
    op.drop_table("unwanted_stock")
    op.drop_column("events", "changing_until")
