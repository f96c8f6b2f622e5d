"""Names of one letter."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _names_have(1)


def downgrade() -> None:
    _names_have(2)


def _names_have(least: int) -> None:
    name = op.f("users_full_name_check")
    op.drop_constraint(name, "users")
    op.create_check_constraint(name, "users", f"char_length(full_name) BETWEEN {least} AND 100")
