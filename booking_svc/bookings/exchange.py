"""The exchange of a booking's places for others, by who asked for it or by a step."""

from datetime import timedelta

from booking_svc.bookings import bookings, modification_store, saga_steps
from booking_svc.bookings.bookings import ChangeState
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.saga_steps import Step
from booking_svc.clients.ports import Line, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason

_AN_END = timedelta(minutes=1)
_REFUSED = frozenset(
    {
        Reason.SOLD_OUT,
        Reason.SEAT_UNAVAILABLE,
        Reason.PURCHASE_LIMIT_EXCEEDED,
        Reason.OFFER_NOT_FOUND,
        Reason.SEAT_NOT_FOUND,
        Reason.EVENT_NOT_FOUND,
        Reason.HOLD_EXPIRED,
        Reason.RESERVATION_STATE_INVALID,
        Reason.RESERVATION_NOT_FOUND,
    }
)


class Exchanges:
    def __init__(self, *, database: Database, stock: Stock, clock: Clock) -> None:
        self._database = database
        self._stock = stock
        self._clock = clock

    async def take(self, step: Step) -> None:
        """Takes an EXCHANGE step. A refusal is an outcome, too."""
        async with self._database.reading() as connection:
            change = await modification_store.get(connection, change_id=step.subject_id)
        try:
            await self.exchange(change)
        except DomainError as refusal:
            if refusal.reason not in _REFUSED:
                raise
        async with self._database.transaction() as connection:
            await saga_steps.done(connection, step)

    async def exchange(self, change: Change) -> None:
        """Exchanges the places and finishes the change, or records why not and raises that."""
        if change.state is not ChangeState.EXCHANGING:
            return
        refusal: DomainError | None = None
        try:
            await self._stock.exchange(
                event_id=change.from_event_id,
                reservation_id=change.from_reservation_id,
                to_event_id=change.to_event_id,
                to_reservation_id=change.change_id,
                lines=[Line(item.offer_id, item.quantity, item.seat_id) for item in change.items],
                # A hold has its own end; the ledger takes none that is past, however late we come.
                expire_time=max(change.expire_time, self._clock() + _AN_END),
            )
        except DomainError as error:
            if error.reason not in _REFUSED:
                raise
            refusal = error
        now = self._clock()
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=change.booking_id, lock=True)
            current = await modification_store.get(connection, change_id=change.change_id)
            if current.state is not ChangeState.EXCHANGING:
                # Another one was quicker, with the same outcome.
                return
            if refusal is None:
                await modification_store.finish(
                    connection, booking=booking, change=current, now=now
                )
            else:
                await modification_store.refuse(
                    connection, booking=booking, change=current, reason=refusal.reason, now=now
                )
        if refusal is not None:
            raise refusal
