"""A policy names no reason that its service cannot answer with.

A reason counts as reachable when the service's code, or the part of mesh/ that it uses,
names `Reason.X` somewhere other than in a comparison. booking_svc also passes on
what the services answer that it calls.
"""

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from mesh.settings import SERVICES
from tests.architecture.contract import policies
from tests.architecture.sources import SHARED, Module, module_of, modules

IMPLEMENTED_BY = {
    "auth": "auth_svc",
    "catalogue": "booking_svc",
    "bookings": "booking_svc",
    "health": "booking_svc",
    "stock": "stock_svc",
    "payments": "payment_svc",
    "webhooks": "booking_svc",
    "queueing": "booking_svc",
}

# It names every reason, to say how each looks on the wire.
TABLE_OF_ALL = "mesh.rpc.errors"


def reasons_named(module: Module) -> Iterator[str]:
    """X of every `Reason.X` in a module, except those that something is compared with."""
    roots: list[ast.AST] = [module.tree]
    if module.name == TABLE_OF_ALL:
        roots = [node for node in module.tree.body if isinstance(node, ast.FunctionDef)]
    while roots:
        node = roots.pop()
        if isinstance(node, ast.Compare | ast.match_case):
            roots += node.body if isinstance(node, ast.match_case) else []
            continue
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "Reason"
        ):
            yield node.attr
        roots += ast.iter_child_nodes(node)


def used_of_mesh(service: str) -> set[Module]:
    """The modules of mesh/ that a service imports, and those that they import."""
    by_name = {module.name: module for module in modules(SHARED)}
    visited: set[Module] = set()
    waiting = list(modules(service))
    while waiting:
        for _, imported in waiting.pop().imports():
            for name in (imported, imported.rpartition(".")[0]):
                module = by_name.get(name)
                if module is not None and module not in visited:
                    visited.add(module)
                    waiting.append(module)
    return visited


@cache
def reachable(service: str) -> set[str]:
    return {
        reason
        for module in (*modules(service), *used_of_mesh(service))
        for reason in reasons_named(module)
    }


def passed_on(service: str) -> set[str]:
    """Reasons of the methods that the service may call."""
    return {
        reason
        for path, policy in policies().items()
        if service in policy.callers and implementing(path) != service
        for reason in policy.reasons
    }


def implementing(path: str) -> str:
    """The service of a gRPC path, e.g. of `/boxoffice.stock.v1.StockService/Reserve`."""
    return IMPLEMENTED_BY[path.split(".")[1]]


def test_every_reason_that_a_policy_names_is_reachable() -> None:
    unreachable = {}
    for path, named in policies().items():
        service = implementing(path)
        if never := named.reasons - reachable(service) - passed_on(service):
            unreachable[path] = sorted(never)
    assert unreachable == {}


@pytest.mark.parametrize("service", SERVICES)
def test_the_scan_is_not_blind(service: str) -> None:
    """Control: each service has reasons of its own, and none reaches every reason there is."""
    own = {reason for module in modules(service) for reason in reasons_named(module)}
    assert own
    assert "ROUTE_NOT_FOUND" not in reachable(service)


def test_what_counts_as_naming_a_reason() -> None:
    source = """
def f(error):
    if error.reason is Reason.COMPARED or error.reason in (Reason.AMONG, Reason.OTHERS):
        raise DomainError(Reason.RAISED, "x")
    match error.reason:
        case Reason.MATCHED:
            raise DomainError(Reason.RAISED_IN_CASE, "x")
    return {1: Reason.MAPPED}[1], Reason.A if error else Reason.B
"""
    assert set(reasons_named(module_of(source))) == {"RAISED", "RAISED_IN_CASE", "MAPPED", "A", "B"}


def test_a_table_of_all_reasons_reaches_none() -> None:
    source = "CODES = {Reason.SOLD_OUT: 1}\ndef f():\n    raise DomainError(Reason.OVERLOADED)"
    assert set(reasons_named(module_of(source, TABLE_OF_ALL))) == {"OVERLOADED"}
