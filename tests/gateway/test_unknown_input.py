"""Over REST a request may contain only what the contract knows, once, and of the right form."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from boxoffice.bookings.v1 import booking_service_pb2
from gateway import requests
from mesh.rpc import policy
from mesh.rpc.policy import HttpBinding, MethodPolicy
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer
from tests.gateway.conftest import CANCEL
from tests.gateway.test_errors import check

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
UNKNOWN = "unknownToTheContract"
METHODS = [
    method
    for method in policy.of_contract(gateway_harness.contract()).values()
    if method.is_routed and method.bindings
]


def refused(answer: Any) -> tuple[str, str]:
    """The field and the description of a refusal."""
    body = check(answer, 400, "VALIDATION_FAILED")
    (violation,) = body["details"][1]["fieldViolations"]
    assert body["message"] == f"{violation['field']}: {violation['description']}"
    return violation["field"], violation["description"]


def send(gateway: Gateway, verb: str, path: str, content: str) -> Any:
    headers = bearer() | {"content-type": "application/json"}
    return gateway.rest.request(verb, path, content=content, headers=headers)


def place(gateway: Gateway, content: str) -> tuple[str, str]:
    answer = refused(send(gateway, "POST", "/api/v1/bookings", content))
    assert gateway.upstream.calls == []
    return answer


@pytest.mark.parametrize(
    ("verb", "path", "content", "field", "known"),
    [
        (
            "POST",
            "/api/v1/payments/p/refund",
            '{"amountMinor": "5000", "currencyCode": "INR"}',
            "amountMinor",
            "amount",
        ),
        ("POST", "/api/v1/bookings/b/cancel", '{"booking_items": []}', "booking_items", None),
        ("POST", "/api/v1/auth/logout", '{"Scope": "CURRENT_SESSION"}', "Scope", "scope"),
        (
            "POST",
            "/api/v1/events",
            '{"cancellationPolicy": {"tiered": {"tiers": [{"percnt": 50}]}}}',
            "cancellationPolicy.tiered.tiers[0].percnt",
            "percent",
        ),
        ("PATCH", "/api/v1/auth/profile", '{"email": "a@example.com"}', "email", None),
        ("PUT", "/api/v1/events/e", '{"isOnSale": true}', "isOnSale", None),
        (
            "PATCH",
            "/api/v1/events/e",
            '{"offers": [{"offerId": "o", "price": {"currencyCode": "INR", "amount": "1"}}]}',
            "offers[0].price.amount",
            "amountMinor",
        ),
        ("DELETE", "/api/v1/bookings/b", '{"reasn": "ill"}', "reasn", None),
        ("GET", "/api/v1/auth/me", '{"userId": "u"}', "userId", None),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(
    gateway: Gateway, verb: str, path: str, content: str, field: str, known: str | None
) -> None:
    text = f"; did you mean {known}?" if known else ""
    assert refused(send(gateway, verb, path, content)) == (field, f"unknown field{text}")
    assert gateway.upstream.calls == []


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('{"eventId": "a", "eventId": "b"}', "eventId"),
        ('{"eventId": "a", "event_id": "a"}', "event_id"),
        ('{"eventId": "a", "\\u0065ventId": "a"}', "eventId"),
        ('{"items": [{"quantity": 1, "quantity": 2}]}', "items[0].quantity"),
    ],
)
def test_a_field_that_is_written_twice_is_refused(
    gateway: Gateway, content: str, field: str
) -> None:
    assert place(gateway, content)[0] == field


@pytest.mark.parametrize(
    ("content", "position"),
    [
        ('{"eventId": "e",}', 17),
        ('{"items": [{},]}', 15),
        ("{'eventId': 'e'}", 2),
        ("{\"eventId\": 'e'}", 13),
        ('{"eventId": "e"} {}', 18),
        ('{"eventId" "e"}', 12),
        ('{"eventId": "e" "items": []}', 17),
        ('{eventId: "e"}', 2),
        ('{"eventId": "e"', 16),
        ('{"eventId": "e', 15),
        ('{"eventId": "\t"}', 14),
        ('{"eventId": "\\x"}', 14),
        ('{"eventId": NaN}', 13),
        ('{"items": [{"quantity": 01}]}', 26),
        ('{"items": [{"quantity": .5}]}', 25),
        ('{"items": [{"quantity": 1.}]}', 26),
        ('{"items": [{"quantity": +1}]}', 25),
        ('{"eventId": "e" /* comment */}', 17),
    ],
)
def test_json_that_is_not_json_is_refused_with_the_position(
    gateway: Gateway, content: str, position: int
) -> None:
    assert place(gateway, content) == ("body", f"is not JSON at byte {position}")


@pytest.mark.parametrize(
    ("content", "field", "text"),
    [
        ('{"items": {"quantity": 1}}', "items", "must be a list"),
        ('{"items": [[]]}', "items[0]", "must not be a list"),
        ('{"items": ["o"]}', "items[0]", "must be an object"),
        ('{"checkout": []}', "checkout", "must not be a list"),
        ('{"checkout": "sandbox"}', "checkout", "must be an object"),
        ('{"checkout": true}', "checkout", "must be an object"),
        ('{"eventId": {}}', "eventId", "must not be an object"),
        ('{"eventId": ["e"]}', "eventId", "must not be a list"),
        ('{"checkout": null}', "checkout", "must not be null; leave the field out"),
        ('{"items": [null]}', "items[0]", "must not be null"),
        (
            '{"items": [{"quantity": null}]}',
            "items[0].quantity",
            "must not be null; leave the field out",
        ),
        ("[]", "body", "must be a JSON object"),
        ("null", "body", "must be a JSON object"),
        ('"text"', "body", "must be a JSON object"),
    ],
)
def test_another_form_than_the_contracts_is_refused(
    gateway: Gateway, content: str, field: str, text: str
) -> None:
    assert place(gateway, content) == (field, text)


@pytest.mark.parametrize("value", ['"FINISHED"', '"all_sessions"', "99", '"99"', "true"])
def test_an_unknown_enum_value_is_answered_with_the_known_ones(
    gateway: Gateway, value: str
) -> None:
    answer = send(gateway, "POST", "/api/v1/auth/logout", f'{{"scope": {value}}}')
    assert refused(answer) == ("scope", "must be one of ALL_SESSIONS, CURRENT_SESSION")
    assert gateway.upstream.calls == []


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("pagesize=5", "pagesize", "unknown query parameter; did you mean pageSize?"),
        ("bogus", "bogus", "unknown query parameter"),
        ("status=NONE", "status", None),
        ("status=77", "status", None),
        ("status=HELD&status=CONFIRMED", "status", "is given twice"),
        (
            "pageSize=1&page_size=2",
            "page_size",
            "is the same parameter as pageSize; give it once",
        ),
        ("page%5Fsize=1&page_size=2", "page_size", "is given twice"),
    ],
)
def test_an_invalid_query_parameter_is_named(
    gateway: Gateway, query: str, field: str, text: str | None
) -> None:
    answer = gateway.rest.get(f"/api/v1/bookings?{query}", headers=bearer())
    name, description = refused(answer)
    assert name == field
    assert description == text or (text is None and description.startswith("must be one of "))
    assert gateway.upstream.calls == []


def test_a_field_is_given_in_one_place_only(gateway: Gateway) -> None:
    path = "/api/v1/bookings/b1/cancel"
    in_body = refused(send(gateway, "POST", path, '{"bookingId": "b2"}'))
    assert in_body == ("bookingId", "is part of the path; leave it out of the body")
    in_query = refused(send(gateway, "POST", f"{path}?reason=ill", '{"reason": "well"}'))
    assert in_query == ("reason", "unknown query parameter")
    in_query = refused(gateway.rest.get("/api/v1/bookings/b1?bookingId=b2", headers=bearer()))
    assert in_query == ("bookingId", "is part of the path; leave it out of the query")
    assert gateway.upstream.calls == []


def test_names_are_shown_without_special_characters_and_cut(gateway: Gateway) -> None:
    assert place(gateway, '{"<b>\\"é": 1}')[0] == "?b????"
    assert place(gateway, json.dumps({"a" * 5000: 1}))[0] == "a" * 64


@pytest.mark.parametrize("spelling", ["eventId", "event_id", "\\u0065ventId"])
def test_all_valid_spellings_pass(gateway: Gateway, spelling: str) -> None:
    items = '[ {"quantity":"2"},{"quantity": 1e1} ]'
    text = "e\\u00e9\\n\\ud83c\\udfab"
    content = f' {{"{spelling}" : "{text}" ,\r\n\t"items":{items},"checkout":{{}}}} \n'
    assert send(gateway, "POST", "/api/v1/bookings", content).status_code == 201
    request = booking_service_pb2.PlaceBookingRequest.FromString(gateway.upstream.calls[0].request)
    assert request.event_id == "eé\n🎫"
    assert [item.quantity for item in request.items] == [2, 10]
    assert request.HasField("checkout")


@pytest.mark.parametrize("content", ["", "{}", " { } "])
def test_an_empty_body_passes(gateway: Gateway, content: str) -> None:
    assert send(gateway, "POST", "/api/v1/bookings/b/cancel", content).status_code == 204
    assert gateway.upstream.calls[0].path == CANCEL


def test_a_trailing_slash_and_other_content_types_do_not_avoid_the_check(gateway: Gateway) -> None:
    for path, content_type in (
        ("/api/v1/bookings/", "application/json"),
        ("/api/.//v1/bookings", "application/json"),
        ("/api/v1/bookings", "text/plain"),
        ("/api/v1/bookings", "application/x-www-form-urlencoded"),
    ):
        answer = gateway.rest.post(
            path, content='{"evntId": "e"}', headers=bearer() | {"content-type": content_type}
        )
        assert refused(answer)[0] == "evntId"
    assert gateway.upstream.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/b%6Fokings",
        "/api/v1/%62ookings",
        "/api/v1/bookings;a=b",
        "/api/v1/bookings:check",
        "/api/v1/bookings/.",
        "/api/v1/x/../bookings",
        "/api/v1/bookings%00",
        "/API/v1/bookings",
    ],
)
def test_no_spelling_of_a_path_avoids_the_check(gateway: Gateway, path: str) -> None:
    """The transcoder and the check agree about paths: it is refused, or does not exist."""
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {gateway_harness.token()}"
    content = '{"evntId": "e"}'
    request = f"{head}\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n{content}"
    with gateway_harness.connection(gateway.settings) as connection:
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read().decode()
    assert answer.split()[1] in ("400", "404", "405"), answer
    assert gateway.upstream.calls == []


def test_grpc_clients_may_send_fields_of_a_newer_contract(gateway: Gateway) -> None:
    # Field 1000, a varint: an older service must accept a newer client's message.
    gateway.unary(PLACE, b"\xc0\x3e\x01", bearer())
    assert gateway.upstream.calls[0].path == PLACE


def test_a_large_body_is_checked_whole(gateway: Gateway) -> None:
    # Larger than the gateway's buffer of a connection, 32 KiB.
    seats = [{"number": str(number), "x": 1.5} for number in range(20_000)]
    for last, status in (({"number": "1"}, 201), ({"numbr": "1"}, 400)):
        content = json.dumps({"rows": [{"seats": [*seats, last]}]})
        path = "/api/v1/venues/v/auditoriums"
        assert send(gateway, "POST", path, content).status_code == status


def test_the_limit_of_a_method_holds_for_its_json(gateway: Gateway) -> None:
    for count, status in ((1_200, 201), (2_000, 413)):
        content = json.dumps({"items": [{"offerId": "o", "quantity": 1}] * count})
        assert send(gateway, "POST", "/api/v1/bookings", content).status_code == status


def bodies() -> Iterator[Any]:
    """Every place of every body, with an unknown field there."""
    for method in METHODS:
        for binding in method.bindings:
            name = f"{binding.verb} {binding.path}"
            for path, body in places_in(method, binding):
                yield pytest.param(binding, path, body, id=f"{name} {path}")


def places_in(method: MethodPolicy, binding: HttpBinding) -> Iterator[tuple[str, Any]]:
    message = method.request
    if binding.body_field:
        nested = message.fields_by_name[binding.body_field].message_type
        assert nested is not None
        message = nested
    if message.full_name == "google.api.HttpBody":
        return
    if not binding.body:
        yield UNKNOWN, {UNKNOWN: 1}
        return
    yield from unknown_in(message, binding.variables, frozenset())


def unknown_in(
    message: Descriptor, without: frozenset[str], above: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    yield UNKNOWN, {UNKNOWN: 1}
    for field in message.fields:
        nested = field.message_type
        if nested is None or nested.full_name.startswith("google."):
            continue
        if field.name in without or nested.full_name in above:
            continue
        for path, body in unknown_in(nested, frozenset(), above | {nested.full_name}):
            if field.is_repeated:
                yield f"{field.json_name}[1].{path}", {field.json_name: [{}, body]}
            else:
                yield f"{field.json_name}.{path}", {field.name: body}


@pytest.mark.parametrize(("binding", "path", "body"), list(bodies()))
def test_an_unknown_field_is_refused_in_every_place_of_every_method(
    gateway: Gateway, binding: HttpBinding, path: str, body: Any
) -> None:
    answer = send(
        gateway, binding.verb, binding.path.replace("{", "").replace("}", ""), json.dumps(body)
    )
    field, text = refused(answer)
    assert field.replace("_", "").lower() == path.replace("_", "").lower()
    assert text.startswith("unknown field")
    assert gateway.upstream.calls == []


@pytest.mark.parametrize(
    "binding",
    [
        pytest.param(binding, id=f"{binding.verb} {binding.path}")
        for method in METHODS
        for binding in method.bindings
    ],
)
def test_an_unknown_query_parameter_is_refused_by_every_method(
    gateway: Gateway, binding: HttpBinding
) -> None:
    path = binding.path.replace("{", "").replace("}", "")
    answer = send(gateway, binding.verb, f"{path}?{UNKNOWN}=1", "")
    assert refused(answer) == (UNKNOWN, "unknown query parameter")
    assert gateway.upstream.calls == []


def test_every_type_in_requests_is_one_that_the_gateway_can_check() -> None:
    assert requests.tables(METHODS).startswith("local T = {}")


def test_the_properties_above_find_nested_places() -> None:
    paths = {parameter.values[1] for parameter in bodies()}
    assert f"offers[1].price.{UNKNOWN}" in paths
    assert f"items[1].{UNKNOWN}" in paths
