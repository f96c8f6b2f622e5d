"""Work that must not stop half-way: shielded from the client going away, ended at shutdown.

grpc.aio cancels a handler when its client disconnects or its deadline passes. A step
that touches stock or money runs as a task of its own, with its own deadline, and
the process waits for it before it exits.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from mesh.deadlines import deadline_in
from mesh.observability import metrics

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()

_TURNS = metrics.counter("loop_turns", "Turns of background loops that ended well.", "loop")
_FAILURES = metrics.counter("loop_failures", "Turns of background loops that failed.", "loop")
_LAST_TURN = metrics.gauge(
    "loop_last_turn_timestamp_seconds", "When a turn last ended well, or the loop began.", "loop"
)


async def shielded(work: Coroutine[Any, Any, _T], *, seconds: float) -> _T:
    """Runs `work` to its end, or for `seconds`, even when the awaiting call is cancelled."""
    return await asyncio.shield(begin(_bounded(work, seconds)))


def begin(
    work: Coroutine[Any, Any, _T], *, context: contextvars.Context | None = None
) -> asyncio.Task[_T]:
    """Begins work that is no call's own; the process waits for it before it exits."""
    task = asyncio.create_task(work, context=context)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


async def drain(seconds: float) -> None:
    """Waits for all shielded work, at most so long; cancels what is left."""
    if not _running:
        return
    _, late = await asyncio.wait(_running, timeout=seconds)
    for task in late:
        # Said here only: nobody scrapes a process that ends now.
        _log.error("shielded work was cut off at shutdown", extra={"task": task.get_name()})
        task.cancel()


async def forever(
    name: str, turn: Callable[[], Awaitable[None]], *, retry_seconds: float = 1.0
) -> None:
    """Repeats `turn` until cancelled; a failure is logged and followed by a pause."""
    turns, failures, last_turn = (
        _TURNS.labels(name),
        _FAILURES.labels(name),
        _LAST_TURN.labels(name),
    )
    last_turn.set_to_current_time()
    while True:
        try:
            await turn()
            turns.inc()
            last_turn.set_to_current_time()
        except Exception:  # noqa: BLE001 - the top of a background loop
            failures.inc()
            _log.exception("background loop failed, goes on", extra={"loop": name})
            await asyncio.sleep(retry_seconds)


async def _bounded(work: Coroutine[Any, Any, _T], seconds: float) -> _T:
    with deadline_in(seconds):
        async with asyncio.timeout(seconds):
            return await work


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    # The awaiting call may be gone: fetch the error, or asyncio complains about it.
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("shielded work failed", exc_info=error)
