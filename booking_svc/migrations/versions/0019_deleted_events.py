"""Events that are deleted and kept for their bookings."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("delete_time", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("events", "delete_time")
