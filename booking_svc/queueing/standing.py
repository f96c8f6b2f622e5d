"""Where a ticket stands: computed from the room's few numbers, for a million tickets alike."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from booking_svc.queueing.draw import Draw
from booking_svc.queueing.waiting_rooms import Room
from mesh.observability import metrics

# Polls of all who wait come at most at about this rate per room before the draw.
_POLLS_PER_SECOND = 300
_LEAST_POLL_SECONDS = 2
_MOST_POLL_SECONDS = 600
# After the draw a ticket polls this many times while its wait halves: with intervals in proportion
# to the wait, all polls together grow with the logarithm of the number of tickets.
_POLLS_PER_WAIT = 5
# Before the draw: staff may move the start of the sale.
_MOST_SECONDS_BEFORE = 300
_ENDED_POLL_SECONDS = 60
_MOST_POLL_SECONDS_ADMITTED = 30
_MOST_WAIT_SECONDS = 30 * 86_400
# The rate of admissions is measured over this time.
_RATE_WINDOW = timedelta(seconds=120)

_POLLS = metrics.counter("queue_polls", "Answers about tickets, by their state.", "state")


class State(StrEnum):
    WAITING = "WAITING"
    ADMITTED = "ADMITTED"
    MISSED = "MISSED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class Step:
    """An advance of the places admitted, and when the admissions of its places end."""

    admitted: int
    time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """`position` is from 1; None before the draw. `expire_time` is of an admission."""

    state: State
    place: int | None = None
    position: int | None = None
    ahead: int | None = None
    estimated_wait: timedelta | None = None
    expire_time: datetime | None = None
    poll_after_seconds: int = _ENDED_POLL_SECONDS


@dataclass(frozen=True, slots=True)
class View:
    """A room as this process last read it.

    `steps` are those whose admissions had not ended; places below `ended_below` had theirs before.
    `rate` is in admissions per second, more than 0.
    """

    room: Room
    steps: Sequence[Step]
    ended_below: int
    rate: float
    draw: Draw | None
    cursors: Sequence[int]

    @classmethod
    def of(
        cls,
        room: Room,
        steps: Sequence[Step],
        *,
        ended_below: int = 0,
        now: datetime,
        draw: Draw | None = None,
    ) -> "View":
        """`draw` is that of the room, if it was made before."""
        if room.secret is not None and room.participants is not None:
            draw = draw or Draw(room.secret, room.event_id, room.participants)
        rate = _rate(room, steps, now)
        return cls(room, steps, ended_below, rate, draw, [step.admitted for step in steps])

    def standing(self, number: int, *, spread: float, now: datetime) -> Standing:
        """Where a ticket stands. `spread`, from 0 to 1, spreads the polls of different tickets."""
        standing = self._standing(number, spread=spread, now=now)
        _POLLS.labels(standing.state).inc()
        return standing

    def _standing(self, number: int, *, spread: float, now: datetime) -> Standing:
        room = self.room
        if room.is_over(now):
            return Standing(State.ENDED)
        if self.draw is None:
            wait = max(timedelta(), room.sale_start_time - now)
            return Standing(
                State.WAITING,
                estimated_wait=wait,
                poll_after_seconds=self._poll_before_draw(wait.total_seconds(), spread),
            )
        place = self.draw.place_of(number)
        ahead = max(0, place - room.admitted)
        expire_time = self._admitted_until(place, now)
        if expire_time is not None:
            left = (expire_time - now).total_seconds()
            poll = max(_LEAST_POLL_SECONDS, min(_MOST_POLL_SECONDS_ADMITTED, int(left / 4)))
            return Standing(State.ADMITTED, place, place + 1, 0, timedelta(), expire_time, poll)
        if room.is_sold_out or place < room.admitted:
            state = State.ENDED if room.is_sold_out else State.MISSED
            return Standing(state, place, place + 1, ahead)
        wait = timedelta(seconds=min(_MOST_WAIT_SECONDS, (ahead + 1) / self.rate))
        poll = _spread(wait.total_seconds() / _POLLS_PER_WAIT, spread)
        # Who learns of the admission later than this has little of it left.
        poll = min(poll, int(room.terms.session.total_seconds() / 3))
        return Standing(State.WAITING, place, place + 1, ahead, wait, None, poll)

    def _admitted_until(self, place: int, now: datetime) -> datetime | None:
        """When the admission of a place ends; None before its turn, and once it has ended."""
        index = bisect_right(self.cursors, place)
        if place < self.ended_below or index == len(self.steps):
            return None
        expire_time = self.steps[index].expire_time
        return expire_time if now < expire_time else None

    def _poll_before_draw(self, wait_seconds: float, spread: float) -> int:
        """Seldom, and once after the draw, when all of them must not come at once."""
        session = self.room.terms.session.total_seconds()
        after = min(self.room.issued / _POLLS_PER_SECOND, session / 3)
        half = wait_seconds / 2
        if half > after:
            return _spread(min(half, _MOST_SECONDS_BEFORE), spread)
        return max(_LEAST_POLL_SECONDS, int(wait_seconds + 1 + spread * after))


def _spread(seconds: float, spread: float) -> int:
    """An interval within a quarter of the given one."""
    return int(min(_MOST_POLL_SECONDS, max(_LEAST_POLL_SECONDS, seconds * (0.75 + spread / 2))))


def _rate(room: Room, steps: Sequence[Step], now: datetime) -> float:
    """Admissions per second: of late, or as staff set it, or as AUTO begins."""
    recent = [step for step in steps if step.time >= now - _RATE_WINDOW]
    if len(recent) > 1:
        seconds = (recent[-1].time - recent[0].time).total_seconds()
        if seconds >= 1:
            return (recent[-1].admitted - recent[0].admitted) / seconds
    if room.terms.per_minute is not None:
        return room.terms.per_minute / 60
    return max(1.0, room.active_target) / room.terms.session.total_seconds()
