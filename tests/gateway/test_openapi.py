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
from openapi.operations import path_of
from testing import gateway_harness
from testing.gateway_harness import Gateway

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
SHOW_CHECKOUT = "/boxoffice.payments.v1.SandboxService/ShowCheckout"
WATCH = "/boxoffice.catalogue.v1.EventService/GetAvailability"


def of(files: descriptor_pb2.FileDescriptorSet, **overrides: object) -> dict[str, Any]:
    settings = MeshSettings.model_validate(overrides)
    return document(files, routed(policy.of_contract(files).values(), settings), settings)


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    return of(gateway_harness.contract())


def bindings() -> Iterator[tuple[MethodPolicy, str, str]]:
    for rpc in policy.of_contract(gateway_harness.contract()).values():
        if rpc.is_undocumented:
            continue
        for binding in rpc.bindings:
            yield rpc, binding.verb.lower(), path_of(binding)


def resolved(api: dict[str, Any], part: dict[str, Any]) -> Any:
    """The component that a part refers to, or the part itself."""
    for key in part.get("$ref", "#").split("/")[1:]:
        api = api[key]
    return api if "$ref" in part else part


def body_of(api: dict[str, Any], verb: str, path: str) -> dict[str, Any]:
    """The schema of a request's body, which is a component."""
    schema = api["paths"][path][verb]["requestBody"]["content"]["application/json"]["schema"]
    assert list(schema) == ["$ref"] or list(schema) == ["$ref", "description"]
    body: dict[str, Any] = resolved(api, schema)
    return body


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


def test_webhooks_of_payment_providers_are_not_in_the_public_document(api: dict[str, Any]) -> None:
    """Only the providers call them, and their documentation describes the requests."""
    assert [path for path in api["paths"] if path.startswith("/webhooks/")] == [
        "/webhooks/inbound/{sender}",
        "/webhooks/health",
    ]


def test_every_reason_of_a_policy_is_described_under_its_status(api: dict[str, Any]) -> None:
    described = api["components"]["schemas"]["Reason"]
    for rpc, verb, path in bindings():
        responses = api["paths"][path][verb]["responses"]
        assert str(rpc.success_status) in responses
        for reason in rpc.reasons:
            response = resolved(api, responses[str(http_status(Reason(reason)))])
            assert response["content"]["application/json"] == {
                "schema": {"$ref": "#/components/schemas/Error"}
            }
            assert f"`{reason}`" in response["description"].split(", ")
            assert reason in described["enum"]
            assert f"- `{reason}`: " in described["description"]


def test_the_example_of_an_error_follows_its_schema(api: dict[str, Any]) -> None:
    error = api["components"]["schemas"]["Error"]
    [example] = error["examples"]
    jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/Error", "components": api["components"]}
    ).validate(example)
    assert [detail["@type"].rpartition(".")[2] for detail in example["details"]] == [
        "ErrorInfo",
        "BadRequest",
    ]


def test_operations_require_a_token_as_their_policy_does(api: dict[str, Any]) -> None:
    for rpc, verb, path in bindings():
        operation = api["paths"][path][verb]
        bearer: dict[str, list[str]] = {"bearerAuth": []}
        optional = [{}, bearer] if rpc.reads_token else []
        assert operation["security"] == ([bearer] if rpc.needs_token else optional)
        assert ("401" in operation["responses"]) >= rpc.needs_token


def test_schemas_have_the_rules_and_the_comments(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    body = body_of(api, "post", "/api/v1/bookings")
    assert body is schemas["PlaceBookingRequest"]
    assert (set(body["required"]), body["additionalProperties"]) == ({"eventId", "items"}, False)
    assert body["properties"]["items"]["maxItems"] == 100
    assert body["properties"]["eventId"]["format"] == "uuid"
    assert schemas["User"]["properties"]["fullName"]["examples"] == ["Mira Rao"]
    # Not in the description, too.
    assert "Mira Rao" not in schemas["User"]["properties"]["fullName"]["description"]
    assert schemas["User"]["properties"]["fullName"]["description"].startswith("As typed")
    [key] = api["paths"]["/api/v1/bookings"]["post"]["parameters"]
    key = resolved(api, key)
    assert (key["name"], key["in"], key["required"]) == ("Idempotency-Key", "header", True)


def test_exactly_one_of_several_fields_is_an_alternative(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    item = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/PlaceBookingRequestItem", "components": api["components"]}
    )
    an_id = "0197f000-0000-7000-8000-000000000001"
    valid: list[dict[str, object]] = [
        {"offerId": an_id, "quantity": 2},
        {"seatId": an_id},
        {"seatId": an_id, "offerId": an_id},
    ]
    faulty: list[dict[str, object]] = [
        {},
        {"offerId": an_id},
        {"quantity": 2},
        {"seatId": an_id, "quantity": 1},
        valid[0] | valid[1],
    ]
    assert [item.is_valid(case) for case in (*valid, *faulty)] == [True] * 3 + [False] * 5
    assert (
        "give either `quantity` with `offerId`, or `seatId` without `quantity`"
        in schemas["PlaceBookingRequestItem"]["description"]
    )
    assert schemas["CancellationPolicyTiered"]["required"] == ["tiered"]
    cancel = jsonschema_rs.validator_for(
        schemas["CancelBookingRequest"] | {"components": api["components"]}
    )
    amount = {"currencyCode": "INR", "amountMinor": "1"}
    assert cancel.is_valid({"refundAmount": amount})
    assert not cancel.is_valid({"refundAmount": amount, "refundPercent": 1})


def test_answers_have_what_the_server_sets_and_requests_do_not(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    answered, sent = schemas["Event"], schemas["EventInput"]
    assert {"eventId", "createTime", "offers", "etag"} <= set(answered["required"])
    assert set(answered["properties"]) - set(answered["required"]) >= {"startTime", "productionId"}
    assert answered["properties"]["eventId"]["readOnly"]
    assert set(sent["required"]) == {"name", "saleStartTime", "offers"}
    assert not {"eventId", "createTime", "etag"} & set(sent["properties"])
    assert sent["properties"]["offers"]["items"] == {"$ref": "#/components/schemas/OfferInput"}
    assert body_of(api, "post", "/api/v1/events") is sent
    for name in ("Booking", "Payment", "Venue", "User", "WebhookEndpoint"):
        an_id = f"{name[0].lower()}{name[1:]}Id"
        assert {an_id, "createTime"} <= set(schemas[name]["required"]), name
    assert "MoneyInput" not in schemas


def test_names_are_as_in_json(api: dict[str, Any]) -> None:
    names = [
        resolved(api, parameter)["name"]
        for verbs in api["paths"].values()
        for operation in verbs.values()
        for parameter in operation["parameters"]
    ]
    assert {"pageSize", "startsAfter"} <= set(names)
    assert not [name for name in names if "_" in name]
    assert not [path for path in api["paths"] if re.search(r"\{\w*_\w*\}", path)]
    assert not [name for name in api["components"]["schemas"] if not name.isalnum()]
    described = json.dumps([api["paths"], api["components"]["schemas"]])
    assert "`per_customer_limit`" not in described
    assert "`refundPercent`" in described


def test_headers_are_described_where_they_are_sent(api: dict[str, Any]) -> None:
    def headers(verb: str, path: str, status: str) -> set[str]:
        return set(resolved(api, api["paths"][path][verb]["responses"][status])["headers"])

    limits = {"RateLimit", "RateLimit-Policy"}
    assert headers("post", "/api/v1/bookings", "201") >= {"Location", "X-Request-Id", *limits}
    assert "Location" not in headers("get", "/api/v1/bookings/{bookingId}", "200")
    assert "ETag" in headers("get", "/api/v1/events/{eventId}", "200")
    assert not limits & headers("get", "/health", "200")
    assert headers("post", "/api/v1/bookings", "429") == {"Retry-After", *limits}
    update = api["paths"]["/api/v1/events/{eventId}"]
    for verb in ("patch", "put", "get", "delete"):
        named = [resolved(api, parameter)["name"] for parameter in update[verb]["parameters"]]
        assert ("If-Match" in named) is (verb in ("patch", "put"))


def test_webhooks_are_the_events_that_an_endpoint_can_ask_for(api: dict[str, Any]) -> None:
    """A new event type needs its message in envoy/openapi/webhooks.py."""
    asked = body_of(api, "post", "/api/v1/webhook-endpoints")["properties"]["eventTypes"]
    assert set(api["webhooks"]) - {"webhook.test"} == set(asked["items"]["enum"]) - {"*"}
    body = api["webhooks"]["booking.cancelled"]["post"]["requestBody"]["content"]
    data = body["application/json"]["schema"]["properties"]["data"]
    assert data["required"] == ["booking", "cancelled"]


def test_contact_and_licence_are_settings() -> None:
    info = of(
        gateway_harness.contract(), api_contact="Help <help@shop.example>", api_licence="MIT"
    )["info"]
    assert info["contact"] == {"name": "Help", "email": "help@shop.example"}
    assert info["license"] == {"name": "MIT"}


def test_it_is_small(gateway: Gateway, api: dict[str, Any]) -> None:
    """Errors, parameters and examples are written once: at most 3.4 KB for an operation."""
    size = len(gateway.rest.get("/openapi.json").content)
    assert size < 3_400 * sum(len(verbs) for verbs in api["paths"].values())


def test_patterns_are_portable(api: dict[str, Any]) -> None:
    """Python's regular expressions do not support Unicode classes by name."""
    patterns = re.findall(r'"pattern": ("[^"]*")', json.dumps(api))
    assert len(patterns) > 20
    for pattern in patterns:
        re.compile(json.loads(pattern))
    name = body_of(api, "post", "/api/v1/auth/register")["properties"]["fullName"]
    for text, is_name in [("Mira Rao", True), ("Mira\x00", False), ("\x85", False), ("  ", False)]:
        assert bool(re.search(name["pattern"], text)) is is_name, text


def test_money_is_text_and_enums_have_no_zero(api: dict[str, Any]) -> None:
    schemas = api["components"]["schemas"]
    assert schemas["Money"]["properties"]["amountMinor"]["type"] == "string"
    assert "STATUS_UNSPECIFIED" not in schemas["BookingStatus"]["enum"]
    assert "PENDING_PAYMENT" in schemas["BookingStatus"]["enum"]


def test_path_variables_are_not_in_the_body(api: dict[str, Any]) -> None:
    path = "/api/v1/bookings/{bookingId}/checkout"
    assert "bookingId" not in body_of(api, "post", path)["properties"]
    [variable] = [
        resolved(api, parameter)
        for parameter in api["paths"][path]["post"]["parameters"]
        if resolved(api, parameter)["in"] == "path"
    ]
    assert (variable["name"], variable["required"]) == ("bookingId", True)


def test_raw_bodies_and_pages_are_not_json(api: dict[str, Any]) -> None:
    webhook = api["paths"]["/webhooks/inbound/{sender}"]["post"]
    assert webhook["requestBody"]["content"].keys() == {"*/*"}
    page = api["paths"]["/sandbox/pay/{paymentId}"]["get"]
    assert page["responses"]["200"]["content"].keys() == {"*/*"}


def test_streams_are_events_and_204_has_no_body() -> None:
    files = gateway_harness.contract()
    gateway_harness.method_in(files, WATCH).server_streaming = True
    gateway_harness.policy_in(files, PLACE).success_status = 204
    api = of(files)
    stream = api["paths"]["/api/v1/events/{eventId}/availability"]["get"]["responses"]["200"]
    assert stream["content"].keys() == {"text/event-stream"}
    placed = api["paths"]["/api/v1/bookings"]["post"]["responses"]["204"]
    assert "content" not in resolved(api, placed)


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
        "/docs/%2e%2e/%2e%2e/envoy.json",
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
