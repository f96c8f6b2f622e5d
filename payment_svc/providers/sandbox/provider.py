"""payment_svc's adapter to the sandbox. Each call is a transaction of the sandbox's side."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.errors import DomainError, Reason
from mesh.money import AmountLimits, Money
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
    ProviderRefusedError,
    ProviderReport,
    RefundOrder,
    RefundProcessed,
    RefundRefused,
    Session,
    Voided,
    WebhookEvent,
    with_answer,
)
from payment_svc.providers.fields import count_in, money, read_event, text, uuid_in
from payment_svc.providers.sandbox import NAME, bank, ledger, signature
from payment_svc.providers.sandbox.bank import RefusedError, State
from payment_svc.providers.sandbox.faults import AFTER_FAULTS, BEFORE_FAULTS, Fault, Lab
from payment_svc.providers.sandbox.ledger import Entry, Kind


class SandboxProvider:
    """Implements payment_svc.providers.base.Provider."""

    has_embedded = True

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
        limits = self.limits(order.amount.currency_code)
        if limits is None or not limits.accept(order.amount):
            raise ProviderRefusedError(NAME, "amount_not_accepted")
        await self._raise_fault(order.payment_id, BEFORE_FAULTS)
        async with self._database.single() as connection:
            session = await bank.open_session(
                connection,
                payment_id=order.payment_id,
                amount=order.amount,
                description=order.description,
                success_url=order.success_url,
                cancel_url=order.cancel_url,
                email=order.email,
                phone=order.phone,
                now=self._clock(),
            )
        await self._raise_fault(order.payment_id, AFTER_FAULTS)
        if order.is_embedded:
            # Paid by a call of CompleteCheckout with the payment's id.
            return Session(session.session_id, "", f"{session.session_id}_secret")
        return Session(session.session_id, f"{self._gateway_url}/sandbox/pay/{session.payment_id}")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        now = self._clock()
        payment_id = order.payment_id
        try:
            async with self._database.transaction() as connection:
                session = await bank.void(connection, payment_id=payment_id, now=now)
                capture = await ledger.find_capture(connection, session_id=session.session_id)
        except DomainError as error:
            if error.reason is Reason.PAYMENT_NOT_FOUND:
                return Voided(payment_id, None, now)
            raise
        if session.state is State.PAID and capture is not None:
            return _capture(capture, session.session_id)
        return Voided(payment_id, session.session_id, now)

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused:
        now = self._clock()
        await self._raise_fault(order.payment_id, BEFORE_FAULTS)
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
            return RefundRefused.of(order, event_time=now, failure_code=str(error), is_final=True)
        except DomainError as error:
            raise ProviderError(NAME, error.reason.lower()) from error
        self._webhook_queued.ring()
        await self._raise_fault(order.payment_id, AFTER_FAULTS)
        return _refund(entry, order.session_reference)

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        # The sandbox captures at once: it has no authorisations.
        return Failed(order.payment_id, None, self._clock(), "nothing_authorised")

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        now = self._clock()
        async with self._database.transaction() as connection:
            session = await bank.find(connection, payment_id=order.payment_id)
            entries = await ledger.of_session(connection, session_id=session.session_id)
        reports: list[ProviderReport] = [
            with_answer(_report(entry, reference), asdict(entry)) for entry in entries
        ]
        if session.decline_time is not None and session.state is not State.PAID:
            reports.append(
                _declined(order.payment_id, reference, session.decline_time, bank.DECLINED)
            )
        if session.state is State.VOIDED:
            reports.append(Voided(order.payment_id, reference, now))
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        async with self._database.reading() as connection:
            entries = await ledger.list_between(connection, since=since, until=until)
        return [Movement.of(_report(entry, None)) for entry in entries]

    async def _raise_fault(self, payment_id: UUID, among: Collection[Fault]) -> None:
        """Carries out the fault lab's next fault of a call, if any."""
        async with self._database.single() as connection:
            fault = await self._lab.next(connection, payment_id=payment_id, among=among)
        if fault is Fault.TIMEOUT_AFTER:
            await asyncio.sleep(2 * CALL_SECONDS)
        elif fault is not None:
            raise ProviderError(NAME, fault.lower())

    def step_minor(self, currency_code: str) -> int:
        return SANDBOX.step_minor(currency_code)

    def limits(self, currency_code: str) -> AmountLimits | None:
        return SANDBOX.limits(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signature.verify(body, headers.get(signature.HEADER), secrets=self._secrets, now=now)
        return read_event(body, _read)


def _read(event: Any) -> WebhookEvent:
    event_id, event_type = text(event["id"]), text(event["type"])
    reader = _READERS.get(event_type)
    report = None if reader is None else reader(event["data"], _time(event))
    return WebhookEvent(event_id, event_type, report)


def _report(entry: Entry, session_reference: str | None) -> Captured | RefundProcessed:
    if entry.kind is Kind.CAPTURE:
        return _capture(entry, session_reference)
    return _refund(entry, session_reference)


def _capture(entry: Entry, session_reference: str | None) -> Captured:
    return Captured(
        entry.payment_id,
        session_reference,
        entry.create_time,
        entry.reference,
        entry.amount,
        bank.METHOD,
    )


def _refund(entry: Entry, session_reference: str | None) -> RefundProcessed:
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
        raise ValueError("a time without a time zone")
    return time


def _ids(data: Any) -> tuple[UUID, str]:
    return UUID(data["payment_id"]), text(data["session_id"])


def _money(data: Any) -> Money:
    return money(data["amount_minor"], data["currency_code"], SANDBOX)


def _captured(data: Any, time: datetime) -> ProviderReport:
    return Captured(*_ids(data), time, text(data["capture_id"]), _money(data), text(data["method"]))


def _declined(payment_id: UUID, session_id: str, time: datetime, failure_code: str) -> Failed:
    # The sandbox has no ids of declined attempts; a session has one at a time.
    return Failed(payment_id, session_id, time, failure_code, f"{session_id}:{time.isoformat()}")


def _failed(data: Any, time: datetime) -> ProviderReport:
    return _declined(*_ids(data), time, text(data["failure_code"]))


def _closed(data: Any, time: datetime) -> ProviderReport:
    return Voided(*_ids(data), time)


def _refund_processed(data: Any, time: datetime) -> ProviderReport:
    return RefundProcessed(
        *_ids(data),
        time,
        uuid_in(data, "refund_id"),
        text(data["refund_reference"]),
        _money(data),
    )


def _refund_failed(data: Any, time: datetime) -> ProviderReport:
    return RefundRefused(
        *_ids(data),
        time,
        uuid_in(data, "refund_id"),
        count_in(data, "refusals"),
        text(data["failure_code"]),
        text(data["refund_reference"]),
        amount=_money(data),
    )


def _disputed(data: Any, time: datetime) -> ProviderReport:
    return Disputed(
        *_ids(data),
        time,
        text(data["dispute_id"]),
        text(data["capture_id"]),
        _money(data),
        text(data["reason"]),
        DisputeStatus(data.get("status", DisputeStatus.OPEN)),
    )


_READERS: dict[str, Callable[[Any, datetime], ProviderReport]] = {
    "payment.captured": _captured,
    "payment.failed": _failed,
    "payment.closed": _closed,
    "refund.created": _refund_processed,
    "refund.processed": _refund_processed,
    "refund.failed": _refund_failed,
    "dispute.created": _disputed,
    "dispute.updated": _disputed,
    "dispute.closed": _disputed,
}
