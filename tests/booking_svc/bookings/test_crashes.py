"""A process is killed at every await of the calls that move places or money.

Another process on the same databases then brings every booking to a consistent end. A run of
`make test` takes some of the points, `--long` all of them; at each of them a process dies.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from booking_svc.bookings.bookings import Booking, Status
from booking_svc.catalogue.events import Event
from booking_svc.clients import ports
from mesh.errors import DomainError
from mesh.ids import new_id
from mesh.money import Money
from testing import crashes
from testing.booking_harness import START, BookingHarness, an_offer
from testing.databases import open_patiently

Call = Coroutine[Any, Any, object]
Check = Callable[[], Awaitable[None]]
Scene = Callable[["Stage"], Awaitable[tuple[Call, Check]]]
"""Returns the call in whose course the process dies, and what must be true after the recovery."""


@dataclass
class Stage:
    """`harness` is the surviving process, `dying` another one on the same databases."""

    harness: BookingHarness
    urls: tuple[str, str]
    dying: BookingHarness

    async def begin(self, stack: AsyncExitStack) -> None:
        """Two new processes with the same clock and the same payment_svc; one of them will die."""
        self.harness = self.harness.another_process()
        database, ledger = [
            await stack.enter_async_context(crashes.database(url)) for url in self.urls
        ]
        self.dying = BookingHarness(
            database, ledger, self.harness.clock, payments=self.harness.payments
        )

    async def recover(self) -> None:
        """Time passes and the loops run: leases end, steps are repeated, refunds are processed."""
        for _ in range(4):
            self.harness.clock.advance(timedelta(minutes=1))
            await self.harness.run_until_idle()
        await self.harness.process_refunds()


@pytest.fixture
async def stage(new_database: Callable[[str], str]) -> AsyncIterator[Stage]:
    urls = (new_database("booking_svc"), new_database("stock_svc"))
    async with open_patiently(urls[0]) as database, open_patiently(urls[1]) as ledger:
        harness = BookingHarness(database, ledger)
        yield Stage(harness, urls, harness)


async def confirmed(harness: BookingHarness, event: Event, quantity: int = 2) -> Booking:
    booking = await harness.place(event, quantity=quantity)
    await harness.capture(booking)
    await harness.run_until_idle()
    return await harness.booking(booking.booking_id)


async def whole(harness: BookingHarness, *events: Event, fees: int = 0) -> None:
    """Stock, bookings and payments agree, in whatever state each booking has ended.

    `fees` are what the policy keeps of the confirmed booking's changes.
    """
    for event in events:
        assert await harness.audit(event) == ()
        owned = await harness.sold_places(event)
        assert await harness.available(event) == 10 - owned
    for booking in await harness.all_bookings(*events):
        net = await harness.net_payments(booking)
        is_confirmed = booking.status is Status.CONFIRMED
        expected = booking.total.amount_minor + fees if is_confirmed else 0
        if booking.status is not Status.CANCELLED:
            assert net == expected, booking
        assert booking.status not in (Status.HELD, Status.PENDING_PAYMENT)


async def place(stage: Stage) -> tuple[Call, Check]:
    event, customer = await stage.harness.an_event(), new_id()

    async def check() -> None:
        booking = await stage.harness.place(event, customer_id=customer, key="k", quantity=4)
        assert await stage.harness.available(event) == 6
        await stage.harness.capture(booking)
        await stage.recover()
        assert (await stage.harness.booking(booking.booking_id)).status is Status.CONFIRMED
        await whole(stage.harness, event)

    return stage.dying.place(event, customer_id=customer, key="k", quantity=4), check


async def place_for_good(
    stage: Stage,
) -> tuple[Call, Check]:
    """No call repeats the key: the hold expires."""
    event = await stage.harness.an_event()

    async def check() -> None:
        stage.harness.clock.advance(timedelta(minutes=15))
        await stage.recover()
        assert await stage.harness.available(event) == 10
        await whole(stage.harness, event)

    return stage.dying.place(event, quantity=4), check


async def place_free_for_good(stage: Stage) -> tuple[Call, Check]:
    """No call repeats the key of a free booking: it is confirmed, or its places are free again."""
    event = await stage.harness.an_event(an_offer(price=Money(0, "INR")))

    async def check() -> None:
        stage.harness.clock.advance(timedelta(minutes=15))
        await stage.recover()
        await whole(stage.harness, event)
        assert await stage.harness.available(event) == 10 - sum(
            sum(item.quantity for item in booking.items)
            for booking in await stage.harness.all_bookings(event)
            if booking.status is Status.CONFIRMED
        )

    return stage.dying.place(event, quantity=4), check


async def remember(stage: Stage, event: Event) -> None:
    """The process that dies later remembers the event: it has sold nothing of it."""
    with pytest.raises(DomainError):
        await stage.dying.place(event, quantity=11)


async def place_from_memory(stage: Stage) -> tuple[Call, Check]:
    event, customer = await stage.harness.an_event(), new_id()
    await remember(stage, event)

    async def check() -> None:
        booking = await stage.harness.place(event, customer_id=customer, key="k", quantity=4)
        assert await stage.harness.available(event) == 6
        await stage.harness.capture(booking)
        await stage.recover()
        await whole(stage.harness, event)

    return stage.dying.place(event, customer_id=customer, key="k", quantity=4), check


async def place_at_a_new_price(stage: Stage) -> tuple[Call, Check]:
    event, customer = await stage.harness.an_event(), new_id()
    await remember(stage, event)
    await stage.harness.reprice(event, Money(200_000, "INR"))

    async def check() -> None:
        booking = await stage.harness.place(event, customer_id=customer, key="k", quantity=4)
        assert booking.total == Money(800_000, "INR")
        assert await stage.harness.available(event) == 6
        await stage.harness.capture(booking)
        await stage.recover()
        await whole(stage.harness, event)

    return stage.dying.place(event, customer_id=customer, key="k", quantity=4), check


async def place_in_a_cancelled_event(stage: Stage) -> tuple[Call, Check]:
    """What was reserved is released, or expires."""
    event = await stage.harness.an_event()
    await remember(stage, event)
    await stage.harness.cancel_event(event)

    async def check() -> None:
        stage.harness.clock.advance(timedelta(minutes=15))
        assert await stage.harness.available(event) == 10
        assert await stage.harness.all_bookings(event) == []
        await whole(stage.harness, event)

    return stage.dying.place(event, quantity=4), check


async def confirm(stage: Stage) -> tuple[Call, Check]:
    event = await stage.harness.an_event()
    booking = await stage.harness.place(event, quantity=4)
    await stage.harness.capture(booking)

    async def check() -> None:
        await stage.recover()
        assert (await stage.harness.booking(booking.booking_id)).status is Status.CONFIRMED
        await whole(stage.harness, event)

    return stage.dying.run_steps(), check


async def confirm_together(stage: Stage) -> tuple[Call, Check]:
    """A batch of payments, and the batch of their confirmations."""
    event = await stage.harness.an_event()
    placed = [await stage.harness.place(event, quantity=2) for _ in range(3)]
    captured = [
        ports.Captured(booking.booking_id, booking.payment.payment_id, booking.total)
        for booking in placed
        if booking.payment is not None
    ]

    async def capture_and_confirm() -> None:
        await stage.dying.deliver(*captured)
        await stage.dying.run_steps()

    async def check() -> None:
        # The stream repeats what was not committed with its cursor.
        await stage.harness.deliver(*captured)
        await stage.recover()
        for booking in placed:
            assert (await stage.harness.booking(booking.booking_id)).status is Status.CONFIRMED
        await whole(stage.harness, event)

    return capture_and_confirm(), check


async def confirm_late(
    stage: Stage,
) -> tuple[Call, Check]:
    event = await stage.harness.an_event()
    booking = await stage.harness.place(event, quantity=4)
    stage.harness.clock.advance(timedelta(minutes=15))
    await stage.harness.run_until_idle()
    await stage.harness.capture(booking)

    async def check() -> None:
        await stage.recover()
        assert (await stage.harness.booking(booking.booking_id)).status is Status.CONFIRMED
        assert await stage.harness.available(event) == 6
        await whole(stage.harness, event)

    return stage.dying.run_steps(), check


async def cancel(stage: Stage) -> tuple[Call, Check]:
    event = await stage.harness.an_event()
    booking = await confirmed(stage.harness, event)

    async def check() -> None:
        # The client repeats the call with its key.
        await stage.harness.cancel(booking.booking_id, key=f"k{booking.booking_id}")
        await stage.recover()
        ended = await stage.harness.booking(booking.booking_id)
        assert (ended.status, len(ended.refunds)) == (Status.CANCELLED, 1)
        assert await stage.harness.net_payments(ended) == 9_000
        assert await stage.harness.available(event) == 10
        await whole(stage.harness, event)

    return stage.dying.cancel(booking.booking_id, key=f"k{booking.booking_id}"), check


async def refund(stage: Stage) -> tuple[Call, Check]:
    """The steps that follow a cancellation: refund and return."""
    event = await stage.harness.an_event()
    booking = await confirmed(stage.harness, event)
    await stage.harness.cancel(booking.booking_id)

    async def check() -> None:
        await stage.recover()
        assert (
            await stage.harness.net_payments(await stage.harness.booking(booking.booking_id))
            == 9_000
        )
        assert await stage.harness.available(event) == 10
        await whole(stage.harness, event)

    async def one_after_another() -> None:
        for step in await stage.dying.steps.claim(limit=9):
            await stage.dying.steps.attempt(step)

    return one_after_another(), check


async def reschedule(
    stage: Stage,
) -> tuple[Call, Check]:
    production = new_id()
    first, second = [
        await stage.harness.an_event(an_offer(price=Money(price, "INR")), production_id=production)
        for price in (150_000, 100_000)
    ]
    booking = await confirmed(stage.harness, first)

    async def check() -> None:
        await stage.harness.reschedule(booking, second, key=f"k{booking.booking_id}")
        await stage.recover()
        moved = await stage.harness.booking(booking.booking_id)
        assert (moved.event_id, len(moved.refunds)) == (second.event_id, 1)
        # 3 % of the difference.
        await whole(stage.harness, first, second, fees=3_000)

    return stage.dying.reschedule(booking, second, key=f"k{booking.booking_id}"), check


async def reschedule_dearer(
    stage: Stage,
) -> tuple[Call, Check]:
    production = new_id()
    first, second = [
        await stage.harness.an_event(an_offer(price=Money(price, "INR")), production_id=production)
        for price in (150_000, 200_000)
    ]
    booking = await confirmed(stage.harness, first)

    async def check() -> None:
        waiting = await stage.harness.reschedule(booking, second, key=f"k{booking.booking_id}")
        if waiting.change is not None:
            await stage.harness.capture_payment(
                booking, waiting.change.payment_id, waiting.change.difference
            )
        await stage.recover()
        moved = await stage.harness.booking(booking.booking_id)
        assert moved.event_id == second.event_id
        await whole(stage.harness, first, second)

    async def both() -> None:
        waiting = await stage.dying.reschedule(booking, second, key=f"k{booking.booking_id}")
        assert waiting.change is not None
        await stage.dying.capture_payment(
            booking, waiting.change.payment_id, waiting.change.difference
        )
        for step in await stage.dying.steps.claim(limit=9):
            await stage.dying.steps.attempt(step)

    return both(), check


SCENES: list[Scene] = [
    place,
    place_for_good,
    place_free_for_good,
    place_from_memory,
    place_at_a_new_price,
    place_in_a_cancelled_event,
    confirm,
    confirm_together,
    confirm_late,
    cancel,
    refund,
    reschedule,
    reschedule_dearer,
]
SOME = 4


# How often a point is played until the process dies there. Runs differ by few awaits.
ATTEMPTS = 10


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_killed_at_every_await(stage: Stage, scene: Scene, is_long: bool) -> None:
    _, awaits = await play(stage, scene, at=None)
    step = 1 if is_long else max(1, awaits // SOME)
    for at in range(1, awaits + 1, step):
        await kill(stage, scene, at)


async def kill(stage: Stage, scene: Scene, at: int) -> None:
    """Plays the scene until its process dies at an await, or at its last one if it has fewer."""
    for _ in range(ATTEMPTS):
        died, awaits = await play(stage, scene, at=at)
        if died:
            return
        # This run needed fewer awaits than the one that was counted.
        at = awaits
    raise AssertionError(f"the process did not die at any of its last {ATTEMPTS} points")


async def play(stage: Stage, scene: Scene, *, at: int | None) -> tuple[bool, int]:
    stage.harness.clock.now = START
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
