"""Events that moved; disputed money; refunds that are cancelled or settled elsewhere."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_STATUS = "booking_refunds_status_check"


def upgrade() -> None:
    op.create_table(
        "event_moves",
        sa.Column("move_id", sa.UUID(), nullable=False),
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=False),
        sa.Column("after", postgresql.JSONB(), nullable=False),
        sa.Column("move_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["events.event_id"],
            name=op.f("event_moves_event_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("move_id", name=op.f("event_moves_pkey")),
    )
    op.create_index("event_moves_event_id_move_time_idx", "event_moves", ["event_id", "move_time"])
    op.add_column(
        "booking_payments",
        sa.Column("disputed_minor", sa.BigInteger(), server_default="0", nullable=False),
    )
    op.create_check_constraint(
        op.f("booking_payments_disputed_check"), "booking_payments", "disputed_minor >= 0"
    )
    op.drop_constraint(op.f(_STATUS), "booking_refunds", type_="check")
    op.create_check_constraint(
        op.f(_STATUS),
        "booking_refunds",
        "status IN ('PENDING', 'PROCESSED', 'FAILED', 'SETTLED_ELSEWHERE', 'CANCELLED')",
    )


def downgrade() -> None:
    op.drop_constraint(op.f(_STATUS), "booking_refunds", type_="check")
    op.create_check_constraint(
        op.f(_STATUS), "booking_refunds", "status IN ('PENDING', 'PROCESSED', 'FAILED')"
    )
    op.drop_constraint(op.f("booking_payments_disputed_check"), "booking_payments", type_="check")
    op.drop_column("booking_payments", "disputed_minor")
    op.drop_table("event_moves")
