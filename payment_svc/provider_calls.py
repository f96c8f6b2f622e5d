"""Calls to providers between two transactions: open, void, capture, check and refund.

No transaction is open during a call. Each step is safe to repeat from its beginning.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup, run_forever
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.money import AmountLimits
from mesh.tasks import shielded
from payment_svc import payment_reports, payments, refunds, webhooks
from payment_svc.circuit_breaker import CircuitBreaker
from payment_svc.payment_reports import Outcome
from payment_svc.payments import PAID, Payment, Status
from payment_svc.providers.base import (
    CALL_SECONDS,
    Captured,
    Order,
    Provider,
    ProviderReport,
    Voided,
)
from payment_svc.refunds import DueRefund

_REFUND_BATCH = 8
_REFUND_IDLE_SECONDS = 1.0
_REFUND_BATCH_SECONDS = 12.0

_log = logging.getLogger(__name__)


class ProviderCalls:
    """Calls providers, each behind its circuit breaker, and stores their answers."""

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, Provider],
        clock: Clock,
        refund_requested: Wakeup,
        *,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._database = database
        self._providers = providers
        self._clock = clock
        self._refund_requested = refund_requested
        self._breakers = {
            name: CircuitBreaker(name, time=time.monotonic, call_seconds=call_seconds)
            for name in providers
        }

    def provider(self, name: str) -> Provider:
        """A configured provider. Raises PROVIDER_NOT_FOUND."""
        provider = self._providers.get(name)
        if provider is None:
            raise DomainError(Reason.PROVIDER_NOT_FOUND, "unknown payment provider", provider=name)
        return provider

    @property
    def offered(self) -> Sequence[str]:
        """The names of the configured providers."""
        return sorted(self._providers)

    def limits(self, currency_code: str) -> dict[str, AmountLimits | None]:
        """What each configured provider accepts in a currency; None where it accepts nothing."""
        return {name: self._providers[name].limits(currency_code) for name in self.offered}

    def step_minor(self, payment: Payment) -> int:
        """The smallest amount that the payment's provider can move, in minor units."""
        provider = self._providers.get(payment.order.provider)
        return 1 if provider is None else provider.step_minor(payment.amount.currency_code)

    def calling(self, provider: str, *, seconds: float) -> AbstractAsyncContextManager[None]:
        """Around a call with a time limit of its own. Raises PAYMENT_GATEWAY_ERROR."""
        return self._breakers[provider].calling(seconds=seconds)

    async def open(self, order: Order) -> Payment:
        """Stores a payment and opens it at its provider. A repetition returns it.

        Raises PROVIDER_NOT_FOUND, VALIDATION_FAILED for an embedded payment that the provider
        does not offer, PAYMENT_STATE_INVALID, PAYMENT_FAILED when the provider rejects the amount
        or the currency, or PAYMENT_GATEWAY_ERROR.
        """
        provider = self.provider(order.provider)
        if order.is_embedded and not provider.has_embedded:
            raise invalid(FieldViolation("embedded", f"{order.provider} has no embedded payments"))
        async with self._database.single() as connection:
            payment = await payments.create(connection, order=order, now=self._clock())
        if payment.payment_url is not None or payment.status is Status.VOIDED:
            return payment
        try:
            async with self._breakers[order.provider].calling(is_refusable=True):
                # As stored: a repeated call gives the provider the same parameters.
                session = await provider.create_session(payment.order)
        except DomainError as error:
            if error.reason is Reason.PAYMENT_FAILED:
                await self._record_failure(order, error.metadata["code"])
            raise
        async with self._database.single() as connection:
            payment = await payments.attach_session(
                connection, payment_id=order.payment_id, session=session, now=self._clock()
            )
        if payment.status is Status.VOIDED:
            # Voided while it was being opened: close the new session.
            async with self._breakers[order.provider].calling():
                report = await provider.void(order, payment.provider_reference)
            await self._apply_void(order.payment_id, order.provider, report)
        return payment

    async def void(self, payment_id: UUID) -> Payment:
        """Voids an unpaid payment. A paid one does not change.

        Raises PAYMENT_NOT_FOUND, PROVIDER_NOT_FOUND or PAYMENT_GATEWAY_ERROR.
        """
        payment = await self._find(payment_id)
        if payment.status in PAID or payment.status is Status.VOIDED:
            return payment
        name = payment.order.provider
        if (
            payment.status is Status.FAILED
            and payment.payment_url is None
            and payment.provider_reference is None
        ):
            # The provider rejected it when it was opened: there is no page to close.
            return await self._apply_void(payment_id, name, Voided(payment_id, None, self._clock()))
        provider = self.provider(name)
        async with self._breakers[name].calling():
            # The provider decides between this call and a customer who pays at the same time.
            report = await provider.void(payment.order, payment.provider_reference)
        return await self._apply_void(payment_id, name, report)

    async def capture(self, payment_id: UUID) -> Payment:
        """AUTHORIZED → CAPTURED. A paid payment does not change.

        Raises PAYMENT_NOT_FOUND, PROVIDER_NOT_FOUND, PAYMENT_STATE_INVALID without an
        authorisation, PAYMENT_FAILED when it has ended, or PAYMENT_GATEWAY_ERROR.
        """
        payment = await self._find(payment_id)
        if payment.status not in PAID:
            payment = await self.check(payment)
        if payment.status in PAID:
            return payment
        if payment.status is Status.FAILED:
            raise DomainError(
                Reason.PAYMENT_FAILED,
                "the authorisation has expired or was cancelled",
                provider=payment.order.provider,
                code=payment.failure_code or "",
            )
        raise DomainError(
            Reason.PAYMENT_STATE_INVALID, "the payment has no authorisation", status=payment.status
        )

    async def check(self, payment: Payment) -> Payment:
        """Applies the provider's present state of a payment, and captures an authorisation.

        Raises PAYMENT_GATEWAY_ERROR or PROVIDER_NOT_FOUND.
        """
        name = payment.order.provider
        provider = self.provider(name)
        if payment.provider_reference is not None:
            async with self._breakers[name].calling():
                reports = await provider.inspect(payment.order, payment.provider_reference)
            await self.apply_reports(name, reports)
            payment = await self._find(payment.payment_id)
        if payment.status is Status.AUTHORIZED and payment.authorization_reference is not None:
            async with self._breakers[name].calling():
                report = await provider.capture(payment.order, payment.authorization_reference)
            await self.apply_reports(name, [report])
            payment = await self._find(payment.payment_id)
        return payment

    async def apply_reports(
        self, provider: str, reports: Sequence[ProviderReport]
    ) -> list[Outcome]:
        """Applies a provider's answer, each report in a transaction of its own."""
        outcomes = []
        for report in reports:
            async with self._database.transaction() as connection:
                outcomes.append(await self._apply(connection, provider, report))
        # A report may have created a refund.
        self._refund_requested.ring()
        return outcomes

    async def run_refunds(self) -> None:
        """Carries out refunds as they fall due. Runs until cancelled."""
        await run_forever(
            "refunds",
            lambda: shielded(self.refund_due(), seconds=_REFUND_BATCH_SECONDS),
            wake=self._refund_requested,
            idle_seconds=_REFUND_IDLE_SECONDS,
        )

    async def refund_due(self) -> int:
        """Carries out one batch of due refunds. Returns how many it leased."""
        async with self._database.single() as connection:
            due = await refunds.lease_due(connection, now=self._clock(), limit=_REFUND_BATCH)
        done = await asyncio.gather(*map(self._refund, due), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return len(due)

    async def _refund(self, due: DueRefund) -> None:
        try:
            provider = self.provider(due.provider)
            async with self._breakers[due.provider].calling():
                report = await provider.refund(due.order)
                is_accepted = True
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
            report, is_accepted = None, False
        async with self._database.transaction() as connection:
            now = self._clock()
            if report is not None:
                await self._apply(connection, due.provider, report)
            else:
                await refunds.postpone(connection, due=due, is_accepted=is_accepted, now=now)

    async def _apply(
        self, connection: AsyncConnection, provider: str, report: ProviderReport
    ) -> Outcome:
        """Applies a report of a call, and keeps the answer that changed a payment."""
        now = self._clock()
        outcome = await payment_reports.apply_report(
            connection, provider=provider, report=report, now=now
        )
        if outcome is Outcome.APPLIED:
            await webhooks.keep_answer(connection, provider=provider, report=report, now=now)
        return outcome

    async def _record_failure(self, order: Order, code: str) -> None:
        """CREATED → FAILED: the provider did not open the payment. The caller has the reason."""
        async with self._database.transaction() as connection:
            await payments.move(
                connection,
                payment_id=order.payment_id,
                to=Status.FAILED,
                now=self._clock(),
                failure_code=code,
            )

    async def _find(self, payment_id: UUID) -> Payment:
        async with self._database.reading() as connection:
            return await payments.find(connection, payment_id=payment_id, owner=None)

    async def _apply_void(
        self, payment_id: UUID, provider: str, answer: Captured | Voided
    ) -> Payment:
        """Applies the answer to a void. A payment with a wrong capture is voided."""
        async with self._database.transaction() as connection:
            reports: list[ProviderReport] = [answer]
            if isinstance(answer, Captured):
                # Has an effect when the capture does not pay the payment.
                reports.append(Voided(payment_id, answer.session_reference, answer.event_time))
            for report in reports:
                await self._apply(connection, provider, report)
            return await payments.find(connection, payment_id=payment_id, owner=None)
