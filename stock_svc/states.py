"""The states of a reservation and its moves, as data, and those of a seat.

Each move happens at most once.
"""

from enum import StrEnum


class SeatState(StrEnum):
    AVAILABLE = "AVAILABLE"
    HELD = "HELD"
    SOLD = "SOLD"
    BLOCKED = "BLOCKED"


class State(StrEnum):
    ACTIVE = "ACTIVE"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"
    RETURNED = "RETURNED"


MOVES: dict[State, frozenset[State]] = {
    State.ACTIVE: frozenset({State.COMMITTED, State.RELEASED, State.EXPIRED}),
    State.COMMITTED: frozenset({State.RETURNED}),
    State.RELEASED: frozenset(),
    State.EXPIRED: frozenset(),
    State.RETURNED: frozenset(),
}
