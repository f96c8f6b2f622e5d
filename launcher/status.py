"""The status display of `make up`: a live table in a terminal, otherwise a line per change."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.mesh import Mesh
from launcher.supervisor import Process, State
from mesh.settings import SERVICES

_REFRESH_SECONDS = 1.0

_STYLES = {
    State.STARTING: "yellow",
    State.HEALTHY: "green",
    State.UNHEALTHY: "red",
    State.RESTARTING: "red",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
}


class Display(Protocol):
    """Shows the status of a mesh."""

    def showing(self, mesh: Mesh) -> AbstractContextManager[None]: ...
    def step(self, text: str) -> None: ...
    def change(self, process: Process) -> None: ...
    def ready(self) -> None: ...
    async def refresh(self) -> None: ...


def live() -> Display:
    """For a terminal."""
    return _LiveTable(Console())


def plain() -> Display:
    """For a log file or a pipe."""
    return _Lines()


class _Lines:
    def __init__(self) -> None:
        self._mesh: Mesh | None = None

    @contextmanager
    def showing(self, mesh: Mesh) -> Iterator[None]:
        self._mesh = mesh
        yield

    def step(self, text: str) -> None:
        _print(text)

    def change(self, process: Process) -> None:
        details = "" if process.pid is None else f" (pid {process.pid})"
        if process.state is State.RESTARTING:
            wait = max(0.0, process.retry_at - asyncio.get_running_loop().time())
            details = f" in {wait:.1f} s after {process.ending}"
        _print(f"{process.name}: {process.state}{details}")

    def ready(self) -> None:
        if self._mesh is not None:
            _print("Ready.")
            for name, value in _addresses(self._mesh):
                _print(f"{name}: {value}")

    async def refresh(self) -> None:
        """Does nothing: `change` prints each change."""


class _LiveTable:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._usage = _Usage()
        self._mesh: Mesh | None = None
        self._live: Live | None = None
        self._step = ""
        self._ready_after: float | None = None
        self._began = time.monotonic()

    @contextmanager
    def showing(self, mesh: Mesh) -> Iterator[None]:
        self._mesh = mesh
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield
            self._draw()

    def step(self, text: str) -> None:
        self._step = text
        self._ready_after = None
        self._draw()

    def change(self, process: Process) -> None:  # noqa: ARG002  the table shows all processes
        self._draw()

    def ready(self) -> None:
        self._ready_after = time.monotonic() - self._began
        self._draw()

    async def refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            if self._mesh is not None:
                self._usage.measure(self._mesh.processes)
            self._draw()

    def _draw(self) -> None:
        if self._live is not None and self._mesh is not None:
            self._live.update(self._render(self._mesh), refresh=True)

    def _render(self, mesh: Mesh) -> RenderableType:
        parts: list[RenderableType] = []
        if mesh.processes:
            parts.append(self._table(mesh))
        if self._ready_after is None:
            parts.append(Text(f"{self._step} …", style="yellow"))
        else:
            parts.append(Text(f"Ready after {self._ready_after:.1f} s.", style="bold green"))
            links = Table.grid(padding=(0, 2))
            for name, value in _addresses(mesh):
                links.add_row(Text(name, style="bold"), value)
            parts += [links, Text("Press Ctrl-C to stop the mesh.", style="dim")]
        return Group(*parts)

    def _table(self, mesh: Mesh) -> Table:
        table = Table(title="Boxoffice", title_justify="left", expand=False)
        for name in ("process", "state"):
            table.add_column(name, no_wrap=True)
        for name in ("pid", "port", "restarts", "uptime", "cpu", "memory"):
            table.add_column(name, justify="right", no_wrap=True)
        now = asyncio.get_running_loop().time()
        for process in mesh.processes:
            cpu, memory = self._usage.of(process)
            table.add_row(
                process.name,
                _state(process, now),
                str(process.pid or ""),
                str(process.program.port or ""),
                Text(str(process.restarts), style="red" if process.restarts else ""),
                _duration(now - process.started_at) if process.pid else "",
                cpu,
                memory,
            )
        return table


class _Usage:
    """CPU and memory of each process including its children."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._measured: dict[int, tuple[str, str]] = {}

    def of(self, process: Process) -> tuple[str, str]:
        return self._measured.get(process.pid or 0, ("", ""))

    def measure(self, processes: list[Process]) -> None:
        alive: dict[int, psutil.Process] = {}
        self._measured = {}
        for process in processes:
            if process.pid is None:
                continue
            cpu, memory = 0.0, 0
            for relative in self._family(process.pid):
                # Reuses the object, because cpu_percent() measures since its previous call.
                known = alive[relative.pid] = self._known.get(relative.pid, relative)
                with suppress(psutil.Error):
                    cpu += known.cpu_percent()
                    memory += known.memory_info().rss
            self._measured[process.pid] = (f"{cpu:.0f} %", f"{memory / 2**20:.0f} MiB")
        self._known = alive

    def _family(self, pid: int) -> list[psutil.Process]:
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            return [parent, *parent.children(recursive=True)]
        return []


def _state(process: Process, now: float) -> Text:
    text = str(process.state)
    if process.state is State.RESTARTING:
        text = f"restarting in {max(0.0, process.retry_at - now):.0f} s"
    return Text(text, style=_STYLES[process.state])


def _addresses(mesh: Mesh) -> list[tuple[str, str]]:
    settings = mesh.settings
    more = [
        (f"Gateway {n + 1}", f"http://127.0.0.1:{settings.gateway_port + n}")
        for n in range(1, settings.gateways)
    ]
    return [
        ("Gateway", f"{settings.gateway_url}  (REST, gRPC and gRPC-Web)"),
        *more,
        ("API page", f"{settings.gateway_url}/docs"),
        ("Health", f"{settings.gateway_url}/health"),
        ("Envoy admin", f"http://127.0.0.1:{settings.envoy_admin_port}"),
        ("Metrics", _metrics(mesh)),
        ("Certificates", str(settings.certificates)),
        ("Logs", str(settings.home / "logs")),
        ("First booking", "./boxoffice --help, or the README for an example with curl"),
    ]


def _metrics(mesh: Mesh) -> str:
    ports = sorted(mesh.settings.metrics_port(service) for service in SERVICES)
    return f"http://{mesh.settings.metrics_host}:{ports[0]}–{ports[-1]}/metrics"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _print(text: str) -> None:
    print(text, flush=True)
