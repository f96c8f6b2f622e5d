"""The sandbox's side of a payment: its session, the customer's choice, refunds.

Each step that moves money locks the session, writes the ledger and queues the webhook in one
transaction.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import Query, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from payment_svc.providers.sandbox import ledger, outgoing
from payment_svc.providers.sandbox.ledger import Entry, Kind
from payment_svc.tables import sandbox_payments

METHOD = "card"
DECLINED = "card_declined"
"""The failure code of a declined payment."""


class State(StrEnum):
    OPEN = "OPEN"
    PAID = "PAID"
    VOIDED = "VOIDED"


MOVES: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.PAID, State.VOIDED}),
    State.PAID: frozenset(),
    State.VOIDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class SandboxSession:
    """A payment at the sandbox. `payment_id` is the merchant's id."""

    session_id: str
    payment_id: UUID
    state: State
    amount: Money
    description: str
    success_url: str
    cancel_url: str
    decline_time: datetime | None
    email: str = ""
    phone: str = ""


class RefusedError(Exception):
    """The sandbox rejects the call. The text is a code such as `exceeds_capture`."""


async def open_session(
    connection: AsyncConnection,
    *,
    payment_id: UUID,
    amount: Money,
    description: str,
    success_url: str,
    cancel_url: str,
    now: datetime,
    email: str = "",
    phone: str = "",
) -> SandboxSession:
    """Opens a session, or returns the session of this payment id."""
    inserted = (
        await connection.execute(
            postgresql.insert(sandbox_payments)
            .values(
                session_id=_new_id("cs"),
                payment_id=payment_id,
                state=State.OPEN,
                amount_minor=amount.amount_minor,
                currency_code=amount.currency_code,
                description=description,
                success_url=success_url,
                cancel_url=cancel_url,
                customer_email=email or None,
                customer_phone=phone or None,
                create_time=now,
                update_time=now,
            )
            .on_conflict_do_nothing(index_elements=[sandbox_payments.c.payment_id])
            .returning(sandbox_payments)
        )
    ).one_or_none()
    if inserted is not None:
        return _from_row(inserted)
    return await find(connection, payment_id=payment_id)


async def find(connection: AsyncConnection, *, payment_id: UUID) -> SandboxSession:
    """The session of a merchant's payment. Raises PAYMENT_NOT_FOUND."""
    return await _select(connection, _FIND, payment_id)


async def pay(connection: AsyncConnection, *, payment_id: UUID, now: datetime) -> SandboxSession:
    """OPEN → PAID: captures the money. A paid session does not change.

    Raises PAYMENT_NOT_FOUND, or PAYMENT_STATE_INVALID for a voided session.
    """
    session = await _lock(connection, payment_id)
    if session.state is State.VOIDED:
        raise _voided(session)
    if session.state is State.OPEN:
        await capture(connection, session=session, amount=session.amount, now=now)
    return replace(session, state=State.PAID)


async def decline(
    connection: AsyncConnection, *, payment_id: UUID, now: datetime
) -> SandboxSession:
    """Declines the attempt; the session stays OPEN. A paid session does not change.

    Raises PAYMENT_NOT_FOUND, or PAYMENT_STATE_INVALID for a voided session.
    """
    session = await _lock(connection, payment_id)
    if session.state is State.VOIDED:
        raise _voided(session)
    if session.state is State.OPEN:
        await connection.execute(
            sa.update(sandbox_payments)
            .where(sandbox_payments.c.session_id == session.session_id)
            .values(decline_time=now, update_time=now)
        )
        await _enqueue_webhook(connection, session, "payment.failed", now, failure_code=DECLINED)
    return session


async def abandon(
    connection: AsyncConnection, *, payment_id: UUID, now: datetime
) -> SandboxSession:
    """OPEN → VOIDED: the customer leaves for good. Another session does not change.

    Raises PAYMENT_NOT_FOUND.
    """
    session = await _lock(connection, payment_id)
    if session.state is State.OPEN:
        await _move(connection, session, State.VOIDED, now)
        await _enqueue_webhook(connection, session, "payment.closed", now)
    return await find(connection, payment_id=payment_id)


async def void(connection: AsyncConnection, *, payment_id: UUID, now: datetime) -> SandboxSession:
    """OPEN → VOIDED. A paid session is returned as it is. Raises PAYMENT_NOT_FOUND."""
    session = await _lock(connection, payment_id)
    await _move(connection, session, State.VOIDED, now)
    return await find(connection, payment_id=payment_id)


async def capture(
    connection: AsyncConnection, *, session: SandboxSession, amount: Money, now: datetime
) -> Entry:
    """Captures any amount, in any state. `pay` checks both."""
    await connection.execute(
        sa.update(sandbox_payments)
        .where(sandbox_payments.c.session_id == session.session_id)
        .values(
            state=State.PAID,
            captured_minor=sandbox_payments.c.captured_minor + amount.amount_minor,
            update_time=now,
        )
    )
    entry = await _write(connection, session, Kind.CAPTURE, _new_id("ch"), amount, None, now)
    await _enqueue_webhook(
        connection,
        session,
        "payment.captured",
        now,
        capture_id=entry.reference,
        amount_minor=amount.amount_minor,
        currency_code=amount.currency_code,
        method=METHOD,
    )
    return entry


async def dispute(connection: AsyncConnection, *, payment_id: UUID, now: datetime) -> None:
    """The customer's bank disputes the first capture. No money moves."""
    session = await _lock(connection, payment_id)
    entry = await ledger.find_capture(connection, session_id=session.session_id)
    if entry is None:
        raise RefusedError("nothing_captured")
    await _enqueue_webhook(
        connection,
        session,
        "dispute.created",
        now,
        dispute_id=f"dp_{entry.reference}",
        capture_id=entry.reference,
        amount_minor=entry.amount.amount_minor,
        currency_code=entry.amount.currency_code,
        reason="fraudulent",
    )


async def refund(
    connection: AsyncConnection,
    *,
    payment_id: UUID,
    refund_id: UUID,
    amount: Money,
    idempotency_key: str,
    now: datetime,
) -> Entry:
    """Refunds money, once per key. The webhook has `refund_id`, the merchant's id.

    Raises PAYMENT_NOT_FOUND, or RefusedError when the amount exceeds what can be refunded.
    """
    session = await _lock(connection, payment_id)
    earlier = await ledger.find_by_key(connection, idempotency_key=idempotency_key)
    if earlier is not None:
        return earlier
    counted = await connection.execute(
        sa.update(sandbox_payments)
        .where(sandbox_payments.c.session_id == session.session_id)
        .where(
            sandbox_payments.c.refunded_minor + amount.amount_minor
            <= sandbox_payments.c.captured_minor
        )
        .values(
            refunded_minor=sandbox_payments.c.refunded_minor + amount.amount_minor,
            update_time=now,
        )
    )
    if counted.rowcount == 0:
        raise RefusedError("exceeds_capture")
    entry = await _write(
        connection, session, Kind.REFUND, _new_id("re"), amount, idempotency_key, now
    )
    await _enqueue_webhook(
        connection,
        session,
        "refund.processed",
        now,
        refund_id=str(refund_id),
        refund_reference=entry.reference,
        amount_minor=amount.amount_minor,
        currency_code=amount.currency_code,
    )
    return entry


async def _move(
    connection: AsyncConnection, session: SandboxSession, to: State, now: datetime
) -> None:
    await connection.execute(
        sa.update(sandbox_payments)
        .where(sandbox_payments.c.session_id == session.session_id)
        .where(sandbox_payments.c.state.in_(_before(to)))
        .values(state=to, update_time=now)
    )


async def _write(
    connection: AsyncConnection,
    session: SandboxSession,
    kind: Kind,
    reference: str,
    amount: Money,
    idempotency_key: str | None,
    now: datetime,
) -> Entry:
    entry = await ledger.append(
        connection,
        session_id=session.session_id,
        payment_id=session.payment_id,
        kind=kind,
        reference=reference,
        amount=amount,
        idempotency_key=idempotency_key,
        now=now,
    )
    if entry is None:
        raise RuntimeError(f"idempotency key {idempotency_key} was used by another session")
    return entry


async def _enqueue_webhook(
    connection: AsyncConnection,
    session: SandboxSession,
    event_type: str,
    now: datetime,
    **data: object,
) -> None:
    event_id = _new_id("evt")
    body = {
        "id": event_id,
        "type": event_type,
        "create_time": now.isoformat(),
        "data": {
            "session_id": session.session_id,
            "payment_id": str(session.payment_id),
            **data,
        },
    }
    await outgoing.enqueue(
        connection,
        event_id=event_id,
        payment_id=session.payment_id,
        body=json.dumps(body).encode(),
        now=now,
    )


async def _lock(connection: AsyncConnection, payment_id: UUID) -> SandboxSession:
    return await _select(connection, _LOCK, payment_id)


async def _select(connection: AsyncConnection, query: Query, payment_id: UUID) -> SandboxSession:
    [result] = await run_together(connection, [query.statement(payment_id=payment_id)])
    for row in query.rows(result):
        return _from_row(row)
    raise DomainError(Reason.PAYMENT_NOT_FOUND, "no such payment")


_OF_PAYMENT = sa.select(sandbox_payments).where(
    sandbox_payments.c.payment_id == sa.bindparam("payment_id")
)
_FIND, _LOCK = Query(_OF_PAYMENT), Query(_OF_PAYMENT.with_for_update(key_share=True))


def _voided(session: SandboxSession) -> DomainError:
    return DomainError(
        Reason.PAYMENT_STATE_INVALID, "the payment was cancelled", status=session.state
    )


def _before(state: State) -> Sequence[State]:
    return [earlier for earlier, moves in MOVES.items() if state in moves]


def _new_id(prefix: str) -> str:
    return f"{prefix}_{new_id().hex}"


def _from_row(row: Any) -> SandboxSession:
    return SandboxSession(
        session_id=row.session_id,
        payment_id=row.payment_id,
        state=State(row.state),
        amount=Money(row.amount_minor, row.currency_code),
        description=row.description,
        success_url=row.success_url,
        cancel_url=row.cancel_url,
        decline_time=row.decline_time,
        email=row.customer_email or "",
        phone=row.customer_phone or "",
    )
