"""Who may know whom: domain code knows no wire, and no service knows another."""

import ast
from collections.abc import Iterator

import pytest

from mesh.settings import SERVICES
from tests.architecture.sources import SHARED, TRANSLATORS, Module, module_of, modules

# What speaks gRPC or protobuf.
WIRE = ("grpc", "grpc_status", "grpc_health", "grpc_reflection", "boxoffice", "google")

# Where any error at all may be caught, and why. One each.
CATCH_ALL = {
    "auth_svc.hashing_threads": "whatever hashing ends with, its caller must get it",
    "mesh.coalescing": "whatever a batch ends with, its callers must get it",
    "mesh.rpc.server": "whatever it is, the database is not usable",
    "mesh.tasks": "the top of every background loop",
    "booking_svc.bookings.step_runner": "the top of saga steps: they are retried later",
    "booking_svc.notifications.consumer": "a mail that cannot be written keeps back no others",
}

ALL = [module for package in (*SERVICES, SHARED) for module in modules(package)]


def of_wire(module: Module) -> Iterator[str]:
    for line, name in module.imports():
        if name.split(".")[0] in WIRE:
            yield f"{module.path}:{line} imports {name}"


def of_tables(module: Module) -> Iterator[str]:
    for line, name in module.imports():
        if name.split(".")[:2] == [module.package, "tables"]:
            yield f"{module.path}:{line} imports {name}"


def of_others(module: Module) -> Iterator[str]:
    strangers = {*SERVICES, "launcher", "gateway", "tests"} - {module.package}
    for line, name in module.imports():
        if name.split(".")[0] in strangers:
            yield f"{module.path}:{line} imports {name}"


def catches_everything(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and _is_everything(node.type):
            yield f"{module.path}:{node.lineno} catches everything"


def _is_everything(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(_is_everything(module) for module in caught.elts)
    return caught is None or (
        isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"}
    )


@pytest.mark.parametrize("service", SERVICES)
def test_there_is_domain_code_to_look_at(service: str) -> None:
    assert any(module.is_domain for module in modules(service))


def test_domain_code_knows_no_wire() -> None:
    assert [fault for module in ALL if module.is_domain for fault in of_wire(module)] == []


def test_servicers_and_clients_know_no_tables() -> None:
    servicers = [module for module in ALL if "servicers" in module.name.split(".")]
    assert [fault for module in servicers for fault in of_tables(module)] == []


def test_the_translators_exist_and_translate() -> None:
    for name in TRANSLATORS:
        [module] = [module for module in ALL if module.name == name]
        assert list(of_wire(module)) != []


def test_no_service_knows_another() -> None:
    assert [fault for module in ALL for fault in of_others(module)] == []


def test_everything_is_caught_in_the_named_places_only() -> None:
    caught = {module.name: list(catches_everything(module)) for module in ALL}
    assert {name: lines for name, lines in caught.items() if len(lines) > (name in CATCH_ALL)} == {}


def test_the_named_places_exist() -> None:
    for name in CATCH_ALL:
        [module] = [module for module in ALL if module.name == name]
        assert len(list(catches_everything(module))) == 1


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (of_wire, "import grpc"),
        (of_wire, "import grpc.aio"),
        (of_wire, "from boxoffice.stock.v1 import stock_service_pb2"),
        (of_wire, "def f():\n    from google.protobuf import message"),
        (of_tables, "from stock_svc import tables"),
        (of_tables, "from stock_svc.tables import pools"),
        (of_others, "from auth_svc import tokens"),
        (of_others, "import booking_svc.bookings"),
        (catches_everything, "try:\n    f()\nexcept Exception:\n    pass"),
        (catches_everything, "try:\n    f()\nexcept (ValueError, Exception):\n    pass"),
        (catches_everything, "try:\n    f()\nexcept:\n    pass"),
        (catches_everything, "try:\n    f()\nexcept BaseException:\n    raise"),
    ],
)
def test_each_rule_finds_what_it_forbids(rule: object, source: str) -> None:
    assert callable(rule)
    assert len(list(rule(module_of(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import sqlalchemy as sa\nfrom mesh.errors import DomainError\nfrom stock_svc import ledger",
        "try:\n    f()\nexcept (ValueError, KeyError):\n    pass",
    ],
)
def test_and_nothing_else(source: str) -> None:
    module = module_of(source)
    assert [*of_wire(module), *of_others(module), *catches_everything(module)] == []
