"""The OpenAPI document matches the contract, and the gateway serves it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from google.protobuf import descriptor_pb2
from openapi_spec_validator import OpenAPIV31SpecValidator

from boxoffice.options.v1 import policy_pb2
from gateway.routes import routed
from mesh.errors import Reason
from mesh.rpc import policy
from mesh.rpc.errors import http_status
from mesh.rpc.policy import MethodPolicy
from mesh.settings import MeshSettings
from openapi.document import document
from testing import gateway_harness
from testing.gateway_harness import Gateway

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
SHOW_CHECKOUT = "/boxoffice.payments.v1.SandboxService/ShowCheckout"
WATCH = "/boxoffice.catalogue.v1.EventService/GetAvailability"


def of(files: descriptor_pb2.FileDescriptorSet, **overrides: object) -> dict[str, Any]:
    settings = MeshSettings.model_validate(overrides)
    return document(files, routed(policy.of_contract(files).values(), settings))


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return of(gateway_harness.contract())


def bindings() -> Iterator[tuple[MethodPolicy, str, str]]:
    for rpc in policy.of_contract(gateway_harness.contract()).values():
        for binding in rpc.bindings:
            yield rpc, binding.verb.lower(), re.sub(r"=[^}]*", "", binding.path)


def test_it_is_valid_openapi(api: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(api).iter_errors()] == []


def test_the_validator_finds_an_error(api: dict[str, Any]) -> None:
    """Control: it reports a path variable that no parameter declares."""
    broken = {**api, "paths": {"/a/{b}": {"get": {"responses": {"200": {"description": ""}}}}}}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


def test_the_paths_are_exactly_the_bindings(api: dict[str, Any]) -> None:
    described = {(verb, path) for path, verbs in api["paths"].items() for verb in verbs}
    assert described == {(verb, path) for _, verb, path in bindings()}
    names = [
        operation["operationId"] for verbs in api["paths"].values() for operation in verbs.values()
    ]
    assert len(names) == len(set(names))


def test_every_reason_of_a_policy_is_an_example_under_its_status(api: dict[str, Any]) -> None:
    error = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/Error", "components": api["components"]}
    )
    for rpc, verb, path in bindings():
        responses = api["paths"][path][verb]["responses"]
        assert str(rpc.success_status) in responses
        for reason in rpc.reasons:
            content = responses[str(http_status(Reason(reason)))]["content"]["application/json"]
            example = content["examples"][reason]["value"]
            error.validate(example)
            assert example["details"][0]["reason"] == reason


def test_operations_require_a_token_as_their_policy_does(api: dict[str, Any]) -> None:
    for rpc, verb, path in bindings():
        operation = api["paths"][path][verb]
        bearer: dict[str, list[str]] = {"bearerAuth": []}
        optional = [{}, bearer] if rpc.reads_token else []
        assert operation["security"] == ([bearer] if rpc.needs_token else optional)
        assert ("401" in operation["responses"]) >= rpc.needs_token


def test_schemas_have_the_rules_and_the_comments(api: dict[str, Any]) -> None:
    operation = api["paths"]["/api/v1/bookings"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"eventId", "items"}
    assert body["properties"]["items"]["maxItems"] == 100
    assert body["properties"]["eventId"]["format"] == "uuid"
    item = api["components"]["schemas"]["PlaceBookingRequest.Item"]
    assert item["properties"]["quantity"]["maximum"] == 1000
    assert "`quantity` is not allowed with `seat_id`" in item["description"]
    user = api["components"]["schemas"]["User"]
    assert user["properties"]["fullName"]["examples"] == ["Mira Rao"]
    assert user["properties"]["fullName"]["description"].startswith("As typed")
    [key] = [parameter for parameter in operation["parameters"] if parameter["in"] == "header"]
    assert (key["name"], key["required"]) == ("Idempotency-Key", True)


def test_patterns_are_portable(api: dict[str, Any]) -> None:
    """Python's regular expressions do not support Unicode classes by name."""
    patterns = re.findall(r'"pattern": ("[^"]*")', json.dumps(api))
    assert len(patterns) > 20
    for pattern in patterns:
        re.compile(json.loads(pattern))
    body = api["paths"]["/api/v1/auth/register"]["post"]["requestBody"]["content"]
    name = body["application/json"]["schema"]["properties"]["fullName"]
    for text, is_name in [("Mira Rao", True), ("Mira\x00", False), ("\x85", False), ("  ", False)]:
        assert bool(re.search(name["pattern"], text)) is is_name, text


def test_money_is_text_and_enums_have_no_zero(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    assert schemas["Money"]["properties"]["amountMinor"]["type"] == "string"
    assert "STATUS_UNSPECIFIED" not in schemas["Booking.Status"]["enum"]
    assert "PENDING_PAYMENT" in schemas["Booking.Status"]["enum"]


def test_path_variables_are_not_in_the_body(api: dict[str, Any]) -> None:
    operation = api["paths"]["/api/v1/bookings/{booking_id}/checkout"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "bookingId" not in body["properties"]
    assert [
        parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"
    ] == ["booking_id"]


def test_raw_bodies_and_pages_are_not_json(api: dict[str, Any]) -> None:
    webhook = api["paths"]["/webhooks/{provider}"]["post"]
    assert webhook["requestBody"]["content"].keys() == {"*/*"}
    page = api["paths"]["/sandbox/pay/{payment_id}"]["get"]
    assert page["responses"]["200"]["content"].keys() == {"*/*"}


def test_streams_are_events_and_204_has_no_body() -> None:
    files = gateway_harness.contract()
    gateway_harness.method_in(files, WATCH).server_streaming = True
    gateway_harness.policy_in(files, PLACE).success_status = 204
    api = of(files)
    stream = api["paths"]["/api/v1/events/{event_id}/availability"]["get"]["responses"]["200"]
    assert stream["content"].keys() == {"text/event-stream"}
    assert "content" not in api["paths"]["/api/v1/bookings"]["post"]["responses"]["204"]


def test_production_does_not_describe_development_rpcs() -> None:
    api = of(gateway_harness.contract(), environment="production")
    assert not any(path.startswith("/sandbox") for path in api["paths"])


def test_a_changed_policy_changes_the_description() -> None:
    files = gateway_harness.contract()
    changed = gateway_harness.policy_in(files, PLACE)
    changed.access = policy_pb2.ACCESS_PUBLIC
    changed.ClearField("limits")
    operation = of(files)["paths"]["/api/v1/bookings"]["post"]
    assert operation["security"] == []
    assert "10 calls in 60 s" not in operation["description"]


def test_the_gateway_serves_the_description(gateway: Gateway) -> None:
    answer = gateway.rest.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["openapi"] == "3.1.0"
    assert "max-age" in answer.headers["cache-control"]


def test_the_root_is_a_page_with_links_that_work(gateway: Gateway) -> None:
    answer = gateway.rest.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    links = re.findall(r'href="(/[^"]*)"', answer.text)
    assert {"/docs", "/openapi.json", "/health"} <= set(links)
    for link in links:
        assert gateway.rest.get(link, follow_redirects=True).status_code == 200, link
    assert gateway.rest.head("/").status_code == 200
    assert gateway.rest.post("/", json={}).status_code == 405


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_page_loads_only_from_the_gateway(gateway: Gateway, path: str) -> None:
    page = gateway.rest.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy_of_page = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy_of_page
    assert page.headers["x-frame-options"] == "DENY"
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(linked) == 4
    for link in linked:
        assert link.startswith("/docs/")
        file = gateway.rest.get(link)
        assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
        assert file.headers["content-type"].partition(";")[0] in {
            "text/css",
            "text/javascript",
            "image/png",
        }


@pytest.mark.parametrize(
    "path",
    [
        "/docs/../envoy.json",
        "/docs/%2e%2e/%2e%2e/contract.binpb",
        "/docs/..%2f..%2fenvoy.json",
        "/docs/nothing.js",
        "/docsx",
        "/openapi",
        "/openapi.json/../docs/../../envoy.json",
    ],
)
def test_no_other_file_is_served(gateway: Gateway, path: str) -> None:
    answer = gateway.rest.get(path)
    assert answer.status_code in {400, 401, 404}
    assert answer.json()["details"][0]["domain"] == "boxoffice"


def test_posting_to_a_file_is_a_405(gateway: Gateway) -> None:
    answer = gateway.rest.post("/openapi.json", json={})
    assert answer.status_code == 405
    assert answer.json()["details"][0]["reason"] == "METHOD_NOT_ALLOWED"
