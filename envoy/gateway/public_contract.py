"""The part of the contract that clients use: the files of the services that the gateway serves."""

from google.protobuf import descriptor_pb2

from mesh.rpc import policy


def public_contract(
    contract: descriptor_pb2.FileDescriptorSet,
) -> descriptor_pb2.FileDescriptorSet:
    """Those files and all that they import, in the contract's order, with comments."""
    routed = {rpc.service for rpc in policy.of_contract(contract).values() if rpc.is_routed}
    imports = {file.name: list(file.dependency) for file in contract.file}
    waiting = [
        file.name
        for file in contract.file
        if any(f"{file.package}.{service.name}" in routed for service in file.service)
    ]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imports[name]
    return descriptor_pb2.FileDescriptorSet(
        file=[file for file in contract.file if file.name in reached]
    )
