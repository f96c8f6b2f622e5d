"""The draw of a waiting room: a commitment, a secret, and the place of each ticket. Pure functions.

docs/queueing.md describes the algorithm for whoever verifies a draw; tools/boxoffice/draw.py is
written from there and shares no code with this module.
"""

import hashlib
import hmac
from collections.abc import Sequence
from uuid import UUID

ALGORITHM = "BOXOFFICE-DRAW-1"

SEED_BYTES = 32
_ROUNDS = 10
_NUMBER_BYTES = 8


def secret_of(key: str, event_id: UUID, seed: bytes) -> bytes:
    """The secret of a draw, 32 bytes: nobody without the service's key knows it from the seed."""
    return hmac.digest(key.encode(), b"boxoffice draw" + event_id.bytes + seed, hashlib.sha256)


def commitment_of(secret: bytes) -> bytes:
    """What is published before the room opens, 32 bytes."""
    return hashlib.sha256(secret).digest()


def revealed(keys: Sequence[str], event_id: UUID, seed: bytes, commitment: bytes) -> bytes | None:
    """The secret of a commitment; None if none of the service's keys made it."""
    for key in keys:
        secret = secret_of(key, event_id, seed)
        if hmac.compare_digest(commitment_of(secret), commitment):
            return secret
    return None


class Draw:
    """The order of the tickets 0 to participants - 1: a keyed permutation of these numbers.

    A Feistel network over the bits of participants - 1; results beyond the participants are
    permuted again (cycle walking), twice on average at most.
    """

    def __init__(self, secret: bytes, event_id: UUID, participants: int) -> None:
        self.participants = participants
        self._key = hashlib.sha256(
            secret + event_id.bytes + participants.to_bytes(_NUMBER_BYTES, "big")
        ).digest()
        bits = max(2, (participants - 1).bit_length()) if participants else 2
        self._right_bits = bits - bits // 2
        self._left_mask = (1 << bits // 2) - 1
        self._right_mask = (1 << self._right_bits) - 1

    def place_of(self, number: int) -> int:
        """The place of a ticket, from 0. Tickets after the draw keep their number."""
        if number >= self.participants:
            return number
        place = self._permuted(number)
        while place >= self.participants:
            place = self._permuted(place)
        return place

    def _permuted(self, value: int) -> int:
        left, right = value >> self._right_bits, value & self._right_mask
        for number in range(0, _ROUNDS, 2):
            left ^= self._round(number, right) & self._left_mask
            right ^= self._round(number + 1, left) & self._right_mask
        return left << self._right_bits | right

    def _round(self, number: int, half: int) -> int:
        message = bytes((number,)) + half.to_bytes(_NUMBER_BYTES, "big")
        digest = hmac.digest(self._key, message, hashlib.sha256)
        return int.from_bytes(digest[:_NUMBER_BYTES], "big")
