"""The mesh over gRPC: through the gateway with a token, and directly with a certificate."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, json_format
from google.rpc import error_details_pb2

from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2, booking_service_pb2_grpc
from boxoffice.stock.v1 import stock_service_pb2, stock_service_pb2_grpc
from gateway.clusters import service_of
from mesh.ids import new_id
from mesh.paths import CONTRACT
from mesh.rpc import policy
from mesh.rpc.client import credentials, server_name
from mesh.rpc.policy import Access, MethodPolicy
from testing.network import call, details_of, empty_request, refusal
from testing.running_mesh import Api, RunningMesh, an_event, violated_fields

_CONTRACT = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
POLICIES = policy.of_contract(_CONTRACT)
INTERNAL = [p for p in POLICIES.values() if p.access is Access.INTERNAL]


def at_gateway(mesh: RunningMesh) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(mesh.url.removeprefix("http://"))


def directly(mesh: RunningMesh, service: str, *, process: str) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(
        f"127.0.0.1:{mesh.port(service)}",
        credentials(mesh.home / "certificates", process),
        options=[("grpc.ssl_target_name_override", server_name(service))],
    )


def call_raw(channel: grpc.aio.Channel, path: str, metadata: Any) -> Any:
    """A call with an empty request, which is refused before it is parsed."""
    method: Any = channel.unary_unary(path)
    return method(b"", metadata=metadata)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value.code(), refusal.value.details() or ""


async def test_a_booking_over_grpc_through_the_gateway(
    mesh: RunningMesh, admin: Api, customer: Api
) -> None:
    event = admin.create_event()
    request = booking_service_pb2.PlaceBookingRequest(
        event_id=event["eventId"],
        items=[
            booking_service_pb2.PlaceBookingRequest.Item(
                offer_id=event["offers"][0]["offerId"], quantity=2
            )
        ],
    )
    async with at_gateway(mesh) as channel:
        stub = booking_service_pb2_grpc.BookingServiceStub(channel)
        metadata = (("authorization", f"Bearer {customer.token}"), ("idempotency-key", "grpc"))
        booking = await stub.PlaceBooking(request, metadata=metadata)
        assert booking.status == booking_pb2.Booking.HELD
        code, _ = await code_of(stub.PlaceBooking(request, metadata=metadata[1:]))
        assert code is grpc.StatusCode.UNAUTHENTICATED


SOME_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"
CREATE_EVENT = ("EventService/CreateEvent", "POST", "/api/v1/events")
UPDATE_EVENT = ("EventService/UpdateEvent", "PATCH", "/api/v1/events/{event_id}")
PLACE_BOOKING = ("BookingService/PlaceBooking", "POST", "/api/v1/bookings")
GET_BOOKING = ("BookingService/GetBooking", "GET", "/api/v1/bookings/{booking_id}")
BAD_REQUESTS: list[tuple[tuple[str, str, str], dict[str, Any], list[str], str]] = [
    (
        CREATE_EVENT,
        {"event": an_event(currencyCode="rupees", offers=[])},
        ["event.offers", "event.currency_code"],
        "event.currency_code: must be a three-letter ISO 4217 code such as INR",
    ),
    (
        CREATE_EVENT,
        {"event": an_event(endTime="2099-07-04T13:00:00Z")},
        ["event.end_time"],
        "event.end_time: must be after `start_time`",
    ),
    (
        UPDATE_EVENT,
        {"event_id": "7", "event": {"addSeatIds": ["A1"]}},
        ["event_id", "event.add_seat_ids[0]"],
        "event_id: must be a valid UUID; event.add_seat_ids[0]: must be a valid UUID",
    ),
    (
        PLACE_BOOKING,
        {"event_id": SOME_ID, "items": [{"offerId": SOME_ID, "seatId": SOME_ID, "quantity": 1}]},
        ["items[0]"],
        "items[0]: give either `quantity` with `offer_id`, or `seat_id` without `quantity`",
    ),
    (
        GET_BOOKING,
        {"booking_id": "7"},
        ["booking_id"],
        "booking_id: must be a valid UUID",
    ),
]


@pytest.mark.parametrize(("method", "request_json", "fields", "message"), BAD_REQUESTS)
async def test_errors_name_fields_as_the_client_writes_them(
    mesh: RunningMesh,
    admin: Api,
    method: tuple[str, str, str],
    request_json: dict[str, Any],
    fields: list[str],
    message: str,
) -> None:
    """The same bad request over gRPC with the proto's names, over REST with those of JSON."""
    rpc, verb, rest_path = method
    path = next(path for path in POLICIES if path.endswith(rpc))
    request = json_format.ParseDict(request_json, empty_request(path))
    async with at_gateway(mesh) as channel:
        error = await refusal(
            call(
                channel,
                path,
                request,
                metadata=(("authorization", f"Bearer {admin.token}"), ("idempotency-key", "k")),
            )
        )
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert sorted(violation.field for violation in violations) == sorted(fields)
    assert message.replace("`", "") in (error.details() or "")

    body = request_json.get("event", request_json)
    refused = admin.client.request(
        verb,
        rest_path.format_map(request_json),
        json=body if verb != "GET" else None,
        headers={"authorization": f"Bearer {admin.token}", "idempotency-key": "k"},
    )
    assert refused.status_code == 400, refused.text
    assert violated_fields(refused) == {in_rest(field) for field in fields}
    assert in_rest(message).replace("`", "") in refused.json()["message"]


def in_rest(text: str) -> str:
    """Names as a REST client writes them, whose body is the event."""
    return re.sub("_(.)", lambda letter: letter[1].upper(), text.replace("event.", ""))


async def test_the_gateway_does_not_route_reflection(mesh: RunningMesh, customer: Api) -> None:
    async with at_gateway(mesh) as channel:
        token = (("authorization", f"Bearer {customer.token}"),)
        code, _ = await code_of(call_raw(channel, REFLECTION, token))
    assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("method", INTERNAL, ids=lambda method: method.path)
async def test_internal_methods_are_for_their_named_callers_only(
    mesh: RunningMesh, admin: Api, method: MethodPolicy
) -> None:
    """The gateway has no route, and other certificates are refused."""
    token = (("authorization", f"Bearer {admin.token}"),)
    async with at_gateway(mesh) as channel:
        code, _ = await code_of(call_raw(channel, method.path, token))
        assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
    refused = admin.client.post(method.path, headers=dict(token), json={})
    assert refused.status_code in (404, 415), refused.text
    service = service_of(method)
    for process in ("auth_svc", "operator", "gateway"):
        async with directly(mesh, service, process=process) as channel:
            code, details = await code_of(call_raw(channel, method.path, token))
        assert code is grpc.StatusCode.PERMISSION_DENIED, (process, details)


async def test_the_named_caller_is_allowed(mesh: RunningMesh, admin: Api) -> None:
    event = admin.create_event()
    request = stock_service_pb2.GetStockRequest(event_id=event["eventId"])
    async with directly(mesh, "stock_svc", process="booking_svc") as channel:
        stock = await stock_service_pb2_grpc.StockServiceStub(channel).GetStock(request)
    assert [pool.capacity for pool in stock.pools] == [10]


async def test_a_client_certificate_is_required(mesh: RunningMesh) -> None:
    ca = (mesh.home / "certificates" / "ca.pem").read_bytes()
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{mesh.port('stock_svc')}",
        grpc.ssl_channel_credentials(root_certificates=ca),
        options=[("grpc.ssl_target_name_override", "stock-svc")],
    ) as channel:
        stub = stock_service_pb2_grpc.StockServiceStub(channel)
        request = stock_service_pb2.GetStockRequest(event_id=str(new_id()))
        code, _ = await code_of(stub.GetStock(request, timeout=60))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_operators_can_use_buf_curl(mesh: RunningMesh, admin: Api) -> None:
    event = admin.create_event()
    certificates = mesh.home / "certificates"
    server = f"https://localhost:{mesh.port('booking_svc')}"

    def curl(*arguments: str) -> str:
        completed = subprocess.run(
            [
                Path(sys.executable).parent / "buf",
                *("curl", "--protocol", "grpc"),
                *("--cacert", certificates / "ca.pem"),
                *("--cert", certificates / "operator.pem"),
                *("--key", certificates / "operator.key"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return completed.stdout

    assert "boxoffice.bookings.v1.BookingService/PlaceBooking" in curl("--list-methods", server)
    path = f"{server}/boxoffice.catalogue.v1.EventService/GetEvent"
    assert event["name"] in curl("-d", f'{{"event_id": "{event["eventId"]}"}}', path)
    path = f"{server}/boxoffice.bookings.v1.BookingService/ListBookings"
    assert "totalSize" not in curl("-H", f"Authorization: Bearer {admin.token}", "-d", "{}", path)
