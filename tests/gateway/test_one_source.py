"""A policy changed in a proto changes the gateway, the servers, the OpenAPI document and the
export with one command; nothing starts with stale generated files.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh.paths import ROOT
from mesh.rpc import freshness

SERVICE = "boxoffice/bookings/v1/booking_service.proto"
PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"

# `make protos`, then the files that `make up` writes, in a copy of the checkout.
MADE = """
import json, sys
from pathlib import Path
from launcher import protos
protos.compile_contract()
sys.path.insert(0, "build/stubs")
from boxoffice.bookings.v1 import booking_service_pb2
from gateway import config
from mesh.rpc import policy
from mesh.settings import MeshSettings
path = config.write(MeshSettings(home=Path("home")))
service = booking_service_pb2.DESCRIPTOR.services_by_name["BookingService"]
served = policy.of_service(service)["PLACE"]
print(json.dumps({
    "servers": [served.limits[0].requests, served.access.name],
    "envoy": path.read_text(),
    "openapi": (path.parent / "public/openapi/openapi.json").read_text(),
    "ratelimit": (path.parent / "ratelimit.yaml").read_text(),
}))
""".replace("PLACE", PLACE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("protos", "mesh", "launcher", "envoy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", tmp_path / "requirements.lock")
    return tmp_path


def run(checkout: Path, script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            # The stubs of the changed contract may be as long as the others, and of the same second.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{checkout}:{checkout / 'envoy'}:{checkout / 'build/stubs'}",
        },
    )


def made(checkout: Path) -> dict[str, Any]:
    completed = run(checkout, MADE)
    assert completed.returncode == 0, completed.stderr
    files: dict[str, Any] = json.loads(completed.stdout)
    return files


def test_a_changed_policy_changes_everything_at_once(checkout: Path) -> None:
    before = made(checkout)
    assert before["servers"] == [10, "CUSTOMER"]
    assert "10 calls in 60 s per user" in before["openapi"]
    path = checkout / "protos" / SERVICE
    text = path.read_text()
    assert "requests: 10\n" in text
    path.write_text(text.replace("requests: 10\n", "requests: 7\n", 1))
    after = made(checkout)
    assert after["servers"] == [7, "CUSTOMER"]
    assert "7 calls in 60 s per user" in after["openapi"]
    assert "requests_per_unit: 7\n" in after["ratelimit"]
    assert "requests_per_unit: 7\n" not in before["ratelimit"]
    assert '"max_tokens": 7,' in after["envoy"]
    assert '"max_tokens": 7,' not in before["envoy"]


def test_processes_do_not_start_with_stale_generated_files(
    checkout: Path, subtests: pytest.Subtests
) -> None:
    made(checkout)
    path = checkout / "protos" / SERVICE
    path.write_text(path.read_text() + "\n// Changed.\n")
    for command in (
        "import runpy; runpy.run_module('gateway', run_name='__main__')",
        "from mesh.rpc import server; server.run('x', None, None)",
    ):
        with subtests.test(command):
            completed = run(checkout, command)
            assert completed.returncode != 0
            assert "run `make protos`" in completed.stderr


def test_a_renamed_proto_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text("x")
    before = freshness.digest(tmp_path)
    (tmp_path / "a.proto").rename(tmp_path / "b.proto")
    assert freshness.digest(tmp_path) != before


def test_without_protos_nothing_is_stale(tmp_path: Path) -> None:
    freshness.check(tmp_path / "protos", tmp_path / "stamp")
