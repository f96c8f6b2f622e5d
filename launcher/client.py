"""What clients in other languages need, in `build/client/`: the public part of the contract with
what it imports as .proto files, and a Python package of the generated stubs as a wheel.
"""

import base64
import hashlib
import shutil
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from google.protobuf import descriptor_pb2

from gateway.public_contract import public_contract
from launcher import third_party
from mesh.paths import BUILD, CONTRACT, PROTOS, ROOT, STUBS

FOLDER = BUILD / "client"
GO_MODULE = "boxoffice"
"""The Go module of the contract's `go_package` options."""

_DISTRIBUTION = "boxoffice_client"
# Their generated code comes from these packages.
_IN_PACKAGES = ("google/",)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write(folder: Path = FOLDER, *, go_module: str = GO_MODULE) -> Path:
    """Writes `folder` again and returns the wheel. `go_module` replaces that of `go_package`."""
    shutil.rmtree(folder, ignore_errors=True)
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    names = [file.name for file in public_contract(contract).file]
    for name in names:
        source = (PROTOS if name.startswith("boxoffice/") else third_party.FOLDER) / name
        if not source.exists():
            continue  # google/protobuf/, which every compiler has.
        target = folder / "protos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            source.read_text().replace(
                f'option go_package = "{GO_MODULE}/', f'option go_package = "{go_module}/'
            )
        )
    wheel = folder / f"{_DISTRIBUTION}-{_version()}-py3-none-any.whl"
    _write_wheel(wheel, names)
    return wheel


def _write_wheel(wheel: Path, names: Iterable[str]) -> None:
    content = {"boxoffice/py.typed": b""}
    for name in names:
        if not name.startswith(_IN_PACKAGES):
            stem = name.removesuffix(".proto")
            for path in sorted(STUBS.glob(f"{stem}_pb2*.py*")):
                content[path.relative_to(STUBS).as_posix()] = path.read_bytes()
    info = f"{_DISTRIBUTION}-{_version()}.dist-info"
    content[f"{info}/METADATA"] = _metadata().encode()
    content[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: boxoffice\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [
        f"{name},sha256={_digest(data)},{len(data)}" for name, data in sorted(content.items())
    ]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            # Without the time of the build, so that equal contracts make equal wheels.
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def _metadata() -> str:
    return "\n".join(
        [
            "Metadata-Version: 2.1",
            "Name: boxoffice-client",
            f"Version: {_version()}",
            "Summary: Generated gRPC client of Boxoffice.",
            "Requires-Python: >=3.11",
            # Generated code needs at least the version that generated it.
            f"Requires-Dist: grpcio>={version('grpcio')}",
            f"Requires-Dist: protobuf>={version('protobuf')}",
            f"Requires-Dist: googleapis-common-protos>={version('googleapis-common-protos')}",
            "",
        ]
    )


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])
