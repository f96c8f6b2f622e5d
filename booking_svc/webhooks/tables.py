"""Tables of webhook endpoints, their secrets, and the messages to them."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from booking_svc.tables import metadata

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("endpoint_id", _Uuid, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("event_types", ARRAY(sa.Text), nullable=False),
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("disable_reason", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
)

# Signing secrets, encrypted with the service's own key (encryption.py).
webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("secret_id", _Uuid, primary_key=True),
    sa.Column(
        "endpoint_id",
        _Uuid,
        sa.ForeignKey("webhook_endpoints.endpoint_id", ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time),
    sa.Index("webhook_secrets_endpoint_id_idx", "endpoint_id"),
)

# `message_id` is the event's key, and the receivers' `webhook-id`.
webhook_messages = sa.Table(
    "webhook_messages",
    metadata,
    sa.Column("message_id", _Uuid, primary_key=True),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("webhook_messages_create_time_idx", "create_time"),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("delivery_id", _Uuid, primary_key=True),
    sa.Column(
        "endpoint_id",
        _Uuid,
        sa.ForeignKey("webhook_endpoints.endpoint_id", ondelete="CASCADE"),
        nullable=False,
    ),
    sa.Column("message_id", _Uuid, sa.ForeignKey("webhook_messages.message_id"), nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    # Since the delivery was queued or resent; determines the next pause.
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("attempt_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("log", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("due_time", _Time),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("end_time", _Time),
    sa.UniqueConstraint("endpoint_id", "message_id"),
    sa.CheckConstraint("status IN ('PENDING', 'DELIVERED', 'FAILED')", name="status"),
    sa.CheckConstraint(
        "(status = 'PENDING') = (due_time IS NOT NULL)"
        " AND (status = 'PENDING') = (end_time IS NULL)",
        name="pending_is_due",
    ),
    sa.Index(
        "webhook_deliveries_endpoint_id_due_time_idx",
        "endpoint_id",
        "due_time",
        postgresql_where=sa.text("status = 'PENDING'"),
    ),
    sa.Index("webhook_deliveries_endpoint_id_delivery_id_idx", "endpoint_id", "delivery_id"),
    sa.Index("webhook_deliveries_message_id_idx", "message_id"),
    sa.Index(
        "webhook_deliveries_end_time_idx",
        "end_time",
        postgresql_where=sa.text("status <> 'PENDING'"),
    ),
)
