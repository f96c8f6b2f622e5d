"""What real providers need: checks of payments that are not final, authorisations, disputes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("payments", sa.Column("event_id", sa.UUID(), nullable=True))
    op.add_column("payments", sa.Column("authorization_reference", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("check_time", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "payments",
        sa.Column("checks", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.execute(
        "UPDATE payments SET check_time = update_time"
        " WHERE status IN ('CREATED', 'AUTHORIZED', 'FAILED') AND payment_url IS NOT NULL"
    )
    op.create_check_constraint(
        op.f("payments_checked_until_final_check"),
        "payments",
        "check_time IS NULL OR status IN ('CREATED', 'AUTHORIZED', 'FAILED')",
    )
    op.create_index(
        "payments_check_time_idx",
        "payments",
        ["check_time"],
        unique=False,
        postgresql_where=sa.text("check_time IS NOT NULL"),
    )
    op.create_table(
        "disputes",
        sa.Column("dispute_id", sa.UUID(), nullable=False),
        sa.Column("payment_id", sa.UUID(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_reference", sa.Text(), nullable=False),
        sa.Column("capture_reference", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_minor > 0", name=op.f("disputes_amount_check")),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("disputes_currency_code_check")
        ),
        sa.CheckConstraint("status IN ('OPEN', 'WON', 'LOST')", name=op.f("disputes_status_check")),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.payment_id"], name=op.f("disputes_payment_id_fkey")
        ),
        sa.PrimaryKeyConstraint("dispute_id", name=op.f("disputes_pkey")),
        sa.UniqueConstraint(
            "provider", "provider_reference", name=op.f("disputes_provider_provider_reference_key")
        ),
    )
    op.create_index("disputes_payment_id_idx", "disputes", ["payment_id"], unique=False)
    op.add_column(
        "sandbox_payments", sa.Column("decline_time", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_index(
        "sandbox_ledger_create_time_idx", "sandbox_ledger", ["create_time"], unique=False
    )
