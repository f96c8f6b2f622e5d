"""Buyers in a process of their own, as stock_svc's replicas serve them: `python -m` this, URL.

Reads an order per line: an event, and what each buyer wants. They all want it at once; the
answer is what became of each, `won` or the reason of its refusal.
"""

import asyncio
import json
import sys
from datetime import datetime
from typing import Any
from uuid import UUID

from mesh.coalescing import Coalescer
from mesh.errors import DomainError
from mesh.ids import new_id
from stock_svc import batches, reservations
from stock_svc.reservations import Line, Reservation
from testing.databases import open_patiently
from testing.stock_harness import HOLD, NOW


async def outcome(
    together: Coalescer[Reservation, Reservation], event_id: UUID, wish: list[Any]
) -> str:
    wanted = reservations.new(
        event_id=event_id,
        reservation_id=new_id(),
        request_key=str(new_id()),
        customer_id=new_id(),
        lines=[Line(UUID(offer), 1, None if seat is None else UUID(seat)) for offer, seat in wish],
        expire_time=NOW + HOLD,
        now=NOW,
    )
    try:
        await together.submit(wanted)
    except DomainError as refusal:
        return str(refusal.reason)
    return "won"


async def main(url: str) -> None:
    async with open_patiently(url) as database:
        together = batches.coalesced_reserve(database, lambda: NOW)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            assert datetime.fromisoformat(order["now"]) == NOW
            event_id = UUID(order["event_id"])
            wishes = (outcome(together, event_id, wish) for wish in order["wishes"])
            print(json.dumps(await asyncio.gather(*wishes)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
