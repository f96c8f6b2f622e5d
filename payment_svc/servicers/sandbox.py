"""SandboxService: the payment page and the customer's choice on it, faults, the ledger."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import grpc
from google.api import httpbody_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.payments.v1 import sandbox_service_pb2, sandbox_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import money_to_proto
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.errors import FieldViolation, invalid
from mesh.tasks import shielded
from payment_svc.providers.sandbox import bank, faults, ledger, pages
from payment_svc.providers.sandbox.bank import SandboxSession, State
from payment_svc.providers.sandbox.faults import PAY_FAULTS, Fault, Lab
from payment_svc.providers.sandbox.ledger import Entry

_STEP_SECONDS = 8.0
_DEFAULT_PAGE_SIZE = 100

_Context = grpc.aio.ServicerContext[Any, Any]
_Outcome = sandbox_service_pb2.CompleteCheckoutRequest
_Step = Callable[..., Awaitable[SandboxSession]]
_STEPS: dict[int, _Step] = {
    _Outcome.SUCCEEDED: bank.pay,
    _Outcome.FAILED: bank.decline,
    _Outcome.ABANDONED: bank.abandon,
}


class SandboxServicer(sandbox_service_pb2_grpc.SandboxServiceServicer):
    def __init__(
        self, database: Database, clock: Clock, webhook_queued: Wakeup, lab: Lab | None = None
    ) -> None:
        self._lab = lab or Lab()
        self._database = database
        self._clock = clock
        self._webhook_queued = webhook_queued

    async def ShowCheckout(
        self, request: sandbox_service_pb2.ShowCheckoutRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        async with self._database.reading() as connection:
            session = await bank.find(connection, payment_id=UUID(request.payment_id))
        # In place of the gateway's policy for JSON, which blocks the page's script and style.
        await context.send_initial_metadata(
            (("content-security-policy", pages.CONTENT_SECURITY_POLICY),)
        )
        return httpbody_pb2.HttpBody(
            content_type=pages.CONTENT_TYPE, data=pages.checkout(session).encode()
        )

    async def CompleteCheckout(
        self, request: sandbox_service_pb2.CompleteCheckoutRequest, context: _Context
    ) -> sandbox_service_pb2.CompleteCheckoutResponse:
        step = _STEPS[request.outcome]
        session = await shielded(
            self._complete(UUID(request.payment_id), step), seconds=_STEP_SECONDS
        )
        self._webhook_queued.ring()
        outcome, redirect_url = _answer(session)
        return sandbox_service_pb2.CompleteCheckoutResponse(
            payment_id=str(session.payment_id), outcome=outcome, redirect_url=redirect_url
        )

    async def ScriptFaults(
        self, request: sandbox_service_pb2.ScriptFaultsRequest, context: _Context
    ) -> sandbox_service_pb2.ScriptFaultsResponse:
        async with self._database.transaction() as connection:
            for scripted in request.faults:
                await faults.script(
                    connection,
                    payment_id=UUID(request.payment_id),
                    fault=Fault(sandbox_service_pb2.ScriptedFault.Kind.Name(scripted.kind)),
                    times=scripted.times or 1,
                    now=self._clock(),
                )
        return sandbox_service_pb2.ScriptFaultsResponse()

    async def ListLedgerEntries(
        self, request: sandbox_service_pb2.ListLedgerEntriesRequest, context: _Context
    ) -> sandbox_service_pb2.ListLedgerEntriesResponse:
        limit = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        async with self._database.reading() as connection:
            entries = await ledger.list_entries(
                connection, after=_after(request.page_token), limit=limit + 1
            )
        response = sandbox_service_pb2.ListLedgerEntriesResponse(
            entries=map(_entry, entries[:limit])
        )
        if len(entries) > limit:
            response.next_page_token = paging.to_token(str(entries[limit - 1].entry_id))
        return response

    async def _complete(self, payment_id: UUID, step: _Step) -> SandboxSession:
        async with self._database.transaction() as connection:
            before = await bank.find(connection, payment_id=payment_id)
            session = await step(connection, payment_id=payment_id, now=self._clock())
            if session.state is State.PAID and before.state is State.OPEN:
                await self._carry_out_fault(connection, session)
            return session

    async def _carry_out_fault(self, connection: AsyncConnection, session: SandboxSession) -> None:
        """Carries out the fault lab's next fault of a new capture, if any."""
        fault = await self._lab.next(connection, payment_id=session.payment_id, among=PAY_FAULTS)
        now = self._clock()
        if fault is Fault.PAY_TWICE:
            await bank.capture(connection, session=session, amount=session.amount, now=now)
        elif fault is Fault.DISPUTE:
            await bank.dispute(connection, payment_id=session.payment_id, now=now)


def _answer(session: SandboxSession) -> tuple[_Outcome.Outcome.ValueType, str]:
    """What happened to the page, and where the customer continues."""
    match session.state:
        case State.PAID:
            return _Outcome.SUCCEEDED, session.success_url
        case State.VOIDED:
            return _Outcome.ABANDONED, session.cancel_url
        case State.OPEN:
            return _Outcome.FAILED, session.cancel_url


def _after(token: str) -> int:
    key = paging.from_token(token, 1)
    if key is None:
        return 0
    if not (key[0].isascii() and key[0].isdigit() and len(key[0]) <= 18):
        raise invalid(FieldViolation("page_token", "not a token of this list"))
    return int(key[0])


def _entry(entry: Entry) -> sandbox_service_pb2.LedgerEntry:
    message = sandbox_service_pb2.LedgerEntry(
        entry_id=entry.entry_id,
        payment_id=str(entry.payment_id),
        kind=sandbox_service_pb2.LedgerEntry.Kind.Value(entry.kind),
        amount=money_to_proto(entry.amount),
    )
    message.create_time.FromDatetime(entry.create_time)
    return message
