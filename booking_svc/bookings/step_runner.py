"""Runs the saga steps of bookings. What each step does is in step_handlers.py.

A step may run twice: its calls are idempotent, and its outcome is tested under the
booking's lock.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from booking_svc.bookings import confirmation, saga_steps
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.saga_steps import Lane, Step
from booking_svc.bookings.step_handlers import HANDLERS
from mesh.db.jobs import Wakeup, Workers, run_forever
from mesh.deadlines import deadline_in
from mesh.errors import DomainError
from mesh.observability import request_context
from mesh.outages import is_outage

_log = logging.getLogger(__name__)

# With one batch of confirmations, fewer than the pool has connections: calls of customers need some
# too. An event's cancellation enqueues very many of the others.
_URGENT_AT_ONCE = 4
_OTHERS_AT_ONCE = 6
# As many as one call of BatchCommit may have.
_MAX_CONFIRMATIONS = 256
_ATTEMPT_SECONDS = 8.0
# Longer than an attempt.
_LEASE = timedelta(seconds=10)
_IDLE_SECONDS = 1.0


class Steps:
    """Runs due steps, several at a time. `wake` rings when steps were enqueued."""

    def __init__(self, deps: Dependencies, wake: Wakeup) -> None:
        self._deps = deps
        self._wake = wake

    async def run(self) -> None:
        """Runs steps as they fall due, until cancelled; no lane waits for another.

        First tries to confirm run as one batch after another: those that fall due during a batch
        form the next. Other steps run by themselves, some at a time.
        """
        async with (
            Workers(self._wake, size=1) as batches,
            Workers(self._wake, size=_URGENT_AT_ONCE) as urgent,
            Workers(self._wake, size=_OTHERS_AT_ONCE) as others,
        ):

            async def turn() -> bool:
                await batches.fill(self._claim_batch, self.confirm_together)
                for workers, lane in ((urgent, Lane.URGENT), (others, Lane.OTHERS)):
                    await workers.fill(partial(self._claim, lane), self.attempt)
                # The end of a step starts the next turn.
                return False

            await run_forever("steps", turn, wake=self._wake, idle_seconds=_IDLE_SECONDS)

    async def claim(self, *, limit: int, lane: Lane | None = None) -> Sequence[Step]:
        """Leases due steps to this process."""
        return await self._claim(lane, limit)

    async def _claim(self, lane: Lane | None, limit: int) -> Sequence[Step]:
        async with self._deps.database.single() as connection:
            return await saga_steps.lease(
                connection, now=self._deps.clock(), limit=limit, lease=_LEASE, lane=lane
            )

    async def _claim_batch(self, _: int) -> Sequence[Sequence[Step]]:
        steps = await self._claim(Lane.FIRST_CONFIRMATIONS, _MAX_CONFIRMATIONS)
        return [steps] if steps else []

    async def confirm_together(self, steps: Sequence[Step]) -> None:
        """Runs leased first tries to confirm as one batch. What it leaves runs as other steps do."""
        await self._attempt(steps, confirmation.confirm_together(self._deps, steps))
        self._wake.ring()

    async def attempt(self, step: Step) -> None:
        """Runs a leased step. A failure makes it due again after a pause."""
        await self._attempt([step], HANDLERS[step.kind](self._deps, step))

    async def _attempt(
        self, steps: Sequence[Step], work: Coroutine[Any, Any, Sequence[Step] | None]
    ) -> None:
        """Runs the work of steps of one kind, which returns those that it left undone."""
        alone = {"booking_id": str(steps[0].booking_id)} if len(steps) == 1 else {}
        origins = (step.origin for step in steps)
        with request_context.resuming(f"step {steps[0].kind}", *origins, **alone):
            try:
                with deadline_in(_ATTEMPT_SECONDS):
                    async with asyncio.timeout(_ATTEMPT_SECONDS):
                        left = await work or ()
            except Exception as error:  # noqa: BLE001 - the top of steps, which are retried
                for step in steps:
                    await self._retry(step, error)
            else:
                for step in steps:
                    if step not in left:
                        _log_done(step)
                await self._postpone(left)

    async def _postpone(self, steps: Sequence[Step]) -> None:
        if steps:
            now = self._deps.clock()
            async with self._deps.database.transaction() as connection:
                for step in steps:
                    await saga_steps.postpone(connection, step, until=now, error="not in a batch")

    async def _retry(self, step: Step, error: Exception) -> None:
        is_expected = isinstance(error, DomainError) or is_outage(error)
        _log.log(
            logging.WARNING if is_expected else logging.ERROR,
            "a step of a booking failed, retried later",
            exc_info=None if is_expected else error,
            extra={
                "booking_id": str(step.booking_id),
                "step": step.kind,
                "attempts": step.attempts,
                # Other errors quote values.
                "error": repr(error) if isinstance(error, DomainError) else type(error).__name__,
            },
        )
        async with self._deps.database.transaction() as connection:
            await saga_steps.retry(
                connection, step, now=self._deps.clock(), error=type(error).__name__
            )


def _log_done(step: Step) -> None:
    _log.info(
        "step",
        extra={
            "booking_id": str(step.booking_id),
            "step": step.kind,
            "attempts": step.attempts,
        },
    )
