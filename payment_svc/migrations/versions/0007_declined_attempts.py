"""Declined attempts to pay."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "declined_attempts",
        sa.Column("attempt_id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=False),
        sa.Column("decline_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["payment_id"],
            ["payments.payment_id"],
            name=op.f("declined_attempts_payment_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("attempt_id", name=op.f("declined_attempts_pkey")),
        sa.UniqueConstraint(
            "provider",
            "provider_reference",
            name=op.f("declined_attempts_provider_provider_reference_key"),
        ),
    )
    op.create_index("declined_attempts_payment_id_idx", "declined_attempts", ["payment_id"])


def downgrade() -> None:
    op.drop_table("declined_attempts")
