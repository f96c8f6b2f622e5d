"""The REST to gRPC transcoder and its descriptors."""

from collections.abc import Collection

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from gateway.extension import Config, extension
from mesh.rpc.policy import MAX_REQUEST_BYTES, MethodPolicy

# The states of all seats of the largest stadium fit, at about 80 bytes per seat.
_MAX_RESPONSE_BYTES = 16 * 1024 * 1024


def descriptors(contract: descriptor_pb2.FileDescriptorSet) -> descriptor_pb2.FileDescriptorSet:
    """The contract without comments, plus the types of error details.

    The transcoder needs these types to write error details as JSON; the contract does not import
    them.
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
    """The filter, for services that have a routed method with a REST binding."""
    services = sorted({policy.service for policy in policies if policy.bindings})
    return extension(
        "envoy.filters.http.grpc_json_transcoder",
        "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=descriptor_path,
        services=services,
        # Otherwise REST clients could POST to the gRPC path of every RPC of a listed service.
        auto_mapping=False,
        # The route is selected again by the gRPC path, which all rules use.
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
            # Otherwise responses omit 0, false and "".
            "always_print_primitive_fields": True,
            "always_print_enums_as_ints": False,
            "preserve_proto_field_names": False,
            "stream_sse_style_delimited": True,
        },
    )


def _add_with_imports(
    files: descriptor_pb2.FileDescriptorSet, known: set[str], file: FileDescriptor
) -> None:
    """Adds a file once, after its imports."""
    if file.name in known:
        return
    known.add(file.name)
    for imported in file.dependencies:
        _add_with_imports(files, known, imported)
    file.CopyToProto(files.file.add())
