"""What a test run consisted of and how long it took: by worker, and by folder or test."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

_LONGEST = 25


@dataclass
class _Tests:
    count: int = 0
    seconds: float = 0.0


@dataclass
class Durations:
    """Adds up the reports of set-ups, calls and tear-downs."""

    workers: dict[str, _Tests] = field(default_factory=dict)
    folders: dict[str, _Tests] = field(default_factory=dict)
    tests: dict[str, float] = field(default_factory=dict)

    def add(self, report: pytest.TestReport) -> None:
        if isinstance(report, pytest.SubtestReport):
            return  # Its test's report contains its time.
        node = getattr(report, "node", None)
        worker = node.gateway.id if node is not None else "this process"
        folder = "/".join(report.nodeid.partition("::")[0].split("/")[:2])
        for table, key in ((self.workers, worker), (self.folders, folder)):
            tests = table.setdefault(key, _Tests())
            tests.count += report.when == "call"
            tests.seconds += report.duration
        self.tests[report.nodeid] = self.tests.get(report.nodeid, 0.0) + report.duration

    def by_worker(self) -> str:
        """One line: the workers should end at about the same time."""
        return "; ".join(
            f"{worker}: {tests.count} tests, {tests.seconds:.0f} s"
            for worker, tests in sorted(self.workers.items())
        )

    def table(self) -> Iterable[str]:
        """The folders and the longest tests."""
        for folder, tests in sorted(self.folders.items(), key=lambda row: -row[1].seconds):
            yield f"{tests.seconds:8.1f} s {tests.count:6} tests  {folder}"
        yield ""
        for nodeid, seconds in sorted(self.tests.items(), key=lambda row: -row[1])[:_LONGEST]:
            yield f"{seconds:8.1f} s  {nodeid}"
