"""After the sale: waits until holds have expired and money is back, then judges."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from demo import audit
from demo.audit import Finding
from demo.evidence import Evidence, Investigator, Order

SETTLE_SECONDS = 60.0

_PAUSE_SECONDS = 1.0


async def settle(
    investigator: Investigator,
    orders: Sequence[Order],
    *,
    seconds: float = SETTLE_SECONDS,
    on_look: Callable[[int, int], None] = lambda _open, _findings: None,
) -> tuple[Evidence, list[Finding]]:
    """Looks again until nothing is open and nothing is wrong, for at most so many seconds.

    The parts of the evidence are read one after the other, so while things move they do
    not fit; what does not fit in the end is a finding. Bookings that are held for longer
    than this is going to last are not waited for. `on_look` is told the number of open
    bookings and of findings.
    """
    deadline = time.monotonic() + seconds
    while True:
        evidence = await investigator.gather()
        findings = audit.audit(evidence, orders)
        still_open = audit.still_open(evidence)
        on_look(len(still_open), len(findings))
        left = deadline - time.monotonic()
        end = evidence.time + timedelta(seconds=left)
        waiting = any(booking.hold_expire_time < end for booking in still_open)
        if left <= 0 or not (waiting or findings):
            return evidence, findings
        await asyncio.sleep(_PAUSE_SECONDS)
