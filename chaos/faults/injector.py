"""Carries out a plan: each fault at its time, after the previous one has healed and recovered."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chaos.faults import processes
from chaos.faults.plan import Fault, Injection
from chaos.faults.processes import RECOVERY_SECONDS, Outage
from chaos.faults.proxy import Proxy

_POLL_SECONDS = 0.1


class Target(Protocol):
    """The mesh that is broken."""

    edges: dict[str, Proxy]

    def home_of(self, process: str) -> Path:
        """The state folder with the process's pid file."""

    async def is_ready(self, process: str) -> bool:
        """Whether a process is ready for calls."""


@dataclass
class Injector:
    """`works` returns whether a purchase succeeds; a target has recovered when it does.

    `on_healed` is called with each outage after its end. A target that does not work after
    `recovery_seconds` has not recovered.
    """

    target: Target
    works: Callable[[], Awaitable[bool]]
    say: Callable[[str], None]
    on_healed: Callable[[Outage], None] = lambda _: None
    recovery_seconds: float = RECOVERY_SECONDS
    outages: list[Outage] = field(default_factory=list)

    async def run(self, plan: Sequence[Injection]) -> None:
        """Returns when the last target has recovered. A late fault delays those after it."""
        start = time.monotonic()
        late = 0.0
        for injection in plan:
            late = max(late, time.monotonic() - start - injection.at)
            await asyncio.sleep(max(0.0, start + injection.at + late - time.monotonic()))
            await self._inject(injection, time.monotonic() - start)

    async def _inject(self, injection: Injection, at: float) -> None:
        outage = Outage(injection.fault, injection.target, injection.seconds)
        self.outages.append(outage)
        if injection.is_of_edge:
            await self._break_edge(outage)
        else:
            await processes.inflict(
                outage,
                self.target.home_of(injection.target),
                lambda: self._is_well(injection.target),
                seconds=self.recovery_seconds,
            )
        self.on_healed(outage)
        recovery = (
            "not recovered" if outage.away_seconds is None else f"{outage.away_seconds:.1f} s"
        )
        self.say(f"{at:7.1f} s  {outage.action}: {recovery}")

    async def _break_edge(self, outage: Outage) -> None:
        edge = self.target.edges[outage.target]
        outage.began = time.monotonic()
        edge.inject(outage.fault)
        try:
            await asyncio.sleep(outage.seconds)
        finally:
            edge.heal()
        outage.healed = time.monotonic()
        while time.monotonic() < outage.healed + self.recovery_seconds:
            if await self.works():
                outage.away_seconds = time.monotonic() - outage.healed
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_well(self, process: str) -> bool:
        return await self.target.is_ready(process) and await self.works()


def breaks_the_way_in(outage: Outage) -> bool:
    """Whether clients may get no answer: the fault is of a gateway, or of an edge to one."""
    is_frozen = outage.fault in {Fault.FREEZE, Fault.KILL, Fault.STOP}
    return outage.target.startswith("clients>") or (
        is_frozen and outage.target.startswith("gateway")
    )
