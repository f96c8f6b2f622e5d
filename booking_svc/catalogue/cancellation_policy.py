"""Cancellation policies: the refund of a cancelled confirmed booking.

Each booking stores a copy of the policy from when it was placed. Times are instants, so daylight
saving does not change them.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from mesh.money import Money

# Of the policies whose stored form is kept in memory.
_POLICIES = 1_000


@dataclass(frozen=True, slots=True)
class Tier:
    """`percent` is refunded until `before_start` before the start.

    That instant itself belongs to this tier, or with `exclusive` to the next one.
    """

    before_start: timedelta
    percent: int
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Tiered:
    """Tiers, earliest first. After the last tier's time, cancelling is refused."""

    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class PurchaseWindow:
    """A full refund for `window` after the confirmation; then cancelling is refused."""

    window: timedelta


Policy = Tiered | PurchaseWindow

STANDARD_TIERS = Tiered(
    (
        Tier(timedelta(days=14), 97, exclusive=True),
        Tier(timedelta(days=7), 50),
        Tier(timedelta(hours=48), 0),
    )
)
STANDARD_WINDOW = PurchaseWindow(timedelta(hours=24))


def standard(*, is_dated: bool) -> Policy:
    """The default policy of an event."""
    return STANDARD_TIERS if is_dated else STANDARD_WINDOW


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of cancelling at a given time. Without `is_open` cancelling is refused.

    `deadline` is the last instant of these terms; without `is_open` it is the last instant at
    which cancelling was possible. None when there is no such instant.
    """

    is_open: bool
    percent: int
    deadline: datetime | None

    def refund_minor(self, paid_minor: int) -> int:
        """The refunded part of an amount, in minor units, rounded half up."""
        return (paid_minor * self.percent + 50) // 100


@dataclass(frozen=True, slots=True)
class Preview:
    """The refund that cancelling now would grant; `deadline` as in Terms."""

    refundable: bool
    amount: Money
    percent: int
    reason: str
    deadline: datetime | None


def terms(
    policy: Policy, *, start_time: datetime | None, confirm_time: datetime, now: datetime
) -> Terms:
    """The terms at `now` of a booking confirmed at `confirm_time`."""
    if isinstance(policy, PurchaseWindow):
        deadline = confirm_time + policy.window
        return Terms(True, 100, deadline) if now <= deadline else Terms(False, 0, deadline)
    if not policy.tiers:
        return Terms(False, 0, None)
    if start_time is None:
        # Without a start time the first tier applies at all times.
        return Terms(True, policy.tiers[0].percent, None)
    remaining = start_time - now
    for tier in policy.tiers:
        if remaining > tier.before_start or (remaining == tier.before_start and not tier.exclusive):
            return Terms(True, tier.percent, start_time - tier.before_start)
    return Terms(False, 0, start_time - policy.tiers[-1].before_start)


def to_json(policy: Policy) -> dict[str, Any]:
    """The stored form; durations in seconds."""
    if isinstance(policy, PurchaseWindow):
        return {"window": policy.window.total_seconds()}
    return {
        "tiers": [
            {
                "before_start": tier.before_start.total_seconds(),
                "percent": tier.percent,
                "exclusive": tier.exclusive,
            }
            for tier in policy.tiers
        ]
    }


@lru_cache(maxsize=_POLICIES)
def to_text(policy: Policy) -> str:
    """The stored form as text."""
    return json.dumps(to_json(policy))


def from_json(stored: dict[str, Any]) -> Policy:
    """The policy of a stored form."""
    if "window" in stored:
        return PurchaseWindow(timedelta(seconds=stored["window"]))
    return Tiered(
        tuple(
            Tier(timedelta(seconds=tier["before_start"]), tier["percent"], tier["exclusive"])
            for tier in stored["tiers"]
        )
    )
