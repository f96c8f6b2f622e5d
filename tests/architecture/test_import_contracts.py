"""The import contracts of pyproject.toml hold, and break when a forbidden import is added."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mesh.paths import ROOT

PLANTED = [
    ("booking_svc/catalogue/events.py", "booking_svc.bookings.pricing", "downward only"),
    ("booking_svc/bookings/pricing.py", "booking_svc.webhooks.signature", "downward only"),
    ("booking_svc/bookings/placement.py", "booking_svc.queueing", "downward only"),
    ("stock_svc/ledger.py", "payment_svc.payments", "do not import each other"),
    ("mesh/ids.py", "auth_svc.accounts", "mesh imports nothing"),
    ("stock_svc/ledger.py", "stock_svc.servicers.stock", "Servicers are imported"),
    ("bench/results.py", "tests.conftest", "import no tests"),
    ("tools/rest.py", "booking_svc.catalogue.events", "import no service"),
    ("mesh/clock.py", "mesh.coalescing", "No cycles"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for package in config["tool"]["importlinter"]["root_packages"]:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept(checkout: Path) -> None:
    linted = lint(checkout)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(("file", "module", "broken"), PLANTED)
def test_a_planted_import_breaks_a_contract(
    checkout: Path, file: str, module: str, broken: str
) -> None:
    target = checkout / file
    before = target.read_text()
    target.write_text(f"import {module}\n{before}")
    try:
        linted = lint(checkout)
    finally:
        target.write_text(before)
    assert linted.returncode != 0
    assert any(broken in line and "BROKEN" in line for line in linted.stdout.splitlines())
