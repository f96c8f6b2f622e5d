"""A process for test_shutdown.py whose calls end when a file exists."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from boxoffice.stock.v1 import stock_change_service_pb2, stock_service_pb2
from mesh import tasks
from mesh.rpc.server import Service, run
from mesh.settings import MeshSettings
from testing.network import Context, a_service, standing_in

STOCK = "boxoffice.stock.v1.StockService"
CHANGES = "boxoffice.stock.v1.StockChangeService"


async def exists(path: Path) -> None:
    """Returns when the file exists. The test and this process communicate by files."""
    while not await asyncio.to_thread(path.exists):
        await asyncio.sleep(0.005)


@asynccontextmanager
async def open_service(settings: MeshSettings) -> AsyncIterator[Service]:
    async def get_stock(request: Any, context: Context) -> Any:
        await asyncio.to_thread((settings.home / "call-began").touch)
        await exists(settings.home / "call-may-end")
        return stock_service_pb2.Stock(version=7)

    async def stream_changes(request: Any, context: Context) -> AsyncIterator[Any]:
        yield stock_change_service_pb2.StreamChangesResponse()
        if request.from_now:
            await asyncio.Event().wait()
        while True:
            yield stock_change_service_pb2.StreamChangesResponse()

    async def release(request: Any, context: Context) -> Any:
        await tasks.shielded(shielded_step(), seconds=30)

    async def shielded_step() -> None:
        await asyncio.to_thread((settings.home / "step-began").touch)
        await exists(settings.home / "step-may-end")
        await asyncio.to_thread((settings.home / "step-done").touch)

    yield a_service(
        standing_in(STOCK, GetStock=get_stock, ReleaseReservation=release),
        standing_in(CHANGES, StreamChanges=stream_changes),
    )
    print("closed", flush=True)


def main() -> None:
    run("stock_svc", MeshSettings, open_service)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
