"""`--kill`: faults of chaos/ during the sale, each after the recovery of the previous one."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx

from chaos.faults.plan import Fault
from chaos.faults.processes import REDIS, Outage, inflict, pid_file, running_pid
from demo.errors import DemoError
from mesh.settings import SERVICES

ALL_IN_TURN = "all-in-turn"
SECONDS_PER_KILL = 6.0
"""How much each kill extends the arrival of customers, so that customers are active during it."""

_FAULTS = {
    **{name: (Fault.KILL, name, 0.0) for name in (*SERVICES, "gateway", REDIS)},
    # Shorter than the supervisor's limit for a dead process.
    "redis-frozen": (Fault.FREEZE, REDIS, 3.0),
    "redis-flushed": (Fault.FLUSH, REDIS, 0.0),
}
_FIRST_AFTER_SECONDS = 1.5
_PAUSE_SECONDS = 1.5


class Kills:
    """Injects the faults of a --kill option one after the other."""

    def __init__(self, names: Sequence[str], *, home: Path, url: str) -> None:
        self.outages: list[Outage] = []
        self._planned = [Outage(*_FAULTS[name]) for name in names]
        self._home = home
        self._url = url

    @property
    def seconds(self) -> float:
        """The time that the kills need, in seconds."""
        return SECONDS_PER_KILL * len(self._planned)

    @property
    def current(self) -> Outage | None:
        """The fault whose process has not recovered yet."""
        last = self.outages[-1] if self.outages else None
        return last if last is not None and last.away_seconds is None else None

    def check(self) -> None:
        """Raises DemoError when a process to kill does not run on this machine."""
        for outage in self._planned:
            if running_pid(self._home, outage.target) is None:
                raise DemoError(
                    f"There is no {outage.target} to kill: "
                    f"{pid_file(self._home, outage.target)} names no running process. "
                    "The demo kills only processes that `make up` started on this machine "
                    "with the same BOXOFFICE_HOME."
                )

    async def run(self) -> None:
        if not self._planned:
            return
        await asyncio.sleep(_FIRST_AFTER_SECONDS)
        async with httpx.AsyncClient(base_url=self._url, timeout=3, trust_env=False) as client:
            for outage in self._planned:
                self.outages.append(outage)
                path = "/health/cache" if outage.target == REDIS else "/health"
                await inflict(outage, self._home, partial(_answers_ok, client, path))
                await asyncio.sleep(_PAUSE_SECONDS)


def parse(text: str) -> tuple[str, ...]:
    """The names in a --kill option. Raises DemoError for one that cannot be killed."""
    if not text:
        return ()
    if text == ALL_IN_TURN:
        return SERVICES
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in _FAULTS:
            raise DemoError(f"--kill takes {', '.join(_FAULTS)} or {ALL_IN_TURN}, not {name!r}.")
    return names


async def _answers_ok(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
