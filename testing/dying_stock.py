"""stock_svc's servicer in a process that kills itself at its n-th await.

Reads a JSON line per call: the database, the method, the request, and the number of the
suspension, of any of its tasks, at which the process sends itself SIGKILL. Writes `killed`, or
`done` and the exit code. Each call runs in a fork, so that imports run once; gRPC is not running.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf import json_format

from boxoffice.stock.v1 import stock_service_pb2
from mesh.db.idempotent import IdempotentWrites
from stock_svc.servicers.stock import StockServicer
from stock_svc.tables import idempotency_records
from testing.databases import open_patiently


class Suspensions:
    """Counts the awaits at which tasks were suspended, and kills the process at one of them."""

    def __init__(self, die_at: int) -> None:
        self._die_at = die_at
        self._count = 0
        self.armed = False

    def task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(self._watched(work), loop=loop, **options)

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await _Stepped(work, self)

    def pass_one(self) -> None:
        if not self.armed:
            return
        self._count += 1
        if self._count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


class _Stepped:
    def __init__(self, work: Coroutine[Any, Any, Any], suspensions: Suspensions) -> None:
        self._work = work
        self._suspensions = suspensions

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        step: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                waited_for = step()
            except StopIteration as end:
                return end.value
            self._suspensions.pass_one()
            try:
                sent = yield waited_for
            except BaseException as error:  # noqa: BLE001 - CancelledError too
                step = partial(steps.throw, error)
            else:
                step = partial(steps.send, sent)


async def serve(order: dict[str, Any]) -> None:
    suspensions = Suspensions(order["die_at"])
    asyncio.get_running_loop().set_task_factory(suspensions.task)
    now = datetime.fromisoformat(order["now"])
    request = getattr(stock_service_pb2, f"{order['method']}Request")()
    json_format.ParseDict(order["request"], request)
    async with open_patiently(order["url"]) as database:
        writes = IdempotentWrites(database, idempotency_records, lambda: now)
        servicer = StockServicer(database, writes, lambda: now)
        # Opens the connection, so that only the awaits of the call are counted.
        await database.ping()
        suspensions.armed = True
        await asyncio.create_task(getattr(servicer, order["method"])(request, None))
        suspensions.armed = False


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(serve(json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"done {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
