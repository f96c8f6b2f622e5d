"""Any order of calls, clock moves, sweeps, crashes and retries, compared with a small model.

After each step the availability must match the model's; at the end the audit must find no
difference. Each example has an event of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc.expiry import sweep
from stock_svc.reservations import Line, Reservation, State
from stock_svc.reserve import Outcome, reserve_all
from stock_svc.transitions import Move, Order
from testing.databases import open_patiently
from testing.stock_harness import NOW, Sale, move_one, on_sale, reserve_one

_T = TypeVar("_T")

# Few and small, so that requests compete.
CUSTOMERS = [new_id() for _ in range(2)]
CAPACITIES = {"floor": 6, "balcony": 4}
# Two offers sell the same seats.
SEATED = ["stalls", "stalls child"]
POOL_OF = {"adult": "floor", "child": "floor", "high": "balcony", **dict.fromkeys(SEATED, "stalls")}
SEATS = ["A1", "A2", "A3"]
LIMIT = 3
EVENT_LIMIT = 5

items = st.lists(
    st.tuples(st.sampled_from(["adult", "child", "high"]), st.integers(1, 4))
    | st.tuples(st.sampled_from(SEATED), st.sampled_from(SEATS)),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item[1] if item[0] in SEATED else item,
)

# Two requests for one of these do not fit together.
large = st.sampled_from([[("high", 3)], [("adult", 3), ("child", 2)], [("stalls", "A1")]])

# The refusals of calls for a reservation that has ended.
ENDED = {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}


class ProcessDiedError(Exception):
    """The process died here."""


@dataclass
class Held:
    """A reservation in the model."""

    reservation_id: UUID
    customer_id: UUID
    request_key: str
    items: list[tuple[str, int | str]]
    end: datetime
    state: State = State.ACTIVE
    extended: bool = False

    def counts(self, now: datetime) -> bool:
        return self.state is State.COMMITTED or (self.state is State.ACTIVE and now < self.end)


class LedgerMachine(RuleBasedStateMachine):
    runner: asyncio.Runner
    database: Database

    reserved = Bundle[Held]("reserved")

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.model: list[Held] = []
        self.capacities = dict(CAPACITIES)
        self.blocked: set[str] = set()
        self.sale: Sale = self.do(
            on_sale(
                self.database,
                pools=CAPACITIES | {"stalls": len(SEATS)},
                offers=POOL_OF,
                seats={"stalls": SEATS},
                per_customer_limit=LIMIT,
                event_limit=EVENT_LIMIT,
            )
        )

    def do(self, work: Awaitable[_T]) -> _T:
        async def run() -> _T:
            return await work

        return self.runner.run(run())

    def refusal(self, work: Awaitable[object]) -> Reason | None:
        try:
            self.do(work)
        except DomainError as error:
            return error.reason
        return None

    def teardown(self) -> None:
        audited = self.do(self.sale.audit())
        assert audited.differences == ()

    def live(self) -> list[Held]:
        return [held for held in self.model if held.counts(self.now)]

    def available(self) -> dict[str, int]:
        free = self.capacities | {"stalls": len(SEATS) - len(self.blocked)}
        for held in self.live():
            for offer, amount in held.items:
                free[POOL_OF[offer]] -= places(amount)
        return free

    def taken_seats(self) -> set[int | str]:
        return {seat for held in self.live() for offer, seat in held.items if offer in SEATED}

    def lines(self, requested: list[tuple[str, int | str]]) -> list[Line]:
        return [
            self.sale.line(offer, places(amount), seat=amount if isinstance(amount, str) else None)
            for offer, amount in requested
        ]

    def expected_refusals(
        self, customer_id: UUID, requested: list[tuple[str, int | str]]
    ) -> set[Reason | None]:
        free, owned = self.available(), dict.fromkeys(POOL_OF, 0)
        for held in self.live():
            if held.customer_id == customer_id:
                for offer, amount in held.items:
                    owned[offer] += places(amount)
        for offer, amount in requested:
            free[POOL_OF[offer]] -= places(amount)
            owned[offer] += places(amount)
        seats = {amount for offer, amount in requested if offer in SEATED}
        offers = {offer for offer, _ in requested}
        refusals: set[Reason | None] = set()
        if min(free["floor"], free["balcony"]) < 0:
            refusals.add(Reason.SOLD_OUT)
        if seats & (self.taken_seats() | self.blocked):
            refusals.add(Reason.SEAT_UNAVAILABLE)
        if any(owned[offer] > LIMIT for offer in offers) or (sum(owned.values()) > EVENT_LIMIT):
            refusals.add(Reason.PURCHASE_LIMIT_EXCEEDED)
        return refusals or {None}

    @rule(
        target=reserved,
        customer_id=st.sampled_from(CUSTOMERS),
        requested=items | large,
        minutes=st.sampled_from([5, 15]),
    )
    def reserve(
        self, customer_id: UUID, requested: list[tuple[str, int | str]], minutes: int
    ) -> Held | MultipleResults[Held]:
        held = Held(
            reservation_id=new_id(),
            customer_id=customer_id,
            request_key=str(new_id()),
            items=requested,
            end=self.now + timedelta(minutes=minutes),
        )
        self.attempt(held)
        if held.state is not State.ACTIVE:
            return multiple()
        self.model.append(held)
        return held

    @rule(
        target=reserved,
        requests=st.lists(
            st.tuples(st.sampled_from(CUSTOMERS), items | large), min_size=2, max_size=4
        ),
    )
    def batch(
        self, requests: list[tuple[UUID, list[tuple[str, int | str]]]]
    ) -> Held | MultipleResults[Held]:
        """A batch has the outcomes of its requests one after the other."""
        batch = [
            Held(new_id(), customer_id, str(new_id()), requested, self.now + timedelta(minutes=5))
            for customer_id, requested in requests
        ]
        made = []
        for held, outcome in zip(batch, self.do(self.reserve_all(batch)), strict=True):
            refused = outcome.reason if isinstance(outcome, DomainError) else None
            assert refused in self.expected_refusals(held.customer_id, held.items)
            if refused is None:
                self.model.append(held)
                made.append(held)
        return multiple(*made)

    async def reserve_all(self, batch: list[Held]) -> list[Outcome]:
        requests = [
            self.sale.request(
                *self.lines(held.items),
                reservation_id=held.reservation_id,
                request_key=held.request_key,
                customer_id=held.customer_id,
                hold=held.end - self.now,
                now=self.now,
            )
            for held in batch
        ]
        async with self.sale.database.transaction() as connection:
            return await reserve_all(connection, requests, self.now)

    @rule(target=reserved, held=reserved, requested=items)
    def exchange(
        self, held: Held, requested: list[tuple[str, int | str]]
    ) -> Held | MultipleResults[Held]:
        new = Held(
            new_id(), held.customer_id, str(new_id()), requested, self.now + timedelta(minutes=9)
        )
        exchange = self.sale.exchange(
            held.reservation_id,
            *self.lines(requested),
            to_reservation_id=new.reservation_id,
            request_key=new.request_key,
            now=self.now,
            hold=timedelta(minutes=9),
        )
        if not held.counts(self.now):
            assert self.refusal(exchange) in ENDED
            return multiple()
        before, held.state = held.state, State.RETURNED
        refused = self.refusal(exchange)
        assert refused in self.expected_refusals(new.customer_id, requested)
        if refused is not None:
            held.state = before
            return multiple()
        held.state = State.RETURNED if before is State.COMMITTED else State.RELEASED
        new.state = before
        self.model.append(new)
        return new

    @rule(held=reserved)
    def return_sold(self, held: Held) -> None:
        refused = self.refusal(self.sale.return_sold(held.reservation_id, now=self.now))
        if held.state in (State.COMMITTED, State.RETURNED):
            assert refused is None
            held.state = State.RETURNED
        else:
            assert refused in ENDED

    @rule(quantity=st.integers(1, 2))
    def restock(self, quantity: int) -> None:
        self.do(self.sale.restock(quantity))
        self.capacities["floor"] += quantity

    @rule(seats=st.sets(st.sampled_from(SEATS), min_size=1))
    def block(self, seats: set[str]) -> None:
        refused = self.refusal(self.sale.block(*seats, now=self.now))
        if seats & self.taken_seats():
            assert refused is Reason.SEAT_UNAVAILABLE
        else:
            assert refused is None
            self.blocked |= seats

    @rule(seats=st.sets(st.sampled_from(SEATS), min_size=1))
    def unblock(self, seats: set[str]) -> None:
        self.do(self.sale.unblock(*seats))
        self.blocked -= seats

    @rule(held=reserved, move=st.sampled_from([None, Move.COMMIT, Move.RELEASE, Move.RETURN]))
    def crash(self, held: Held, move: Move | None) -> None:
        """The process dies in a move, or in another reserve, before the commit: nothing changes."""
        self.do(self.die_in(held, move))

    async def die_in(self, held: Held, move: Move | None) -> None:
        with suppress(DomainError, ProcessDiedError):
            async with self.sale.database.transaction() as connection:
                if move is None:
                    request = self.sale.request(
                        *self.lines(held.items), customer_id=held.customer_id, now=self.now
                    )
                    await reserve_one(connection, request, now=self.now)
                else:
                    order = Order(move, self.sale.event_id, held.reservation_id)
                    await move_one(connection, order, now=self.now)
                raise ProcessDiedError

    @rule(held=reserved, is_late=st.booleans())
    def retry(self, held: Held, is_late: bool) -> None:
        """A repeated request with another id returns the existing reservation while it counts."""
        if is_late:
            self.now = max(self.now, held.end)
        if held.counts(self.now):
            again = self.do(self.request(held, new_id()))
            assert again.reservation_id == held.reservation_id
            assert again.state is held.state
        else:
            if held.state is State.ACTIVE:
                held.state = State.EXPIRED
            held.reservation_id = new_id()
            held.end = self.now + timedelta(minutes=10)
            held.extended = False
            self.attempt(held)

    def attempt(self, held: Held) -> None:
        expected = self.expected_refusals(held.customer_id, held.items)
        refused = self.refusal(self.request(held, held.reservation_id))
        assert refused in expected
        held.state = State.ACTIVE if refused is None else State.RELEASED

    async def request(self, held: Held, reservation_id: UUID) -> Reservation:
        return await self.sale.reserve(
            *self.lines(held.items),
            customer_id=held.customer_id,
            request_key=held.request_key,
            reservation_id=reservation_id,
            now=self.now,
            hold=max(held.end - self.now, timedelta(minutes=1)),
        )

    @rule(held=reserved)
    def commit(self, held: Held) -> None:
        refused = self.refusal(self.sale.commit(held.reservation_id, now=self.now))
        if held.counts(self.now):
            assert refused is None
            held.state = State.COMMITTED
        else:
            assert refused in ENDED

    @rule(held=reserved)
    def release(self, held: Held) -> None:
        if held.state is State.COMMITTED:
            refused = self.refusal(self.sale.release(held.reservation_id, now=self.now))
            assert refused is Reason.RESERVATION_STATE_INVALID
            return
        released = self.do(self.sale.release(held.reservation_id, now=self.now))
        assert released is held.counts(self.now)
        if released:
            held.state = State.RELEASED

    @rule(held=reserved, minutes=st.integers(1, 30))
    def extend(self, held: Held, minutes: int) -> None:
        end = self.now + timedelta(minutes=minutes)
        if not (held.state is State.ACTIVE and held.counts(self.now)):
            extend = self.sale.extend(held.reservation_id, now=self.now, to=end)
            assert self.refusal(extend) in ENDED | {Reason.RESERVATION_STATE_INVALID}
            return
        if not held.extended:
            held.end, held.extended = end, True
        # A repeated extension, to any time, returns the first new end.
        for to in (end, end + timedelta(minutes=1)):
            extended = self.do(self.sale.extend(held.reservation_id, now=self.now, to=to))
            assert extended.expire_time == held.end

    @rule(minutes=st.sampled_from([4, 6, 12]))
    def time_goes_by(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule()
    def sweep(self) -> None:
        self.do(sweep(self.sale.database, now=self.now))

    @invariant()
    def the_stock_is_the_models(self) -> None:
        free = self.do(self.sale.availability(now=self.now))
        names = {pool_id: name for name, pool_id in self.sale.pools.items()}
        assert {names[p.pool_id]: p.available for p in free.pools} == self.available()
        seat_names = {seat_id: name for name, seat_id in self.sale.seats.items()}
        states = {seat_names[seat.seat_id]: seat.state for seat in free.seats}
        assert {seat for seat, state in states.items() if state == "BLOCKED"} == self.blocked
        taken = {seat for seat, state in states.items() if state in ("HELD", "SOLD")}
        assert taken == self.taken_seats()


def places(amount: int | str) -> int:
    """The places of an item: a seat is one place."""
    return amount if isinstance(amount, int) else 1


@pytest.mark.timeout(3600)
def test_the_ledger_matches_the_model(new_database: Callable[[str], str], is_long: bool) -> None:
    with asyncio.Runner() as runner:
        # One database for all examples, so that statements are compiled and prepared once.
        opened = open_patiently(new_database("stock_svc"), pool_size=1)
        LedgerMachine.runner, LedgerMachine.database = runner, runner.run(opened.__aenter__())
        try:
            run_state_machine_as_test(
                LedgerMachine,
                settings=settings(
                    max_examples=2000 if is_long else 100,
                    stateful_step_count=25,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(opened.__aexit__(None, None, None))
