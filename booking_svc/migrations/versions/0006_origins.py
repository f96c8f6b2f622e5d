"""Events and steps name the request that caused them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("origin", sa.Text(), nullable=True))
    op.add_column("booking_steps", sa.Column("origin", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("booking_steps", "origin")
    op.drop_column("outbox", "origin")
