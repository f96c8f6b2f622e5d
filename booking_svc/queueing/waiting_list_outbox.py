"""Domain events of waiting lists: written to the outbox with their effect, for mails and webhooks."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.outbox import OF_WAITING_LIST
from booking_svc.queueing import waiting_list_proto as proto
from booking_svc.queueing.waiting_list_entries import Entry, State
from boxoffice.queueing.v1 import waiting_list_event_pb2
from mesh.conversions import time_to_proto
from mesh.db import outbox
from mesh.db.database import on_commit
from mesh.ids import new_id
from mesh.observability import metrics, request_context

_KINDS = {
    State.WAITING: "joined",
    State.OFFERED: "offered",
    State.CLAIMED: "claimed",
    State.EXPIRED: "expired",
    State.LEFT: "left",
}

_EVENTS = metrics.counter(
    "waiting_list_events",
    "Entries of waiting lists that joined, were offered places, claimed, expired or left.",
    "kind",
)


async def append(
    connection: AsyncConnection, entries: Sequence[Entry], *, now: datetime, claim_url: str = ""
) -> None:
    """Writes the events of entries that have just got their state. `claim_url` is for offers."""
    if not entries:
        return
    await outbox.append(connection, [_new(entry, claim_url, now) for entry in entries], now=now)
    kinds = [_KINDS[entry.state] for entry in entries]

    def count() -> None:
        for kind in kinds:
            _EVENTS.labels(kind).inc()

    on_commit(connection, count)


def _new(entry: Entry, claim_url: str, now: datetime) -> outbox.NewEvent:
    message = waiting_list_event_pb2.WaitingListEvent(
        event_key=str(new_id()),
        event_time=time_to_proto(now),
        waiting_list_entry=proto.entry(entry),
    )
    kind = _KINDS[entry.state]
    getattr(message, kind).SetInParent()
    if entry.state is State.OFFERED:
        message.offered.claim_url = f"{claim_url}#entry={entry.entry_id}"
    return outbox.NewEvent(
        aggregate_id=entry.entry_id,
        event_type=f"{OF_WAITING_LIST}{kind}",
        payload=message.SerializeToString(),
        origin=request_context.origin(),
    )
