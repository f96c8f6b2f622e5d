"""An on-sale with 10,000 visitors (--long: 100,000) in process, on a virtual clock and a database.

The secret is fixed, so the order is the same in each run and the statistics are no chance.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta
from math import sqrt
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.catalogue import event_creation, events
from booking_svc.catalogue.events import Event
from booking_svc.queueing import waiting_rooms
from booking_svc.queueing.queues import Position
from booking_svc.queueing.room_memory import FRESH
from booking_svc.queueing.standing import State
from booking_svc.queueing.tables import admission_steps
from mesh.ids import new_id
from testing.booking_harness import PROVIDERS, BookingHarness, a_new_event
from testing.queue_harness import KEYS, SESSION, TERMS, QueueHarness
from tools.boxoffice import draw as verifier

EVENT_ID = UUID("0197f000-0000-7000-8000-0000000000f6")
SEED = b"the seed of a simulated on-sale!"
VISITORS = {"short": 10_000, "long": 100_000}
LATE = 1_000
ACCOUNTS = 2_000
PER_MINUTE = 60_000
BINS = 20


async def a_fixed_event(harness: BookingHarness) -> Event:
    new = replace(a_new_event(), sale_start_time=harness.clock.now + timedelta(hours=1))
    async with harness.database.transaction() as connection:
        plan = await event_creation.plan(
            connection, new=new, limits=PROVIDERS, now=harness.clock.now
        )
        event = replace(plan.event, event_id=EVENT_ID)
        await events.insert(
            connection, event=event, capacities=plan.capacities(), now=harness.clock.now
        )
        await waiting_rooms.put(
            connection,
            event_id=EVENT_ID,
            terms=replace(TERMS, per_minute=PER_MINUTE),
            key=KEYS[0],
            seed=SEED,
            now=harness.clock.now,
        )
    return event


async def join_many(
    queueing: QueueHarness, event: Event, count: int, accounts: int = 0
) -> list[tuple[Position, UUID | None]]:
    """So many visitors, 500 at a time; the first of them have accounts."""
    joined: list[tuple[Position, UUID | None]] = []
    users: list[UUID | None] = [
        *(new_id() for _ in range(accounts)),
        *([None] * (count - accounts)),
    ]
    for first in range(0, count, 500):
        batch = users[first : first + 500]
        positions = await asyncio.gather(*(queueing.join(event, user) for user in batch))
        joined += zip(positions, batch, strict=True)
    return joined


@pytest.mark.timeout(600)
async def test_everybody_gets_the_place_of_the_draw(harness: BookingHarness, is_long: bool) -> None:
    """100,000 visitors with --long."""
    count = VISITORS["long" if is_long else "short"]
    queueing = QueueHarness.of(harness)
    event = await a_fixed_event(harness)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    visitors = await join_many(queueing, event, count, ACCOUNTS)
    numbers = [position.ticket.number for position, _ in visitors]
    assert sorted(numbers) == list(range(count))

    await queueing.open_sale(event)
    late = await join_many(queueing, event, LATE)
    harness.clock.advance(FRESH)
    room = await queueing.queues.room(event_id=EVENT_ID, to_staff=False)
    assert room.secret is not None
    assert (room.participants, room.issued) == (count, count + LATE)

    # The order is the published algorithm's, computed by the verifier.
    places: dict[int, int] = {}
    for position, _ in visitors:
        standing = (await queueing.poll(position)).standing
        assert standing.place is not None
        places[position.ticket.number] = standing.place
    assert sorted(places.values()) == list(range(count))
    for number in range(0, count, 97):
        assert places[number] == verifier.place_of(
            number, secret=room.secret, event_id=EVENT_ID, participants=count
        )
    behind = [(await queueing.poll(position)).standing.place for position, _ in late]
    assert sorted(place or 0 for place in behind) == list(range(count, count + LATE))

    # No trace of arrival: 20 × 20 cells of arrival and position, and their correlation.
    cells = [[0] * BINS for _ in range(BINS)]
    for number, place in places.items():
        cells[number * BINS // count][place * BINS // count] += 1
    expected = count / BINS**2
    chi_square = sum((count - expected) ** 2 / expected for row in cells for count in row)
    # 361 degrees of freedom: between 297 and 431 with a probability of 0.98.
    assert 297 < chi_square < 431
    assert abs(correlation(places)) < 3.3 / sqrt(count)

    await everybody_is_admitted_once(queueing, visitors + late)


def correlation(places: dict[int, int]) -> float:
    """Of arrival and place, both of which are 0 to n - 1."""
    count = len(places)
    mean = (count - 1) / 2
    covariance = sum((number - mean) * (place - mean) for number, place in places.items())
    return covariance / (count * (count**2 - 1) / 12)


async def everybody_is_admitted_once(
    queueing: QueueHarness, visitors: list[tuple[Position, UUID | None]]
) -> None:
    """In the order of the draw; nobody twice, nobody never.

    1,000 a second, after a minute more: most visitors have no account and claim nothing.
    """
    by_place: dict[int, tuple[Position, UUID | None]] = {}
    for position, user in visitors:
        place = (await queueing.poll(position)).standing.place
        assert place is not None
        by_place[place] = (position, user)
    assert len(by_place) == len(visitors)
    admitted, tokens = 0, {}
    while admitted < len(visitors):
        await queueing.advance(timedelta(seconds=1))
        queueing.clock.advance(FRESH)
        room = await queueing.queues.room(event_id=EVENT_ID, to_staff=False)
        assert admitted < room.admitted
        for place in range(admitted, room.admitted):
            position, user = by_place[place]
            polled = await queueing.poll(position, user)
            assert polled.standing.state is State.ADMITTED
            assert polled.standing.expire_time is not None
            assert polled.standing.expire_time - queueing.clock.now > SESSION - timedelta(seconds=2)
            if user is not None:
                tokens[user] = polled.token
        if room.admitted < len(visitors):
            following = await queueing.poll(by_place[room.admitted][0])
            assert following.standing.state is State.WAITING
        admitted = room.admitted
    assert len({token for token in tokens.values() if token}) == ACCOUNTS
    # One cursor with a few steps, whatever the number of visitors.
    async with queueing.database.reading() as connection:
        steps = await connection.scalar(sa.select(sa.func.count()).select_from(admission_steps))
    assert steps is not None
    assert steps < 150


async def test_the_load_of_polls_depends_on_the_rate_and_not_on_the_length_of_the_line(
    harness: BookingHarness,
) -> None:
    queueing = QueueHarness.of(harness)
    event = await a_fixed_event(harness)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    await join_many(queueing, event, 1)
    await queueing.open_sale(event)
    view = await queueing.queues.rooms.get(event.event_id)

    def polls_per_second(waiting: int, **terms: Any) -> float:
        """If each of so many visitors asks again after the time that the answer names."""
        room = replace(
            view.room,
            issued=waiting,
            participants=0,
            terms=replace(TERMS, session=SESSION, **terms),
        )
        line = type(view).of(replace(room, participants=0), (), now=harness.clock.now)
        step = max(1, waiting // 5_000)
        return sum(
            step / line.standing(number, spread=0.5, now=harness.clock.now).poll_after_seconds
            for number in range(0, waiting, step)
        )

    # 3 a second: a line ten times as long asks less than six times as often.
    assert polls_per_second(100_000, per_minute=180) < 700
    assert polls_per_second(10_000, per_minute=180) < 150
    # Before the draw a million asks at most at some 3,400 a second (session of 10 minutes).
    before = replace(view.room, issued=1_000_000, participants=None, secret=None, draw_time=None)
    line = type(view).of(before, (), now=before.sale_start_time - timedelta(minutes=5))
    now = before.sale_start_time - timedelta(minutes=5)
    intervals = [
        line.standing(7, spread=spread / 100, now=now).poll_after_seconds for spread in range(100)
    ]
    assert min(intervals) > 290
    # They come back spread over the seconds after the start, and not all at once.
    assert max(intervals) - min(intervals) > 150
