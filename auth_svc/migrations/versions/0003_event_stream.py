"""The event stream, and versions of access tokens."""

import sqlalchemy as sa
from alembic import op

from mesh.db import outbox_trigger
from mesh.db.outbox import Xid8

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("access_version", sa.Integer(), server_default="0", nullable=False)
    )
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
        sa.PrimaryKeyConstraint("sequence", name="outbox_pkey"),
    )
    op.create_index("outbox_transaction_id_sequence_idx", "outbox", ["transaction_id", "sequence"])
    op.create_index("outbox_create_time_idx", "outbox", ["create_time"])
    op.create_index("outbox_aggregate_id_idx", "outbox", ["aggregate_id"])
    op.execute(outbox_trigger.CREATE)


def downgrade() -> None:
    op.drop_table("outbox")
    op.execute("DROP FUNCTION notify_outbox()")
    op.drop_column("users", "access_version")
