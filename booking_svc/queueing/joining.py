"""Joining a queue: one number for each visitor, for all calls that arrive together in one batch.

A batch locks the rooms' rows, so the numbers are dense, and an account that joins twice at once
still gets one ticket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.queueing import durations, waiting_rooms
from booking_svc.queueing.proof_of_work import MINUTES_OFF, Fault
from booking_svc.queueing.tables import queue_accounts, queue_arrivals, queue_proofs
from booking_svc.queueing.tables import waiting_rooms as rooms_table
from booking_svc.queueing.tokens import Ticket, generation_of
from booking_svc.queueing.waiting_rooms import Room
from mesh.errors import DomainError, Reason

# Older proofs are refused by their minute.
_PROOF_RETENTION = timedelta(minutes=2 * MINUTES_OFF + 1)


@dataclass(frozen=True, slots=True)
class Joining:
    """A call to join. `nonce` makes its ticket unguessable, and tells a repeated batch its proof.

    `proof` is the digest of its proof of work; None if the room requires none.
    """

    event_id: UUID
    user_id: UUID | None
    nonce: bytes
    proof: bytes | None


async def join_all(
    connection: AsyncConnection, joinings: Sequence[Joining], now: datetime
) -> list[Ticket | DomainError]:
    """The tickets, in the order of the calls, or QUEUE_CLOSED, QUEUE_CHALLENGE_FAILED or
    WAITING_ROOM_NOT_FOUND. The call that comes first gets the lower number.
    """
    outcomes: dict[int, Ticket | DomainError] = {}
    numbered = sorted(enumerate(joinings), key=lambda pair: pair[1].event_id)
    for event_id, group in groupby(numbered, key=lambda pair: pair[1].event_id):
        calls = list(group)
        try:
            room = await waiting_rooms.get(connection, event_id=event_id, lock=True)
            room.refuse_unless_joinable(now)
        except DomainError as refusal:
            outcomes |= dict.fromkeys((index for index, _ in calls), refusal)
            continue
        tickets = await _join_room(connection, room, [joining for _, joining in calls], now)
        outcomes |= zip((index for index, _ in calls), tickets, strict=True)
    return [outcomes[index] for index in range(len(joinings))]


async def _join_room(
    connection: AsyncConnection, room: Room, joinings: Sequence[Joining], now: datetime
) -> list[Ticket | DomainError]:
    accounts = await _tickets_of_accounts(connection, room, joinings)
    paid = await _tickets_of_proofs(connection, joinings)
    next_number, new_proofs = room.issued, []
    outcomes: list[Ticket | DomainError] = []
    new_accounts: dict[UUID, Ticket] = {}
    for joining in joinings:
        known = None if joining.user_id is None else accounts.get(joining.user_id)
        if known is not None:
            outcomes.append(_ticket(room, joining, *known))
            continue
        if joining.proof is not None and joining.proof in paid:
            number, nonce = paid[joining.proof]
            is_repeated = nonce == joining.nonce
            outcomes.append(_ticket(room, joining, number, nonce) if is_repeated else _reused(room))
            continue
        ticket = _ticket(room, joining, next_number, joining.nonce)
        next_number += 1
        outcomes.append(ticket)
        if joining.user_id is not None:
            accounts[joining.user_id] = (ticket.number, ticket.nonce)
            new_accounts[joining.user_id] = ticket
        if joining.proof is not None:
            paid[joining.proof] = (ticket.number, ticket.nonce)
            new_proofs.append(
                {
                    "digest": joining.proof,
                    "number": ticket.number,
                    "nonce": ticket.nonce,
                    "create_time": now,
                }
            )
    if next_number > room.issued:
        await connection.execute(
            sa.update(rooms_table)
            .where(rooms_table.c.event_id == room.event_id)
            .values(issued=next_number)
        )
        await _count_arrivals(connection, room.event_id, next_number - room.issued, now)
    if new_accounts:
        await connection.execute(
            queue_accounts.insert(),
            [
                {
                    "event_id": room.event_id,
                    "user_id": user_id,
                    "number": ticket.number,
                    "nonce": ticket.nonce,
                }
                for user_id, ticket in new_accounts.items()
            ],
        )
    if new_proofs:
        await connection.execute(queue_proofs.insert(), new_proofs)
    return outcomes


async def _count_arrivals(
    connection: AsyncConnection, event_id: UUID, count: int, now: datetime
) -> None:
    row = postgresql.insert(queue_arrivals).values(
        event_id=event_id, time=durations.slot_of(now), count=count
    )
    await connection.execute(
        row.on_conflict_do_update(
            index_elements=["event_id", "time"],
            set_={"count": queue_arrivals.c.count + row.excluded["count"]},
        )
    )


async def _tickets_of_accounts(
    connection: AsyncConnection, room: Room, joinings: Sequence[Joining]
) -> dict[UUID, tuple[int, bytes]]:
    """Number and nonce of the accounts that have a ticket."""
    user_ids = {joining.user_id for joining in joinings if joining.user_id is not None}
    if not user_ids:
        return {}
    account = queue_accounts.c
    ids = sa.bindparam("ids", list(user_ids), postgresql.ARRAY(postgresql.UUID(as_uuid=True)))
    rows = await connection.execute(
        sa.select(account.user_id, account.number, account.nonce).where(
            account.event_id == room.event_id, account.user_id == sa.any_(ids)
        )
    )
    return {row.user_id: (row.number, row.nonce) for row in rows}


async def _tickets_of_proofs(
    connection: AsyncConnection, joinings: Sequence[Joining]
) -> dict[bytes, tuple[int, bytes]]:
    """Number and nonce of the tickets that proofs have paid for.

    A proof names its event, so the lock of the room is one of its proofs, too.
    """
    digests = {joining.proof for joining in joinings if joining.proof is not None}
    if not digests:
        return {}
    proof = queue_proofs.c
    given = sa.bindparam("digests", list(digests), postgresql.ARRAY(sa.LargeBinary))
    rows = await connection.execute(
        sa.select(proof.digest, proof.number, proof.nonce).where(proof.digest == sa.any_(given))
    )
    return {row.digest: (row.number, row.nonce) for row in rows}


def _ticket(room: Room, joining: Joining, number: int, nonce: bytes) -> Ticket:
    generation = generation_of(room.room_id)
    return Ticket(room.event_id, generation, number, nonce, joining.user_id)


def _reused(room: Room) -> DomainError:
    return challenge_failed(room, Fault.REUSED, "the proof of work was used before")


def challenge_failed(room: Room, cause: str, message: str) -> DomainError:
    return DomainError(
        Reason.QUEUE_CHALLENGE_FAILED, message, cause=cause, bits=room.terms.proof_of_work_bits
    )


async def delete_old_proofs(connection: AsyncConnection, *, now: datetime) -> int:
    """Deletes proofs that are refused by their age. Returns how many."""
    deleted = await connection.execute(
        sa.delete(queue_proofs).where(queue_proofs.c.create_time < now - _PROOF_RETENTION)
    )
    return deleted.rowcount
