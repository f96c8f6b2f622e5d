"""The sandbox as a fault lab: which faults occur, scripted for a payment or at random.

A scripted fault is a row with the number of times that it still occurs; probabilities come
from the settings. delivery.py, provider.py and servicers/sandbox.py carry the faults out.
"""

import random
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import Statement, array, run_together
from payment_svc.tables import sandbox_faults


class Fault(StrEnum):
    # Webhooks: seconds late, after the payment window, after the next one, twice, never, with
    # an invalid signature.
    DELAY = "DELAY"
    LATE = "LATE"
    REORDER = "REORDER"
    DUPLICATE = "DUPLICATE"
    DROP = "DROP"
    WRONG_SIGNATURE = "WRONG_SIGNATURE"
    # Calls: carried out and answered by a 500 or not at all; rejected by a 429.
    ERROR_AFTER = "ERROR_AFTER"
    TIMEOUT_AFTER = "TIMEOUT_AFTER"
    THROTTLE = "THROTTLE"
    # Money: captured twice; disputed by the customer's bank.
    PAY_TWICE = "PAY_TWICE"
    DISPUTE = "DISPUTE"


WEBHOOK_FAULTS = frozenset(
    {
        Fault.DELAY,
        Fault.LATE,
        Fault.REORDER,
        Fault.DUPLICATE,
        Fault.DROP,
        Fault.WRONG_SIGNATURE,
    }
)
AFTER_FAULTS = frozenset({Fault.ERROR_AFTER, Fault.TIMEOUT_AFTER})
BEFORE_FAULTS = frozenset({Fault.THROTTLE})
PAY_FAULTS = frozenset({Fault.PAY_TWICE, Fault.DISPUTE})


class Lab:
    """Decides which fault occurs next: a scripted one, else one at random."""

    def __init__(self, chances: Mapping[Fault, float] | None = None, *, seed: int = 1) -> None:
        self._chances = dict(chances or {})
        self._random = random.Random(seed)

    async def next(
        self, connection: AsyncConnection, *, payment_id: UUID | None, among: Collection[Fault]
    ) -> Fault | None:
        """The fault that occurs now, if any. Counts down a scripted one."""
        if payment_id is not None:
            scripted = await _next_scripted(connection, payment_id, among)
            if scripted is not None:
                return scripted
        for fault in sorted(among):
            if self._random.random() < self._chances.get(fault, 0.0):
                return fault
        return None


def parse(text: str) -> dict[Fault, float]:
    """Probabilities from a setting, e.g. `DROP=0.3,DUPLICATE=0.1`. Raises ValueError."""
    chances = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, chance = part.partition("=")
        chances[Fault(name.strip())] = float(chance)
        if not 0 <= chances[Fault(name.strip())] <= 1:
            raise ValueError(f"{part}: a probability is between 0 and 1")
    return chances


async def script(
    connection: AsyncConnection, *, payment_id: UUID, fault: Fault, times: int, now: datetime
) -> None:
    """Scripts a fault for a payment, for a number of times."""
    await connection.execute(
        sa.insert(sandbox_faults).values(
            payment_id=payment_id, fault=fault, remaining=times, create_time=now
        )
    )


async def _next_scripted(
    connection: AsyncConnection, payment_id: UUID, among: Collection[Fault]
) -> Fault | None:
    [counted] = await run_together(
        connection, [Statement(_COUNT_DOWN, (payment_id, array(sorted(among))))]
    )
    return Fault(counted.rows[0][0]) if counted.rows else None


_COUNT_DOWN = """
UPDATE sandbox_faults SET remaining = remaining - 1 WHERE fault_id = (
    SELECT fault_id FROM sandbox_faults
    WHERE payment_id = %s AND remaining > 0 AND fault = ANY (%s::text[])
    ORDER BY fault_id LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING fault
"""
