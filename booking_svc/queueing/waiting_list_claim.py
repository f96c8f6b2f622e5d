"""Claiming: an offer of the waiting list becomes a booking that is HELD.

The places are held in the ledger until the end of the offer and the time of an ordinary hold, so a
claim calls no other service: booking and entry are written in one transaction. If the booking
expires unpaid, its places are released as those of any other.
"""

import hashlib
from collections.abc import Callable
from uuid import UUID

from booking_svc.bookings import bookings, pricing, state_machine
from booking_svc.bookings.batch_writer import Insertion, NewBooking, insert_all
from booking_svc.bookings.bookings import Actor, Booking, By
from booking_svc.catalogue import events
from booking_svc.queueing import waiting_list_entries
from booking_svc.queueing import waiting_list_outbox as outbox
from booking_svc.queueing.waiting_list import Dependencies
from booking_svc.queueing.waiting_list_entries import EndReason, Entry, State
from mesh.clock import rfc3339
from mesh.db.idempotent import Key
from mesh.errors import DomainError, Reason
from mesh.observability import request_context


async def claim(
    deps: Dependencies,
    *,
    entry_id: UUID,
    customer_id: UUID,
    encode: Callable[[Booking], bytes],
) -> Booking:
    """The booking of an offer, which is made once.

    It has the offers and seats that were offered, also if the limit per booking is lower by now or
    other offers sell the seats, too.
    Raises WAITING_LIST_ENTRY_NOT_FOUND, WAITING_LIST_STATE_INVALID, HOLD_EXPIRED or
    SALE_NOT_ACTIVE.
    """
    now = deps.clock()
    async with deps.database.transaction() as connection:
        entry = await waiting_list_entries.get_locked(
            connection, entry_id=entry_id, owner=customer_id
        )
        if entry.booking_id is not None:
            return await bookings.get(connection, booking_id=entry.booking_id)
        if entry.state is not State.OFFERED:
            raise _not_offered(entry)
        if entry.reservation_id is None or entry.hold_expire_time is None:
            raise RuntimeError("an entry was offered without places")
        if entry.offer_expire_time is None or entry.offer_expire_time <= now:
            raise _ended(entry)
        event = await events.get(connection, event_id=entry.event_id)
        event.refuse_unless_on_sale(now)
        booking = state_machine.placed(
            booking_id=entry.reservation_id,
            event=event,
            customer_id=customer_id,
            items=await pricing.price_held(connection, event, entry.lines),
            hold_expire_time=min(now + deps.terms.hold_ttl, entry.hold_expire_time),
            provider=None,
            now=now,
        )
        new = NewBooking(
            key=_key(entry),
            booking=booking,
            by=By(Actor.CUSTOMER, customer_id),
            response=encode(booking),
            is_mail_wanted=False,
            origin=request_context.origin(),
            revision=None,
        )
        if await insert_all(connection, [new], now) != [Insertion.INSERTED]:
            raise RuntimeError("an offer that is not claimed has a booking")
        claimed = await waiting_list_entries.move(
            connection, entry=entry, to=State.CLAIMED, now=now, booking_id=booking.booking_id
        )
        await outbox.append(connection, [claimed], now=now)
    return booking


def _key(entry: Entry) -> Key:
    """The key of the booking, of which an offer has at most one."""
    content = entry.request_key.encode()
    return Key(
        f"ClaimWaitingListOffer:{entry.customer_id}",
        entry.request_key,
        hashlib.sha256(content).digest(),
    )


def _not_offered(entry: Entry) -> DomainError:
    if entry.end_reason is EndReason.NOT_CLAIMED:
        return _ended(entry)
    if entry.end_reason is not None:
        return waiting_list_entries.state_invalid(entry, "the entry has ended: nothing is held")
    return waiting_list_entries.state_invalid(entry, "nothing is offered yet")


def _ended(entry: Entry) -> DomainError:
    ended = "" if entry.offer_expire_time is None else rfc3339(entry.offer_expire_time)
    return DomainError(
        Reason.HOLD_EXPIRED,
        "the offer has ended; its places go to the next customer of the waiting list",
        expired=ended,
    )
