"""The audit after the sale, repeated until holds have expired and refunds are processed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from chaos.checks import audit
from chaos.checks.audit import Finding
from chaos.checks.evidence import Evidence, Investigator, Order

WAIT_SECONDS = 60.0

_PAUSE_SECONDS = 1.0


async def audit_when_settled(
    investigator: Investigator,
    orders: Sequence[Order],
    *,
    seconds: float = WAIT_SECONDS,
    on_audit: Callable[[int, int], None] = lambda _open, _findings: None,
) -> tuple[Evidence, list[Finding]]:
    """Repeats the audit until no booking is open and there are no findings, for up to `seconds`.

    The parts of the evidence are read one after the other, so they differ while bookings change;
    the last findings count. It does not wait for bookings that are held beyond the deadline.
    `on_audit` is called with the number of open bookings and of findings.
    """
    deadline = time.monotonic() + seconds
    while True:
        evidence = await investigator.gather()
        findings = audit.audit(evidence, orders)
        still_open = audit.still_open(evidence)
        on_audit(len(still_open), len(findings))
        remaining = deadline - time.monotonic()
        end = evidence.time + timedelta(seconds=remaining)
        waiting = any(booking.hold_expire_time < end for booking in still_open)
        if remaining <= 0 or not (waiting or findings):
            return evidence, findings
        await asyncio.sleep(_PAUSE_SECONDS)
