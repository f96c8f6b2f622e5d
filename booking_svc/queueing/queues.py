"""Queues as their visitors see them: joining, asking where a ticket stands, being admitted.

Asking costs no statement, except the one that first gives an account its admission. Joins that
arrive together share a batch.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

import sqlalchemy as sa

from booking_svc.clients.ports import Captchas
from booking_svc.queueing import admission, draw, joining, proof_of_work, waiting_rooms
from booking_svc.queueing.durations import JOIN, POLL, Durations
from booking_svc.queueing.gate import Refusals
from booking_svc.queueing.joining import Joining
from booking_svc.queueing.proof_of_work import Fault
from booking_svc.queueing.room_memory import RoomMemory
from booking_svc.queueing.standing import Standing, State, View
from booking_svc.queueing.tables import queue_refusals
from booking_svc.queueing.tokens import (
    NONCE_BYTES,
    AdmissionToken,
    Signer,
    Ticket,
    generation_of,
)
from booking_svc.queueing.waiting_rooms import Room, RoomTerms
from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.db.batches import commit_each
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.observability import metrics

HEARTBEAT_SECONDS = 15.0
"""Longest time without a message, below the idle timeouts of proxies and browsers."""

_MAX_BATCH = 256
_MAX_QUEUED = 4096
# Part of the 5 s of JoinQueue.
_SECONDS = 4.5
# About 10 MB. An admission that is not remembered is read again.
_MAX_ADMISSIONS = 50_000

_JOINED = metrics.counter("queue_joined", "Answered JoinQueue calls.")
_WATCHERS = metrics.gauge("queue_watchers", "Open streams of WatchQueue.")


@dataclass(frozen=True, slots=True)
class Position:
    """A ticket and where it stands. `token` is for the caller, if one is signed in and admitted."""

    ticket_id: str
    ticket: Ticket
    standing: Standing
    token: str | None


class Queues:
    """`captchas` checks what visitors solve; None requires no captcha."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        keys: Sequence[str],
        refusals: Refusals,
        durations: Durations,
        captchas: Captchas | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._keys = keys
        self._signer = Signer(keys)
        self._refusals = refusals
        self._durations = durations
        self._captchas = captchas
        self.rooms = RoomMemory(database, clock)
        self._joins = Coalescer(
            "queue joins",
            partial(commit_each, database, work=joining.join_all, clock=clock),
            max_batch=_MAX_BATCH,
            # A second batch would wait for the first one's lock of the room.
            max_in_flight=1,
            max_queued=_MAX_QUEUED,
            seconds=_SECONDS,
        )
        self._claims: OrderedDict[tuple[UUID, UUID, int], datetime] = OrderedDict()
        self._closing = asyncio.Event()

    async def put_room(self, *, event_id: UUID, terms: RoomTerms) -> Room:
        """Raises EVENT_NOT_FOUND or EVENT_STATE_INVALID."""
        async with self._database.transaction() as connection:
            room = await waiting_rooms.put(
                connection,
                event_id=event_id,
                terms=terms,
                key=self._keys[0],
                seed=secrets.token_bytes(draw.SEED_BYTES),
                now=self._clock(),
            )
        self.rooms.forget(event_id)
        return room

    async def remove_room(self, *, event_id: UUID) -> None:
        """Raises WAITING_ROOM_NOT_FOUND or EVENT_STATE_INVALID."""
        async with self._database.transaction() as connection:
            await waiting_rooms.remove(connection, event_id=event_id, now=self._clock())
        self.rooms.forget(event_id)

    async def room(self, *, event_id: UUID, to_staff: bool) -> Room:
        """Raises WAITING_ROOM_NOT_FOUND."""
        return (await self._view(event_id, to_staff=to_staff)).room

    async def refusals_of(self, *, event_id: UUID) -> dict[str, int]:
        """How many calls were refused, by cause."""
        refusal = queue_refusals.c
        async with self._database.reading() as connection:
            rows = await connection.execute(
                sa.select(refusal.cause, refusal.count)
                .where(refusal.event_id == event_id)
                .order_by(refusal.cause)
            )
            return {row[0]: row[1] for row in rows}

    async def join(
        self,
        *,
        event_id: UUID,
        user_id: UUID | None,
        proof: str,
        captcha_token: str,
        address: str,
        to_staff: bool = False,
    ) -> Position:
        """A new ticket, or the one that the account has.

        Raises WAITING_ROOM_NOT_FOUND, QUEUE_CLOSED or QUEUE_CHALLENGE_FAILED.
        """
        view = await self._view(event_id, to_staff=to_staff)
        now = self._clock()
        try:
            view.room.refuse_unless_joinable(now)
            digest = self._digest(view.room, proof, now)
            await self._refuse_bots(view.room, captcha_token, address)
            ticket = await self._joins.submit(
                Joining(event_id, user_id, secrets.token_bytes(NONCE_BYTES), digest)
            )
        except DomainError as refusal:
            self._count(event_id, refusal)
            raise
        finally:
            self._durations.add(event_id, JOIN, (self._clock() - now).total_seconds())
        _JOINED.inc()
        # The draw may have taken place since: a ticket after it stands behind, not in it.
        return self._position(self._signer.sign_ticket(ticket), ticket, view)

    async def position(self, *, ticket_id: str, user_id: UUID | None) -> Position:
        """Where a ticket stands. If it is admitted, gives the caller its admission, once.

        Raises QUEUE_TICKET_NOT_FOUND or ALREADY_ADMITTED.
        """
        began = self._clock()
        ticket = self._signer.read_ticket(ticket_id)
        if ticket is None:
            self._count_invalid(self._signer.claimed_event(ticket_id), "TICKET_FORGED")
            raise _no_ticket()
        if ticket.user_id is not None and user_id is not None and ticket.user_id != user_id:
            self._count_invalid(ticket.event_id, "TICKET_OF_OTHER_USER")
            raise _no_ticket()
        try:
            view = await self._view(ticket.event_id, to_staff=False)
        except DomainError as error:
            if error.reason is Reason.WAITING_ROOM_NOT_FOUND:
                raise _no_ticket() from None
            raise
        if generation_of(view.room.room_id) != ticket.generation:
            raise _no_ticket()
        position = self._position(ticket_id, ticket, view)
        try:
            if position.standing.state is not State.ADMITTED or user_id is None:
                return position
            return await self._admitted(position, user_id)
        finally:
            self._durations.add(ticket.event_id, POLL, (self._clock() - began).total_seconds())

    async def watch(
        self, *, ticket_id: str, user_id: UUID | None
    ) -> AsyncGenerator[Position, None]:
        """Where a ticket stands, at once and after each change; the same after 15 s without one.

        Ends when the ticket is missed or ended, and when the process stops. Raises as `position`.
        """
        _WATCHERS.inc()
        try:
            sent, silent_seconds = None, 0.0
            while not self._closing.is_set():
                position = await self.position(ticket_id=ticket_id, user_id=user_id)
                shown = _without_estimates(position)
                if shown != sent or silent_seconds >= HEARTBEAT_SECONDS:
                    sent, silent_seconds = shown, 0.0
                    yield position
                if position.standing.state in (State.MISSED, State.ENDED):
                    return
                pause = min(
                    position.standing.poll_after_seconds, HEARTBEAT_SECONDS - silent_seconds
                )
                silent_seconds += pause
                await self._pause(pause)
        finally:
            _WATCHERS.dec()

    async def run(self) -> None:
        """Until cancelled; then ends all streams, so that the process can stop."""
        try:
            await asyncio.Event().wait()
        finally:
            self._closing.set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _view(self, event_id: UUID, *, to_staff: bool) -> View:
        """Raises WAITING_ROOM_NOT_FOUND, also for a draft's unless for staff."""
        view = await self.rooms.get(event_id)
        if view.room.is_hidden and not to_staff:
            raise waiting_rooms.not_found(event_id)
        return view

    def _digest(self, room: Room, proof: str, now: datetime) -> bytes | None:
        bits = room.terms.proof_of_work_bits
        if not bits:
            return None
        checked = proof_of_work.check(proof, event_id=room.event_id, bits=bits, now=now)
        if isinstance(checked, Fault):
            raise joining.challenge_failed(
                room,
                checked,
                f"`proof_of_work` is required, with {bits} zero bits: {_FAULTS[checked]}",
            )
        return checked

    async def _refuse_bots(self, room: Room, captcha_token: str, address: str) -> None:
        if self._captchas is None:
            return
        if not captcha_token:
            raise joining.challenge_failed(room, "CAPTCHA_MISSING", "`captcha_token` is required")
        if not await self._captchas.is_solved(token=captcha_token, address=address):
            raise joining.challenge_failed(
                room, "CAPTCHA_FAILED", "the captcha provider did not accept `captcha_token`"
            )

    def _position(self, ticket_id: str, ticket: Ticket, view: View) -> Position:
        spread = int.from_bytes(ticket.nonce[:2], "big") / 65_536
        standing = view.standing(ticket.number, spread=spread, now=self._clock())
        return Position(ticket_id, ticket, standing, None)

    async def _admitted(self, position: Position, user_id: UUID) -> Position:
        ticket, standing = position.ticket, position.standing
        holder = (ticket.event_id, user_id, ticket.number)
        expire_time = self._claims.get(holder)
        if expire_time is None:
            expire_time = await self._claim(ticket, user_id, standing)
            self._claims[holder] = expire_time
            while len(self._claims) > _MAX_ADMISSIONS:
                self._claims.popitem(last=False)
        token = AdmissionToken(ticket.event_id, user_id, ticket.number, expire_time)
        return Position(position.ticket_id, ticket, standing, self._signer.sign_admission(token))

    async def _claim(self, ticket: Ticket, user_id: UUID, standing: Standing) -> datetime:
        if standing.place is None or standing.expire_time is None:
            raise RuntimeError("an admitted ticket has a place and an end")
        try:
            async with self._database.transaction() as connection:
                return await admission.claim(
                    connection,
                    ticket=ticket,
                    user_id=user_id,
                    place=standing.place,
                    expire_time=standing.expire_time,
                    now=self._clock(),
                )
        except DomainError as refusal:
            self._count(ticket.event_id, refusal)
            raise

    def _count(self, event_id: UUID, refusal: DomainError) -> None:
        if refusal.reason in _COUNTED:
            self._refusals.add(event_id, refusal.metadata.get("cause", refusal.reason))

    def _count_invalid(self, event_id: UUID | None, cause: str) -> None:
        # Anybody can make a ticket that names any event: only those of known rooms are counted.
        if event_id is not None and self.rooms.knows(event_id):
            self._refusals.add(event_id, cause)


_COUNTED = (Reason.QUEUE_CHALLENGE_FAILED, Reason.QUEUE_CLOSED, Reason.ALREADY_ADMITTED)

_FAULTS = {
    Fault.MISSING: "none was sent",
    Fault.MALFORMED: "it must be `<minute>.<random>.<counter>`",
    Fault.OUTDATED: "its minute is not the present one",
    Fault.TOO_EASY: "it has fewer",
    Fault.REUSED: "it was used before",
}


def _no_ticket() -> DomainError:
    return DomainError(Reason.QUEUE_TICKET_NOT_FOUND, "no such ticket")


def _without_estimates(position: Position) -> tuple[object, ...]:
    """What a watcher is told of when it changes."""
    standing = position.standing
    return (standing.state, standing.position, standing.ahead, position.token)
