"""Cancellation policies: what cancelling a confirmed booking gives back.

A policy is copied into each booking when it is placed. Times are instants, so that
daylight saving changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mesh.money import Money


@dataclass(frozen=True, slots=True)
class Tier:
    """From so long before the start on, `percent` is refunded.

    With `exclusive`, exactly that long before the start already belongs to the next tier.
    """

    before_start: timedelta
    percent: int
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Tiered:
    """By the time left before the start; nearer than the last tier is refused."""

    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class PurchaseWindow:
    """Everything for so long after the confirmation, then refused."""

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
    """The policy of an event that names none."""
    return STANDARD_TIERS if is_dated else STANDARD_WINDOW


@dataclass(frozen=True, slots=True)
class Terms:
    """What cancelling gives back at a moment.

    `is_open` is False when it is refused. `deadline` is the last instant of these terms,
    or, once they are closed, the last one at which cancelling was possible; None when
    there is no such instant.
    """

    is_open: bool
    percent: int
    deadline: datetime | None

    def refund_minor(self, paid_minor: int) -> int:
        """The part of an amount that goes back, in minor units, a half rounded up."""
        return (paid_minor * self.percent + 50) // 100


@dataclass(frozen=True, slots=True)
class Preview:
    """What cancelling would give back now; `deadline` as in Terms."""

    refundable: bool
    amount: Money
    percent: int
    reason: str
    deadline: datetime | None


def terms(
    policy: Policy, *, start_time: datetime | None, confirm_time: datetime, now: datetime
) -> Terms:
    """The terms at `now` for a booking confirmed at `confirm_time` of an event."""
    if isinstance(policy, PurchaseWindow):
        deadline = confirm_time + policy.window
        return Terms(True, 100, deadline) if now <= deadline else Terms(False, 0, deadline)
    if not policy.tiers:
        return Terms(False, 0, None)
    if start_time is None:
        # Never nearer to the start than the first tier.
        return Terms(True, policy.tiers[0].percent, None)
    left = start_time - now
    for tier in policy.tiers:
        if left > tier.before_start or (left == tier.before_start and not tier.exclusive):
            return Terms(True, tier.percent, start_time - tier.before_start)
    return Terms(False, 0, start_time - policy.tiers[-1].before_start)


def to_json(policy: Policy) -> dict[str, Any]:
    """As it is stored; durations in seconds."""
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


def from_json(stored: dict[str, Any]) -> Policy:
    """What to_json stored."""
    if "window" in stored:
        return PurchaseWindow(timedelta(seconds=stored["window"]))
    return Tiered(
        tuple(
            Tier(timedelta(seconds=tier["before_start"]), tier["percent"], tier["exclusive"])
            for tier in stored["tiers"]
        )
    )
