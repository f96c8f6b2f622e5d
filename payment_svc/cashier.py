"""Steps that need a provider between two transactions: opening, voiding, giving back.

No transaction is open while a provider is called. Each step can be repeated from its
beginning: the provider knows it by its idempotency key, the database by its state.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.tasks import shielded
from payment_svc import observations, payments, refunds
from payment_svc.pacing import Wakeup
from payment_svc.payments import PAID, Payment, Status
from payment_svc.providers import Captured, Order, Provider, ProviderError, Report, Voided
from payment_svc.refunds import DueRefund

# Below the lease of a refund and the deadline of the calls that wait for it.
_PROVIDER_SECONDS = 5.0
_REFUND_BATCH = 8
_REFUND_POLL_SECONDS = 1.0
_REFUND_BATCH_SECONDS = 12.0

_log = logging.getLogger(__name__)


class Cashier:
    """Carries payments and refunds between the database and the providers."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, Provider],
        clock: Clock,
        refund_requested: Wakeup,
    ) -> None:
        self._database = database
        self._providers = providers
        self._clock = clock
        self._refund_requested = refund_requested

    def provider(self, name: str) -> Provider:
        """A provider that is offered. Raises PROVIDER_NOT_FOUND."""
        provider = self._providers.get(name)
        if provider is None:
            raise DomainError(Reason.PROVIDER_NOT_FOUND, "no such payment provider", provider=name)
        return provider

    async def open(self, order: Order) -> Payment:
        """Records a payment and opens it with its provider; repeating it finds it again.

        Raises PROVIDER_NOT_FOUND, PAYMENT_STATE_INVALID or PAYMENT_GATEWAY_ERROR.
        """
        provider = self.provider(order.provider)
        async with self._database.transaction() as connection:
            payment = await payments.create(connection, order=order, now=self._clock())
        if payment.payment_url is not None or payment.status is Status.VOIDED:
            return payment
        async with _answering(order.provider):
            session = await provider.create_session(order)
        async with self._database.transaction() as connection:
            payment = await payments.attach_session(
                connection, payment_id=order.payment_id, session=session, now=self._clock()
            )
        if payment.status is Status.VOIDED:
            # Given up while it was being opened: close what has just been opened.
            async with _answering(order.provider):
                await self._observe(order.provider, await provider.void(order.payment_id))
        return payment

    async def void(self, payment_id: UUID) -> Payment:
        """Gives up a payment that is not paid; one that is paid is returned as it is.

        Raises PAYMENT_NOT_FOUND or PAYMENT_GATEWAY_ERROR.
        """
        async with self._database.transaction() as connection:
            payment = await payments.find(connection, payment_id=payment_id, owner=None)
        if payment.status in PAID or payment.status is Status.VOIDED:
            return payment
        name = payment.order.provider
        async with _answering(name):
            # The provider decides between this and a customer who pays at this moment.
            report = await self.provider(name).void(payment_id)
        return await self._observe(name, report)

    async def carry_out_refunds(self) -> None:
        """One turn of the loop that brings refunds to their end."""
        if await shielded(self.refund_due(), seconds=_REFUND_BATCH_SECONDS) == 0:
            await self._refund_requested.wait(_REFUND_POLL_SECONDS)

    async def refund_due(self) -> int:
        """Carries out one batch of the refunds whose time has come. Returns how many."""
        async with self._database.transaction() as connection:
            due = await refunds.lease_due(connection, now=self._clock(), limit=_REFUND_BATCH)
        done = await asyncio.gather(*map(self._refund, due), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return len(due)

    async def _refund(self, due: DueRefund) -> None:
        try:
            async with _answering(due.provider):
                report = await self.provider(due.provider).refund(due.order)
        except DomainError as error:
            _log.warning(
                "a refund is tried again later",
                extra={
                    "refund_id": str(due.order.refund_id),
                    "attempt": due.attempt,
                    "reason": error.reason,
                    "code": error.metadata.get("code"),
                },
            )
            report = None
        async with self._database.transaction() as connection:
            now = self._clock()
            if report is not None:
                await observations.observe(
                    connection, provider=due.provider, report=report, now=now
                )
            else:
                await refunds.postpone(
                    connection, refund_id=due.order.refund_id, attempt=due.attempt, now=now
                )

    async def _observe(self, provider: str, report: Captured | Voided) -> Payment:
        """What the provider answered to a void, applied. A payment it was paid wrongly is void."""
        async with self._database.transaction() as connection:
            now = self._clock()
            reports: list[Report] = [report]
            if isinstance(report, Captured):
                # Has an effect only when the capture did not pay the payment.
                reports.append(
                    Voided(report.payment_id, report.session_reference, report.event_time)
                )
            for each in reports:
                await observations.observe(connection, provider=provider, report=each, now=now)
            return await payments.find(connection, payment_id=report.payment_id, owner=None)


@asynccontextmanager
async def _answering(provider: str) -> AsyncIterator[None]:
    """Bounds a call to a provider. Raises PAYMENT_GATEWAY_ERROR for its trouble."""
    try:
        async with asyncio.timeout(_PROVIDER_SECONDS):
            yield
    except (ProviderError, TimeoutError) as error:
        code = error.code if isinstance(error, ProviderError) else "timeout"
        raise DomainError(
            Reason.PAYMENT_GATEWAY_ERROR,
            "the payment provider did not do it; try again",
            retry_after_seconds=1,
            provider=provider,
            code=code,
        ) from error
