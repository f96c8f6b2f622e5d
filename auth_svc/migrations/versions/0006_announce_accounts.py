"""Announces accounts that are older than the event stream, so that who listens knows them all."""

import sqlalchemy as sa
from alembic import op

from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BATCH = 1000

# Locked, so that who changes a name meanwhile writes it after this and not before. An
# account whose event is written meanwhile by somebody else is announced twice: no harm.
_UNKNOWN = sa.text(
    "SELECT user_id, email, full_name FROM users WHERE user_id > :after AND erase_time IS NULL"
    " AND NOT EXISTS (SELECT FROM outbox WHERE aggregate_id = user_id"
    " AND event_type = 'user_changed') ORDER BY user_id LIMIT :batch FOR NO KEY UPDATE"
)
_ANNOUNCE = sa.text(
    "INSERT INTO outbox (aggregate_id, event_type, payload, create_time)"
    " VALUES (:user_id, 'user_changed', :payload, :now)"
)


def upgrade() -> None:
    connection = op.get_bind()
    now = connection.scalar(sa.text("SELECT now()"))
    after = "00000000-0000-0000-0000-000000000000"
    while unknown := connection.execute(_UNKNOWN, {"after": after, "batch": _BATCH}).all():
        announced = []
        for user_id, email, full_name in unknown:
            event = stream_pb2.AuthEvent(
                user_id=str(user_id),
                user_changed=stream_pb2.UserChanged(
                    user_id=str(user_id), email=email, full_name=full_name
                ),
            )
            event.event_time.FromDatetime(now)
            announced.append({"user_id": user_id, "payload": event.SerializeToString(), "now": now})
        connection.execute(_ANNOUNCE, announced)
        after = str(unknown[-1].user_id)


def downgrade() -> None:
    """What was announced is true, also without this revision."""
