"""Moves of events are notified to customers, batch by batch."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("event_moves", sa.Column("next_time", sa.DateTime(timezone=True)))
    op.add_column("event_moves", sa.Column("notified_booking_id", sa.UUID()))
    op.create_index(
        "event_moves_next_time_idx",
        "event_moves",
        ["next_time"],
        postgresql_where=sa.text("next_time IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("event_moves_next_time_idx", "event_moves")
    op.drop_column("event_moves", "notified_booking_id")
    op.drop_column("event_moves", "next_time")
