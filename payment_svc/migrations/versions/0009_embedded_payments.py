"""Embedded payments; contact details for payment pages; until when a payment can be paid."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "payments",
        sa.Column("embedded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column("payments", sa.Column("client_secret", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True))
    for table in ("payments", "sandbox_payments"):
        op.add_column(table, sa.Column("customer_email", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("customer_phone", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in ("payments", "sandbox_payments"):
        op.drop_column(table, "customer_phone")
        op.drop_column(table, "customer_email")
    for column in ("expire_time", "client_secret", "embedded"):
        op.drop_column("payments", column)
