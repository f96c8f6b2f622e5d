"""A purchase limit over all offers of an event."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("per_customer_limit", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("events", "per_customer_limit")
