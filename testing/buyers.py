"""Buyers in a process of their own, like a replica of stock_svc: `python -m testing.buyers URL`.

Reads a JSON line with an event and the lines of each buyer's request, runs all requests
concurrently, and writes their outcomes: `accepted` or the reason of the refusal.
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
    coalescer: Coalescer[Reservation, Reservation], event_id: UUID, lines: list[Any]
) -> str:
    request = reservations.new(
        event_id=event_id,
        reservation_id=new_id(),
        request_key=str(new_id()),
        customer_id=new_id(),
        lines=[Line(UUID(offer), 1, None if seat is None else UUID(seat)) for offer, seat in lines],
        expire_time=NOW + HOLD,
        now=NOW,
    )
    try:
        await coalescer.submit(request)
    except DomainError as refusal:
        return str(refusal.reason)
    return "accepted"


async def main(url: str) -> None:
    async with open_patiently(url) as database:
        coalescer = batches.coalesced_reserve(database, lambda: NOW)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            assert datetime.fromisoformat(order["now"]) == NOW
            event_id = UUID(order["event_id"])
            outcomes = (outcome(coalescer, event_id, lines) for lines in order["requests"])
            print(json.dumps(await asyncio.gather(*outcomes)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
