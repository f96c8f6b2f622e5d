"""A reservation knows which one it has replaced.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reservations", sa.Column("replaces", sa.UUID(), nullable=True))


def downgrade() -> None:
    op.drop_column("reservations", "replaces")
