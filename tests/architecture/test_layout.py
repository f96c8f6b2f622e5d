"""Every service has the same inner layout."""

import ast

import pytest

from mesh.paths import ROOT
from mesh.settings import LIMIT_SERVICE, SERVICES
from tests.architecture.sources import Module, modules

ALL_SERVICES = (*SERVICES, LIMIT_SERVICE)
MOST_FILES_OF_BOOKING_SVC = 8


def servicers(module: Module) -> list[str]:
    """The classes of a module that implement a gRPC service."""
    return [
        node.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Servicer") for base in node.bases)
    ]


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_a_service_has_its_files(service: str) -> None:
    assert (ROOT / service / "__main__.py").is_file()
    assert (ROOT / service / "settings.py").is_file()
    # A service with packages has them in these.
    assert list((ROOT / service).glob("**/servicers"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_with_a_database_has_its_files(service: str) -> None:
    for file in ("tables.py", "housekeeping.py", "migrations/env.py"):
        assert (ROOT / service / file).is_file(), file


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_one_grpc_service_a_file_in_servicers(service: str) -> None:
    for module in modules(service):
        is_servicer = "servicers" in module.name.split(".")[1:-1]
        assert len(servicers(module)) == (1 if is_servicer else 0), module.name


def test_booking_svc_is_made_of_packages() -> None:
    assert len(list((ROOT / "booking_svc").glob("*.py"))) <= MOST_FILES_OF_BOOKING_SVC
