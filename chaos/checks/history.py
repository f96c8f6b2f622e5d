"""Every attempt of every call, in memory and as lines of JSON, and what came of it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TextIO

from chaos.client import Attempt

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FAILED_STATUS = 500
# The provider's faults, which do not stop between the others.
_OF_PROVIDERS = "PAYMENT_GATEWAY_ERROR"
# Calls that hash passwords have longer deadlines.
_PASSWORDS = "/api/v1/auth/"
_PASSWORDS_SECONDS = 13.0


class Outcome(StrEnum):
    """What the caller knows afterwards."""

    ANSWERED = "answered"
    """A result, or a refusal such as SOLD_OUT."""
    FAILED = "failed"
    """An error of the server, such as 503: it may have had an effect."""
    UNKNOWN = "unknown"
    """No answer: the connection was lost, or the time was over."""
    LEFT = "left"
    """The caller cancelled the call."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of the monotonic clock, e.g. of a fault and the recovery from it."""

    began: float
    ended: float

    def contains(self, attempt: Attempt) -> bool:
        return attempt.began < self.ended and attempt.ended > self.began


@dataclass
class History:
    """Records attempts. `file` gets a line of JSON for each."""

    file: TextIO | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def record(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        if self.file is not None:
            entry = {**asdict(attempt), "outcome": outcome(attempt)}
            self.file.write(json.dumps(entry) + "\n")

    def counts(self) -> Counter[Outcome]:
        return Counter(outcome(attempt) for attempt in self.attempts)

    def reasons(self) -> Counter[str]:
        """Attempts without a result or a refusal, by what came instead."""
        return Counter(
            f"{attempt.status} {attempt.reason}" if attempt.status else attempt.reason
            for attempt in self.attempts
            if outcome(attempt) in {Outcome.FAILED, Outcome.UNKNOWN}
        )

    def by_second(self, start: float) -> dict[Outcome, Counter[int]]:
        """Attempts by outcome and by the second after `start` in which they ended."""
        seconds: dict[Outcome, Counter[int]] = defaultdict(Counter)
        for attempt in self.attempts:
            seconds[outcome(attempt)][int(attempt.ended - start)] += 1
        return seconds

    def failed_outside(self, windows: Iterable[Window]) -> tuple[int, int]:
        """Attempts that overlap with no window, and how many of them had no result. Those that the
        provider failed do not count."""
        listed = list(windows)
        outside = [
            attempt
            for attempt in self.attempts
            if not any(window.contains(attempt) for window in listed)
            and outcome(attempt) is not Outcome.LEFT
            and attempt.reason != _OF_PROVIDERS
        ]
        failed = [attempt for attempt in outside if outcome(attempt) is not Outcome.ANSWERED]
        return len(outside), len(failed)

    def hung(self, seconds: float, windows: Iterable[Window]) -> list[Attempt]:
        """Attempts without an answer after `seconds`, for passwords 13 s later, except during
        `windows`, in which the way to the gateway was broken."""
        listed = list(windows)
        return [
            attempt
            for attempt in self.attempts
            if not attempt.status
            and outcome(attempt) is Outcome.UNKNOWN
            and attempt.ended - attempt.began
            >= seconds + _PASSWORDS_SECONDS * attempt.path.startswith(_PASSWORDS)
            and not any(window.contains(attempt) for window in listed)
        ]


def outcome(attempt: Attempt) -> Outcome:
    """What came of an attempt."""
    if attempt.status == 0:
        return Outcome.LEFT if attempt.reason == "left" else Outcome.UNKNOWN
    return Outcome.FAILED if attempt.status >= _FAILED_STATUS else Outcome.ANSWERED


def label(attempt: Attempt) -> str:
    """Method and path without ids."""
    return f"{attempt.method} {_ID.sub('…', attempt.path)}"
