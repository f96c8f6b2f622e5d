"""CPU time and memory of the processes under test, and the batch sizes that they report."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

_BATCH_SIZE = "boxoffice_batch_size"


def mesh_pids(home: Path) -> dict[str, int]:
    """The processes of a mesh by name, the launcher included."""
    pids = {
        file.stem: int(json.loads(file.read_text())["pid"]) for file in (home / "run").glob("*.pid")
    }
    return {"launcher": psutil.Process(pids["postgres"]).ppid(), **pids}


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """User and system time since the start of each process, its children included.

    A child that has a name of its own is not included.
    """
    own = set(pids.values())
    used: defaultdict[str, float] = defaultdict(float)
    for name, pid in pids.items():
        for process in _with_children(pid, own):
            # A child may end meanwhile; its parent's times then contain it.
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[name] += times.user + times.system
                if name != "launcher":
                    # Those of the launcher would be services that were restarted.
                    used[name] += times.children_user + times.children_system
    return dict(used)


def rss_mib(pids: Mapping[str, int]) -> dict[str, float]:
    """Memory by process: of PostgreSQL's processes, which share buffers, the proportional part."""
    own = set(pids.values())
    used: defaultdict[str, float] = defaultdict(float)
    for name, pid in pids.items():
        for process in _with_children(pid, own):
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_full_info()
                used[name] += (memory.pss if name == "postgres" else memory.rss) / 2**20
    return dict(used)


def _with_children(pid: int, own: set[int]) -> list[psutil.Process]:
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    if any(child.pid in own for child in children):
        return [process]
    return [process, *children]


def batch_counters(home: Path) -> dict[str, tuple[float, float]]:
    """The number of requests and of batches so far, by kind of batch."""
    counters: dict[str, tuple[float, float]] = {}
    for group in json.loads((home / "scrape.json").read_text()):
        if group["labels"]["job"] == "gateway":
            continue
        for target in group["targets"]:
            text = httpx.get(f"http://{target}/metrics", trust_env=False).text
            counters |= parse_batches(text)
    return counters


def parse_batches(text: str) -> dict[str, tuple[float, float]]:
    """The sums and counts of the histogram of batch sizes in a service's metrics."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if family.name == _BATCH_SIZE:
            for sample in family.samples:
                if sample.name.endswith("_sum"):
                    sums[sample.labels["batches"]] = sample.value
                elif sample.name.endswith("_count"):
                    counts[sample.labels["batches"]] = sample.value
    return {name: (sums[name], counts[name]) for name in counts}
