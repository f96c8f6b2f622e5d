"""A session has at most one refresh token that is not used yet."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "refresh_tokens_unused_idx",
        "refresh_tokens",
        ["session_id"],
        unique=True,
        postgresql_where=sa.text("use_time IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("refresh_tokens_unused_idx", "refresh_tokens")
