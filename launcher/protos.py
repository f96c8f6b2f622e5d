"""Compiles the contract: `protos/` → stubs and the descriptor set in `build/`.

Type stubs are added where the development packages are installed.

protoc and third-party protos come from installed packages: grpcio-tools,
googleapis-common-protos, and protovalidate, which contains the descriptor of buf/validate.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2

from mesh.paths import BUILD, CONTRACT, PROTOS, STUBS
from mesh.rpc import freshness

_VALIDATE = "buf/validate/validate.proto"


class ProtoError(Exception):
    """The contract does not compile, or an RPC's policy is invalid.

    The text is protoc's message, starting with file and line, or names the RPC.
    """


def compile_contract(*, force: bool = False) -> bool:
    """Compiles the contract if it has changed, or if `force`. Returns whether it was compiled."""
    digest = _digest()
    stamp = BUILD / "contract.sha256"
    is_compiled = CONTRACT.exists() and freshness.STAMP.exists() and stamp.exists()
    if not force and is_compiled and stamp.read_text() == digest:
        return False
    fresh = BUILD / "stubs.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    contract = BUILD / "contract.new"
    write_descriptor_set(PROTOS, contract)
    _protoc(
        PROTOS,
        f"--python_out={fresh}",
        f"--grpc_python_out={fresh}",
        *(
            [f"--mypy_out=quiet:{fresh}", f"--mypy_grpc_out=quiet,only_async:{fresh}"]
            * _has_types()
        ),
        _VALIDATE,
        *_sources(PROTOS),
    )
    _check_policies(contract, stubs=fresh)
    # Renamed when complete, so that a starting process does not import partial stubs.
    shutil.rmtree(STUBS, ignore_errors=True)
    fresh.rename(STUBS)
    contract.rename(CONTRACT)
    freshness.STAMP.write_text(freshness.digest())
    stamp.write_text(digest)
    return True


def write_descriptor_set(protos: Path, target: Path) -> None:
    """Compiles the folder `protos`, with comments, to the descriptor set `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _protoc(
        protos,
        f"--descriptor_set_out={target}",
        "--include_imports",
        "--include_source_info",
        *_sources(protos),
    )


def _check_policies(contract: Path, *, stubs: Path) -> None:
    """Loads all policies with the new stubs. Raises ProtoError."""
    completed = subprocess.run(
        [sys.executable, "-m", "mesh.rpc.policy", str(contract)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(stubs)},
    )
    if completed.returncode != 0:
        raise ProtoError(completed.stderr.strip())


def _sources(protos: Path) -> list[str]:
    return sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))


def _protoc(protos: Path, *arguments: str) -> None:
    BUILD.mkdir(exist_ok=True)
    third_party = BUILD / "third_party.binpb"
    third_party.write_bytes(_third_party().SerializeToString())
    completed = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={protos}",
            f"--proto_path={sysconfig.get_path('purelib')}",
            f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
            f"--descriptor_set_in={third_party}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        # protoc looks for its plugins protoc-gen-mypy and protoc-gen-mypy_grpc on PATH.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        },
    )
    if completed.returncode != 0:
        raise ProtoError(completed.stderr.strip())


def _third_party() -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of buf/validate/validate.proto and its imports."""
    from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2
    from protovalidate._gen.buf.validate import validate_pb

    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    return files


def _has_types() -> bool:
    """Whether mypy's plugins for protoc are installed."""
    return (Path(sys.executable).parent / "protoc-gen-mypy").exists()


def _digest() -> str:
    """Changes when a proto, this generator or a tool does."""
    total = hashlib.sha256(str(_has_types()).encode())
    for path in [
        *sorted(PROTOS.rglob("*.proto")),
        Path(__file__),
        PROTOS.parent / "requirements.lock",
    ]:
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
