"""The project's Python files as syntax trees, for rules on what may stand where."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mesh.paths import ROOT
from mesh.settings import SERVICES

SHARED = "mesh"

# Folders and files that translate between domain values and messages of the contract.
EDGE_FOLDERS = {"servicers", "clients"}
EDGE_FILES = {"proto", "outbox"}
# Further modules that use messages, and why.
TRANSLATORS = {
    "auth_svc.idempotency": "an idempotency record stores the answer as a message",
    "booking_svc.webhooks.payload": "webhooks carry messages as JSON",
    "booking_svc.queueing.waiting_list_proto": "proto.py of the waiting list",
    "booking_svc.queueing.on_sale_report_proto": "proto.py of the on-sale report",
    "booking_svc.queueing.waiting_list_outbox": "outbox.py of the waiting list",
    "booking_svc.notifications.waiting_list_mails": "mails about the outbox's messages",
}


@dataclass(frozen=True, slots=True)
class Module:
    """A file by its dotted name, e.g. `stock_svc.reservations`."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def is_edge(self) -> bool:
        """Whether it translates between the domain and the contract."""
        *folders, last = self.name.split(".")
        return (
            not EDGE_FOLDERS.isdisjoint(folders)
            or (self.package in SERVICES and last in EDGE_FILES)
            or self.name in TRANSLATORS
        )

    @property
    def is_domain(self) -> bool:
        """Whether it is business: neither an edge, the start, settings nor migrations."""
        parts = self.name.split(".")
        return (
            self.package in SERVICES
            and not self.is_edge
            and "migrations" not in parts
            and parts[-1] not in {"__main__", "settings"}
        )

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted name of everything that is imported, wherever in the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Every module of a package, in the order of their names."""
    return tuple(
        Module(_name(path), path, ast.parse(path.read_text("utf-8"), str(path)))
        for path in sorted((ROOT / package).rglob("*.py"))
    )


def module_of(source: str, name: str = "stock_svc.example") -> Module:
    """A module from its text, to try a rule on."""
    return Module(name, Path(f"{name}.py"), ast.parse(source))


def _name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
