"""Channels between services, with deadlines, retries, tracing and metrics.

An outgoing call is bounded by the deadline of the current call. Retries are made only here, only
on UNAVAILABLE, and only for methods whose idempotency_level allows it.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from mesh.deadlines import remaining_seconds
from mesh.errors import DomainError, Reason
from mesh.observability import metrics, request_context, tracing
from mesh.observability.request_context import REQUEST_ID_HEADER
from mesh.rpc import policy
from mesh.rpc.errors import raise_from_rpc
from mesh.rpc.policy import MethodPolicy
from mesh.settings import MeshSettings

# Time kept for the work after an outgoing call.
_RESERVE_SECONDS = 0.02
# With less time an outgoing call is not made.
_MIN_SECONDS = 0.01

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # The default maximum of two minutes is too long after a restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    # A restarted replica must be connected before a rolling restart stops the next one.
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]

_CALLED = metrics.histogram(
    "rpc_client_seconds", "Duration of outgoing calls, retries included.", "rpc", "code"
)

_Details = grpc.aio.ClientCallDetails


def open_channel(
    settings: MeshSettings, *, process: str, service: str, services: Iterable[ServiceDescriptor]
) -> grpc.aio.Channel:
    """A channel from `process` to all replicas of `service`. Open it inside the event loop.

    `services` are the descriptors of the gRPC services called over it. Their policies define
    deadlines and retries.
    """
    policies = {
        path: method
        for descriptor in services
        for path, method in policy.of_service(descriptor).items()
    }
    return grpc.aio.secure_channel(
        settings.target(service),
        credentials(settings.certificates, process),
        options=[
            *_OPTIONS,
            ("grpc.ssl_target_name_override", server_name(service)),
            ("grpc.service_config", service_config(policies.values())),
        ],
        interceptors=[_UnaryCalls(policies), _StreamCalls()],
    )


def credentials(certificates: Path, process: str) -> grpc.ChannelCredentials:
    """Credentials for mutual TLS with the certificate of `process`."""
    return grpc.ssl_channel_credentials(
        root_certificates=(certificates / "ca.pem").read_bytes(),
        private_key=(certificates / f"{process}.key").read_bytes(),
        certificate_chain=(certificates / f"{process}.pem").read_bytes(),
    )


def server_name(service: str) -> str:
    """The DNS name in a service's certificate, e.g. `stock-svc`."""
    return service.replace("_", "-")


def service_config(policies: Iterable[MethodPolicy]) -> str:
    """The gRPC service config (gRFC A6): round robin, and retries of retryable methods."""
    retryable = []
    for method_policy in policies:
        if method_policy.retryable and not method_policy.server_streaming:
            service, method = method_policy.path.split("/")[1:]
            retryable.append({"service": service, "method": method})
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retryable:
        config["retryThrottling"] = {"maxTokens": 10, "tokenRatio": 0.1}
        config["methodConfig"] = [
            {
                "name": retryable,
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return json.dumps(config)


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, policies: dict[str, MethodPolicy]) -> None:
        self._policies = policies

    async def intercept_unary_unary(
        self,
        continuation: Callable[[_Details, Any], Any],
        client_call_details: _Details,
        request: Any,
    ) -> Any:
        path = _text(client_call_details.method)
        name = path.rpartition(".")[2]
        code = "OK"
        started = time.perf_counter()
        with tracing.calling(name) as span:
            details = _prepare(client_call_details, timeout=_seconds(self._policies.get(path)))
            try:
                return await (await continuation(details, request))
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                raise_from_rpc(error)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                tracing.ended(span, code)
                _CALLED.labels(name, code).observe(time.perf_counter() - started)


class _StreamCalls(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[_Details, Any], Any],
        client_call_details: _Details,
        request: Any,
    ) -> Any:
        return await continuation(_prepare(client_call_details, timeout=None), request)


def _seconds(method: MethodPolicy | None) -> float | None:
    """Timeout of an outgoing call: its policy's deadline or the current one, whichever is first."""
    allowed = method.deadline_seconds if method is not None else None
    remaining = remaining_seconds()
    if remaining is None:
        return allowed
    available = remaining - _RESERVE_SECONDS
    if available < _MIN_SECONDS:
        raise DomainError(
            Reason.DEADLINE_EXCEEDED, "the deadline is too close to call another service"
        )
    return available if allowed is None else min(allowed, available)


def _prepare(details: _Details, *, timeout: float | None) -> _Details:
    # A Metadata object, which may hold several values of one key.
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if request_id := request_context.request_id():
        metadata.set_all(REQUEST_ID_HEADER, [request_id])
    if parent := tracing.parent():
        metadata.set_all(tracing.HEADER, [parent])
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout if details.timeout is not None else timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
