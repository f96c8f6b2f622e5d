"""Proofs of work, after hashcash: what joining a queue costs a bot, whose thousands of visitors
each need one. A proof names the event and the minute, so none can be made long before."""

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from uuid import UUID

_PROOF = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{8,64})\.([0-9]{1,18})")
_SECONDS_PER_MINUTE = 60
MINUTES_OFF = 2
"""How many minutes a proof's may differ from the server's."""


class Fault(StrEnum):
    MISSING = "PROOF_MISSING"
    MALFORMED = "PROOF_MALFORMED"
    OUTDATED = "PROOF_OUTDATED"
    TOO_EASY = "PROOF_TOO_EASY"
    REUSED = "PROOF_REUSED"


def check(proof: str, *, event_id: UUID, bits: int, now: datetime) -> bytes | Fault:
    """The proof's digest, by which it is used once; or what is wrong with it."""
    if not proof:
        return Fault.MISSING
    match = _PROOF.fullmatch(proof)
    if match is None:
        return Fault.MALFORMED
    minute = int(now.timestamp()) // _SECONDS_PER_MINUTE
    if abs(int(match[1]) - minute) > MINUTES_OFF:
        return Fault.OUTDATED
    digest = digest_of(proof, event_id)
    if int.from_bytes(digest, "big") >> (8 * len(digest) - bits):
        return Fault.TOO_EASY
    return digest


def digest_of(proof: str, event_id: UUID) -> bytes:
    return hashlib.sha256(f"boxoffice-queue:{event_id}:{proof}".encode()).digest()


def solve(event_id: UUID, *, bits: int, random: str, now: datetime) -> str:
    """A proof, by trying: on average 2^bits hashes. For clients in Python, and tests."""
    prefix = f"{int(now.timestamp()) // _SECONDS_PER_MINUTE}.{random}."
    counter = 0
    while int.from_bytes(digest_of(f"{prefix}{counter}", event_id), "big") >> (256 - bits):
        counter += 1
    return f"{prefix}{counter}"
