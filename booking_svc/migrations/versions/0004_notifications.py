"""Customers' addresses, and mails to them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "contacts",
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("contacts_pkey")),
    )
    op.create_table(
        "waiting_letters",
        sa.Column("event_key", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("event_key", name=op.f("waiting_letters_pkey")),
    )
    op.create_index("waiting_letters_user_id_idx", "waiting_letters", ["user_id"])
    _create_mails()


def _create_mails() -> None:
    op.create_table(
        "mails",
        sa.Column("mail_id", sa.UUID(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text()),
        sa.Column("subject", sa.Text()),
        sa.Column("text", sa.Text()),
        sa.Column("html", sa.Text()),
        sa.Column("due_time", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_answer", sa.Text()),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True)),
        sa.Column("end_time", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("mail_id", name=op.f("mails_pkey")),
        sa.UniqueConstraint("key", name=op.f("mails_key_key")),
        sa.CheckConstraint(
            "status IN ('QUEUED', 'SENT', 'GIVEN_UP')", name=op.f("mails_status_check")
        ),
        sa.CheckConstraint("length(key) <= 200", name=op.f("mails_key_length_check")),
        sa.CheckConstraint(
            "CASE status WHEN 'QUEUED' THEN"
            " num_nulls(recipient, subject, text, html, due_time) = 0 AND end_time IS NULL"
            " ELSE num_nonnulls(recipient, subject, text, html, due_time) = 0"
            " AND end_time IS NOT NULL END",
            name=op.f("mails_content_while_queued_check"),
        ),
    )
    op.create_index(
        "mails_due_time_idx", "mails", ["due_time"], postgresql_where=sa.text("status = 'QUEUED'")
    )
    op.create_index(
        "mails_end_time_idx", "mails", ["end_time"], postgresql_where=sa.text("status <> 'QUEUED'")
    )


def downgrade() -> None:
    op.drop_table("mails")
    op.drop_table("waiting_letters")
    op.drop_table("contacts")
