"""Everything that a run found, as plain data for the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.checks.audit import Finding
from chaos.checks.evidence import Evidence
from chaos.checks.history import History, Window
from chaos.faults.injector import breaks_the_way_in
from chaos.faults.plan import Injection
from chaos.faults.processes import Outage
from chaos.workload.journal import Journal

HUNG_SECONDS = 14.0
"""Longer than the deadline of any call through the gateway, except of those that hash passwords."""

# Connections that were open before a fault see its end a moment later.
_AFTERMATH_SECONDS = 2.0


@dataclass
class Result:
    """`command` repeats the run. Times are in seconds of the monotonic clock.

    `converged` has, per outage, the seconds until all saga steps from before its end were done.
    `leftovers` are the connections and transactions that should be gone when nothing calls any
    more; `has_open_sagas` whether saga steps are left then.
    """

    seed: int
    command: str
    plan: Sequence[Injection]
    about: dict[str, str] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    outages: list[Outage] = field(default_factory=list)
    converged: dict[int, float | None] = field(default_factory=dict)
    history: History = field(default_factory=History)
    journal: Journal = field(default_factory=lambda: Journal(0))
    oddities: list[str] = field(default_factory=list)
    evidence: Evidence | None = None
    findings: list[Finding] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    has_open_sagas: bool = False
    looks: int = 0
    purchases: int = 0
    commits_cut: dict[str, int] = field(default_factory=dict)
    settled_seconds: float = 0.0
    hung_seconds: float = HUNG_SECONDS

    def windows(self) -> list[Window]:
        """The faults with their recoveries."""
        return [
            Window(outage.began, outage.healed + (outage.away_seconds or 0) + _AFTERMATH_SECONDS)
            for outage in self.outages
        ]

    def hung(self) -> list[str]:
        """Calls without an answer in time although the way to the gateway was open."""
        broken = [
            window
            for window, outage in zip(self.windows(), self.outages, strict=True)
            if breaks_the_way_in(outage)
        ]
        return [
            f"{attempt.method} {attempt.path}: {attempt.reason} after "
            f"{attempt.ended - attempt.began:.1f} s, {attempt.began - self.began:.0f} s after the start"
            for attempt in self.history.hung(self.hung_seconds, broken)
        ]

    def failures(self) -> list[str]:
        """Every broken promise; empty for a clean run."""
        return [
            *(f"audit: {finding.fault}: {finding.detail}" for finding in self.findings),
            *(f"during the run: {violation}" for violation in self.violations),
            *(f"left over: {leftover}" for leftover in self.leftovers),
            *(["left over: saga steps"] if self.has_open_sagas else []),
            *(f"no answer in time: {call}" for call in self.hung()),
            *(
                f"a bug: {attempt.method} {attempt.path}: INTERNAL, "
                f"{attempt.began - self.began:.0f} s after the start"
                for attempt in self.history.attempts
                if attempt.reason == "INTERNAL"
            ),
            *(f"answer that violates the contract: {text}" for text in self.journal.violations),
            *(f"error without a reason: {text}" for text in self.oddities),
            *(
                f"not recovered: {outage.action}"
                for outage in self.outages
                if outage.away_seconds is None
            ),
            *(
                f"saga steps not done in time after: {self.outages[number].action}"
                for number, seconds in self.converged.items()
                if seconds is None
            ),
            *([] if self.journal.confirmed else ["nothing was sold, so this run proves nothing"]),
        ]
