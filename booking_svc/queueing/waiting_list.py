"""Joining and leaving a waiting list, and what else ends entries or makes their list due.

Offers are made in waiting_list_offers.py and claimed in waiting_list_claim.py.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Availability, Stock, StockChange
from booking_svc.queueing import waiting_list_entries as entries
from booking_svc.queueing import waiting_list_gate as gate
from booking_svc.queueing import waiting_list_outbox as outbox
from booking_svc.queueing.waiting_list_entries import EndReason, Entry, Item, State
from booking_svc.queueing.waiting_list_tables import waiting_list_entries, waiting_lists
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id


@dataclass(frozen=True, slots=True)
class Terms:
    """`offer_ttl`: how long an offer can be claimed. `gather`: how long places gather for a group
    in front. `hold_ttl`: how long the booking of a claim holds its places. `claim_url`: the page
    of the shop where offers are claimed."""

    offer_ttl: timedelta
    gather: timedelta
    hold_ttl: timedelta
    claim_url: str


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What waiting lists need. `on_due` is called after a commit that made a list due."""

    database: Database
    stock: Stock
    clock: Clock
    terms: Terms
    on_due: Callable[[], None]


async def join(
    deps: Dependencies,
    *,
    customer_id: UUID,
    event_id: UUID,
    items: tuple[Item, ...],
    is_staff: bool = False,
) -> Entry:
    """Puts a customer on the waiting list. A repetition returns the customer's live entry.

    From the return on, places that come back are not sold to others.
    Raises EVENT_NOT_FOUND, OFFER_NOT_FOUND, SALE_NOT_ACTIVE, PLACES_AVAILABLE, ALREADY_WAITING,
    PURCHASE_LIMIT_EXCEEDED or VALIDATION_FAILED.
    """
    now = deps.clock()
    async with deps.database.reading() as connection:
        event = await events.get(connection, event_id=event_id)
        live = await _find_live(connection, event_id, customer_id)
    if event.delete_time is not None:
        raise events.not_found(event_id)
    event.refuse_unless_visible(to_staff=is_staff)
    event.refuse_unless_on_sale(now)
    if live is None:
        _refuse_unknown(event, items)
        stock = await deps.stock.availability(event_id=event_id, with_seats=False)
        if faults := list(_faults(event, items, stock)):
            raise invalid(*faults)
        [owned] = await deps.stock.customer_totals(keys=[(event_id, customer_id)])
        _refuse_above_limits(event, items, owned)
        _refuse_available(event, items, stock)
    async with deps.database.transaction() as connection:
        entry = await _join(connection, event, customer_id, items, now)
    # Not answered before the ledger keeps the pools, also of a call that repeats one that died.
    await gate.sync(deps.database, deps.stock, event_id=event_id)
    deps.on_due()
    return entry


async def leave(
    deps: Dependencies, *, entry_id: UUID, owner: UUID | None, is_staff: bool = False
) -> None:
    """Ends a live entry; what is offered to it goes on to the next. Repeating it changes nothing.

    Raises WAITING_LIST_ENTRY_NOT_FOUND, or WAITING_LIST_STATE_INVALID for a claimed one.
    """
    now = deps.clock()
    reason = EndReason.STAFF if is_staff else EndReason.CUSTOMER
    async with deps.database.transaction() as connection:
        entry = await entries.get_locked(connection, entry_id=entry_id, owner=owner)
        if entry.state is State.CLAIMED:
            raise entries.state_invalid(entry, "the places are booked: cancel the booking")
        if entry.state not in entries.LIVE:
            return
        await end(connection, [entry], to=State.LEFT, reason=reason, now=now)
    # The list's job does both again if this process dies.
    with suppress(DomainError):
        await gate.sync(deps.database, deps.stock, event_id=entry.event_id)
        await release_due(deps, event_id=entry.event_id)
    deps.on_due()


async def end(
    connection: AsyncConnection,
    live: Sequence[Entry],
    *,
    to: State,
    reason: EndReason,
    now: datetime,
) -> None:
    """Ends live entries of an event whose list is locked; their holds are to be released."""
    ended = [
        await entries.move(
            connection,
            entry=entry,
            to=to,
            now=now,
            end_reason=reason,
            is_release_due=entry.state is not State.WAITING,
        )
        for entry in live
    ]
    await outbox.append(connection, ended, now=now)
    for event_id in {entry.event_id for entry in ended}:
        await make_due(connection, event_ids=[event_id], now=now)
        locked = await entries.lock(connection, event_id=event_id)
        if locked is not None:
            await gate.refresh(connection, locked, now=now)


async def release_due(deps: Dependencies, *, event_id: UUID) -> None:
    """Releases the holds of entries that have ended. Raises DEPENDENCY_UNAVAILABLE."""
    async with deps.database.reading() as connection:
        released = await entries.select(
            connection, waiting_list_entries.c.is_release_due, event_id=event_id
        )
    for entry in released:
        if entry.reservation_id is not None:
            await deps.stock.release(event_id=event_id, reservation_id=entry.reservation_id)
        async with deps.database.single() as connection:
            await connection.execute(
                sa.update(waiting_list_entries)
                .where(waiting_list_entries.c.entry_id == entry.entry_id)
                .where(waiting_list_entries.c.reservation_id == entry.reservation_id)
                .values(is_release_due=False)
            )


async def make_due(
    connection: AsyncConnection, *, event_ids: Collection[UUID], now: datetime
) -> None:
    """Makes the lists of events due."""
    ids = sa.literal(sorted(event_ids), postgresql.ARRAY(sa.UUID()))
    await connection.execute(
        sa.update(waiting_lists)
        .where(waiting_lists.c.event_id == sa.any_(ids))
        .values(due_time=now)
    )


async def apply_stock_changes(
    connection: AsyncConnection, changes: Sequence[StockChange], now: datetime
) -> None:
    """Makes the lists of events due whose stock has changed, if anybody waits."""
    if not changes:
        return
    ids = sa.literal(sorted({change.event_id for change in changes}), postgresql.ARRAY(sa.UUID()))
    due = (
        sa.select(waiting_lists.c.event_id)
        .where(waiting_lists.c.event_id == sa.any_(ids), waiting_lists.c.due_time > now)
        .order_by(waiting_lists.c.event_id)
        .with_for_update(key_share=True)
        .cte("due")
    )
    await connection.execute(
        sa.update(waiting_lists)
        .where(waiting_lists.c.event_id == due.c.event_id)
        .values(due_time=now)
    )


async def erase(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """Ends all live entries of a deleted or erased account."""
    event_ids = await connection.scalars(
        sa.select(waiting_list_entries.c.event_id)
        .where(waiting_list_entries.c.customer_id == user_id, entries.in_states(*entries.LIVE))
        .order_by(waiting_list_entries.c.event_id)
    )
    for event_id in event_ids.all():
        await entries.lock(connection, event_id=event_id)
        live = await entries.select(
            connection,
            waiting_list_entries.c.customer_id == user_id,
            entries.in_states(*entries.LIVE),
            event_id=event_id,
        )
        await end(connection, live, to=State.LEFT, reason=EndReason.ACCOUNT_ERASED, now=now)


async def _join(
    connection: AsyncConnection,
    event: Event,
    customer_id: UUID,
    items: tuple[Item, ...],
    now: datetime,
) -> Entry:
    locked = await entries.lock_or_create(connection, event_id=event.event_id)
    live = await _find_live(connection, event.event_id, customer_id)
    if live is not None:
        if sorted(live.items, key=_by_offer) != sorted(items, key=_by_offer):
            raise DomainError(
                Reason.ALREADY_WAITING,
                "the customer waits for other items of this event: leave the waiting list first",
                entry_id=live.entry_id,
            )
        return live
    entry = Entry(
        entry_id=new_id(),
        event_id=event.event_id,
        number=locked.last_number + 1,
        customer_id=customer_id,
        state=State.WAITING,
        items=items,
        pool_ids=tuple(sorted(entries.by_pool(items, event))),
        offer_number=0,
        lines=(),
        reservation_id=None,
        offer_time=None,
        offer_expire_time=None,
        hold_expire_time=None,
        is_release_due=False,
        booking_id=None,
        end_reason=None,
        create_time=now,
        update_time=now,
    )
    await entries.insert(connection, entry=entry)
    await outbox.append(connection, [entry], now=now)
    await make_due(connection, event_ids=[event.event_id], now=now)
    await gate.refresh(connection, locked, now=now)
    return entry


def _by_offer(item: Item) -> UUID:
    return item.offer_id


async def _find_live(
    connection: AsyncConnection, event_id: UUID, customer_id: UUID
) -> Entry | None:
    live = await entries.select(
        connection,
        waiting_list_entries.c.customer_id == customer_id,
        entries.in_states(*entries.LIVE),
        event_id=event_id,
    )
    return live[0] if live else None


def _refuse_unknown(event: Event, items: Sequence[Item]) -> None:
    """Raises OFFER_NOT_FOUND."""
    offers = {offer.offer_id: offer for offer in event.offers}
    for item in items:
        if item.offer_id not in offers:
            raise DomainError(
                Reason.OFFER_NOT_FOUND, "the event has no such offer", offer_id=item.offer_id
            )


def _refuse_above_limits(event: Event, items: Sequence[Item], owned: Mapping[UUID, int]) -> None:
    """Raises PURCHASE_LIMIT_EXCEEDED if the customer would own too many places, as the ledger.

    `owned` has the places that the customer holds or owns, by offer.
    """
    limits = {offer.offer_id: offer.per_customer_limit for offer in event.offers}
    for item in items:
        of_offer = owned.get(item.offer_id, 0)
        if of_offer + item.quantity > limits[item.offer_id]:
            raise DomainError(
                Reason.PURCHASE_LIMIT_EXCEEDED,
                "the customer would own more of the offer than its limit",
                offer_id=item.offer_id,
                limit=limits[item.offer_id],
                owned=of_offer,
                requested=item.quantity,
            )
    total, of_event = sum(item.quantity for item in items), sum(owned.values())
    limit = event.per_customer_limit
    if limit is not None and of_event + total > limit:
        raise DomainError(
            Reason.PURCHASE_LIMIT_EXCEEDED,
            "the customer would own more of the event than its limit",
            event_id=event.event_id,
            limit=limit,
            owned=of_event,
            requested=total,
        )


def _faults(event: Event, items: Sequence[Item], stock: Availability) -> Iterator[FieldViolation]:
    """What can never be served, whatever comes back."""
    offers = {offer.offer_id: offer for offer in event.offers}
    seen: set[UUID] = set()
    needed: Counter[UUID] = Counter()
    names: defaultdict[UUID, list[str]] = defaultdict(list)
    for index, item in enumerate(items):
        offer = offers[item.offer_id]
        if item.offer_id in seen:
            yield FieldViolation(f"items[{index}].offer_id", "is listed twice")
            continue
        seen.add(item.offer_id)
        if item.quantity > offer.max_per_booking:
            yield FieldViolation(
                f"items[{index}].quantity",
                f"at most {offer.max_per_booking} of {offer.name!r} per booking",
            )
            continue
        # Offers of the same pool share its places.
        needed[offer.pool_id] += item.quantity
        names[offer.pool_id].append(repr(offer.name))
        pool = stock.pools.get(offer.pool_id)
        if pool is not None and needed[offer.pool_id] > pool.capacity:
            shared = " and ".join(names[offer.pool_id])
            verb = "has" if len(names[offer.pool_id]) == 1 else "share"
            yield FieldViolation(
                f"items[{index}].quantity",
                f"{shared} {verb} {pool.capacity} places; with this item the group needs"
                f" {needed[offer.pool_id]}",
            )


def _refuse_available(event: Event, items: Sequence[Item], stock: Availability) -> None:
    available = {pool_id: pool.available for pool_id, pool in stock.pools.items()}
    needed = entries.by_pool(items, event)
    if all(available.get(pool_id, 0) >= quantity for pool_id, quantity in needed.items()):
        raise DomainError(Reason.PLACES_AVAILABLE, "the places are available: book them")
