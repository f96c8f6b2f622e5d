"""Accounts are deleted softly: hidden from lists, kept for their bookings."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("delete_time", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE users SET delete_time = erase_time WHERE erase_time IS NOT NULL")
    op.create_check_constraint(
        op.f("users_delete_time_check"), "users", "delete_time IS NULL OR NOT is_active"
    )


def downgrade() -> None:
    op.drop_column("users", "delete_time")
