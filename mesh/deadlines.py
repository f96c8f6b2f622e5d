"""The deadline of the current work, which also bounds its outgoing calls."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def remaining_seconds() -> float | None:
    """Time until the current deadline; None when there is none."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


@contextmanager
def deadline_in(seconds: float | None) -> Iterator[None]:
    """Sets the deadline inside the block to `seconds` from now; None removes it."""
    at = None if seconds is None else asyncio.get_running_loop().time() + seconds
    before = _deadline.get()
    _deadline.set(at)
    try:
        yield
    finally:
        # Not reset(token): a cancelled stream is closed by a task with another context.
        _deadline.set(before)
