"""The adapter through which payment_svc knows the sandbox, as it would know Stripe.

Each call is a transaction of the sandbox's own.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc.providers.amounts import SANDBOX
from payment_svc.providers.base import (
    CALL_SECONDS,
    Captured,
    Disputed,
    DisputeStatus,
    Failed,
    Movement,
    Order,
    ProviderError,
    ProviderReport,
    RefundOrder,
    RefundProcessed,
    RefundRefused,
    Session,
    Voided,
    WebhookEvent,
)
from payment_svc.providers.fields import UNREADABLE, UNREADABLE_ERRORS, money, text, unreadable
from payment_svc.providers.sandbox import NAME, bank, ledger, signature
from payment_svc.providers.sandbox.bank import RefusedError, State
from payment_svc.providers.sandbox.faults import AFTER_FAULTS, BEFORE_FAULTS, Fault, Lab
from payment_svc.providers.sandbox.ledger import Entry, Kind

__all__ = ["UNREADABLE", "SandboxProvider"]


class SandboxProvider:
    """Implements payment_svc.providers.Provider."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        gateway_url: str,
        secrets: Sequence[str],
        webhook_queued: Wakeup,
        lab: Lab | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._gateway_url = gateway_url
        self._secrets = tuple(secrets)
        self._webhook_queued = webhook_queued
        self._lab = lab or Lab()

    async def create_session(self, order: Order) -> Session:
        await self._trouble(order.payment_id, BEFORE_FAULTS)
        async with self._database.single() as connection:
            session = await bank.open_session(
                connection,
                payment_id=order.payment_id,
                amount=order.amount,
                description=order.description,
                success_url=order.success_url,
                cancel_url=order.cancel_url,
                now=self._clock(),
            )
        await self._trouble(order.payment_id, AFTER_FAULTS)
        return Session(session.session_id, f"{self._gateway_url}/sandbox/pay/{session.payment_id}")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        now = self._clock()
        payment_id = order.payment_id
        try:
            async with self._database.transaction() as connection:
                session = await bank.void(connection, payment_id=payment_id, now=now)
                taken = await ledger.find_capture(connection, session_id=session.session_id)
        except DomainError as error:
            if error.reason is Reason.PAYMENT_NOT_FOUND:
                return Voided(payment_id, None, now)
            raise
        if session.state is State.PAID and taken is not None:
            return Captured(
                payment_id,
                session.session_id,
                taken.create_time,
                taken.reference,
                taken.amount,
                bank.METHOD,
            )
        return Voided(payment_id, session.session_id, now)

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused:
        now = self._clock()
        await self._trouble(order.payment_id, BEFORE_FAULTS)
        try:
            async with self._database.transaction() as connection:
                entry = await bank.refund(
                    connection,
                    payment_id=order.payment_id,
                    refund_id=order.refund_id,
                    amount=order.amount,
                    idempotency_key=order.idempotency_key,
                    now=now,
                )
        except RefusedError as error:
            return RefundRefused(
                order.payment_id,
                order.session_reference,
                now,
                order.refund_id,
                order.refusals,
                str(error),
            )
        except DomainError as error:
            raise ProviderError(NAME, error.reason.lower()) from error
        self._webhook_queued.ring()
        await self._trouble(order.payment_id, AFTER_FAULTS)
        return RefundProcessed(
            order.payment_id,
            order.session_reference,
            entry.create_time,
            order.refund_id,
            entry.reference,
            entry.amount,
        )

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        # The sandbox takes money at once: nothing is ever authorised only.
        return Failed(order.payment_id, None, self._clock(), "nothing_authorised")

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        now = self._clock()
        async with self._database.transaction() as connection:
            session = await bank.find(connection, payment_id=order.payment_id)
            entries = await ledger.of_session(connection, session_id=session.session_id)
        reports: list[ProviderReport] = [_report(entry, reference) for entry in entries]
        if session.decline_time is not None and session.state is not State.PAID:
            reports.append(Failed(order.payment_id, reference, session.decline_time, bank.DECLINED))
        if session.state is State.VOIDED:
            reports.append(Voided(order.payment_id, reference, now))
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        async with self._database.reading() as connection:
            entries = await ledger.list_between(connection, since=since, until=until)
        return [Movement.of(_report(entry, None)) for entry in entries]

    async def _trouble(self, payment_id: UUID, among: Collection[Fault]) -> None:
        """What the lab lets go wrong with a call, before or after it was done."""
        async with self._database.single() as connection:
            fault = await self._lab.next(connection, payment_id=payment_id, among=among)
        if fault is Fault.TIMEOUT_AFTER:
            await asyncio.sleep(2 * CALL_SECONDS)
        elif fault is not None:
            raise ProviderError(NAME, fault.lower())

    def step_minor(self, currency_code: str) -> int:
        return SANDBOX.step_minor(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signature.verify(body, headers.get(signature.HEADER), secrets=self._secrets, now=now)
        try:
            event = json.loads(body)
            event_id, event_type = text(event["id"]), text(event["type"])
            reader = _READERS.get(event_type)
            report = None if reader is None else reader(event["data"], _time(event))
        except UNREADABLE_ERRORS:
            return unreadable(body)
        return WebhookEvent(event_id, event_type, report)


def _disputed(facts: Any, time: datetime) -> ProviderReport:
    return Disputed(
        UUID(facts["payment_id"]),
        text(facts["session_id"]),
        time,
        text(facts["dispute_id"]),
        text(facts["capture_id"]),
        _money(facts),
        text(facts["reason"]),
        DisputeStatus.OPEN,
    )


def _report(entry: Entry, session_reference: str | None) -> Captured | RefundProcessed:
    if entry.kind is Kind.CAPTURE:
        return Captured(
            entry.payment_id,
            session_reference,
            entry.create_time,
            entry.reference,
            entry.amount,
            bank.METHOD,
        )
    return RefundProcessed(
        entry.payment_id,
        session_reference,
        entry.create_time,
        entry.refund_id,
        entry.reference,
        entry.amount,
    )


def _time(event: Any) -> datetime:
    time = datetime.fromisoformat(event["create_time"])
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time


def _money(facts: Any) -> Money:
    return money(facts["amount_minor"], facts["currency_code"], SANDBOX)


def _captured(facts: Any, time: datetime) -> ProviderReport:
    return Captured(
        UUID(facts["payment_id"]),
        text(facts["session_id"]),
        time,
        text(facts["capture_id"]),
        _money(facts),
        text(facts["method"]),
    )


def _failed(facts: Any, time: datetime) -> ProviderReport:
    return Failed(
        UUID(facts["payment_id"]), text(facts["session_id"]), time, text(facts["failure_code"])
    )


def _refund_processed(facts: Any, time: datetime) -> ProviderReport:
    return RefundProcessed(
        UUID(facts["payment_id"]),
        text(facts["session_id"]),
        time,
        UUID(facts["refund_id"]),
        text(facts["refund_reference"]),
        _money(facts),
    )


_READERS: dict[str, Callable[[Any, datetime], ProviderReport]] = {
    "payment.captured": _captured,
    "payment.failed": _failed,
    "refund.processed": _refund_processed,
    "dispute.created": _disputed,
}
