"""Posts messages to endpoints. Any number of processes may do so.

Each endpoint has a few places of its own, so that a slow one holds up nobody else.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import httpx

from booking_svc.webhooks import deliveries, endpoints, signature, url_policy
from booking_svc.webhooks.deliveries import Attempt, Leased, Status
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.url_policy import RefusedDestinationError, Rules
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.observability import metrics

_log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 15.0
"""For resolving, connecting, sending and the answer's headers together."""

_PLACES = 32
_PLACES_PER_ENDPOINT = 4
_POLL_SECONDS = 1.0
_GONE = 410

_ATTEMPTS = metrics.counter("webhook_attempts", "Tries to deliver a webhook.", "outcome")


class DeliveryWorker:
    """Takes what is due and posts it, until it is cancelled."""

    def __init__(
        self,
        database: Database,
        client: httpx.AsyncClient,
        clock: Clock,
        *,
        rules: Rules,
        seal: SecretBox,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self._database = database
        self._client = client
        self._clock = clock
        self._rules = rules
        self._seal = seal
        self._attempt_seconds = attempt_seconds
        self._running: dict[asyncio.Task[None], UUID] = {}
        self._queued = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        database: Database,
        clock: Clock,
        *,
        rules: Rules,
        seal: SecretBox,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> AsyncIterator["DeliveryWorker"]:
        async with httpx.AsyncClient(
            # Neither a proxy nor a password from the environment, and no redirects: each
            # would lead to an address that nobody has looked at.
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(attempt_seconds),
            # Connections are to addresses, not to names: one that is kept could be used for
            # another host behind the same address.
            limits=httpx.Limits(max_connections=_PLACES, max_keepalive_connections=0),
            headers={"user-agent": "Boxoffice-Webhooks/1"},
        ) as client:
            yield cls(
                database, client, clock, rules=rules, seal=seal, attempt_seconds=attempt_seconds
            )

    def wake(self) -> None:
        """Something was queued, and is committed."""
        self._queued.set()

    async def run(self) -> None:
        """Posts until cancelled; what is on its way then is sent again by the next process."""
        try:
            while True:
                if await self.start_due() == 0:
                    await self._wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def start_due(self) -> int:
        """Starts what is due, as far as there are places. Returns how many it started."""
        places = _PLACES - len(self._running)
        if places <= 0:
            return 0
        in_flight = Counter(self._running.values())
        async with self._database.single() as connection:
            due = await deliveries.lease_due(
                connection,
                now=self._clock(),
                limit=places,
                per_endpoint=_PLACES_PER_ENDPOINT,
                busy=[key for key, count in in_flight.items() if count >= _PLACES_PER_ENDPOINT],
            )
        for leased in due:
            task = asyncio.create_task(self._deliver(leased))
            self._running[task] = leased.endpoint_id
            task.add_done_callback(self._ended)
        return len(due)

    async def idle(self) -> None:
        """Returns when nothing is on its way."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def _deliver(self, leased: Leased) -> None:
        attempt = await self._attempt(leased)
        now = self._clock()
        async with self._database.transaction() as connection:
            status = await deliveries.settle(
                connection,
                leased=leased,
                attempt=attempt,
                is_final=attempt.status_code == _GONE or not leased.is_enabled,
                spread=random.random(),
                now=now,
            )
            if attempt.status_code == _GONE:
                await endpoints.disable(
                    connection,
                    endpoint_id=leased.endpoint_id,
                    reason="the endpoint is gone (410)",
                    now=now,
                )
        _ATTEMPTS.labels("delivered" if attempt.is_delivered else "failed").inc()
        if status is not Status.DELIVERED:
            _log.warning(
                "a webhook was not taken",
                extra={
                    "delivery_id": str(leased.delivery_id),
                    "endpoint_id": str(leased.endpoint_id),
                    "attempt": leased.attempt,
                    "answer": attempt.status_code or attempt.error,
                    "status": status,
                },
            )

    async def _attempt(self, leased: Leased) -> Attempt:
        """One try. Never raises for what the endpoint does."""
        now, began = self._clock(), time.monotonic()
        status_code, error = 0, ""
        if not leased.is_enabled:
            return Attempt(now, 0, "the endpoint is disabled", 0)
        try:
            async with asyncio.timeout(self._attempt_seconds):
                status_code = await self._post(leased)
        except RefusedDestinationError as refusal:
            error = str(refusal)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as failure:
            error = type(failure).__name__
        return Attempt(now, status_code, error, int((time.monotonic() - began) * 1000))

    async def _post(self, leased: Leased) -> int:
        address = await url_policy.address_for(leased.url, self._rules)
        async with self._database.reading() as connection:
            secrets = await endpoints.signing_secrets(
                connection, endpoint_id=leased.endpoint_id, secret_box=self._seal, now=self._clock()
            )
        parts = urlsplit(leased.url)
        host = f"[{address}]" if ":" in address else address
        target = urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))
        headers = signature.headers(
            leased.body,
            webhook_id=str(leased.message_id),
            signing_secrets=secrets,
            now=self._clock(),
        )
        request = self._client.build_request(
            "POST",
            target,
            content=leased.body,
            headers={**headers, "content-type": "application/json", "host": parts.netloc},
            # The certificate must be the name's, although we connect to the address.
            extensions={"sni_hostname": parts.hostname},
        )
        # Only the status counts: the answer's body, however long, is not read.
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response.status_code

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._queued.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease brings it back.
            _log.error("a webhook's try was cut off", exc_info=error)

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await self._queued.wait()
        self._queued.clear()
