"""The stream of changes: the counters and seats after each transaction, in order."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from boxoffice.stock.v1 import stock_change_service_pb2, stock_service_pb2
from boxoffice.stock.v1.stock_change_service_pb2_grpc import StockChangeServiceStub
from mesh.db import outbox
from mesh.db.database import Database
from stock_svc.__main__ import open_service
from stock_svc.expiry import sweep
from stock_svc.settings import Settings
from stock_svc.stock import Pool, Seat
from stock_svc.stock_update import TargetStock
from testing.network import Network, reason_of, refusal
from testing.stock_harness import LAPSED, Sale, on_sale
from testing.waiting import wait_for_listener

SERVICE = stock_change_service_pb2.DESCRIPTOR.services_by_name["StockChangeService"]
Change = stock_change_service_pb2.StockChange
Request = stock_change_service_pb2.StreamChangesRequest
SeatState = stock_service_pb2.Stock.SeatLeft.State


@dataclass
class Stream:
    """Follows the changes of one event."""

    calls: Any
    sale: Sale
    arrived: list[Change] = field(default_factory=list)

    async def next(self) -> Change:
        async with asyncio.timeout(60):
            while not self.arrived:
                response = await anext(self.calls)
                self.arrived += [
                    change
                    for change in response.changes
                    if change.event_id == str(self.sale.event_id)
                ]
        return self.arrived.pop(0)

    def counters(self, change: Change, pool: str = "floor") -> tuple[int, int, int]:
        [changed] = [p for p in change.pools if p.pool_id == str(self.sale.pools[pool])]
        return changed.capacity, changed.held, changed.sold

    def seats(self, change: Change) -> dict[str, str]:
        names = {str(seat_id): name for name, seat_id in self.sale.seats.items()}
        return {names[seat.seat_id]: SeatState.Name(seat.state) for seat in change.seats}


@pytest.fixture
async def stub(
    tmp_path: Path, shared_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StockChangeServiceStub]:
    """Streams of this service do not poll: each change must wake them."""
    monkeypatch.setattr(outbox, "_POLL_SECONDS", 3600)
    network = Network(tmp_path)
    settings = Settings(home=tmp_path, stock_database_url=shared_url)
    async with (
        open_service(settings) as service,
        network.serve("stock_svc", service) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, SERVICE) as channel,
    ):
        loops = [asyncio.ensure_future(loop()) for loop in service.loops]
        await wait_for_listener(database)
        yield StockChangeServiceStub(channel)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def from_now(stub: StockChangeServiceStub, sale: Sale) -> Stream:
    calls = stub.StreamChanges(Request(from_now=True))
    first = await anext(aiter(calls))
    assert first.position
    assert not first.changes
    return Stream(aiter(calls), sale)


async def test_each_transaction_sends_one_change(
    stub: StockChangeServiceStub, database: Database
) -> None:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1", "A2"]})
    stream = await from_now(stub, sale)

    made = await sale.reserve(sale.line(quantity=2), *sale.lines("A1"))
    reserved = await stream.next()
    assert stream.counters(reserved) == (10, 2, 0)
    assert stream.counters(reserved, "stalls") == (2, 1, 0)
    assert stream.seats(reserved) == {"A1": "HELD"}
    assert reserved.version == (await sale.availability()).version

    await sale.commit(made.reservation_id)
    committed = await stream.next()
    assert stream.counters(committed) == (10, 0, 2)
    assert stream.seats(committed) == {"A1": "SOLD"}

    await sale.return_sold(made.reservation_id)
    returned = await stream.next()
    assert stream.counters(returned) == (10, 0, 0)
    assert stream.seats(returned) == {"A1": "AVAILABLE"}

    await sale.restock(5)
    assert stream.counters(await stream.next()) == (15, 0, 0)
    await sale.block("A2")
    blocked = await stream.next()
    assert stream.counters(blocked, "stalls") == (1, 0, 0)
    assert stream.seats(blocked) == {"A2": "BLOCKED"}

    resumed = Stream(aiter(stub.StreamChanges(Request(after_position=committed.position))), sale)
    again = await resumed.next()
    # A position contains the step in which it was read.
    again.position = returned.position
    assert again == returned


async def test_the_sweep_of_a_hold_sends_a_change(
    stub: StockChangeServiceStub, database: Database
) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1"]})
    await sale.reserve(*sale.lines("A1"))
    stream = await from_now(stub, sale)
    await sweep(database, now=LAPSED)
    lapsed = await stream.next()
    assert stream.counters(lapsed, "stalls") == (1, 0, 0)
    assert stream.seats(lapsed) == {"A1": "AVAILABLE"}


async def test_removed_seats_and_pools_are_sent(
    stub: StockChangeServiceStub, database: Database
) -> None:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1", "A2"]})
    stream = await from_now(stub, sale)
    await sale.update(
        TargetStock(
            pools=[Pool(sale.pools["floor"], 7)],
            add_seats=[Seat(sale.seats["A1"], sale.offers["stalls"])],
            remove_seat_ids=[sale.seats["A2"]],
        )
    )
    fewer = await stream.next()
    assert stream.counters(fewer) == (7, 0, 0)
    assert stream.seats(fewer) == {"A2": "STATE_UNSPECIFIED"}
    await sale.remove()
    assert all(pool.removed for pool in (await stream.next()).pools)


async def test_an_invalid_position_is_refused(stub: StockChangeServiceStub) -> None:
    error = await refusal(anext(aiter(stub.StreamChanges(Request(after_position="x")))))
    assert isinstance(error, grpc.aio.AioRpcError)
    assert reason_of(error) == "VALIDATION_FAILED"


async def test_versions_increase_by_one_per_movement(
    stub: StockChangeServiceStub, database: Database
) -> None:
    sale = await on_sale(database, pools={"floor": 100})
    stream = await from_now(stub, sale)
    await asyncio.gather(*(sale.reserve() for _ in range(10)))
    changes = [await stream.next() for _ in range(10)]
    assert [change.version for change in changes] == list(range(2, 12))
    assert [change.pools[0].version for change in changes] == list(range(2, 12))
    assert [stream.counters(change)[1] for change in changes] == list(range(1, 11))
