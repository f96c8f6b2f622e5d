"""Outside systems that are told what happens to bookings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_endpoints()
    _create_deliveries()


def _create_endpoints() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("endpoint_id", sa.UUID(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("event_types", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("disable_reason", sa.Text(), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("webhook_endpoints_pkey")),
    )
    op.create_table(
        "webhook_secrets",
        sa.Column("secret_id", sa.UUID(), nullable=False),
        sa.Column("endpoint_id", sa.UUID(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("expire_time", _TIME),
        sa.PrimaryKeyConstraint("secret_id", name=op.f("webhook_secrets_pkey")),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.endpoint_id"],
            name=op.f("webhook_secrets_endpoint_id_fkey"),
            ondelete="CASCADE",
        ),
    )
    op.create_index("webhook_secrets_endpoint_id_idx", "webhook_secrets", ["endpoint_id"])


def _create_deliveries() -> None:
    op.create_table(
        "webhook_messages",
        sa.Column("message_id", sa.UUID(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("message_id", name=op.f("webhook_messages_pkey")),
    )
    op.create_index("webhook_messages_create_time_idx", "webhook_messages", ["create_time"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("delivery_id", sa.UUID(), nullable=False),
        sa.Column("endpoint_id", sa.UUID(), nullable=False),
        sa.Column("message_id", sa.UUID(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("log", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("due_time", _TIME),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("end_time", _TIME),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("webhook_deliveries_pkey")),
        sa.UniqueConstraint(
            "endpoint_id",
            "message_id",
            name=op.f("webhook_deliveries_endpoint_id_message_id_key"),
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.endpoint_id"],
            name=op.f("webhook_deliveries_endpoint_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["webhook_messages.message_id"],
            name=op.f("webhook_deliveries_message_id_fkey"),
        ),
        sa.CheckConstraint(
            "status IN ('PENDING', 'DELIVERED', 'FAILED')",
            name=op.f("webhook_deliveries_status_check"),
        ),
        sa.CheckConstraint(
            "(status = 'PENDING') = (due_time IS NOT NULL)"
            " AND (status = 'PENDING') = (end_time IS NULL)",
            name=op.f("webhook_deliveries_pending_is_due_check"),
        ),
    )
    op.create_index(
        "webhook_deliveries_endpoint_id_due_time_idx",
        "webhook_deliveries",
        ["endpoint_id", "due_time"],
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index(
        "webhook_deliveries_endpoint_id_delivery_id_idx",
        "webhook_deliveries",
        ["endpoint_id", "delivery_id"],
    )
    op.create_index("webhook_deliveries_message_id_idx", "webhook_deliveries", ["message_id"])
    op.create_index(
        "webhook_deliveries_end_time_idx",
        "webhook_deliveries",
        ["end_time"],
        postgresql_where=sa.text("status <> 'PENDING'"),
    )


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_messages")
    op.drop_table("webhook_secrets")
    op.drop_table("webhook_endpoints")
