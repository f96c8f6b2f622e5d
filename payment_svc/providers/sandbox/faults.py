"""The sandbox as a fault lab: what goes wrong, by script for a payment or by chance.

A script is a row per fault with how often it still strikes; chances come from settings.
Webhooks go wrong in delivery.py, calls in provider.py, money in servicer.py.
"""

import random
from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from payment_svc.tables import sandbox_faults


class Fault(StrEnum):
    # Webhooks: some seconds late, beyond the payment window, after the next one, twice,
    # never, with a signature that does not hold.
    DELAY = "DELAY"
    LATE = "LATE"
    REORDER = "REORDER"
    DUPLICATE = "DUPLICATE"
    DROP = "DROP"
    WRONG_SIGNATURE = "WRONG_SIGNATURE"
    # Calls: done, and answered by a 500 or not at all; refused by a 429.
    ERROR_AFTER = "ERROR_AFTER"
    TIMEOUT_AFTER = "TIMEOUT_AFTER"
    THROTTLE = "THROTTLE"
    # Money: taken twice; asked back by the customer's bank.
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
    """Decides what goes wrong next. Without a script and chances, nothing does."""

    def __init__(self, chances: Mapping[Fault, float] | None = None, *, seed: int = 1) -> None:
        self._chances = dict(chances or {})
        self._random = random.Random(seed)

    async def next(
        self, connection: AsyncConnection, *, payment_id: UUID | None, among: Collection[Fault]
    ) -> Fault | None:
        """The fault that strikes now, if any; a scripted one is used up by it."""
        if payment_id is not None:
            scripted = await _use_up(connection, payment_id, among)
            if scripted is not None:
                return scripted
        for fault in sorted(among):
            if self._random.random() < self._chances.get(fault, 0.0):
                return fault
        return None


def parse(text: str) -> dict[Fault, float]:
    """Chances as a setting writes them, e.g. `DROP=0.3,DUPLICATE=0.1`. Raises ValueError."""
    chances = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, chance = part.partition("=")
        chances[Fault(name.strip())] = float(chance)
        if not 0 <= chances[Fault(name.strip())] <= 1:
            raise ValueError(f"{part}: a chance is between 0 and 1")
    return chances


async def script(
    connection: AsyncConnection, *, payment_id: UUID, fault: Fault, times: int, now: datetime
) -> None:
    """Lets a fault strike a payment so many times."""
    await connection.execute(
        sa.insert(sandbox_faults).values(
            payment_id=payment_id, fault=fault, remaining=times, create_time=now
        )
    )


async def _use_up(
    connection: AsyncConnection, payment_id: UUID, among: Collection[Fault]
) -> Fault | None:
    first = (
        sa.select(sandbox_faults.c.fault_id)
        .where(sandbox_faults.c.payment_id == payment_id)
        .where(sandbox_faults.c.remaining > 0)
        .where(sandbox_faults.c.fault.in_(list(among)))
        .order_by(sandbox_faults.c.fault_id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = (
        await connection.execute(
            sa.update(sandbox_faults)
            .where(sandbox_faults.c.fault_id == first)
            .values(remaining=sandbox_faults.c.remaining - 1)
            .returning(sandbox_faults.c.fault)
        )
    ).one_or_none()
    return None if row is None else Fault(row.fault)
