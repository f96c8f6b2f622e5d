"""Changes of stock: blocked seats, their kinds of movement, the outbox, idempotency records.

Revision: 0003, after 0002.
"""

import sqlalchemy as sa
from alembic import op

from mesh.db import outbox_trigger
from mesh.db.outbox import Xid8

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KINDS = ("DEFINE", "RESERVE", "COMMIT", "RELEASE", "EXPIRE", "RETURN", "RESTOCK")
_NEW_KINDS = ("ADJUST", "BLOCK", "UNBLOCK", "REMOVE")


def upgrade() -> None:
    op.add_column(
        "seats", sa.Column("blocked", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.alter_column("seats", "blocked", server_default=None)
    _check_kinds(_KINDS + _NEW_KINDS)
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


def downgrade() -> None:
    op.drop_table("idempotency_records")
    op.drop_table("outbox")
    op.execute("DROP FUNCTION notify_outbox()")
    _check_kinds(_KINDS)
    op.drop_column("seats", "blocked")


def _check_kinds(kinds: tuple[str, ...]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.execute("ALTER TABLE movements DROP CONSTRAINT movements_kind_check")
    op.execute(
        f"ALTER TABLE movements ADD CONSTRAINT movements_kind_check CHECK (kind IN ({listed}))"
    )
