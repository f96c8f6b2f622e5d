"""Verified e-mail addresses, and changes of an address with proof."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("email_verify_time", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_table(
        "email_verification_requests",
        sa.Column("email_key", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("email_key", name=op.f("email_verification_requests_pkey")),
    )
    op.create_table(
        "email_confirmations",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("use_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "octet_length(token_hash) = 32", name=op.f("email_confirmations_token_hash_check")
        ),
        sa.CheckConstraint(
            "char_length(email) BETWEEN 3 AND 254", name=op.f("email_confirmations_email_check")
        ),
        sa.CheckConstraint(
            "expire_time > create_time", name=op.f("email_confirmations_expire_time_check")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("email_confirmations_user_id_fkey")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("email_confirmations_pkey")),
    )
    for column in ("expire_time", "user_id"):
        op.create_index(
            op.f(f"email_confirmations_{column}_idx"), "email_confirmations", [column], unique=False
        )
    op.create_index(
        "email_confirmations_unused_idx",
        "email_confirmations",
        ["user_id", "email"],
        unique=True,
        postgresql_where=sa.text("use_time IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("email_confirmations")
    op.drop_table("email_verification_requests")
    op.drop_column("users", "email_verify_time")
