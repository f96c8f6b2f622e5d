"""How many places customers hold or own, for showing what the purchase limits leave.

The limits themselves are enforced where places are reserved (statements.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from stock_svc import statements


@dataclass(frozen=True, slots=True)
class Total:
    """The places of an offer; `number` is the position of the key that they belong to."""

    number: int
    offer_id: UUID
    quantity: int


async def totals(connection: AsyncConnection, *, keys: Sequence[tuple[UUID, UUID]]) -> list[Total]:
    """The totals that are not 0 of pairs of an event and a customer."""
    numbered = [(number, *key) for number, key in enumerate(keys)]
    _, result = await run_together(
        connection,
        [FORCE_INDEX_SCANS, Statement(statements.CUSTOMER_TOTALS, columns(numbered, 3))],
    )
    return [Total(*row) for row in result.rows]
