"""The background loop that sends mails for password reset requests."""

import asyncio

from auth_svc import password_reset
from auth_svc.mailing import Mailing
from mesh.clock import Clock
from mesh.db.database import Database

# Also finds requests of another process that stopped before it sent their mails.
_POLL_SECONDS = 5.0


class ResetMailer:
    """Any number of processes may run it at the same time: each takes different requests."""

    def __init__(self, *, database: Database, mailing: Mailing, clock: Clock) -> None:
        self._database = database
        self._mailing = mailing
        self._clock = clock
        self._requested = asyncio.Event()

    def wake(self) -> None:
        """Call it after the commit of a request."""
        self._requested.set()

    async def turn(self) -> None:
        """Handles a batch of requests, or waits if there are none. For a background loop."""
        self._requested.clear()
        async with self._database.transaction() as connection:
            batch_size = await password_reset.answer_requests(
                connection, self._mailing, now=self._clock()
            )
        if batch_size:
            self._mailing.wake()
        else:
            await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._requested.wait()
        except TimeoutError:
            return
