"""The gateway's answer about the health of all services, while some do not answer."""

import threading
import time
from typing import Any

import grpc
import httpx
from grpc_status import rpc_status

from boxoffice.health.v1 import health_service_pb2
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import to_status
from mesh.rpc.field_names import json_name
from mesh.settings import SERVICES
from testing.gateway_harness import Gateway

HEALTH = "/boxoffice.health.v1.HealthService"
STATES: dict[str, Any] = {**dict.fromkeys(SERVICES, "SERVING"), "stock_svc": "UNREACHABLE"}


def shown(states: dict[str, Any]) -> dict[str, str]:
    """The metadata of an error, as clients get it."""
    return {json_name(service): state for service, state in states.items()}


def read(gateway: Gateway, path: str) -> httpx.Response:
    """The answer, which is never that of a call that hangs.

    gRPC ends such a call at its deadline, at the same moment as the gateway: which of both answers
    first is a matter of luck, but not each time.
    """
    until = time.monotonic() + 60
    while (response := gateway.rest.get(path)).status_code == 504 and time.monotonic() < until:
        pass
    return response


def degraded(context: grpc.ServicerContext) -> None:
    error = DomainError(Reason.DEPENDENCY_UNAVAILABLE, "degraded", **STATES)
    context.abort_with_status(rpc_status.to_status(to_status(error)))


def test_a_frozen_service_does_not_keep_the_others_from_answering(gateway: Gateway) -> None:
    """The first service to be asked never answers. Repeated for a machine too busy for one of the
    others to answer before the gateway's time is over."""
    has_frozen, may_end = threading.Event(), threading.Event()

    def answer(_request: bytes, context: grpc.ServicerContext) -> Any:
        if not has_frozen.is_set():
            has_frozen.set()
            may_end.wait(60)
        degraded(context)

    gateway.upstream.answers[f"{HEALTH}/GetHealth"] = answer
    deadline = time.monotonic() + 60
    try:
        while True:
            has_frozen.clear()
            response = read(gateway, "/health")
            assert response.status_code == 503, response.text
            if response.json()["details"][0]["metadata"] == shown(STATES):
                return
            assert time.monotonic() < deadline, response.text
    finally:
        may_end.set()


def test_when_no_service_answers_all_are_unreachable(gateway: Gateway) -> None:
    may_end = threading.Event()

    def hang(_request: bytes, _context: grpc.ServicerContext) -> Any:
        may_end.wait(60)
        return health_service_pb2.Health()

    for name in ("GetHealth", "GetCacheHealth"):
        gateway.upstream.answers[f"{HEALTH}/{name}"] = hang
    try:
        for path in ("/health", "/health/cache"):
            response = read(gateway, path)
            assert response.status_code == 503, response.text
            [error, _retry] = response.json()["details"]
            assert error["reason"] == "DEPENDENCY_UNAVAILABLE"
            assert error["metadata"] == shown(dict.fromkeys(SERVICES, "UNREACHABLE"))
    finally:
        may_end.set()
