"""`make client`: the protos compile without anything else, and the wheel is a package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2

from launcher import client, third_party
from mesh.paths import CONTRACT, ROOT
from mesh.rpc import policy

BOOKINGS = "boxoffice/bookings/v1/booking_service"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    return client.write(folder, go_module="example.com/shop/boxoffice")


def compiled(folder: Path, target: Path) -> descriptor_pb2.FileDescriptorSet:
    sources = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}"),
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--descriptor_set_out={target}",
            *sources,
        ],
        check=True,
        timeout=100,
    )
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def test_the_protos_are_complete_and_public(wheel: Path, tmp_path: Path) -> None:
    files = {file.name: file for file in compiled(wheel.parent / "protos", tmp_path / "all").file}
    package = "example.com/shop/boxoffice/bookings/v1;bookingsv1"
    assert files[f"{BOOKINGS}.proto"].options.go_package == package
    services = {f"{file.package}.{it.name}" for file in files.values() for it in file.service}
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    policies = policy.of_contract(contract).values()
    assert services >= {rpc.service for rpc in policies if rpc.is_routed}
    assert "envoy.service.ratelimit.v3.RateLimitService" not in services


def test_every_proto_names_its_go_package() -> None:
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    for file in contract.file:
        if file.name.startswith("boxoffice/"):
            folder = file.name.rpartition("/")[0]
            area, version = folder.split("/")[1:]
            expected = f"{folder};{area}{version}"
            assert file.options.go_package == expected, f'{file.name}: "{expected}"'


def test_the_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
        record = [name for name in archive.namelist() if name.endswith("RECORD")]
        listed = archive.read(record[0]).decode().splitlines()
        assert {line.split(",")[0] for line in listed} == set(archive.namelist())
    module = BOOKINGS.replace("/", ".")
    script = (
        f"import {module}_pb2_grpc as it, {module}_pb2 as messages\n"
        "print(it.__file__, messages.PlaceBookingRequest(event_id='x').event_id)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    assert printed.split() == [str(tmp_path / f"{BOOKINGS}_pb2_grpc.py"), "x"]


def test_third_party_is_up_to_date(tmp_path: Path) -> None:
    """After a change of dependencies: `make lock`, or `python -m launcher third-party`."""
    third_party.write(tmp_path / "made")
    made, kept = tmp_path / "made", ROOT / "third_party"
    names = sorted(path.relative_to(made) for path in made.rglob("*.proto"))
    assert names == sorted(path.relative_to(kept) for path in kept.rglob("*.proto"))
    for name in names:
        assert (made / name).read_text() == (kept / name).read_text(), name


def test_the_printed_rules_have_the_names_and_numbers_of_the_package(tmp_path: Path) -> None:
    files = compiled(third_party.FOLDER, tmp_path / "third_party").file
    [printed] = [file for file in files if file.name == third_party.VALIDATE]
    assert shape(printed) == shape(third_party.validate_descriptor())


def shape(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
    """Every field and value with its number and type."""
    reached: set[tuple[object, ...]] = set()
    waiting = [("", message) for message in file.message_type]
    while waiting:
        scope, message = waiting.pop()
        name = f"{scope}.{message.name}"
        reached |= {
            (name, it.name, it.number, it.type, it.type_name, it.label, it.HasField("oneof_index"))
            for it in message.field
        }
        reached |= {(name, e.name, v.name, v.number) for e in message.enum_type for v in e.value}
        waiting += [(name, nested) for nested in message.nested_type]
    reached |= {(e.name, v.name, v.number) for e in file.enum_type for v in e.value}
    return reached | {(it.extendee, it.name, it.number, it.type_name) for it in file.extension}
