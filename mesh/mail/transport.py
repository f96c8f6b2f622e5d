"""The interface between the sending loop and its transports (SMTP, files)."""

from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from enum import Enum, auto
from typing import Protocol


class Verdict(Enum):
    SENT = auto()
    REFUSED = auto()
    """Permanently refused: never send this mail again."""
    DEFERRED = auto()
    """Transiently refused: send it again later."""
    UNREACHABLE = auto()
    """No server could be reached, so the attempt does not count."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of sending a mail. `answer` is a status code or the name of an error.

    It is never the server's text, which may quote the address.
    """

    verdict: Verdict
    answer: str


class Transport(Protocol):
    """Delivers messages to a mail server or to files."""

    async def send(self, messages: Sequence[EmailMessage]) -> Sequence[Outcome]:
        """Sends a batch and returns one outcome per message, in order. Reports errors as outcomes."""
