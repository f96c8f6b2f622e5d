"""A process is killed at every await of the calls and the job of waiting lists.

Another process on the same databases goes on: each offer has one hold, each hold an owner, and the
ledger keeps places exactly while somebody waits. As bookings/test_crashes.py.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from booking_svc.bookings.bookings import Booking
from booking_svc.bookings.state_machine import LIVE as LIVE_BOOKINGS
from booking_svc.catalogue.events import Event
from booking_svc.queueing.waiting_list_entries import WAITING, Entry, State
from mesh.errors import DomainError
from mesh.ids import new_id
from testing import crashes
from testing.booking_harness import START, BookingHarness, an_offer
from testing.databases import open_patiently
from testing.waiting_list_harness import GATHER, OFFER, WaitingListHarness

Call = Coroutine[Any, Any, object]
Check = Callable[[], Awaitable[None]]

# Points of each scene in a run of `make test`; `--long` takes all. Scenes begin at different ones,
# as several of them kill the same call.
SOME = 4
ATTEMPTS = 3


@dataclass
class Stage:
    """`lists` is the surviving process, `dying` another one on the same databases."""

    lists: WaitingListHarness
    urls: tuple[str, str]
    dying: WaitingListHarness

    async def begin(self, stack: AsyncExitStack) -> None:
        process = self.lists.process.another_process()
        self.lists = WaitingListHarness(process)
        database, ledger = [
            await stack.enter_async_context(crashes.database(url)) for url in self.urls
        ]
        self.dying = WaitingListHarness(
            BookingHarness(database, ledger, process.clock, payments=process.payments)
        )

    async def go_on(self, event: Event) -> None:
        """Leases end, and the loops run."""
        for _ in range(2):
            self.lists.process.clock.advance(timedelta(seconds=31))
            await self.lists.turn(event)
            await self.lists.process.run_until_idle()

    async def whole(self, event: Event) -> None:
        """Each hold is an offer's or a booking's, and places are kept while somebody waits."""
        entries = await self.lists.all_entries(event)
        offered = [entry.reservation_id for entry in entries if entry.state is State.OFFERED]
        bookings = await self.lists.process.all_bookings(event)
        booked = [b.reservation_id for b in bookings if b.status in LIVE_BOOKINGS]
        assert await self.lists.holds(event) == {*offered, *booked}
        assert len(offered) + len(booked) == len({*offered, *booked})
        assert not any(entry.state is State.RESERVING for entry in entries)
        assert not await self.lists.process.audit(event)
        available, kept = await self.lists.free(event)
        if not any(entry.state in WAITING for entry in entries):
            assert kept == 0
        elif available == 0:
            with pytest.raises(DomainError):
                await self.lists.process.place(event)

    async def ends_free(self, event: Event) -> None:
        """In the end no place is held for nobody."""
        for entry in await self.lists.all_entries(event):
            if entry.state in WAITING:
                await self.lists.leave(entry)
        for _ in range(3):
            self.lists.process.clock.advance(OFFER)
            await self.lists.turn(event)
            await self.lists.sweep()
        assert await self.lists.free(event) == (2, 0)


@pytest.fixture
async def stage(new_database: Callable[[str], str]) -> AsyncIterator[Stage]:
    urls = (new_database("booking_svc"), new_database("stock_svc"))
    async with open_patiently(urls[0]) as database, open_patiently(urls[1]) as ledger:
        lists = WaitingListHarness(BookingHarness(database, ledger))
        yield Stage(lists, urls, lists)


async def a_list(stage: Stage, *quantities: int) -> tuple[Event, list[Booking], list[Entry]]:
    """An event with 2 places that are held, and entries that wait."""
    event = await stage.lists.process.an_event(an_offer(capacity=2))
    held = await stage.lists.sell_out(event)
    return event, held, [await stage.lists.join(event, quantity) for quantity in quantities]


async def return_places(stage: Stage, *bookings: Booking) -> None:
    for booking in bookings:
        await stage.lists.process.cancel(booking.booking_id)
    await stage.lists.process.run_until_idle()


async def join(stage: Stage) -> tuple[Call, Check]:
    event, held, _ = await a_list(stage)
    customer_id = new_id()

    async def check() -> None:
        joined = await stage.lists.all_entries(event)
        if joined:
            await stage.go_on(event)
            await stage.whole(event)
        again = await stage.lists.join(event, customer_id=customer_id)
        assert [entry.entry_id for entry in await stage.lists.all_entries(event)] == [
            again.entry_id
        ]
        await return_places(stage, held[0])
        assert await stage.lists.free(event) == (0, 1)
        await stage.go_on(event)
        assert await stage.lists.states(again) == [State.OFFERED]
        await stage.whole(event)
        await return_places(stage, held[1])
        await stage.ends_free(event)

    return stage.dying.join(event, customer_id=customer_id), check


async def offer(stage: Stage) -> tuple[Call, Check]:
    event, held, entries = await a_list(stage, 1, 1, 1)
    await return_places(stage, *held)

    async def check() -> None:
        await stage.go_on(event)
        assert await stage.lists.states(*entries) == [
            State.OFFERED,
            State.OFFERED,
            State.WAITING,
        ]
        await stage.whole(event)
        await stage.ends_free(event)

    return stage.dying.turn(event), check


async def offer_repeated_late(stage: Stage) -> tuple[Call, Check]:
    """The next turn comes when the process's reservation is too old to be repeated."""
    event, held, entries = await a_list(stage, 2, 1)
    await return_places(stage, *held)

    async def check() -> None:
        stage.lists.process.clock.advance(timedelta(minutes=5))
        await stage.go_on(event)
        assert await stage.lists.states(*entries) == [State.OFFERED, State.WAITING]
        await stage.whole(event)
        await stage.ends_free(event)

    return stage.dying.turn(event), check


async def offer_to_one_who_leaves(stage: Stage) -> tuple[Call, Check]:
    event, held, [entry, _] = await a_list(stage, 2, 1)
    await return_places(stage, *held)

    async def check() -> None:
        await stage.lists.leave(entry)
        await stage.go_on(event)
        assert await stage.lists.states(entry) == [State.LEFT]
        await stage.ends_free(event)

    return stage.dying.turn(event), check


async def end_of_an_offer(stage: Stage) -> tuple[Call, Check]:
    event, held, entries = await a_list(stage, 2, 2)
    await return_places(stage, *held)
    await stage.lists.turn(event)
    stage.lists.process.clock.advance(OFFER)

    async def check() -> None:
        await stage.go_on(event)
        assert await stage.lists.states(*entries) == [State.EXPIRED, State.OFFERED]
        await stage.whole(event)
        await stage.ends_free(event)

    return stage.dying.turn(event), check


async def end_of_gathering(stage: Stage) -> tuple[Call, Check]:
    """What fits nobody is opened to all."""
    process = stage.lists.process
    event = await process.an_event(an_offer(capacity=2))
    held, paid = await process.place(event, checkout=None), await process.place(event)
    await process.capture(paid)
    await process.run_until_idle()
    entry = await stage.lists.join(event, 2)
    await return_places(stage, held)
    await stage.lists.turn(event)
    process.clock.advance(GATHER)

    async def check() -> None:
        await stage.go_on(event)
        assert await stage.lists.free(event) == (1, 0)
        assert await stage.lists.states(entry) == [State.WAITING]
        # What comes back later is kept, and the group gets it with what is open.
        await return_places(stage, paid)
        assert await stage.lists.free(event) == (1, 1)
        await stage.go_on(event)
        assert await stage.lists.states(entry) == [State.OFFERED]
        await stage.whole(event)
        await stage.ends_free(event)

    return stage.dying.turn(event), check


async def leave(stage: Stage) -> tuple[Call, Check]:
    event, held, [first, second] = await a_list(stage, 1, 1)
    await return_places(stage, held[0])
    await stage.lists.turn(event)

    async def check() -> None:
        await stage.lists.leave(first)
        await stage.go_on(event)
        assert await stage.lists.states(first, second) == [State.LEFT, State.OFFERED]
        await stage.whole(event)
        await return_places(stage, held[1])
        await stage.ends_free(event)

    return stage.dying.leave(first), check


async def claim(stage: Stage) -> tuple[Call, Check]:
    event, held, [entry] = await a_list(stage, 1)
    await return_places(stage, held[0])
    await stage.lists.turn(event)

    async def check() -> None:
        booking = await stage.lists.claim(entry)
        assert booking.reservation_id == (await stage.lists.entry(entry)).reservation_id
        await stage.whole(event)
        await return_places(stage, booking, held[1])
        await stage.ends_free(event)

    return stage.dying.claim(entry), check


async def claim_for_good(stage: Stage) -> tuple[Call, Check]:
    """Nobody repeats the claim: the offer, or the booking's hold, expires."""
    event, held, [entry] = await a_list(stage, 1)
    await return_places(stage, *held)
    await stage.lists.turn(event)

    async def check() -> None:
        await stage.ends_free(event)
        [state] = await stage.lists.states(entry)
        assert state in (State.CLAIMED, State.EXPIRED)

    return stage.dying.claim(entry), check


SCENES: list[Callable[[Stage], Awaitable[tuple[Call, Check]]]] = [
    join,
    offer,
    offer_repeated_late,
    offer_to_one_who_leaves,
    end_of_an_offer,
    end_of_gathering,
    leave,
    claim,
    claim_for_good,
]


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_killed_at_every_await(
    stage: Stage, scene: Callable[[Stage], Awaitable[tuple[Call, Check]]], is_long: bool
) -> None:
    _, awaits = await play(stage, scene, at=None)
    step = 1 if is_long else max(1, awaits // SOME)
    for at in range(1 + SCENES.index(scene) % step, awaits + 1, step):
        await kill(stage, scene, at)


async def kill(stage: Stage, scene: Any, at: int) -> None:
    """Plays the scene until its process dies at an await, or at its last one if it has fewer."""
    for _ in range(ATTEMPTS):
        died, awaits = await play(stage, scene, at=at)
        if died:
            return
        at = awaits
    raise AssertionError(f"the process did not die at any of its last {ATTEMPTS} points")


async def play(stage: Stage, scene: Any, *, at: int | None) -> tuple[bool, int]:
    stage.lists.process.clock.now = START
    async with AsyncExitStack() as stack:
        await stage.begin(stack)
        work, check = await scene(stage)
        died, awaits = await crashes.run(work, at=at)
        for url in stage.urls:
            await crashes.terminate_connections(url)
    try:
        await check()
    except (AssertionError, DomainError) as error:
        error.add_note(f"{scene.__name__} killed at await {at} of {awaits}")
        raise
    return died, awaits
