"""The adapter to Razorpay over its official SDK: a Payment Link for each payment.

Source of the calls: Razorpay's API reference, "Payment Links", "Payments", "Refunds". The SDK
blocks: it runs in a bounded thread pool. events.py reads Razorpay's objects.
"""

import asyncio
import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import razorpay
import requests

from mesh.clock import Clock
from mesh.money import AmountLimits
from payment_svc.providers import fields, signatures
from payment_svc.providers.amounts import RAZORPAY
from payment_svc.providers.base import (
    CALL_SECONDS,
    Captured,
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
    ended,
    with_answer,
)
from payment_svc.providers.razorpay import events

NAME = "razorpay"

_SIGNATURE_HEADER = "x-razorpay-signature"
_EVENT_ID_HEADER = "x-razorpay-event-id"
_THREADS = 16
_MAX_DESCRIPTION = 2000
_PAGE = 100
_MAX_PAGES = 200
_CLOSED = {"cancelled", "expired"}
_ALREADY_REFUNDED = "already_refunded"
# Razorpay's error has no code of its own for it, only a description.
_TOO_MUCH = re.compile("refund amount.*greater than|fully refunded", re.IGNORECASE)


class RazorpayProvider:
    """Implements payment_svc.providers.base.Provider."""

    has_embedded = False

    def __init__(
        self,
        *,
        key_id: str,
        key_secret: str,
        webhook_secrets: Sequence[str],
        api_base: str | None,
        clock: Clock,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._key = (key_id, key_secret)
        self._secrets = tuple(webhook_secrets)
        self._api_base = api_base
        self._clock = clock
        self._call_seconds = call_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=NAME)
        self._of_thread = threading.local()
        self._sessions: list[requests.Session] = []

    async def close(self) -> None:
        # Waits for the calls that still run, at most for their time limit.
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for session in self._sessions:
            session.close()

    async def create_session(self, order: Order) -> Session:
        link = await self._open(order)
        return Session(link["id"], link["short_url"])

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        if reference is None:
            link = await self._find_link(order)
            if link is None:
                return Voided(order.payment_id, None, self._clock())
            reference = str(link["id"])
        # Refused: the link is closed already. Its state decides.
        with suppress(ProviderRefusedError):
            await self._call(lambda api, **with_: api.payment_link.cancel(reference, **with_))
        link = await self._link(reference)
        if link["status"] in _CLOSED:
            return Voided(order.payment_id, reference, self._clock())
        for payment in await self._payments(link):
            if payment["status"] in events.CAPTURED:
                return with_answer(events.captured(payment, order.payment_id, reference), payment)
        raise ProviderError(NAME, "not_decided")

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        amount = RAZORPAY.to_provider(order.amount)
        parameters = {"currency": order.amount.currency_code}
        try:
            payment = await self._call(
                lambda api, **with_: api.payment.capture(
                    authorization_reference, amount, parameters, **with_
                )
            )
        except ProviderRefusedError:
            # Captured automatically, or released because it was not captured in time.
            payment = await self._payment(authorization_reference)
        if payment["status"] in events.CAPTURED:
            return with_answer(events.captured(payment, order.payment_id, None), payment)
        return Failed(
            order.payment_id,
            None,
            self._clock(),
            "authorization_gone",
            authorization_reference,
        )

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        if order.attempt > 1:
            # Razorpay may have deleted the key, and repeats a key's stored answer, also a failure.
            for earlier in await self._refunds(order.capture_reference):
                if events.is_refund(earlier, order):
                    return ended(events.refund_report(earlier))
        parameters = {
            "amount": RAZORPAY.to_provider(order.amount),
            "speed": "normal",
            "notes": order.notes,
        }
        # Razorpay accepts letters, digits, hyphens and underscores in a key.
        key = order.idempotency_key.replace(":", "-")
        try:
            refund = await self._call(
                lambda api, **with_: api.payment.refund(
                    order.capture_reference,
                    parameters,
                    headers={"X-Refund-Idempotency": key},
                    **with_,
                )
            )
        except ProviderRefusedError as error:
            return RefundRefused.of(
                order,
                event_time=self._clock(),
                failure_code=error.code,
                is_final=error.code == _ALREADY_REFUNDED,
            )
        return ended(with_answer(events.refund_report(refund), refund))

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        # Read before the calls: the reported state is at least as recent.
        now = self._clock()
        link = await self._link(reference)
        reports: list[ProviderReport] = []
        for payment in await self._payments(link):
            report = events.payment_report(payment, order.payment_id, reference, at=now)
            if report is not None:
                reports.append(with_answer(report, payment))
            if payment["status"] in events.CAPTURED and payment.get("amount_refunded"):
                refunds = await self._refunds(payment["id"])
                reports += [with_answer(events.refund_report(refund), refund) for refund in refunds]
        if link["status"] in _CLOSED:
            reports.append(with_answer(Voided(order.payment_id, reference, now), link))
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        # Razorpay includes both bounds.
        window = {"from": int(since.timestamp()), "to": int(until.timestamp()) - 1}
        movements: list[Movement] = []
        for payment in await self._pages("payment", window):
            if payment["status"] in events.CAPTURED:
                movements.append(
                    Movement.of(with_answer(events.captured(payment, None, None), payment))
                )
        for refund in await self._pages("refund", window):
            report = events.refund_report(refund)
            if isinstance(report, RefundProcessed):
                movements.append(Movement.of(with_answer(report, refund)))
        return movements

    def step_minor(self, currency_code: str) -> int:
        return RAZORPAY.step_minor(currency_code)

    def limits(self, currency_code: str) -> AmountLimits | None:
        return RAZORPAY.limits(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signatures.verify_plain(body, headers.get(_SIGNATURE_HEADER), secrets=self._secrets)
        return fields.read_event(body, lambda event: events.read(event, _event_id(body, headers)))

    async def _open(self, order: Order) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "amount": RAZORPAY.to_provider(order.amount),
            "currency": order.amount.currency_code,
            "accept_partial": False,
            "description": (order.description or "Booking")[:_MAX_DESCRIPTION],
            # Unique at Razorpay, which makes the call safe to repeat.
            "reference_id": str(order.payment_id),
            "notes": order.notes,
            "notify": {"sms": False, "email": False},
            "reminder_enable": False,
        }
        contact = {"email": order.email, "contact": order.phone}
        if any(contact.values()):
            parameters["customer"] = {name: value for name, value in contact.items() if value}
        if order.success_url:
            parameters |= {"callback_url": order.success_url, "callback_method": "get"}
        try:
            return await self._call(
                lambda api, **with_: api.payment_link.create(parameters, **with_)
            )
        except ProviderRefusedError:
            link = await self._find_link(order)
            if link is None:
                raise
            return link

    async def _find_link(self, order: Order) -> dict[str, Any] | None:
        filters = {"reference_id": str(order.payment_id)}
        page = await self._call(lambda api, **with_: api.payment_link.all(filters, **with_))
        links: list[dict[str, Any]] = page.get("payment_links") or []
        return links[0] if links else None

    async def _link(self, reference: str) -> dict[str, Any]:
        return await self._call(lambda api, **with_: api.payment_link.fetch(reference, **with_))

    async def _payment(self, reference: str) -> dict[str, Any]:
        return await self._call(lambda api, **with_: api.payment.fetch(reference, **with_))

    async def _payments(self, link: dict[str, Any]) -> list[dict[str, Any]]:
        """All attempts to pay a link, declined ones included."""
        order_id = link.get("order_id")
        if not order_id:
            return []
        page = await self._call(lambda api, **with_: api.order.payments(order_id, **with_))
        items: list[dict[str, Any]] = page["items"]
        return items

    async def _refunds(self, payment: str) -> list[dict[str, Any]]:
        page = await self._call(
            lambda api, **with_: api.payment.fetch_multiple_refund(
                payment, {"count": _PAGE}, **with_
            )
        )
        items: list[dict[str, Any]] = page["items"]
        return items

    async def _pages(self, kind: str, window: dict[str, int]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        for number in range(_MAX_PAGES):
            filters = {**window, "count": _PAGE, "skip": number * _PAGE}
            page = await self._call(
                lambda api, filters=filters, **with_: getattr(api, kind).all(filters, **with_)
            )
            items += page["items"]
            if len(page["items"]) < _PAGE:
                return items
        raise ProviderError(NAME, "too_many_pages")

    async def _call(self, call: Callable[..., Any]) -> dict[str, Any]:
        """One call of the SDK, in a thread. Raises ProviderError and ProviderRefusedError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._blocking, call)

    def _blocking(self, call: Callable[..., Any]) -> dict[str, Any]:
        try:
            answer = call(self._client(), timeout=self._call_seconds)
        except razorpay.errors.BadRequestError as error:
            code = _ALREADY_REFUNDED if _TOO_MUCH.search(str(error)) else "bad_request"
            raise ProviderRefusedError(NAME, code) from error
        except (razorpay.errors.GatewayError, razorpay.errors.ServerError) as error:
            raise ProviderError(NAME, "server_error") from error
        except requests.RequestException as error:
            raise ProviderError(NAME, type(error).__name__) from error
        if not isinstance(answer, dict):
            raise ProviderError(NAME, "unreadable")
        return answer

    def _client(self) -> Any:
        """The SDK's client of this thread. `requests` sessions are not thread-safe."""
        client = getattr(self._of_thread, "client", None)
        if client is None:
            session = requests.Session()
            self._sessions.append(session)
            session.hooks["response"].append(_raise_for_status)
            options = {"base_url": self._api_base} if self._api_base else {}
            client = razorpay.Client(session=session, auth=self._key, **options)
            self._of_thread.client = client
        return client


def _raise_for_status(response: requests.Response, *_: object, **__: object) -> None:
    """Raises for statuses that are not final. The SDK raises BadRequestError for a 429."""
    if response.status_code in {409, 429} or response.status_code >= 500:
        # Its body is not read: an open response would keep its connection from the session.
        response.close()
        raise ProviderError(NAME, f"http_{response.status_code}")


def _event_id(body: bytes, headers: Mapping[str, str]) -> str:
    """The header's id and the body's hash: the signature does not cover the header."""
    digest = hashlib.sha256(body).hexdigest()
    given = fields.text_or(headers.get(_EVENT_ID_HEADER), digest)
    return given if given == digest else f"{given}:{digest[:16]}"
