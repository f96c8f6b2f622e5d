"""REST to gRPC and back: the transcoder and the descriptors that it works from."""

from collections.abc import Collection

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from gateway.extension import Config, extension
from mesh.rpc.policy import MAX_REQUEST_BYTES, MethodPolicy

# The state of each seat of the largest stadium fits: about 80 bytes a seat.
_MAX_RESPONSE_BYTES = 16 * 1024 * 1024


def descriptors(contract: descriptor_pb2.FileDescriptorSet) -> descriptor_pb2.FileDescriptorSet:
    """The contract without comments, with the types of error details.

    The transcoder writes an error's details as JSON only when it knows their types,
    and the contract itself imports none of them.
    """
    files = descriptor_pb2.FileDescriptorSet()
    for file in contract.file:
        copy = files.file.add()
        copy.CopyFrom(file)
        copy.ClearField("source_code_info")
    known = {file.name for file in files.file}
    for module in (error_details_pb2, status_pb2):
        _add_with_imports(files, known, module.DESCRIPTOR)
    return files


def transcoder(policies: Collection[MethodPolicy], descriptor_path: str) -> Config:
    """The filter, for the services that have a routed method with a REST path."""
    services = sorted({policy.service for policy in policies if policy.bindings})
    return extension(
        "envoy.filters.http.grpc_json_transcoder",
        "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=descriptor_path,
        services=services,
        # Otherwise every RPC of a listed service would be reachable by POST to its gRPC path.
        auto_mapping=False,
        # Off: the route is looked up again with the gRPC path, which all rules are written on.
        match_incoming_request_route=False,
        convert_grpc_status=True,
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        query_param_unescape_plus=True,
        max_request_body_size=MAX_REQUEST_BYTES,
        max_response_body_size=_MAX_RESPONSE_BYTES,
        print_options={
            # Otherwise 0, false and "" vanish from answers.
            "always_print_primitive_fields": True,
            "always_print_enums_as_ints": False,
            "preserve_proto_field_names": False,
            "stream_sse_style_delimited": True,
        },
    )


def _add_with_imports(
    files: descriptor_pb2.FileDescriptorSet, known: set[str], file: FileDescriptor
) -> None:
    """Adds a file after what it imports, each once."""
    if file.name in known:
        return
    known.add(file.name)
    for imported in file.dependencies:
        _add_with_imports(files, known, imported)
    file.CopyToProto(files.file.add())
