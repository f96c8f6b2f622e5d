"""A whole run: a mesh, customers, faults, and the audit when all is over."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from chaos import proxied_mesh
from chaos.checks.evidence import Investigator
from chaos.checks.final_audit import audit_when_settled
from chaos.checks.history import History
from chaos.checks.watch import Watcher, dropped_connections, pool_slots_in_use
from chaos.client import Api
from chaos.faults import plan
from chaos.faults.injector import Injector
from chaos.faults.plan import Choice, Injection
from chaos.faults.processes import RECOVERY_SECONDS, Outage
from chaos.proxied_mesh import ProxiedMesh, Say
from chaos.result import Result
from chaos.workload import catalogue, customers
from chaos.workload.canary import Canary
from chaos.workload.customers import Shop
from chaos.workload.leaver import Leaver

CONVERGE_SECONDS = 60.0
"""After a fault has healed, the saga steps from before are done within this time."""

# Customers who are still there after this time leave in the middle of what they do.
_CLOSING_SECONDS = 60.0
_PURCHASE_SECONDS = 5.0
_SETTLE_SECONDS = 240.0
_REPORT_SECONDS = 15.0
_CONNECTIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run. `given` replaces the plan of the seed. `patience` multiplies the limits for the
    mesh to converge, on a machine that does other work."""

    seed: int
    minutes: float
    command: str
    home: Path
    folder: Path
    ports: tuple[int, int, int]
    replicas: int
    gateways: int
    customers_per_second: float
    leavers: int
    hold_seconds: int
    only: Sequence[Choice] = ()
    given: Sequence[Injection] = ()
    patience: float = 1.0


async def run(options: Options, say: Say) -> Result:
    """Runs to the end of the plan and of all bookings. Raises LaunchError."""
    options.folder.mkdir(parents=True, exist_ok=True)
    async with proxied_mesh.running(
        options.home,
        ports=options.ports,
        replicas=options.replicas,
        gateways=options.gateways,
        hold_seconds=options.hold_seconds,
        seed=options.seed,
        say=say,
    ) as mesh:
        with (options.folder / "history.jsonl").open("w") as file:
            return await _Run(options, mesh, History(file), say).run()


class _Run:
    def __init__(self, options: Options, mesh: ProxiedMesh, history: History, say: Say) -> None:
        pairs = plan.targets(mesh.processes, mesh.edges)
        planned = options.given or plan.make(
            options.seed, options.minutes * 60, pairs, options.only
        )
        self._options = options
        self._mesh = mesh
        self._say = say
        self._watcher = Watcher(mesh.servers)
        self._reported = 0.0
        self._converging: list[asyncio.Task[None]] = []
        self.result = Result(options.seed, options.command, planned, history=history)
        self.result.hung_seconds *= options.patience

    async def run(self) -> Result:
        result, mesh = self.result, self._mesh
        (self._options.folder / "plan.txt").write_text("".join(f"{line}\n" for line in result.plan))
        async with (
            Api(*mesh.direct_urls, connections=_CONNECTIONS) as staff,
            Api(
                *mesh.urls,
                connections=_CONNECTIONS,
                randomness=random.Random(result.seed),
                on_attempt=result.history.record,
            ) as api,
        ):
            token = await catalogue.sign_in_admin(staff, mesh.admin_secret)
            shop = await customers.put_shop_on_sale(staff, token)
            canary = await Canary.create(
                staff, token, mesh.direct_urls, seconds=_PURCHASE_SECONDS * self._options.patience
            )
            investigator = Investigator(
                staff, token, [*(show.event_id for show in shop.shows), canary.event_id]
            )
            await investigator.start()
            async with _in_background(self._watcher.run()):
                await self._break(shop, api, token, canary)
                await self._settle(investigator)
            result.oddities = [
                f"{count} times {text}" for text, count in api.tally.oddities.most_common()
            ]
            result.purchases = canary.purchases
        result.looks = self._watcher.reads
        result.violations = self._watcher.violations
        result.commits_cut = {
            moment: sum(edge.commits_cut[moment] for edge in mesh.edges.values())
            for moment in ("before", "after")
        }
        result.leftovers += await self._leftovers()
        seconds = CONVERGE_SECONDS * self._options.patience
        result.has_open_sagas = await self._watcher.converged_after(seconds) is None
        return result

    async def _break(self, shop: Shop, api: Api, token: str, canary: Canary) -> None:
        """Customers, and the faults of the plan."""
        result, options = self.result, self._options
        injector = Injector(
            self._mesh,
            canary.buys,
            self._say,
            self._converge,
            RECOVERY_SECONDS * options.patience,
        )
        result.outages = injector.outages
        closing, run_id = asyncio.Event(), uuid4().hex[:8]
        self._say(f"{len(result.plan)} faults. {options.command}")
        result.began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            visits = [
                group.create_task(
                    customers.keep_coming(
                        shop,
                        api=api,
                        journal=result.journal,
                        staff_token=token,
                        seed=result.seed,
                        run=run_id,
                        per_second=options.customers_per_second,
                        closing=closing,
                    )
                )
            ]
            for number in range(options.leavers):
                random_ = random.Random(f"{result.seed}:leaver:{number}")
                leaver = Leaver(
                    api=api,
                    urls=self._mesh.urls,
                    show=random_.choice(shop.dates),
                    journal=result.journal,
                    name=f"{number}.{run_id}",
                    random_=random_,
                    on_attempt=result.history.record,
                )
                visits.append(group.create_task(leaver.run(closing)))
            await injector.run(result.plan)
            remaining = result.began + options.minutes * 60 - time.monotonic()
            await asyncio.sleep(max(0.0, remaining))
            closing.set()
            self._say(f"Closing: {result.journal.active} customers are still there.")
            _, late = await asyncio.wait(visits, timeout=_CLOSING_SECONDS * options.patience)
            for visit in late:
                visit.cancel()
        result.ended = time.monotonic()

    def _converge(self, _: Outage) -> None:
        """Measures the time until all saga steps from before are done."""
        number = len(self.result.outages) - 1

        async def measure() -> None:
            seconds = CONVERGE_SECONDS * self._options.patience
            self.result.converged[number] = await self._watcher.converged_after(seconds)

        self._converging.append(asyncio.create_task(measure()))

    async def _settle(self, investigator: Investigator) -> None:
        """Waits until all holds have ended and all refunds are made, and audits."""
        result, start = self.result, time.monotonic()
        self._say("Waiting for holds to end and refunds to be made.")
        await asyncio.gather(*self._converging)
        result.evidence, result.findings = await audit_when_settled(
            investigator,
            result.journal.orders,
            seconds=_SETTLE_SECONDS * self._options.patience,
            on_audit=self._report_audit,
        )
        result.settled_seconds = time.monotonic() - start

    def _report_audit(self, still_open: int, findings: int) -> None:
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self._reported = time.monotonic()
            self._say(f"Open bookings: {still_open}, findings so far: {findings}.")

    async def _leftovers(self) -> list[str]:
        lost = dropped_connections(self._mesh.home / "logs")
        held = await pool_slots_in_use(self._mesh.metrics_urls())
        return [
            *(f"{count} connections of {name} in use" for name, count in held.items()),
            *(f"{count} connections that {name} lost" for name, count in lost.items()),
            *(f"idle transaction, {text}" for text in await self._watcher.idle_transactions()),
        ]


@asynccontextmanager
async def _in_background(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
