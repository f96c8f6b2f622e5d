"""What the sending loop asks of a way out for mails, and what it hears back."""

from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from enum import Enum, auto
from typing import Protocol


class Verdict(Enum):
    SENT = auto()
    REFUSED = auto()
    """For good: the server will never take this mail."""
    DEFERRED = auto()
    """For now: the server wants this mail later."""
    UNREACHABLE = auto()
    """No server took it or looked at it: nothing is wrong with the mail."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mail. `answer` is a status code or the name of an error, no more:
    a server's own text may quote the address."""

    verdict: Verdict
    answer: str


class Transport(Protocol):
    """Takes messages to a mail server, or to where they are looked at instead."""

    async def send(self, messages: Sequence[EmailMessage]) -> Sequence[Outcome]:
        """Sends a batch. One outcome per message, in their order; never raises for a mail."""
