"""Posts the sandbox's webhooks to the gateway until they are answered with a 2xx."""

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta

import httpx
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup, run_forever
from payment_svc.providers.sandbox import outgoing, signature
from payment_svc.providers.sandbox.faults import WEBHOOK_FAULTS, Fault, Lab
from payment_svc.providers.sandbox.outgoing import OutgoingWebhook

# Shorter than the lease of a webhook.
TIMEOUT_SECONDS = 8.0

_BATCH = 16
_IDLE_SECONDS = 1.0

# LATE is after the end of the payment's window.
_PAUSES = {
    Fault.DELAY: timedelta(seconds=5),
    Fault.REORDER: timedelta(seconds=2),
    Fault.LATE: timedelta(minutes=30),
}

_log = logging.getLogger(__name__)


class Delivery:
    """Sends due webhooks, each time with a new signature. Any number of processes may run it."""

    def __init__(
        self,
        database: Database,
        client: httpx.AsyncClient,
        clock: Clock,
        *,
        url: str,
        secret: str,
        queued: Wakeup,
        lab: Lab | None = None,
    ) -> None:
        self._database = database
        self._client = client
        self._clock = clock
        self._url = url
        self._secret = secret
        self._queued = queued
        self._lab = lab or Lab()

    async def run(self) -> None:
        """Sends webhooks as they fall due. Runs until cancelled."""
        await run_forever(
            "webhook delivery", self.deliver_due, wake=self._queued, idle_seconds=_IDLE_SECONDS
        )

    async def deliver_due(self) -> int:
        """Sends one batch of due webhooks. Returns how many it leased."""
        async with self._database.transaction() as connection:
            leased = await outgoing.lease_due(connection, now=self._clock(), limit=_BATCH)
            faults = [await self._next_fault(connection, webhook) for webhook in leased]
        held_back = _PAUSES.keys() | {Fault.DROP}
        sending = [
            (webhook, fault)
            for webhook, fault in zip(leased, faults, strict=True)
            if fault not in held_back
        ]
        answers = await asyncio.gather(*(self._send(webhook, fault) for webhook, fault in sending))
        if sending:
            async with self._database.transaction() as connection:
                for (webhook, _), answer in zip(sending, answers, strict=True):
                    await outgoing.record_attempt(
                        connection,
                        webhook=webhook,
                        is_delivered=answer.startswith("2"),
                        answer=answer,
                        now=self._clock(),
                    )
        return len(leased)

    async def _next_fault(
        self, connection: AsyncConnection, webhook: OutgoingWebhook
    ) -> Fault | None:
        """The fault of a webhook's first attempt. Some faults hold the webhook back."""
        if webhook.attempt > 1:
            return None
        fault = await self._lab.next(
            connection, payment_id=webhook.payment_id, among=WEBHOOK_FAULTS
        )
        if fault in _PAUSES or fault is Fault.DROP:
            pause = _PAUSES.get(fault)
            await outgoing.hold_back(
                connection,
                webhook=webhook,
                until=None if pause is None else self._clock() + pause,
                answer=fault,
            )
        return fault

    async def _send(self, webhook: OutgoingWebhook, fault: Fault | None) -> str:
        if fault is Fault.DUPLICATE:
            answers = await asyncio.gather(self._post(webhook), self._post(webhook))
            return answers[0]
        if fault is Fault.WRONG_SIGNATURE:
            return await self._post(webhook, secret=f"not {self._secret}")
        return await self._post(webhook)

    async def _post(self, webhook: OutgoingWebhook, *, secret: str | None = None) -> str:
        """The answer's status, or the name of the error."""
        header = signature.sign(webhook.body, secret=secret or self._secret, now=self._clock())
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
                "a sandbox webhook was not accepted, retried later",
                extra={
                    "event_id": webhook.event_id,
                    "attempt": webhook.attempt,
                    "answer": answer,
                },
            )
        return answer
