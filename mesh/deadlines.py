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


def set_deadline(seconds: float | None) -> None:
    """Sets the deadline of the current task to `seconds` from now; None removes it."""
    _deadline.set(None if seconds is None else asyncio.get_running_loop().time() + seconds)


@contextmanager
def deadline_in(seconds: float | None) -> Iterator[None]:
    """Sets the deadline inside the block to `seconds` from now; None removes it."""
    before = _deadline.get()
    set_deadline(seconds)
    try:
        yield
    finally:
        # Not reset(token): a cancelled stream is closed by a task with another context.
        _deadline.set(before)
