"""The project's Python files as syntax trees, for rules on what may stand where."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mesh.paths import ROOT
from mesh.settings import SERVICES

SHARED = "mesh"

# Modules that translate to the contract without being servicers or clients, and why.
TRANSLATORS = {
    "auth_svc.repeats": "what is kept under a key is the answer as the contract says it",
    "auth_svc.events": "the outbox stores the messages that the event stream sends",
    "booking_svc.messages": "what booking_svc's servicers translate alike",
    "booking_svc.booking_messages": "what the servicer and the outbox translate alike",
    "booking_svc.booking_events": "the outbox stores messages of the contract",
    "booking_svc.catalogue_messages": "the catalogue's part of it",
    "stock_svc.messages": "what stock_svc's servicer translates",
    "stock_svc.changes": "the outbox stores the messages that the change stream sends",
    "booking_svc.subscriptions.bodies": "webhooks carry messages of the contract as JSON",
    "payment_svc.events": "the outbox stores the messages that the event stream sends",
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
        """Whether it translates between the domain and the contract: a servicer or a client."""
        last = self.name.rpartition(".")[2]
        return last.endswith(("servicer", "_client")) or self.name in TRANSLATORS

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
