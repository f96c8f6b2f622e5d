"""What events are to a signed-in customer: marks, and what the purchase limits leave.

Read for many customers at once. What cannot be read within DEADLINE_SECONDS is None: an event is
shown without it rather than not at all.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar
from uuid import UUID

import sqlalchemy as sa

from booking_svc.catalogue import favourites
from booking_svc.clients.ports import Stock
from mesh import coalescing
from mesh.db.database import Database
from mesh.deadlines import deadline_in
from mesh.errors import DomainError

DEADLINE_SECONDS = 0.3
MAX_KEYS = 5_000
"""Offers of customers in one call of stock_svc, and marks in one statement."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """The purchase limits of an event: of each offer, and across all offers unless None."""

    event_id: UUID
    offers: Mapping[UUID, int]
    per_customer_limit: int | None

    def remaining(self, totals: Mapping[UUID, int]) -> Mapping[UUID, int]:
        """What the limits leave of each offer to a customer with these totals by offer."""
        left = {
            offer_id: max(0, limit - totals.get(offer_id, 0))
            for offer_id, limit in self.offers.items()
        }
        if self.per_customer_limit is None:
            return left
        of_event = max(0, self.per_customer_limit - sum(totals.values()))
        return {offer_id: min(count, of_event) for offer_id, count in left.items()}


@dataclass(frozen=True, slots=True)
class Personal:
    """Of one event and customer; None what could not be read."""

    is_favourite: bool | None
    remaining: Mapping[UUID, int] | None


_UNKNOWN = Personal(None, None)
_Request = tuple[UUID, Sequence[Limits]]


class PersonalReads:
    """Concurrent readings of many customers share statements and calls of stock_svc."""

    def __init__(
        self, database: Database, stock: Stock, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._database = database
        self._stock = stock
        self._deadline_seconds = deadline_seconds
        self._reads = coalescing.reads("personal", self._read_all)

    async def read(self, customer_id: UUID, events: Sequence[Limits]) -> Sequence[Personal]:
        """One for each event, in order."""
        if not events:
            return ()
        read = await self._in_time(self._reads.submit((customer_id, events)))
        return [_UNKNOWN] * len(events) if read is None else read

    async def _read_all(self, requests: Sequence[_Request]) -> Sequence[Sequence[Personal]]:
        keys = [(customer_id, event) for customer_id, events in requests for event in events]
        chunks = [keys[start:end] for start, end in pairwise(_bounds(event for _, event in keys))]
        read = await asyncio.gather(*map(self._read_chunk, chunks))
        personal = iter([value for chunk in read for value in chunk])
        return [[next(personal) for _ in events] for _, events in requests]

    async def _read_chunk(self, keys: Sequence[tuple[UUID, Limits]]) -> list[Personal]:
        marked, totals = await asyncio.gather(
            self._in_time(self._marked([(user_id, event.event_id) for user_id, event in keys])),
            self._in_time(
                self._stock.customer_totals(
                    keys=[(event.event_id, user_id) for user_id, event in keys]
                )
            ),
        )
        return [
            Personal(
                None if marked is None else number in marked,
                None if totals is None else event.remaining(totals[number]),
            )
            for number, (_, event) in enumerate(keys)
        ]

    async def _marked(self, keys: Sequence[tuple[UUID, UUID]]) -> frozenset[int]:
        async with self._database.transaction() as connection:
            return await favourites.marked(connection, keys=keys)

    async def _in_time(self, reading: Awaitable[_T]) -> _T | None:
        """The result; None if it is late, or the database or stock_svc is away."""
        try:
            with deadline_in(self._deadline_seconds):
                async with asyncio.timeout(self._deadline_seconds):
                    return await reading
        except (DomainError, TimeoutError, sa.exc.SQLAlchemyError):
            return None


def _bounds(events: Iterable[Limits]) -> list[int]:
    """Where chunks of at most MAX_KEYS offers begin, and where the last one ends."""
    bounds, count, number = [0], 0, 0
    for number, event in enumerate(events, 1):
        count += len(event.offers)
        if count > MAX_KEYS and number - 1 > bounds[-1]:
            bounds.append(number - 1)
            count = len(event.offers)
    return [*bounds, number]
