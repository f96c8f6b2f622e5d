"""API keys of machines."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("api_key_id", sa.UUID(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_start", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("creator_id", sa.UUID(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoke_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_use_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(key_hash) = 32", name=op.f("api_keys_key_hash_check")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name=op.f("api_keys_name_check")),
        sa.CheckConstraint(
            "role IN ('CUSTOMER', 'STAFF', 'ADMIN')", name=op.f("api_keys_role_check")
        ),
        sa.CheckConstraint("expire_time > create_time", name=op.f("api_keys_expire_time_check")),
        sa.ForeignKeyConstraint(
            ["creator_id"], ["users.user_id"], name=op.f("api_keys_creator_id_fkey")
        ),
        sa.PrimaryKeyConstraint("api_key_id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("key_hash", name=op.f("api_keys_key_hash_key")),
    )


def downgrade() -> None:
    op.drop_table("api_keys")
