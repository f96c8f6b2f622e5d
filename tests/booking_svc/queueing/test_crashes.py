"""A process is killed at every await of joining, drawing, admitting and claiming.

Another process on the same database goes on, and the end state is that of a run without a kill:
one draw, no number given twice, no place admitted twice, one admission for each account.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc.catalogue.events import Event
from booking_svc.queueing import waiting_rooms
from booking_svc.queueing.admission_loop import AdmissionLoop
from booking_svc.queueing.draw import Draw, commitment_of
from booking_svc.queueing.queues import Position
from booking_svc.queueing.room_memory import FRESH
from booking_svc.queueing.standing import State
from booking_svc.queueing.tables import admission_steps, queue_accounts, queue_admissions
from mesh.errors import DomainError
from mesh.ids import new_id
from testing import crashes
from testing.booking_harness import BookingHarness
from testing.databases import open_patiently
from testing.queue_harness import KEYS, QueueHarness, an_event_with_room

Call = Coroutine[Any, Any, object]
VISITORS = 6


@dataclass
class Stage:
    """An event with a waiting room and some visitors; `dying` is another process, which dies."""

    event: Event
    url: str
    survivor: QueueHarness
    dying: QueueHarness
    customers: list[Any]
    tickets: list[Position]


@pytest.fixture
async def stages(new_database: Callable[[str], str]) -> AsyncIterator[Callable[[], Any]]:
    """Makes stages on one database, each with an event of its own."""
    url, ledger_url = new_database("booking_svc"), new_database("stock_svc")
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_patiently(url))
        ledger = await stack.enter_async_context(open_patiently(ledger_url))
        harness = BookingHarness(database, ledger)

        async def stage() -> Stage:
            survivor = QueueHarness.of(harness)
            event = await an_event_with_room(harness, survivor)
            harness.clock.now = event.sale_start_time - timedelta(minutes=10)
            customers = [new_id() for _ in range(VISITORS)]
            tickets = [await survivor.join(event, customer) for customer in customers]
            doomed = await stack.enter_async_context(crashes.database(url))
            dying = QueueHarness(doomed, harness.clock)
            return Stage(event, url, survivor, dying, customers, tickets)

        yield stage


async def joins(stage: Stage) -> Call:
    return stage.dying.join(stage.event, new_id())


async def draws(stage: Stage) -> Call:
    stage.survivor.clock.now = stage.event.sale_start_time
    return stage.dying.loop.turn()


async def admits(stage: Stage) -> Call:
    await stage.survivor.open_sale(stage.event)
    stage.survivor.clock.advance(timedelta(seconds=2))
    return stage.dying.loop.turn()


async def claims(stage: Stage) -> Call:
    await stage.survivor.open_sale(stage.event)
    await stage.survivor.advance(timedelta(seconds=VISITORS))
    return stage.dying.poll(stage.tickets[0], stage.customers[0])


@pytest.mark.parametrize("scene", [joins, draws, admits, claims])
@pytest.mark.timeout(600)
async def test_a_kill_at_every_await(
    stages: Callable[[], Any],
    scene: Callable[[Stage], Coroutine[Any, Any, Call]],
    is_long: bool,
) -> None:
    at, died = 0, True
    while died:
        at += 1 if is_long else 3
        stage = await stages()
        work = await scene(stage)
        died, _ = await crashes.run(work, at=at)
        await crashes.terminate_connections(stage.url)
        await check(stage)
    # It died at some points, and lived on after the last one.
    assert at > 3


async def check(stage: Stage) -> None:
    """Another process goes on; everybody gets the place of the draw, and is admitted once."""
    survivor, event = stage.survivor, stage.event
    late = await survivor.join(event)
    survivor.clock.now = max(survivor.clock.now, event.sale_start_time)
    await survivor.advance(timedelta(seconds=2 * VISITORS))
    survivor.clock.advance(FRESH)
    room = await survivor.queues.room(event_id=event.event_id, to_staff=False)
    assert room.secret is not None
    assert room.participants is not None
    assert commitment_of(room.secret) == room.commitment
    # Who joined before the draw is in it, once; a killed call has used one number at most.
    assert VISITORS <= room.participants <= VISITORS + 2
    assert room.issued in (late.ticket.number + 1, room.participants)
    assert room.admitted == room.issued
    drawn = Draw(room.secret, event.event_id, room.participants)
    for ticket, customer in zip(stage.tickets, stage.customers, strict=True):
        polled = await survivor.poll(ticket, customer)
        assert polled.standing.place == drawn.place_of(ticket.ticket.number)
        assert polled.standing.state is State.ADMITTED
        again = await QueueHarness(survivor.database, survivor.clock).poll(ticket, customer)
        assert again.token == polled.token is not None
        assert (await survivor.join(event, customer)).ticket_id == ticket.ticket_id
    async with survivor.database.reading() as connection:
        step, admission = admission_steps.c, queue_admissions.c
        steps = list(
            await connection.scalars(
                sa.select(step.admitted)
                .where(step.event_id == event.event_id)
                .order_by(step.admitted)
            )
        )
        # The cursor has gone through all places, never back, and no place twice.
        assert steps[-1] == room.admitted
        assert len(set(steps)) == len(steps)
        admitted = await connection.scalar(
            sa.select(sa.func.count()).where(admission.event_id == event.event_id)
        )
        assert admitted == VISITORS
        numbers = list(
            await connection.scalars(
                sa.select(queue_accounts.c.number).where(
                    queue_accounts.c.event_id == event.event_id
                )
            )
        )
        assert len(set(numbers)) == len(numbers)


async def test_two_leaders_at_once_draw_once_and_admit_no_more_than_one(
    stages: Callable[[], Any],
) -> None:
    stage: Stage = await stages()
    survivor, event = stage.survivor, stage.event
    clock = survivor.clock
    clock.now = event.sale_start_time
    others = [QueueHarness(survivor.database, clock).loop for _ in range(3)]
    loops: list[AdmissionLoop] = [survivor.loop, *others]
    secrets = set()
    for _ in range(4):
        for loop in loops:
            await loop.turn()
        clock.advance(FRESH)
        room = await survivor.queues.room(event_id=event.event_id, to_staff=False)
        secrets.add((room.secret, room.participants, room.draw_time))
    assert len(secrets) == 1
    # Each had read the room before the others advanced it.
    clock.advance(timedelta(seconds=3))
    async with survivor.database.reading() as connection:
        stale = await waiting_rooms.get(connection, event_id=event.event_id)
    for loop in loops:
        await loop._admit(stale, None)
    clock.advance(FRESH)
    room = await survivor.queues.room(event_id=event.event_id, to_staff=False)
    assert room.admitted - stale.admitted <= 5
    with pytest.raises(DomainError):
        await survivor.queues.remove_room(event_id=event.event_id)


async def test_a_leader_that_read_the_room_before_the_draw_does_not_draw_again(
    stages: Callable[[], Any],
) -> None:
    """A ticket that came after the draw would otherwise take part in a second one."""
    stage: Stage = await stages()
    survivor, event = stage.survivor, stage.event
    survivor.clock.now = event.sale_start_time
    async with survivor.database.reading() as connection:
        stale = await waiting_rooms.get(connection, event_id=event.event_id)
    await survivor.loop.turn()
    await survivor.join(event)
    async with survivor.database.transaction() as connection:
        drawn = await waiting_rooms.get(connection, event_id=event.event_id)
        assert not await waiting_rooms.hold_draw(
            connection, room=stale, keys=KEYS, now=survivor.clock()
        )
        after = await waiting_rooms.get(connection, event_id=event.event_id)
    assert drawn.participants is not None
    assert drawn.issued == drawn.participants + 1
    assert (after.participants, after.draw_time) == (drawn.participants, drawn.draw_time)
