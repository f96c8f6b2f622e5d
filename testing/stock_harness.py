"""An event on sale, for tests: each call is one transaction, as in the servicer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.batches import RacedError
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import (
    audit,
    exchange,
    reservations,
    restocking,
    stock,
    stock_update,
    waiting_list,
)
from stock_svc.audit import Audit
from stock_svc.reservations import Line, Reservation
from stock_svc.reserve import reserve_all
from stock_svc.stock import SeatAvailability, StockAvailability
from stock_svc.stock_update import TargetStock
from stock_svc.transitions import Move, Moved, Order, move_all

NOW = datetime(2031, 5, 17, 18, 0, tzinfo=UTC)
HOLD = timedelta(minutes=10)
LAPSED = NOW + HOLD


async def reserve_one(
    connection: AsyncConnection, request: Reservation, *, now: datetime
) -> Reservation:
    """`reserve_all` for one request. Raises its refusal."""
    try:
        [outcome] = await reserve_all(connection, [request], now)
    except RacedError as raced:
        raise raced.refusal() from None
    if isinstance(outcome, DomainError):
        raise outcome
    return outcome


async def move_one(connection: AsyncConnection, order: Order, *, now: datetime) -> Moved:
    """`move_all` for one order. Raises its refusal."""
    [outcome] = await move_all(connection, [order], now)
    if isinstance(outcome, DomainError):
        raise outcome
    return outcome


@dataclass(frozen=True)
class Sale:
    """An event's stock; pools, offers and seats by the names that a test gave them."""

    database: Database
    event_id: UUID
    pools: Mapping[str, UUID]
    offers: Mapping[str, UUID]
    seats: Mapping[str, UUID]
    stock: stock.Stock

    def line(self, offer: str = "place", quantity: int = 1, *, seat: str | None = None) -> Line:
        return Line(self.offers[offer], quantity, None if seat is None else self.seats[seat])

    def lines(self, *seats: str) -> list[Line]:
        """One line for each seat."""
        offer_of = {seat.seat_id: seat.offer_id for seat in self.stock.seats}
        return [Line(offer_of[self.seats[name]], 1, self.seats[name]) for name in seats]

    def request(
        self,
        *lines: Line,
        customer_id: UUID | None = None,
        request_key: str | None = None,
        reservation_id: UUID | None = None,
        now: datetime = NOW,
        hold: timedelta = HOLD,
        for_waiting_list: bool = False,
    ) -> Reservation:
        """A reservation to be made; one place when no line is given."""
        return reservations.new(
            event_id=self.event_id,
            reservation_id=reservation_id or new_id(),
            request_key=request_key or str(new_id()),
            customer_id=customer_id or new_id(),
            lines=lines or [self.line()],
            expire_time=now + hold,
            for_waiting_list=for_waiting_list,
            now=now,
        )

    async def reserve(self, *lines: Line, now: datetime = NOW, **details: Any) -> Reservation:
        """`details` are those of `request`."""
        request = self.request(*lines, now=now, **details)
        async with self.database.transaction() as connection:
            return await reserve_one(connection, request, now=now)

    async def extend(
        self, reservation_id: UUID, *, now: datetime = NOW, to: datetime | None = None
    ) -> Reservation:
        end = to or now + timedelta(minutes=15)
        return (await self._move(Move.EXTEND, reservation_id, now, end)).expect()

    async def commit(self, reservation_id: UUID, *, now: datetime = NOW) -> Reservation:
        return (await self._move(Move.COMMIT, reservation_id, now)).expect()

    async def release(self, reservation_id: UUID, *, now: datetime = NOW) -> bool:
        return (await self._move(Move.RELEASE, reservation_id, now)).has_moved

    async def return_sold(self, reservation_id: UUID, *, now: datetime = NOW) -> Reservation:
        return (await self._move(Move.RETURN, reservation_id, now)).expect()

    async def _move(
        self, move: Move, reservation_id: UUID, now: datetime, expire_time: datetime | None = None
    ) -> Moved:
        order = Order(move, self.event_id, reservation_id, expire_time)
        async with self.database.transaction() as connection:
            return await move_one(connection, order, now=now)

    async def exchange(
        self,
        reservation_id: UUID,
        *lines: Line,
        to: "Sale | None" = None,
        to_reservation_id: UUID | None = None,
        request_key: str | None = None,
        now: datetime = NOW,
        hold: timedelta = HOLD,
    ) -> Reservation:
        async with self.database.transaction() as connection:
            return await exchange.exchange(
                connection,
                event_id=self.event_id,
                reservation_id=reservation_id,
                to_event_id=(to or self).event_id,
                to_reservation_id=to_reservation_id or new_id(),
                request_key=request_key or str(new_id()),
                lines=lines or [(to or self).line()],
                expire_time=now + hold,
                now=now,
            )

    async def restock(self, quantity: int, pool: str = "floor") -> StockAvailability:
        async with self.database.transaction() as connection:
            return await restocking.restock(
                connection,
                event_id=self.event_id,
                pool_id=self.pools[pool],
                quantity=quantity,
                now=NOW,
            )

    async def keep(
        self, version: int, *pools: str, opened: Sequence[str] = (), now: datetime = NOW
    ) -> StockAvailability:
        """Keeps what comes back in the pools for the waiting list."""
        async with self.database.transaction() as connection:
            return await waiting_list.keep(
                connection,
                event_id=self.event_id,
                version=version,
                pool_ids=[self.pools[name] for name in pools],
                opened_pool_ids=[self.pools[name] for name in opened],
                now=now,
            )

    async def kept(self, pool: str = "floor", *, now: datetime = NOW) -> tuple[int, int]:
        """How many free places are open to all, and how many are kept."""
        availability = await self.availability(now=now)
        return next(
            (p.available, p.kept) for p in availability.pools if p.pool_id == self.pools[pool]
        )

    async def block(self, *seats: str, now: datetime = NOW) -> tuple[SeatAvailability, ...]:
        async with self.database.transaction() as connection:
            return await restocking.block(
                connection,
                event_id=self.event_id,
                seat_ids=[self.seats[name] for name in seats],
                now=now,
            )

    async def unblock(self, *seats: str) -> tuple[SeatAvailability, ...]:
        async with self.database.transaction() as connection:
            return await restocking.unblock(
                connection,
                event_id=self.event_id,
                seat_ids=[self.seats[name] for name in seats],
                now=NOW,
            )

    async def update(self, target: TargetStock, *, now: datetime = NOW) -> StockAvailability:
        async with self.database.transaction() as connection:
            return await stock_update.update(
                connection, event_id=self.event_id, target=target, now=now
            )

    async def remove(self, *, now: datetime = NOW) -> None:
        async with self.database.transaction() as connection:
            await restocking.remove(connection, event_id=self.event_id, now=now)

    async def get(self, reservation_id: UUID) -> Reservation:
        async with self.database.transaction() as connection:
            return await reservations.get(
                connection, event_id=self.event_id, reservation_id=reservation_id
            )

    async def availability(self, *, now: datetime = NOW) -> StockAvailability:
        async with self.database.transaction() as connection:
            return await stock.availability(
                connection, event_id=self.event_id, with_seats=True, now=now
            )

    async def available(self, pool: str = "floor", *, now: datetime = NOW) -> int:
        availability = await self.availability(now=now)
        return next(p.available for p in availability.pools if p.pool_id == self.pools[pool])

    async def seat_states(self, *, now: datetime = NOW) -> dict[str, str]:
        states = {
            seat.seat_id: seat.state.value for seat in (await self.availability(now=now)).seats
        }
        return {name: states[seat_id] for name, seat_id in self.seats.items()}

    async def audit(self) -> Audit:
        async with self.database.transaction() as connection:
            return await audit.audit(connection, event_id=self.event_id)

    async def assert_clean(self) -> Audit:
        audited = await self.audit()
        assert audited.differences == ()
        return audited

    async def counters(self, pool: str = "floor") -> tuple[int, int]:
        """Held and sold places."""
        audited = await self.audit()
        counters = next(p for p in audited.pools if p.pool_id == self.pools[pool])
        return counters.held, counters.sold

    async def sql(self, *statements: str) -> None:
        async with self.database.transaction() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))


async def on_sale(
    database: Database,
    *,
    pools: Mapping[str, int] | None = None,
    offers: Mapping[str, str] | None = None,
    seats: Mapping[str, Sequence[str]] | None = None,
    per_customer_limit: int = 100,
    event_limit: int | None = None,
) -> Sale:
    """An event whose offers draw on pools: `offers={"adult": "floor"}`, `seats={"stalls": ["A1"]}`.

    By default it has one offer `place` of a pool `floor` with 10 places. The capacity of a pool
    that is not in `pools` is the number of its seats.
    """
    offers = dict(offers or ({"place": "floor"} if not seats else {}))
    for offer in seats or {}:
        offers.setdefault(offer, offer)
    capacities = dict(pools or ({"floor": 10} if "floor" in offers.values() else {}))
    for offer, names in (seats or {}).items():
        if offer not in (pools or {}):
            capacities[offers[offer]] = capacities.get(offers[offer], 0) + len(names)
    pool_ids = {name: new_id() for name in capacities}
    offer_ids = {name: new_id() for name in offers}
    seat_ids = {name: new_id() for names in (seats or {}).values() for name in names}
    defined = stock.Stock(
        pools=[stock.Pool(pool_ids[name], capacity) for name, capacity in capacities.items()],
        offers=[
            stock.Offer(offer_ids[name], pool_ids[pool], per_customer_limit)
            for name, pool in offers.items()
        ],
        seats=[
            stock.Seat(seat_ids[name], offer_ids[offer])
            for offer, names in (seats or {}).items()
            for name in names
        ],
        per_customer_limit=event_limit,
    )
    sale = Sale(database, new_id(), pool_ids, offer_ids, seat_ids, defined)
    async with database.transaction() as connection:
        await stock.define(connection, event_id=sale.event_id, stock=defined, now=NOW)
    return sale


def refusal_of(error: DomainError) -> tuple[Reason, dict[str, str]]:
    return error.reason, error.metadata
