"""Accounts, sessions and refresh tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", UUID(as_uuid=True), nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("email_key", sa.Text, nullable=False),
        sa.Column("full_name", sa.Text, nullable=False),
        sa.Column("phone", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("password_change_time", _TIME, nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="users_pkey"),
        sa.UniqueConstraint("email_key", name="users_email_key_key"),
        sa.CheckConstraint("char_length(email) BETWEEN 3 AND 254", name=op.f("users_email_check")),
        sa.CheckConstraint("email_key = lower(email_key)", name=op.f("users_email_key_check")),
        sa.CheckConstraint(
            "char_length(full_name) BETWEEN 2 AND 100", name=op.f("users_full_name_check")
        ),
        sa.CheckConstraint(
            r"phone = '' OR phone ~ '^\+[1-9][0-9]{7,14}$'", name=op.f("users_phone_check")
        ),
        sa.CheckConstraint("char_length(address) <= 500", name=op.f("users_address_check")),
        sa.CheckConstraint("role IN ('CUSTOMER', 'STAFF', 'ADMIN')", name=op.f("users_role_check")),
        sa.CheckConstraint("password_hash LIKE '$2b$%'", name=op.f("users_password_hash_check")),
        sa.CheckConstraint("update_time >= create_time", name=op.f("users_update_time_check")),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", UUID(as_uuid=True), nullable=False),
        sa.Column("user_id", UUID(as_uuid=True), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("expire_time", _TIME, nullable=False),
        sa.Column("revoke_time", _TIME),
        sa.PrimaryKeyConstraint("session_id", name="sessions_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="sessions_user_id_fkey"),
        sa.CheckConstraint("expire_time > create_time", name=op.f("sessions_expire_time_check")),
    )
    op.create_index("sessions_user_id_idx", "sessions", ["user_id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary, nullable=False),
        sa.Column("session_id", UUID(as_uuid=True), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("expire_time", _TIME, nullable=False),
        sa.Column("use_time", _TIME),
        sa.PrimaryKeyConstraint("token_hash", name="refresh_tokens_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name="refresh_tokens_session_id_fkey"
        ),
        sa.CheckConstraint(
            "octet_length(token_hash) = 32", name=op.f("refresh_tokens_token_hash_check")
        ),
        sa.CheckConstraint(
            "expire_time > create_time", name=op.f("refresh_tokens_expire_time_check")
        ),
    )
    op.create_index("refresh_tokens_session_id_idx", "refresh_tokens", ["session_id"])


def downgrade() -> None:
    op.drop_table("refresh_tokens")
    op.drop_table("sessions")
    op.drop_table("users")
