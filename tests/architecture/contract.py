"""The compiled contract, as it is and with something taken out of it."""

from collections.abc import Iterator
from functools import cache

from google.protobuf import descriptor_pb2

from mesh.paths import CONTRACT
from mesh.rpc import policy
from mesh.rpc.policy import PACKAGE, MethodPolicy


def contract() -> descriptor_pb2.FileDescriptorSet:
    """A copy that a test may change."""
    return descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())


@cache
def policies() -> dict[str, MethodPolicy]:
    return policy.of_contract(contract())


def methods(
    files: descriptor_pb2.FileDescriptorSet,
) -> Iterator[tuple[str, descriptor_pb2.MethodDescriptorProto]]:
    """Every method of our own packages with its gRPC path, in the contract's order."""
    for file in files.file:
        if file.package.startswith(PACKAGE):
            for service in file.service:
                for method in service.method:
                    yield f"/{file.package}.{service.name}/{method.name}", method
