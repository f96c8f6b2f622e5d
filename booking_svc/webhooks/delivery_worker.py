"""Posts messages to endpoints. Any number of processes may do so.

Each endpoint has a limited number of concurrent attempts: a slow one does not delay others.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import httpx

from booking_svc.webhooks import deliveries, endpoints, signature, url_policy
from booking_svc.webhooks.deliveries import Attempt, Leased, Status
from booking_svc.webhooks.encryption import SecretBox
from booking_svc.webhooks.url_policy import RefusedDestinationError, Rules
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup, Workers, run_forever
from mesh.observability import metrics

_log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 15.0
"""For the DNS look-up, the connection, the request and the answer's headers together."""

_AT_ONCE = 32
_AT_ONCE_PER_ENDPOINT = 4
_IDLE_SECONDS = 3.0
_GONE = 410

_ATTEMPTS = metrics.counter("webhook_attempts", "Attempts to deliver a webhook.", "outcome")


class DeliveryWorker:
    """Leases due messages and posts them."""

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
        self._queued = Wakeup()
        self._workers = Workers(self._queued, size=_AT_ONCE, per_group=_AT_ONCE_PER_ENDPOINT)

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
            # A proxy or a password from the environment, or a redirect, would lead to an
            # address that url_policy.py has not checked.
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(attempt_seconds),
            # Connections are to addresses, not to names: a kept one could be reused for
            # another host at the same address.
            limits=httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0),
            headers={"user-agent": "Boxoffice-Webhooks/1"},
        ) as client:
            yield cls(
                database, client, clock, rules=rules, seal=seal, attempt_seconds=attempt_seconds
            )

    def wake(self) -> None:
        """Messages were enqueued and committed: post them now."""
        self._queued.ring()

    async def run(self) -> None:
        """Posts messages as they fall due. Runs until cancelled; then other processes post them."""
        async with self._workers:
            await run_forever(
                "webhook deliveries", self.start_due, wake=self._queued, idle_seconds=_IDLE_SECONDS
            )

    async def start_due(self) -> int:
        """Starts due deliveries, as many as there are free places. Returns how many."""
        return await self._workers.fill(
            self._lease, self._deliver, group=lambda leased: leased.endpoint_id
        )

    async def idle(self) -> None:
        """Returns when no delivery is running."""
        await self._workers.join()

    async def _lease(self, limit: int) -> Sequence[Leased]:
        async with self._database.single() as connection:
            return await deliveries.lease_due(
                connection,
                now=self._clock(),
                limit=limit,
                per_endpoint=_AT_ONCE_PER_ENDPOINT,
                busy=self._workers.busy_groups,
            )

    async def _deliver(self, leased: Leased) -> None:
        attempt = await self._attempt(leased)
        now = self._clock()
        async with self._database.transaction() as connection:
            status = await deliveries.record_attempt(
                connection,
                leased=leased,
                attempt=attempt,
                is_final=attempt.status_code == _GONE or not leased.is_enabled,
                jitter=random.random(),
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
                "a webhook was not delivered",
                extra={
                    "delivery_id": str(leased.delivery_id),
                    "endpoint_id": str(leased.endpoint_id),
                    "attempt": leased.attempt,
                    "answer": attempt.status_code or attempt.error,
                    "status": status,
                },
            )

    async def _attempt(self, leased: Leased) -> Attempt:
        """One attempt. An error of the endpoint is part of the result, not raised."""
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
            # The certificate is checked against the name, although the connection is to an address.
            extensions={"sni_hostname": parts.hostname},
        )
        # The answer's body is not read: only the status matters.
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response.status_code
