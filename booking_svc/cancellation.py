"""Cancellation policies: what cancelling a confirmed booking gives back.

A policy is copied into each booking when it is placed. Times are instants, so that
daylight saving changes nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any


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
