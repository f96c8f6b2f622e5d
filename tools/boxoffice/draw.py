"""Verifies the draw of a waiting room, after docs/queueing.md. Shares no code with the service."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from tools.rest import Api, RefusedError

ALGORITHM = "BOXOFFICE-DRAW-1"


def verify(
    api: Api, event_id: str, tickets: Sequence[str], commitment: str | None
) -> dict[str, Any]:
    """Checks the published draw of an event, and the positions of tickets.

    `commitment` is what the caller noted before the draw. Raises RefusedError if the draw has not
    taken place, or if anything differs.
    """
    draw = api.get(f"/api/v1/events/{event_id}/draw")
    if draw["algorithm"] != ALGORITHM:
        raise RefusedError(f"the draw has an unknown algorithm: {draw['algorithm']}")
    if not draw.get("secret"):
        raise RefusedError(f"the draw has not taken place; its commitment is {draw['commitment']}")
    secret = bytes.fromhex(draw["secret"])
    if hashlib.sha256(secret).hexdigest() != draw["commitment"]:
        raise RefusedError("the secret does not match the commitment: the draw is NOT valid")
    if commitment is not None and commitment.lower() != draw["commitment"]:
        raise RefusedError("the commitment is not the one noted before: the draw is NOT valid")
    return {
        "commitment": draw["commitment"],
        "participants": draw["participants"],
        "drawTime": draw["drawTime"],
        "isValid": True,
        "tickets": [_verified(api, draw, secret, ticket) for ticket in tickets],
    }


def _verified(api: Api, draw: dict[str, Any], secret: bytes, ticket_id: str) -> dict[str, Any]:
    ticket = api.get(f"/api/v1/queue/{ticket_id}")
    if ticket["eventId"] != draw["eventId"]:
        raise RefusedError(f"the ticket {ticket_id} is for another event")
    number: int = ticket["number"]
    position = 1 + place_of(
        number,
        secret=secret,
        event_id=UUID(draw["eventId"]),
        participants=draw["participants"],
    )
    if ticket.get("position", position) != position:
        raise RefusedError(
            f"ticket number {number} has position {ticket['position']}, but the draw gives it"
            f" {position}: the order is NOT that of the draw"
        )
    return {
        "number": number,
        "position": position,
        "tookPart": number < draw["participants"],
        "state": ticket["state"],
    }


def place_of(number: int, *, secret: bytes, event_id: UUID, participants: int) -> int:
    """The place of a ticket, from 0."""
    if number >= participants:
        return number
    key = hashlib.sha256(secret + event_id.bytes + participants.to_bytes(8, "big")).digest()
    width = max(2, (participants - 1).bit_length())
    low_width = (width + 1) // 2
    high_width = width - low_width
    while True:
        high, low = divmod(number, 2**low_width)
        for number_of_round in range(10):
            half = low if number_of_round % 2 == 0 else high
            message = number_of_round.to_bytes(1, "big") + half.to_bytes(8, "big")
            digest = hmac.new(key, message, "sha256").digest()
            value = int.from_bytes(digest[:8], "big")
            if number_of_round % 2 == 0:
                high ^= value % 2**high_width
            else:
                low ^= value % 2**low_width
        number = high * 2**low_width + low
        if number < participants:
            return number
