"""The adapter to Razorpay, over its official SDK: a Payment Link for each payment.

Source of the calls: Razorpay's API reference, "Payment Links", "Payments", "Refunds". What
its objects mean to us is in razorpay_events.py. The SDK blocks: its calls run in a bounded
pool of threads, each with a session of its own.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import razorpay
import requests

from mesh.clock import Clock
from mesh.money import Money
from payment_svc.providers import amounts, fields, signatures
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
)
from payment_svc.providers.razorpay import events

NAME = "razorpay"

_SIGNATURE_HEADER = "x-razorpay-signature"
_EVENT_ID_HEADER = "x-razorpay-event-id"
_THREADS = 16
_MAX_DESCRIPTION = 2000
_PAGE = 100
_MAX_PAGES = 200
_OVER = {"cancelled", "expired"}


class RazorpayProvider:
    """Implements payment_svc.providers.Provider."""

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
        # A call that still runs ends within its time limit.
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
        # Refused: it is over already; which way decides.
        with suppress(ProviderRefusedError):
            await self._call(lambda api, **with_: api.payment_link.cancel(reference, **with_))
        link = await self._link(reference)
        if link["status"] in _OVER:
            return Voided(order.payment_id, reference, self._clock())
        for payment in await self._payments(link):
            if payment["status"] in events.TAKEN:
                return events.captured(payment, order.payment_id, reference)
        raise ProviderError(NAME, "not_decided")

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        amount = _amount(order.amount)
        terms = {"currency": order.amount.currency_code}
        try:
            payment = await self._call(
                lambda api, **with_: api.payment.capture(
                    authorization_reference, amount, terms, **with_
                )
            )
        except ProviderRefusedError:
            # Taken by itself, or given back because nobody took it in time.
            payment = await self._payment(authorization_reference)
        if payment["status"] in events.TAKEN:
            return events.captured(payment, order.payment_id, None)
        return Failed(order.payment_id, None, self._clock(), "authorization_gone")

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        if order.attempt > 1:
            # Keys may be forgotten, and the answer to one never changes: look first.
            for done in await self._refunds(order.capture_reference):
                if events.is_refund(done, order):
                    return events.refund_report(done)
        terms = {
            "amount": _amount(order.amount),
            "speed": "normal",
            "notes": {
                "refund_id": str(order.refund_id),
                "payment_id": str(order.payment_id),
                "refusals": str(order.refusals),
            },
        }
        # Letters, digits, hyphens and underscores only.
        key = order.idempotency_key.replace(":", "-")
        try:
            refund = await self._call(
                lambda api, **with_: api.payment.refund(
                    order.capture_reference,
                    terms,
                    headers={"X-Refund-Idempotency": key},
                    **with_,
                )
            )
        except ProviderRefusedError as error:
            return RefundRefused(
                order.payment_id,
                order.session_reference,
                self._clock(),
                order.refund_id,
                order.refusals,
                error.code,
            )
        return events.refund_report(refund)

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        # Before asking: what is true then may be reported as from that moment on.
        now = self._clock()
        link = await self._link(reference)
        reports: list[ProviderReport] = []
        for payment in await self._payments(link):
            report = events.payment_report(payment, order.payment_id, reference, at=now)
            if report is not None:
                reports.append(report)
            if payment["status"] in events.TAKEN and payment.get("amount_refunded"):
                found = map(events.refund_report, await self._refunds(payment["id"]))
                reports += [each for each in found if each is not None]
        if link["status"] in _OVER:
            reports.append(Voided(order.payment_id, reference, now))
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        # Both bounds count at Razorpay.
        window = {"from": int(since.timestamp()), "to": int(until.timestamp()) - 1}
        found: list[Movement] = []
        for payment in await self._pages("payment", window):
            if payment["status"] in events.TAKEN:
                found.append(Movement.of(events.captured(payment, None, None)))
        for refund in await self._pages("refund", window):
            back = events.refund_report(refund)
            if isinstance(back, RefundProcessed):
                found.append(Movement.of(back))
        return found

    def step_minor(self, currency_code: str) -> int:
        return amounts.RAZORPAY.step_minor(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signatures.verify_plain(body, headers.get(_SIGNATURE_HEADER), secrets=self._secrets)
        digest = hashlib.sha256(body).hexdigest()
        try:
            # The id is not signed: with the body's hash, nobody can use up another event's.
            given = fields.text_or(headers.get(_EVENT_ID_HEADER), digest)
            event_id = given if given == digest else f"{given}:{digest[:16]}"
            return events.read(json.loads(body), event_id)
        except fields.UNREADABLE_ERRORS:
            return fields.unreadable(body)

    async def _open(self, order: Order) -> dict[str, Any]:
        notes = {"payment_id": str(order.payment_id), "booking_id": str(order.booking_id)}
        terms: dict[str, Any] = {
            "amount": _amount(order.amount),
            "currency": order.amount.currency_code,
            "accept_partial": False,
            "description": (order.description or "Booking")[:_MAX_DESCRIPTION],
            # Unique at Razorpay: it is what makes opening safe to repeat.
            "reference_id": str(order.payment_id),
            "notes": notes,
            "notify": {"sms": False, "email": False},
            "reminder_enable": False,
        }
        if order.success_url:
            terms |= {"callback_url": order.success_url, "callback_method": "get"}
        try:
            return await self._call(lambda api, **with_: api.payment_link.create(terms, **with_))
        except ProviderRefusedError:
            link = await self._find_link(order)
            if link is None:
                raise
            return link

    async def _find_link(self, order: Order) -> dict[str, Any] | None:
        asked = {"reference_id": str(order.payment_id)}
        page = await self._call(lambda api, **with_: api.payment_link.all(asked, **with_))
        found: list[dict[str, Any]] = page.get("payment_links") or []
        return found[0] if found else None

    async def _link(self, reference: str) -> dict[str, Any]:
        return await self._call(lambda api, **with_: api.payment_link.fetch(reference, **with_))

    async def _payment(self, reference: str) -> dict[str, Any]:
        return await self._call(lambda api, **with_: api.payment.fetch(reference, **with_))

    async def _payments(self, link: dict[str, Any]) -> list[dict[str, Any]]:
        """All tries to pay a link, the refused ones too."""
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
        found: list[dict[str, Any]] = []
        for number in range(_MAX_PAGES):
            asked = {**window, "count": _PAGE, "skip": number * _PAGE}
            page = await self._call(
                lambda api, asked=asked, **with_: getattr(api, kind).all(asked, **with_)
            )
            found += page["items"]
            if len(page["items"]) < _PAGE:
                return found
        raise ProviderError(NAME, "too_many_pages")

    async def _call(self, call: Callable[..., Any]) -> dict[str, Any]:
        """One call of the SDK in a thread. Its errors as ours: refused for good, or not known."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._blocking, call)

    def _blocking(self, call: Callable[..., Any]) -> dict[str, Any]:
        try:
            answer = call(self._client(), timeout=self._call_seconds)
        except razorpay.errors.BadRequestError as error:
            raise ProviderRefusedError(NAME, "bad_request") from error
        except (razorpay.errors.GatewayError, razorpay.errors.ServerError) as error:
            raise ProviderError(NAME, "server_error") from error
        except requests.RequestException as error:
            raise ProviderError(NAME, type(error).__name__) from error
        if not isinstance(answer, dict):
            raise ProviderError(NAME, "unreadable")
        return answer

    def _client(self) -> Any:
        """The SDK's client of this thread: its sessions are not made to be shared."""
        client = getattr(self._of_thread, "client", None)
        if client is None:
            session = requests.Session()
            self._sessions.append(session)
            session.hooks["response"].append(_refuse_trouble)
            options = {"base_url": self._api_base} if self._api_base else {}
            client = razorpay.Client(session=session, auth=self._key, **options)
            self._of_thread.client = client
        return client


def _refuse_trouble(response: requests.Response, *_: object, **__: object) -> None:
    """The SDK tells no status and calls a 429 a bad request, as if it were final."""
    if response.status_code in {409, 429} or response.status_code >= 500:
        # Nobody will read its body: without this the connection would neither go back to
        # the session nor be closed with it.
        response.close()
        raise ProviderError(NAME, f"http_{response.status_code}")


def _amount(money: Money) -> int:
    try:
        return amounts.RAZORPAY.to_provider(money)
    except amounts.UnrepresentableError as error:
        raise ProviderRefusedError(NAME, "amount_not_representable") from error
