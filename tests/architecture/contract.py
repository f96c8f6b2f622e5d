"""The compiled contract, as it is and with something taken out of it."""

from collections.abc import Iterator
from functools import cache

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor

from mesh.paths import CONTRACT
from mesh.rpc import policy
from mesh.rpc.policy import PACKAGE, MethodPolicy
from testing.network import contract_services


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


@cache
def request_messages() -> dict[str, Descriptor]:
    """Every request and the messages in it, as the stubs know them, by full name."""
    messages: dict[str, Descriptor] = {}
    waiting = [
        method.input_type for service in contract_services().values() for method in service.methods
    ]
    while waiting:
        message = waiting.pop()
        if message.full_name not in messages:
            messages[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    return messages
