"""Domain events of accounts and sessions, written to the outbox as the contract's messages.

Converts plain values of the domain to messages, as a servicer does.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db import outbox

USER_CHANGED = "user_changed"
REVOCATIONS = ("session_revoked", "access_revoked")
"""The event types of the revocation stream; housekeeping deletes them earlier than others."""


async def session_revoked(
    connection: AsyncConnection, *, session_id: UUID, user_id: UUID, until: datetime, now: datetime
) -> None:
    """A session's access tokens are revoked. The last of them expires at `until`."""
    message = stream_pb2.SessionRevoked(session_id=str(session_id), user_id=str(user_id))
    message.until.FromDatetime(until)
    await _append(connection, user_id, stream_pb2.AuthEvent(session_revoked=message), now)


async def access_revoked(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    min_version: int,
    kept_session_id: UUID | None,
    until: datetime,
    now: datetime,
) -> None:
    """A user's access tokens below `min_version` are revoked, except those of one session."""
    message = stream_pb2.AccessRevoked(
        user_id=str(user_id),
        min_version=min_version,
        kept_session_id=str(kept_session_id or ""),
    )
    message.until.FromDatetime(until)
    await _append(connection, user_id, stream_pb2.AuthEvent(access_revoked=message), now)


async def user_changed(
    connection: AsyncConnection,
    *,
    user_id: UUID,
    email: str,
    full_name: str,
    phone: str,
    now: datetime,
) -> None:
    """An account was created, or its e-mail address, name or phone changed."""
    message = stream_pb2.UserChanged(
        user_id=str(user_id), email=email, full_name=full_name, phone=phone
    )
    await _append(connection, user_id, stream_pb2.AuthEvent(user_changed=message), now)


async def user_erased(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """An account's personal data was erased."""
    message = stream_pb2.UserErased(user_id=str(user_id))
    await _append(connection, user_id, stream_pb2.AuthEvent(user_erased=message), now)


async def user_deleted(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """An account was deleted; its data stays."""
    message = stream_pb2.UserDeleted(user_id=str(user_id))
    await _append(connection, user_id, stream_pb2.AuthEvent(user_deleted=message), now)


async def _append(
    connection: AsyncConnection, user_id: UUID, event: stream_pb2.AuthEvent, now: datetime
) -> None:
    event.user_id = str(user_id)
    event.event_time.FromDatetime(now)
    new = outbox.NewEvent(
        aggregate_id=user_id,
        event_type=event.WhichOneof("event") or "",
        payload=event.SerializeToString(),
    )
    await outbox.append(connection, [new], now=now)
