"""What the processes count of PlaceBooking, by which the rate AUTO of waiting rooms is steered."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_sales",
        sa.Column("process_id", sa.UUID(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("slow", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "busy <= calls AND slow <= calls", name=op.f("queue_sales_counts_check")
        ),
        sa.PrimaryKeyConstraint("process_id", name=op.f("queue_sales_pkey")),
    )


def downgrade() -> None:
    op.drop_table("queue_sales")
