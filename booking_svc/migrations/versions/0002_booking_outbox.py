"""What happened to bookings, and who did it."""

import sqlalchemy as sa
from alembic import op

from mesh.db import outbox_trigger
from mesh.db.outbox import Xid8

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "transaction_id", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False
        ),
        sa.Column("aggregate_id", sa.UUID(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("outbox_pkey")),
    )
    op.create_index(
        "outbox_transaction_id_sequence_idx", "outbox", ["transaction_id", "sequence"], unique=False
    )
    op.execute(outbox_trigger.CREATE)
    op.add_column(
        "booking_timeline",
        sa.Column("actor", sa.Text(), server_default="SYSTEM", nullable=False),
    )
    op.add_column("booking_timeline", sa.Column("actor_id", sa.UUID(), nullable=True))
    op.create_check_constraint(
        op.f("booking_timeline_actor_check"),
        "booking_timeline",
        "actor IN ('CUSTOMER', 'STAFF', 'ORGANISER', 'SYSTEM')",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("booking_timeline_actor_check"), "booking_timeline")
    op.drop_column("booking_timeline", "actor_id")
    op.drop_column("booking_timeline", "actor")
    op.drop_table("outbox")
    op.execute("DROP FUNCTION notify_outbox()")
