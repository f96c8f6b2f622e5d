"""The deadline of the work at hand: outgoing calls get no more time than is left."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def remaining_seconds() -> float | None:
    """Time left for the work at hand; None when nothing bounds it."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


@contextmanager
def deadline_in(seconds: float | None) -> Iterator[None]:
    """Bounds the calls made inside to so many seconds from now; None lifts the bound."""
    at = None if seconds is None else asyncio.get_running_loop().time() + seconds
    before = _deadline.get()
    _deadline.set(at)
    try:
        yield
    finally:
        # No reset(): a stream that its client has left is closed by a task of another context.
        _deadline.set(before)
