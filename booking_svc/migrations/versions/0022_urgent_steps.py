"""An index of the steps that a customer waits for."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "booking_steps_urgent_due_time_idx",
        "booking_steps",
        ["due_time"],
        postgresql_where=sa.text("kind IN ('CONFIRM', 'EXCHANGE')"),
    )


def downgrade() -> None:
    op.drop_index("booking_steps_urgent_due_time_idx", "booking_steps")
