"""An upgrade as in docs/operations.md: the previous version sells while this one migrates its
databases; then this version runs with the same data."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from launcher import migrations
from launcher.provided import Provided
from mesh.db.database import libpq_url
from mesh.paths import ROOT
from mesh.settings import SERVICES
from testing.running_mesh import RunningMesh, python_of, running_mesh

# Holds expire within the sale, as in the demo's mesh.
_SALE = {"BOXOFFICE_HOLD_TTL_SECONDS": "12", "BOXOFFICE_PAYMENT_WINDOW_SECONDS": "20"}
# A line of the demo: the first bookings are being paid, most customers have not started yet.
_SELLING = "Selling, 10 s"
# Few enough for a slow machine.
_CUSTOMERS = 150


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's tmp_path, which PostgreSQL's user cannot access when tests run as root.
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def before(folder: Path) -> Path:
    """A checkout of the commit before the newest migration, ready to run."""
    log = ("git", "log", "-1", "--format=%H", "--", "*/migrations/versions/*.py")
    newest = subprocess.check_output(log, cwd=ROOT, text=True).strip()
    path = folder / "before"
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", ROOT, path], check=True)
    subprocess.run(["git", "checkout", "--quiet", f"{newest}^"], cwd=path, check=True)
    subprocess.run(["make", "protos"], cwd=path, check=True)
    return path


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_previous_version_sells_while_this_one_migrates(before: Path, folder: Path) -> None:
    home = {"BOXOFFICE_HOME": str(folder / "home")}
    with running_mesh(before, **home, **_SALE) as mesh:
        old = schemas(mesh)
        with demo(before, mesh) as sale:
            assert sale.stdout is not None
            assert any(_SELLING in line for line in sale.stdout)
            migrate(mesh)
            report = sale.stdout.read()
        new = schemas(mesh)
        print(report, f"while {old} became {new}")
        assert sale.returncode == 0
    assert old != new
    assert all(old[service] <= new[service] for service in SERVICES)
    with running_mesh(**home, **_SALE) as mesh, demo(ROOT, mesh) as sale:
        assert sale.stdout is not None
        print(sale.stdout.read())
    assert sale.returncode == 0


def demo(checkout: Path, mesh: RunningMesh) -> "subprocess.Popen[str]":
    """A sale on the mesh. It exits with 0 when all customers got a response and the audit found no
    differences."""
    return subprocess.Popen(
        [python_of(checkout), "-m", "demo", "--url", mesh.url, "--customers", str(_CUSTOMERS)],
        cwd=checkout,
        env=os.environ | mesh.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def migrate(mesh: RunningMesh) -> None:
    """Runs `make migrate` with this version's code."""
    subprocess.run(["make", "migrate"], cwd=ROOT, env=os.environ | mesh.variables, check=True)


def schemas(mesh: RunningMesh) -> dict[str, str]:
    """The schema revision of each service."""
    revisions = {}
    for service in SERVICES:
        url = libpq_url(migrations.url(mesh.home, Provided(), service))
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            assert row is not None
            revisions[service] = str(row[0])
    return revisions
