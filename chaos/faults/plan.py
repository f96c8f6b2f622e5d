"""The plan of a run: which fault is injected into what, when and for how long.

Pure: the same seed gives the same plan. A plan can be written, edited and replayed.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Kinds of fault."""

    KILL = "kill"
    """SIGKILL of a process. The launcher restarts it."""
    FREEZE = "freeze"
    """SIGSTOP of a process, then SIGCONT."""
    STOP = "stop"
    """SIGTERM of a process: it drains and ends. The launcher restarts it."""
    CRASH = "crash"
    """PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start."""
    TERMINATE = "terminate"
    """pg_terminate_backend of all connections of the services."""
    FLUSH = "flush"
    """FLUSHALL of Redis."""
    LATENCY = "latency"
    """Each chunk of an edge arrives 50 to 500 ms late."""
    THROTTLE = "throttle"
    """An edge passes 20 kB/s in each direction."""
    RESET = "reset"
    """Connections of an edge are reset 0 to 500 ms after they were opened."""
    STALL = "stall"
    """An edge passes nothing, in neither direction; connections stay open."""
    DROP_REQUESTS = "drop-requests"
    """An edge passes nothing from the caller to the callee."""
    DROP_REPLIES = "drop-replies"
    """An edge passes nothing from the callee to the caller."""
    SLICES = "slices"
    """An edge passes one byte at a time."""
    CUT_COMMIT = "cut-commit"
    """A connection to PostgreSQL is reset when a COMMIT passes: for half of them before it reaches
    the server, for the others after it and before the answer."""


OF_EDGES = frozenset(
    {
        *(Fault.LATENCY, Fault.THROTTLE, Fault.RESET, Fault.STALL, Fault.DROP_REQUESTS),
        *(Fault.DROP_REPLIES, Fault.SLICES, Fault.CUT_COMMIT),
    }
)

SECONDS: dict[Fault, tuple[float, float]] = {
    Fault.FREEZE: (1, 8),
    Fault.LATENCY: (4, 10),
    Fault.THROTTLE: (4, 10),
    Fault.RESET: (3, 8),
    Fault.STALL: (3, 30),
    Fault.DROP_REQUESTS: (3, 30),
    Fault.DROP_REPLIES: (3, 30),
    Fault.SLICES: (3, 6),
    Fault.CUT_COMMIT: (4, 10),
}
"""The range of the durations of a fault; the others take no time."""

# Between the end of a fault and the next one: the mesh recovers and works for a while.
_GAP_SECONDS = (4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault of `target`, a process or an edge, for `seconds`. It begins `at` seconds after the
    start, or later: the previous one has healed first.
    """

    at: float
    fault: Fault
    target: str
    seconds: float = 0.0

    def __str__(self) -> str:
        duration = f" {self.seconds:.1f}" if self.seconds else ""
        return f"{self.at:.1f} {self.fault} {self.target}{duration}"

    @property
    def is_of_edge(self) -> bool:
        return self.fault in OF_EDGES


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry of `--only`: a fault, perhaps of one target only, perhaps of a fixed duration."""

    fault: Fault
    target: str = ""
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """`fault[:target[:seconds]]`, e.g. `kill`, `freeze:postgres:60`, `stall::5`.

        Raises ValueError.
        """
        name, _, rest = text.partition(":")
        target, _, seconds = rest.partition(":")
        return cls(Fault(name), target, float(seconds or 0))

    def matches(self, fault: Fault, target: str) -> bool:
        return fault is self.fault and self.target in {"", target}


def targets(processes: Collection[str], edges: Collection[str]) -> list[tuple[Fault, str]]:
    """Every fault of every process and edge, without those that a target cannot have."""
    pairs: list[tuple[Fault, str]] = []
    for process in processes:
        match process:
            case "postgres":
                kinds = [Fault.CRASH, Fault.TERMINATE, Fault.FREEZE]
            case "redis":
                kinds = [Fault.KILL, Fault.FREEZE, Fault.FLUSH]
            case _:
                kinds = [Fault.KILL, Fault.FREEZE, Fault.STOP]
        pairs += [(kind, process) for kind in kinds]
    for edge in edges:
        pairs += [
            (kind, edge)
            for kind in Fault
            if kind in OF_EDGES and (kind is not Fault.CUT_COMMIT or edge.endswith(">postgres"))
        ]
    return pairs


def make(
    seed: int,
    seconds: float,
    pairs: Sequence[tuple[Fault, str]],
    only: Collection[Choice] = (),
) -> list[Injection]:
    """The injections of a run of `seconds`, those of different kinds in turn.

    All pairs occur before one occurs again. Raises ValueError when `only` matches none.
    """
    choices = {
        pair: next((choice for choice in only if choice.matches(*pair)), None) for pair in pairs
    }
    selected = [pair for pair in pairs if not only or choices[pair] is not None]
    if not selected:
        raise ValueError("no process or edge of this mesh can have these faults")
    random_ = random.Random(seed)
    plan: list[Injection] = []
    at = random_.uniform(*_GAP_SECONDS)
    while True:
        for fault, target in _shuffled(selected, random_):
            choice = choices[fault, target]
            low, high = SECONDS.get(fault, (0.0, 0.0))
            duration = random_.uniform(low, high)
            if choice is not None and choice.seconds:
                duration = choice.seconds
            if at + duration > seconds and plan:
                return plan
            plan.append(Injection(round(at, 1), fault, target, round(duration, 1)))
            at += duration + random_.uniform(*_GAP_SECONDS)


def _shuffled(
    pairs: Iterable[tuple[Fault, str]], random_: random.Random
) -> list[tuple[Fault, str]]:
    """In random order, but one of each kind before a second one of any kind."""
    by_kind: defaultdict[Fault, list[str]] = defaultdict(list)
    for fault, target in pairs:
        by_kind[fault].append(target)
    for listed in by_kind.values():
        random_.shuffle(listed)
    rounds: list[tuple[Fault, str]] = []
    while by_kind:
        kinds = sorted(by_kind)
        random_.shuffle(kinds)
        rounds += [(kind, by_kind[kind].pop()) for kind in kinds]
        by_kind = defaultdict(list, {kind: listed for kind, listed in by_kind.items() if listed})
    return rounds


def parse(text: str) -> list[Injection]:
    """A plan from its lines, as they are printed; blank lines and those with # are ignored.

    Raises ValueError that names the line.
    """
    plan = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        try:
            at, fault, target, *duration = parts
            seconds = float(duration[0]) if duration else 0.0
            plan.append(Injection(float(at), Fault(fault), target, seconds))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return plan
