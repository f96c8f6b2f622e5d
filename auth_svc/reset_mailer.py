"""The loop that answers requests for a new password with mails."""

import asyncio

from auth_svc import password_reset
from auth_svc.mailing import Mailing
from mesh.clock import Clock
from mesh.db.database import Database

# For requests that another replica wrote down and did not come to answer.
_POLL_SECONDS = 5.0


class ResetMailer:
    """Any number of processes may run it: each takes other requests."""

    def __init__(self, *, database: Database, mailing: Mailing, clock: Clock) -> None:
        self._database = database
        self._mailing = mailing
        self._clock = clock
        self._requested = asyncio.Event()

    def wake(self) -> None:
        """A request was written down, and is committed."""
        self._requested.set()

    async def turn(self) -> None:
        """One turn of the loop: a batch, or a pause when there is none."""
        self._requested.clear()
        async with self._database.transaction() as connection:
            looked_at = await password_reset.answer_requests(
                connection, self._mailing, now=self._clock()
            )
        if looked_at:
            self._mailing.wake()
        else:
            await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._requested.wait()
        except TimeoutError:
            return
