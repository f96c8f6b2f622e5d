"""Takes what bookings owe to the other services, until it is done.

Every step may be taken twice: the calls are idempotent and the outcome is tested under
the booking's lock. What each one does is step_handlers.py's.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from booking_svc.bookings import saga_steps
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.saga_steps import Step
from booking_svc.bookings.step_handlers import HANDLERS
from mesh.deadlines import deadline_in
from mesh.errors import DomainError
from mesh.observability import request_context

_log = logging.getLogger(__name__)

# Fewer than the pool has connections: calls of customers need some too.
_AT_ONCE = 8
# The lease is longer than a try, so that no step is taken twice at a time; a process that
# dies keeps its steps for as long.
_TRY_SECONDS = 8.0
_LEASE = timedelta(seconds=10)
_IDLE_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 60.0


class Steps:
    """Takes due steps, several bookings at a time. `wake` is set when steps were enqueued."""

    def __init__(self, deps: Dependencies, wake: asyncio.Event) -> None:
        self._deps = deps
        self._wake = wake

    async def run(self) -> None:
        """Takes steps as they fall due, some at a time. Runs until cancelled.

        A step that hangs, because its service is away, holds up no other booking's.
        """
        running: set[asyncio.Task[None]] = set()
        is_more = False

        def finished(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if is_more and len(running) <= _AT_ONCE // 2:
                self._wake.set()
            if not task.cancelled() and (error := task.exception()) is not None:
                # Not even its failure could be recorded: it is due again when its lease is over.
                _log.error("a step of a booking was lost sight of", exc_info=error)

        try:
            while True:
                self._wake.clear()
                if free := _AT_ONCE - len(running):
                    claimed = await self.claim(limit=free)
                    is_more = len(claimed) == free
                    for step in claimed:
                        task = asyncio.create_task(self.attempt(step))
                        running.add(task)
                        task.add_done_callback(finished)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._wake.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def claim(self, *, limit: int) -> Sequence[Step]:
        """Leases due steps to this process, so that two do not take them at the same time."""
        async with self._deps.database.single() as connection:
            return await saga_steps.lease(
                connection, now=self._deps.clock(), limit=limit, lease=_LEASE
            )

    async def attempt(self, step: Step) -> None:
        """Takes a claimed step; a failure makes it due again after a pause."""
        with request_context.resuming(
            f"step {step.kind}", step.origin, booking_id=str(step.booking_id)
        ):
            await self._attempt(step)

    async def _attempt(self, step: Step) -> None:
        try:
            with deadline_in(_TRY_SECONDS):
                async with asyncio.timeout(_TRY_SECONDS):
                    await HANDLERS[step.kind](self._deps, step)
            _log.info(
                "step",
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                },
            )
        except Exception as error:  # noqa: BLE001 - the top of a background loop; it is tried again
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (step.attempts - 1), _LAST_BACKOFF_SECONDS)
            expected = isinstance(error, DomainError)
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "a step of a booking failed, is tried again",
                exc_info=None if expected else error,
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                    "error": repr(error) if expected else type(error).__name__,
                },
            )
            async with self._deps.database.transaction() as connection:
                await saga_steps.postpone(
                    connection,
                    step,
                    until=self._deps.clock() + timedelta(seconds=delay),
                    error=type(error).__name__,
                )
