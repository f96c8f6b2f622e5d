"""Password reset, mails, throttled sign-in, idempotency records, erased accounts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_records",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("resource_id", sa.UUID(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("idempotency_records_pkey")),
    )
    op.create_index(
        "idempotency_records_create_time_idx", "idempotency_records", ["create_time"], unique=False
    )
    op.create_table(
        "login_throttles",
        sa.Column("account", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("attempts >= 0", name=op.f("login_throttles_attempts_check")),
        sa.CheckConstraint(
            "octet_length(account) = 32", name=op.f("login_throttles_account_check")
        ),
        sa.PrimaryKeyConstraint("account", name=op.f("login_throttles_pkey")),
    )
    op.create_index(
        op.f("login_throttles_update_time_idx"), "login_throttles", ["update_time"], unique=False
    )
    op.create_table(
        "mails",
        sa.Column("mail_id", sa.UUID(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("html", sa.Text(), nullable=True),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_answer", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "CASE status WHEN 'QUEUED' THEN num_nulls(recipient, subject, text, html, due_time) = 0 AND end_time IS NULL ELSE num_nonnulls(recipient, subject, text, html, due_time) = 0 AND end_time IS NOT NULL END",
            name=op.f("mails_content_while_queued_check"),
        ),
        sa.CheckConstraint(
            "status IN ('QUEUED', 'SENT', 'GIVEN_UP')", name=op.f("mails_status_check")
        ),
        sa.CheckConstraint("length(key) <= 200", name=op.f("mails_key_length_check")),
        sa.PrimaryKeyConstraint("mail_id", name=op.f("mails_pkey")),
        sa.UniqueConstraint("key", name=op.f("mails_key_key")),
    )
    op.create_index(
        "mails_due_time_idx",
        "mails",
        ["due_time"],
        unique=False,
        postgresql_where=sa.text("status = 'QUEUED'"),
    )
    op.create_index(
        "mails_end_time_idx",
        "mails",
        ["end_time"],
        unique=False,
        postgresql_where=sa.text("status <> 'QUEUED'"),
    )
    op.create_table(
        "password_reset_requests",
        sa.Column("email_key", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("email_key", name=op.f("password_reset_requests_pkey")),
    )
    op.create_table(
        "password_resets",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("use_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "expire_time > create_time", name=op.f("password_resets_expire_time_check")
        ),
        sa.CheckConstraint(
            "octet_length(token_hash) = 32", name=op.f("password_resets_token_hash_check")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("password_resets_user_id_fkey")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("password_resets_pkey")),
    )
    op.create_index(
        op.f("password_resets_expire_time_idx"), "password_resets", ["expire_time"], unique=False
    )
    op.create_index(
        op.f("password_resets_user_id_idx"), "password_resets", ["user_id"], unique=False
    )
    op.add_column("users", sa.Column("erase_time", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("users", "erase_time")
    op.drop_table("password_resets")
    op.drop_table("password_reset_requests")
    op.drop_table("mails")
    op.drop_table("login_throttles")
    op.drop_table("idempotency_records")
