"""The processes of a peer."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from mesh.paths import BENCH_PACKAGES, ROOT

_START_SECONDS = 60


@dataclass(frozen=True)
class Peer:
    """A running peer: its URL and the pids of its processes by name."""

    name: str
    url: str
    pids: Mapping[str, int]


@contextmanager
def running(name: str, url: str, commands: Mapping[str, Sequence[str]]) -> Iterator[Peer]:
    """Starts the commands, waits until the URL answers anything, and stops them at the end."""
    path = os.pathsep.join([*map(str, (ROOT, BENCH_PACKAGES)), os.environ.get("PYTHONPATH", "")])
    processes = {
        process: subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT)
        for process, command in commands.items()
    }
    try:
        _wait_until_up(url, processes)
        yield Peer(name, url, {process: popen.pid for process, popen in processes.items()})
    finally:
        for popen in processes.values():
            popen.terminate()
        for popen in processes.values():
            popen.wait(_START_SECONDS)


def _wait_until_up(url: str, processes: "Mapping[str, subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        for process, popen in processes.items():
            if popen.poll() is not None:
                raise SystemExit(f"{process} of {url} ended with {popen.returncode}")
        try:
            httpx.get(url, timeout=1, trust_env=False)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
