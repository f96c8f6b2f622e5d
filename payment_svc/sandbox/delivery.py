"""Posts the sandbox's webhooks to the gateway until they are answered with a 2xx."""

import asyncio
import logging
from contextlib import suppress

import httpx

from mesh.clock import Clock
from mesh.database import Database
from payment_svc.pacing import Wakeup
from payment_svc.sandbox import outgoing, signature
from payment_svc.sandbox.outgoing import OutgoingWebhook

# Below the lease of a webhook.
TIMEOUT_SECONDS = 8.0

_BATCH = 16
_POLL_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Delivery:
    """Sends what is due, each time signed afresh. Any number of processes may do so."""

    def __init__(
        self,
        database: Database,
        client: httpx.AsyncClient,
        clock: Clock,
        *,
        url: str,
        secret: str,
        queued: Wakeup,
    ) -> None:
        self._database = database
        self._client = client
        self._clock = clock
        self._url = url
        self._secret = secret
        self._queued = queued

    async def turn(self) -> None:
        """One turn of the loop: a batch, or a pause when nothing is due."""
        if await self.deliver_due() == 0:
            await self._queued.wait(_POLL_SECONDS)

    async def deliver_due(self) -> int:
        """Sends one batch of the webhooks whose time has come. Returns how many."""
        async with self._database.transaction() as connection:
            due = await outgoing.lease_due(connection, now=self._clock(), limit=_BATCH)
        answers = await asyncio.gather(*map(self._post, due))
        if due:
            async with self._database.transaction() as connection:
                for webhook, answer in zip(due, answers, strict=True):
                    await outgoing.settle(
                        connection,
                        webhook=webhook,
                        is_delivered=answer.startswith("2"),
                        answer=answer,
                        now=self._clock(),
                    )
        return len(due)

    async def _post(self, webhook: OutgoingWebhook) -> str:
        """The answer's status, or the name of what went wrong."""
        header = signature.sign(webhook.body, secret=self._secret, now=self._clock())
        answer = "Timeout"
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                try:
                    response = await self._client.post(
                        self._url,
                        content=webhook.body,
                        headers={"content-type": "application/json", signature.HEADER: header},
                    )
                    answer = str(response.status_code)
                except httpx.HTTPError as error:
                    answer = type(error).__name__
        if not answer.startswith("2"):
            _log.warning(
                "a webhook was not taken, it is sent again",
                extra={
                    "event_id": webhook.event_id,
                    "attempt": webhook.attempt,
                    "answer": answer,
                },
            )
        return answer
