"""What bookings need of waiting rooms: whether a customer is admitted, and where they report to.

The queueing package implements it; bookings do not know it.
"""

from datetime import datetime
from typing import Protocol
from uuid import UUID

from mesh.errors import DomainError, Reason

LOOKED_UP_CAUSES = frozenset({"ADMISSION_EXPIRED"})
"""Causes of a refusal with which the call's key may nevertheless have an answer: the token was
valid. All others are decided without the database."""


class Admissions(Protocol):
    def refuse_unless_admitted(
        self, token: str, *, event_id: UUID, user_id: UUID, now: datetime
    ) -> None:
        """Raises ADMISSION_REQUIRED with its `cause`. Reads no database."""

    def placed(
        self, *, event_id: UUID, user_id: UUID, seconds: float, refusal: DomainError | None
    ) -> None:
        """Notes a PlaceBooking call: its duration, and why it was refused, if it was."""


class NoAdmissions:
    """Admits nobody to an event with a waiting room."""

    def refuse_unless_admitted(
        self,
        token: str,  # noqa: ARG002 - of the protocol
        *,
        event_id: UUID,
        user_id: UUID,  # noqa: ARG002
        now: datetime,  # noqa: ARG002
    ) -> None:
        raise refused("TOKEN_MISSING", event_id)

    def placed(
        self, *, event_id: UUID, user_id: UUID, seconds: float, refusal: DomainError | None
    ) -> None:
        """Nobody asks."""


def refused(cause: str, event_id: UUID) -> DomainError:
    return DomainError(
        Reason.ADMISSION_REQUIRED,
        _MESSAGES[cause],
        cause=cause,
        event_id=event_id,
    )


_MESSAGES = {
    "TOKEN_MISSING": "the event has a waiting room: `admission_token` is required",
    "TOKEN_FORGED": "`admission_token` is not a token of this waiting room",
    "TOKEN_OF_OTHER_EVENT": "`admission_token` is for another event",
    "TOKEN_OF_OTHER_USER": "`admission_token` is another user's",
    "ADMISSION_EXPIRED": "the admission has ended",
}
