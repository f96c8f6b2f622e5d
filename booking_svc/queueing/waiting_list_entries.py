"""An entry of a waiting list: its states, the moves between them as data, and its row.

A transaction that changes entries of an event holds the lock of the event's row in
`waiting_lists`: `lock` takes it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Line
from booking_svc.queueing.waiting_list_tables import waiting_list_entries as table
from booking_svc.queueing.waiting_list_tables import waiting_lists
from mesh.errors import DomainError, Reason
from mesh.paging import from_token, to_token


class State(StrEnum):
    """RESERVING: places are chosen and about to be held. Clients see it as WAITING."""

    WAITING = "WAITING"
    RESERVING = "RESERVING"
    OFFERED = "OFFERED"
    CLAIMED = "CLAIMED"
    EXPIRED = "EXPIRED"
    LEFT = "LEFT"


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RESERVING, State.EXPIRED, State.LEFT}),
    State.RESERVING: frozenset({State.WAITING, State.OFFERED, State.EXPIRED, State.LEFT}),
    State.OFFERED: frozenset({State.CLAIMED, State.EXPIRED, State.LEFT}),
    State.CLAIMED: frozenset(),
    State.EXPIRED: frozenset(),
    State.LEFT: frozenset(),
}

WAITING = (State.WAITING, State.RESERVING)
LIVE = (State.WAITING, State.RESERVING, State.OFFERED)
"""States of which a customer has at most one entry per event."""


class EndReason(StrEnum):
    CUSTOMER = "CUSTOMER"
    STAFF = "STAFF"
    NOT_CLAIMED = "NOT_CLAIMED"
    PURCHASE_LIMIT = "PURCHASE_LIMIT"
    SALE_ENDED = "SALE_ENDED"
    EVENT_CANCELLED = "EVENT_CANCELLED"
    ACCOUNT_ERASED = "ACCOUNT_ERASED"


@dataclass(frozen=True, slots=True)
class Item:
    """A number of places of an offer."""

    offer_id: UUID
    quantity: int


@dataclass(frozen=True, slots=True)
class Entry:
    """`number` is the order of joining; `lines` are the places of its offer.

    `position` is the place among those that wait, where it was asked for.
    """

    entry_id: UUID
    event_id: UUID
    number: int
    customer_id: UUID
    state: State
    items: tuple[Item, ...]
    pool_ids: tuple[UUID, ...]
    offer_number: int
    lines: tuple[Line, ...]
    reservation_id: UUID | None
    offer_time: datetime | None
    offer_expire_time: datetime | None
    hold_expire_time: datetime | None
    is_release_due: bool
    booking_id: UUID | None
    end_reason: EndReason | None
    create_time: datetime
    update_time: datetime
    position: int | None = None

    @property
    def request_key(self) -> str:
        """The key under which the ledger reserves the places of the present offer, once."""
        return f"waiting-list:{self.entry_id}:{self.offer_number}"

    def by_pool(self, event: Event) -> dict[UUID, int]:
        """How many places of each pool the entry needs."""
        return by_pool(self.items, event)


@dataclass(frozen=True, slots=True)
class WaitingList:
    """The row of an event's list. The ledger is to keep `kept_pool_ids`, and to open
    `opened_pool_ids`; it has done so when both versions are equal."""

    event_id: UUID
    last_number: int
    version: int
    synced_version: int
    kept_pool_ids: tuple[UUID, ...]
    opened_pool_ids: tuple[UUID, ...]
    due_time: datetime | None

    @property
    def is_synced(self) -> bool:
        return self.version == self.synced_version


@dataclass(frozen=True, slots=True)
class Page:
    entries: Sequence[Entry]
    next_page_token: str
    total_size: int


def by_pool(items: Sequence[Item], event: Event) -> dict[UUID, int]:
    """How many places of each pool some items need."""
    pool_of = {offer.offer_id: offer.pool_id for offer in event.offers}
    needed: Counter[UUID] = Counter()
    for item in items:
        needed[pool_of[item.offer_id]] += item.quantity
    return dict(needed)


def not_found(entry_id: UUID) -> DomainError:
    return DomainError(Reason.WAITING_LIST_ENTRY_NOT_FOUND, "no such entry", entry_id=entry_id)


def state_invalid(entry: Entry, message: str) -> DomainError:
    shown = State.WAITING if entry.state is State.RESERVING else entry.state
    return DomainError(Reason.WAITING_LIST_STATE_INVALID, message, state=shown)


async def lock(connection: AsyncConnection, *, event_id: UUID) -> WaitingList | None:
    """Locks the list of an event until the transaction ends; None if nobody has waited for it."""
    row = (
        await connection.execute(
            sa.select(waiting_lists)
            .where(waiting_lists.c.event_id == event_id)
            .with_for_update(key_share=True)
        )
    ).one_or_none()
    return None if row is None else _list_from_row(row)


async def lock_or_create(connection: AsyncConnection, *, event_id: UUID) -> WaitingList:
    """Locks the list of an existing event."""
    await connection.execute(
        postgresql.insert(waiting_lists)
        .values(
            event_id=event_id,
            last_number=0,
            version=0,
            synced_version=0,
            kept_pool_ids=[],
            opened_pool_ids=[],
        )
        .on_conflict_do_nothing()
    )
    locked = await lock(connection, event_id=event_id)
    if locked is None:
        raise RuntimeError("a waiting list was deleted with its event")
    return locked


def _list_from_row(row: sa.Row[Any]) -> WaitingList:
    return WaitingList(
        row.event_id,
        row.last_number,
        row.version,
        row.synced_version,
        tuple(row.kept_pool_ids),
        tuple(row.opened_pool_ids),
        row.due_time,
    )


async def get(connection: AsyncConnection, *, entry_id: UUID, owner: UUID | None = None) -> Entry:
    """An entry. Raises WAITING_LIST_ENTRY_NOT_FOUND, also if it is not the owner's."""
    row = (
        await connection.execute(sa.select(table).where(table.c.entry_id == entry_id))
    ).one_or_none()
    if row is None or owner not in (None, row.customer_id):
        raise not_found(entry_id)
    return from_row(row)


async def get_locked(
    connection: AsyncConnection, *, entry_id: UUID, owner: UUID | None = None
) -> Entry:
    """An entry, with the lock of its list. Raises as `get` does."""
    event_id = (await get(connection, entry_id=entry_id, owner=owner)).event_id
    await lock(connection, event_id=event_id)
    return await get(connection, entry_id=entry_id, owner=owner)


async def select(
    connection: AsyncConnection,
    *conditions: sa.ColumnElement[bool],
    event_id: UUID,
    limit: int | None = None,
) -> list[Entry]:
    """Entries of an event in the order of joining."""
    rows = await connection.execute(
        sa.select(table)
        .where(table.c.event_id == event_id, *conditions)
        .order_by(table.c.number)
        .limit(limit)
    )
    return [from_row(row) for row in rows]


def in_states(*states: State) -> sa.ColumnElement[bool]:
    """As literals: with parameters, prepared plans could not use the partial indexes."""
    return table.c.state.in_([sa.literal_column(f"'{state}'") for state in states])


def waits_for(pool_ids: Collection[UUID]) -> sa.ColumnElement[bool]:
    """Whether an entry needs places of one of the pools."""
    ids = sa.literal(sorted(pool_ids), postgresql.ARRAY(sa.UUID()))
    overlap: sa.ColumnElement[bool] = table.c.pool_ids.overlap(ids)
    return overlap


def fits(places: Mapping[UUID, int]) -> sa.ColumnElement[bool]:
    """Whether each item of an entry has no more than these places of its offer."""
    given = sa.literal({str(key): count for key, count in places.items()}, postgresql.JSONB)
    items = table.c["items"]
    item = sa.func.jsonb_array_elements(items, type_=postgresql.JSONB).column_valued("item")
    count = given[item[0].astext].astext.cast(sa.Integer)
    is_beyond = item[1].astext.cast(sa.Integer) > sa.func.coalesce(count, 0)
    return ~sa.exists(sa.select(item).where(is_beyond))


async def positions(connection: AsyncConnection, entries: Sequence[Entry]) -> Mapping[UUID, int]:
    """The positions, from 1, of those of the entries that wait."""
    waiting = [entry for entry in entries if entry.state in WAITING]
    if not waiting:
        return {}
    others = table.alias("others")
    in_front = (
        sa.select(sa.func.count())
        .where(others.c.event_id == table.c.event_id, others.c.number <= table.c.number)
        .where(others.c.state.in_([sa.literal_column(f"'{state}'") for state in WAITING]))
        .scalar_subquery()
    )
    rows = await connection.execute(
        sa.select(table.c.entry_id, in_front.label("position")).where(
            table.c.entry_id.in_([entry.entry_id for entry in waiting]), in_states(*WAITING)
        )
    )
    return {row.entry_id: row.position for row in rows}


async def list_page(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    states: Collection[State],
    page_size: int,
    page_token: str,
) -> Page:
    """A page of an event's entries in these states, or in all. Raises VALIDATION_FAILED."""
    matches = [table.c.event_id == event_id]
    if states:
        matches.append(in_states(*sorted(states)))
    scope = f"waiting list of {event_id} {sorted(states)}"
    query = sa.select(table).where(*matches).order_by(table.c.number).limit(page_size + 1)
    if (after := from_token(page_token, 1, scope=scope)) is not None:
        query = query.where(table.c.number > int(after[0]))
    rows = (await connection.execute(query)).all()
    shown = [from_row(row) for row in rows[:page_size]]
    total = await connection.scalar(sa.select(sa.func.count()).select_from(table).where(*matches))
    is_last = len(rows) <= page_size
    return Page(shown, "" if is_last else to_token(str(shown[-1].number), scope=scope), total or 0)


async def insert(connection: AsyncConnection, *, entry: Entry) -> None:
    """Inserts an entry that waits, whose list the caller has locked."""
    await connection.execute(
        table.insert().values(
            entry_id=entry.entry_id,
            event_id=entry.event_id,
            number=entry.number,
            customer_id=entry.customer_id,
            state=entry.state,
            items=[[str(item.offer_id), item.quantity] for item in entry.items],
            pool_ids=list(entry.pool_ids),
            offer_number=0,
            create_time=entry.create_time,
            update_time=entry.update_time,
        )
    )
    await connection.execute(
        sa.update(waiting_lists)
        .where(waiting_lists.c.event_id == entry.event_id)
        .values(last_number=entry.number)
    )


async def move(
    connection: AsyncConnection, *, entry: Entry, to: State, now: datetime, **values: Any
) -> Entry:
    """Moves an entry, whose list the caller has locked, and writes `values`."""
    if to not in MOVES[entry.state]:
        raise RuntimeError(f"an entry that is {entry.state} cannot become {to}")
    row = (
        await connection.execute(
            sa.update(table)
            .where(table.c.entry_id == entry.entry_id, table.c.state == entry.state)
            .values(state=to, update_time=now, **values)
            .returning(*table.c)
        )
    ).one_or_none()
    if row is None:
        raise RuntimeError(f"entry {entry.entry_id} was changed without the lock of its list")
    return from_row(row)


def from_row(row: sa.Row[Any]) -> Entry:
    columns = dict(row._mapping)
    del columns["gather_since"]
    reason = columns["end_reason"]
    columns["state"] = State(columns["state"])
    columns["end_reason"] = None if reason is None else EndReason(reason)
    columns["items"] = tuple(Item(UUID(offer_id), count) for offer_id, count in columns["items"])
    columns["pool_ids"] = tuple(columns["pool_ids"])
    columns["lines"] = tuple(
        Line(UUID(offer_id), count, None if seat_id is None else UUID(seat_id))
        for offer_id, count, seat_id in columns["lines"] or ()
    )
    return Entry(**columns)


def lines_to_json(lines: Sequence[Line]) -> list[list[object]]:
    return [
        [str(line.offer_id), line.quantity, None if line.seat_id is None else str(line.seat_id)]
        for line in lines
    ]
