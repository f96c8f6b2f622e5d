"""The outbox without its trigger: readers are woken after the commit."""

from alembic import op

from mesh.db import outbox_trigger

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(outbox_trigger.DROP)


def downgrade() -> None:
    op.execute(outbox_trigger.CREATE)
