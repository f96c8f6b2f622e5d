"""auth_svc's event stream: the mail addresses of accounts, and the ends of accounts."""

from collections.abc import AsyncIterator
from uuid import UUID

from booking_svc.clients.ports import AccountChange, Contact, Deleted, Erased
from boxoffice.auth.v1 import auth_event_service_pb2 as messages
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from mesh.db.consumer import Batch


class AccountEvents:
    """auth_svc's event stream as batches of new and changed contacts, and ends of accounts."""

    def __init__(self, stub: AuthEventServiceStub) -> None:
        self._stub = stub

    async def open(self, after_position: str) -> AsyncIterator[Batch[AccountChange]]:
        stream = self._stub.StreamEvents(
            messages.StreamEventsRequest(after_position=after_position),
            # No caller waits for the consumer, so it can wait until auth_svc is reachable.
            wait_for_ready=True,
        )
        async for batch in stream:
            changes = [change for change in map(_change, batch.events) if change is not None]
            yield batch.events[-1].position, changes


def _change(message: messages.AuthEvent) -> AccountChange | None:
    """The change; None for an event of sessions."""
    kind = message.WhichOneof("event")
    if kind == "user_changed":
        changed = message.user_changed
        return Contact(UUID(changed.user_id), changed.email, changed.full_name, changed.phone)
    if kind == "user_erased":
        return Erased(UUID(message.user_erased.user_id))
    if kind == "user_deleted":
        return Deleted(UUID(message.user_deleted.user_id))
    return None
