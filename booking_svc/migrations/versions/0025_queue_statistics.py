"""What the on-sale report counts: arrivals in waiting rooms, and durations of their calls."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_arrivals",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        _of_room("queue_arrivals"),
        sa.PrimaryKeyConstraint("event_id", "time", name=op.f("queue_arrivals_pkey")),
    )
    op.create_table(
        "queue_durations",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("call", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        _of_room("queue_durations"),
        sa.PrimaryKeyConstraint(
            "event_id", "call", "time", "bucket", name=op.f("queue_durations_pkey")
        ),
    )


def _of_room(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["event_id"],
        ["waiting_rooms.event_id"],
        name=op.f(f"{table}_event_id_fkey"),
        ondelete="CASCADE",
    )
