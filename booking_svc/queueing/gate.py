"""The check of admissions on the path of PlaceBooking: a signature and a time, nothing is read."""

from collections import Counter
from datetime import datetime
from uuid import UUID

from booking_svc.bookings.admission import refused
from booking_svc.queueing.durations import PLACE, Durations
from booking_svc.queueing.steering import SalesMonitor
from booking_svc.queueing.tokens import Signer
from mesh.errors import DomainError, Reason
from mesh.observability import metrics

# Further ones are not noted: their admissions then count as active until they end.
_MOST_HOLDERS = 10_000

_REFUSED = metrics.counter(
    "queue_refused", "Refused joins, admissions and bookings of waiting rooms.", "cause"
)


class Refusals:
    """Counts refusals by event and cause. `take` empties it, to add them to the database."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[UUID, str]] = Counter()

    def add(self, event_id: UUID, cause: str) -> None:
        """Only for events that have a room, of which there are few."""
        _REFUSED.labels(cause).inc()
        self._counts[event_id, cause] += 1

    def take(self) -> Counter[tuple[UUID, str]]:
        counts, self._counts = self._counts, Counter()
        return counts

    def put_back(self, counts: Counter[tuple[UUID, str]]) -> None:
        """Keeps counts that could not be stored."""
        self._counts.update(counts)


class Gate:
    """bookings.admission.Admissions."""

    def __init__(
        self, signer: Signer, monitor: SalesMonitor, refusals: Refusals, durations: Durations
    ) -> None:
        self._signer = signer
        self._monitor = monitor
        self._refusals = refusals
        self._durations = durations
        # Holders of admissions whose calls are running, and those that have placed a booking.
        self._placing: dict[tuple[UUID, UUID], None] = {}
        self._finished: dict[tuple[UUID, UUID], None] = {}

    def refuse_unless_admitted(
        self, token: str, *, event_id: UUID, user_id: UUID, now: datetime
    ) -> None:
        """Raises ADMISSION_REQUIRED."""
        cause = self._fault(token, event_id, user_id, now)
        if cause is not None:
            raise refused(cause, event_id)
        if len(self._placing) < _MOST_HOLDERS:
            self._placing[event_id, user_id] = None

    def placed(
        self, *, event_id: UUID, user_id: UUID, seconds: float, refusal: DomainError | None
    ) -> None:
        if refusal is not None and refusal.reason is Reason.ADMISSION_REQUIRED:
            # It says nothing about how busy the sale is.
            self._refusals.add(event_id, refusal.metadata["cause"])
            return
        self._monitor.add(seconds, None if refusal is None else refusal.reason)
        holder = (event_id, user_id)
        is_admitted = self._placing.pop(holder, holder) is None
        if not is_admitted:
            return
        self._durations.add(event_id, PLACE, seconds)
        if refusal is not None:
            self._refusals.add(event_id, refusal.reason)
        elif len(self._finished) < _MOST_HOLDERS:
            self._finished[holder] = None

    def take_finished(self) -> list[tuple[UUID, UUID]]:
        """Events and users that have placed a booking since the last call."""
        finished, self._finished = self._finished, {}
        return list(finished)

    def _fault(self, token: str, event_id: UUID, user_id: UUID, now: datetime) -> str | None:
        if not token:
            return "TOKEN_MISSING"
        admission = self._signer.read_admission(token)
        if admission is None:
            return "TOKEN_FORGED"
        if admission.event_id != event_id:
            return "TOKEN_OF_OTHER_EVENT"
        if admission.user_id != user_id:
            return "TOKEN_OF_OTHER_USER"
        return "ADMISSION_EXPIRED" if admission.expire_time <= now else None
