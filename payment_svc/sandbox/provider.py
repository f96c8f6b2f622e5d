"""The adapter through which payment_svc knows the sandbox, as it would know Stripe.

Each call is a transaction of the sandbox's own.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.money import Money
from payment_svc.pacing import Wakeup
from payment_svc.providers import (
    Captured,
    Failed,
    Order,
    ProviderError,
    RefundOrder,
    RefundProcessed,
    RefundRefused,
    Report,
    Session,
    Voided,
    WebhookEvent,
)
from payment_svc.sandbox import NAME, bank, ledger, signature
from payment_svc.sandbox.bank import RefusedError, State

UNREADABLE = "unreadable"
"""Type of a webhook that is signed rightly and says nothing that can be read."""

_MAX_TEXT_LENGTH = 255
_MAX_AMOUNT_MINOR = 10**15


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
    ) -> None:
        self._database = database
        self._clock = clock
        self._gateway_url = gateway_url
        self._secrets = tuple(secrets)
        self._webhook_queued = webhook_queued

    async def create_session(self, order: Order) -> Session:
        async with self._database.transaction() as connection:
            session = await bank.open_session(
                connection,
                payment_id=order.payment_id,
                amount=order.amount,
                description=order.description,
                success_url=order.success_url,
                cancel_url=order.cancel_url,
                now=self._clock(),
            )
        return Session(session.session_id, f"{self._gateway_url}/sandbox/pay/{session.payment_id}")

    async def void(self, payment_id: UUID) -> Voided | Captured:
        now = self._clock()
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
        return RefundProcessed(
            order.payment_id,
            order.session_reference,
            entry.create_time,
            order.refund_id,
            entry.reference,
            entry.amount,
        )

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signature.verify(body, headers.get(signature.HEADER), secrets=self._secrets, now=now)
        try:
            event = json.loads(body)
            event_id, event_type = _text(event["id"]), _text(event["type"])
            reader = _READERS.get(event_type)
            report = None if reader is None else reader(event["data"], _time(event))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            # Sent again it would say the same: it is kept for people, under its hash.
            return WebhookEvent(hashlib.sha256(body).hexdigest(), UNREADABLE, None)
        return WebhookEvent(event_id, event_type, report)


def _time(event: Any) -> datetime:
    time = datetime.fromisoformat(event["create_time"])
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_LENGTH or "\0" in value:
        raise ValueError("not a text that can be kept")
    return value


def _money(facts: Any) -> Money:
    amount_minor, currency_code = facts["amount_minor"], facts["currency_code"]
    if type(amount_minor) is not int or not 0 < amount_minor <= _MAX_AMOUNT_MINOR:
        raise ValueError("not an amount")
    if not isinstance(currency_code, str) or not re.fullmatch("[A-Z]{3}", currency_code):
        raise ValueError("not a currency")
    return Money(amount_minor, currency_code)


def _captured(facts: Any, time: datetime) -> Report:
    return Captured(
        UUID(facts["payment_id"]),
        _text(facts["session_id"]),
        time,
        _text(facts["capture_id"]),
        _money(facts),
        _text(facts["method"]),
    )


def _failed(facts: Any, time: datetime) -> Report:
    return Failed(
        UUID(facts["payment_id"]), _text(facts["session_id"]), time, _text(facts["failure_code"])
    )


def _refund_processed(facts: Any, time: datetime) -> Report:
    return RefundProcessed(
        UUID(facts["payment_id"]),
        _text(facts["session_id"]),
        time,
        UUID(facts["refund_id"]),
        _text(facts["refund_reference"]),
        _money(facts),
    )


_READERS: dict[str, Callable[[Any, datetime], Report]] = {
    "payment.captured": _captured,
    "payment.failed": _failed,
    "refund.processed": _refund_processed,
}
