"""Limits come from the contract and are reloaded when it changes."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from boxoffice.options.v1 import policy_pb2
from limit_svc.rules import Rules
from mesh.paths import CONTRACT
from mesh.rpc.limits import Scales
from mesh.rpc.policy import LimitAlgorithm, PolicyError
from testing import gateway_harness

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
BUCKET = f"{PLACE} per user in 60 s"


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "contract.binpb"
    path.write_bytes(CONTRACT.read_bytes())
    return path


def replace(path: Path, files: descriptor_pb2.FileDescriptorSet) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(files.SerializeToString())
    fresh.rename(path)


def requests(rules: Rules) -> int:
    bucket = rules.bucket(BUCKET)
    assert bucket is not None
    return bucket.limit.requests


def test_a_changed_contract_changes_the_limits(contract: Path) -> None:
    rules = Rules(contract, Scales(2))
    assert requests(rules) == 20
    files = gateway_harness.contract()
    gateway_harness.policy_in(files, PLACE).limits[0].requests = 7
    replace(contract, files)
    rules.reload()
    assert requests(rules) == 14


def test_an_invalid_contract_changes_nothing(contract: Path) -> None:
    rules = Rules(contract, Scales())
    files = gateway_harness.contract()
    gateway_harness.policy_in(files, PLACE).ClearField("deadline")
    replace(contract, files)
    rules.reload()
    contract.unlink()
    rules.reload()
    assert requests(rules) == 10


def test_a_burst_larger_than_the_limit_is_an_error(contract: Path) -> None:
    files = gateway_harness.contract()
    gateway_harness.policy_in(files, PLACE).limits[0].burst = 11
    replace(contract, files)
    with pytest.raises(Exception, match="burst"):
        Rules(contract, Scales())


def test_a_limit_names_its_algorithm(contract: Path) -> None:
    files = gateway_harness.contract()
    limit = gateway_harness.policy_in(files, PLACE).limits[0]
    limit.algorithm = policy_pb2.LIMIT_ALGORITHM_SLIDING_WINDOW
    replace(contract, files)
    bucket = Rules(contract, Scales(2)).bucket(BUCKET)
    assert bucket is not None
    assert bucket.limit.algorithm is LimitAlgorithm.SLIDING_WINDOW
    limit.burst = 3
    replace(contract, files)
    with pytest.raises(PolicyError, match="only a token bucket has"):
        Rules(contract, Scales())
