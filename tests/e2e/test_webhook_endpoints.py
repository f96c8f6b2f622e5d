"""Webhook endpoints through the gateway: set-up by an admin, deliveries to an external system."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from testing.running_mesh import (
    INBOUND_SECRET,
    Api,
    RunningMesh,
    items,
    reason,
    until,
    violated_fields,
)
from tests.e2e.test_mails import wait_for_mail

ENDPOINTS = "/api/v1/webhook-endpoints"


@dataclass
class Receiver:
    """An HTTP server on this machine, and the messages it received."""

    url: str = ""
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 204

    def wait_for(self, count: int, seconds: float = 20) -> tuple[dict[str, str], bytes]:
        """The `count`-th message."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if len(self.messages) >= count:
                return self.messages[count - 1]
            time.sleep(0.05)
        raise AssertionError(f"only {len(self.messages)} of {count} messages arrived")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): text for name, text in self.headers.items()}
            receiver.messages.append((headers, body))
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hooks"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def create(admin: Api, receiver: Receiver, **changes: Any) -> dict[str, Any]:
    created = admin.post(ENDPOINTS, {"url": receiver.url, **changes})
    assert created.status_code == 201, created.text
    endpoint: dict[str, Any] = created.json()
    return endpoint


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return expected in headers["webhook-signature"].split(" ")


def test_a_booking_event_is_delivered_and_resent(
    admin: Api, customer: Api, receiver: Receiver
) -> None:
    endpoint = create(admin, receiver, eventTypes=["booking.held"], description="CRM")
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    booking = customer.book(items(admin.create_event(), 2)).json()
    headers, body = receiver.wait_for(1)
    assert is_signed(headers, body, endpoint["secret"])
    content = json.loads(body)
    assert content["type"] == "booking.held"
    shown = {**booking, "timeline": None}
    assert {**content["data"]["booking"], "timeline": None} == shown

    deliveries = admin.get(f"{path}/deliveries").json()["deliveries"]
    assert [delivery["webhookId"] for delivery in deliveries] == [headers["webhook-id"]]
    resent = admin.post(f"{path}/deliveries/{deliveries[0]['deliveryId']}/resend", {})
    assert resent.status_code == 200, resent.text
    repeated_headers, repeated_body = receiver.wait_for(2)
    assert (repeated_headers["webhook-id"], repeated_body) == (headers["webhook-id"], body)

    tested = admin.post(f"{path}/test", {})
    assert (tested.status_code, tested.json()["eventType"]) == (200, "webhook.test")
    headers, body = receiver.wait_for(3)
    assert is_signed(headers, body, endpoint["secret"])
    assert json.loads(body)["data"] == {"webhookEndpointId": endpoint["webhookEndpointId"]}

    assert admin.delete(path).status_code == 204
    assert reason(admin.get(path)) == "WEBHOOK_ENDPOINT_NOT_FOUND"


def test_a_webhook_of_another_sender_is_read_and_passed_on(
    admin: Api, customer: Api, receiver: Receiver
) -> None:
    endpoint = create(admin, receiver, eventTypes=["inbound.received"])
    text = json.dumps({"lead": endpoint["webhookEndpointId"]})
    signature = hmac.new(INBOUND_SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    posted = admin.client.post(
        "/webhooks/inbound/crm", content=text, headers={"X-Webhook-Signature": signature}
    )
    assert posted.status_code == 200, posted.text
    headers, body = receiver.wait_for(1, seconds=60)
    passed_on = json.loads(body)["data"]["inbound"]
    assert (passed_on["sender"], passed_on["text"]) == ("crm", text)
    assert headers["webhook-id"] == passed_on["inboundWebhookId"]

    path = "/api/v1/inbound-webhooks"
    newest = admin.get(f"{path}?sender=crm&page_size=1").json()["inboundWebhooks"][0]
    assert (newest["text"], newest["body"], newest["sizeBytes"]) == ("", "", len(text))
    stored = admin.get(f"{path}/{passed_on['inboundWebhookId']}").json()
    assert stored == {**newest, "text": text, "body": passed_on["body"]}
    missing = admin.get(f"{path}/{endpoint['webhookEndpointId']}")
    assert (missing.status_code, reason(missing)) == (404, "INBOUND_WEBHOOK_NOT_FOUND")
    assert reason(customer.get(path)) == "ADMIN_REQUIRED"


def test_the_secret_is_returned_once_and_rotates(admin: Api, receiver: Receiver) -> None:
    endpoint = create(admin, receiver)
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    assert endpoint["secret"].startswith("whsec_")
    assert admin.get(path).json()["secret"] == ""
    rotated = admin.post(f"{path}/rotate-secret", {"overlapSeconds": 60}).json()
    assert rotated["secret"] not in ("", endpoint["secret"])
    assert len(rotated["secrets"]) == 2
    listed = admin.get(ENDPOINTS).json()["webhookEndpoints"]
    assert {endpoint["secret"] for endpoint in listed} == {""}


def test_omitted_fields_do_not_change(admin: Api, receiver: Receiver) -> None:
    endpoint = create(admin, receiver, eventTypes=["booking.confirmed"])
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    changed = admin.send("PATCH", path, {"enabled": False}).json()
    assert (changed["enabled"], changed["eventTypes"]) == (False, ["booking.confirmed"])
    everything = admin.send("PATCH", path, {"eventTypes": ["*"], "description": "all"}).json()
    assert (everything["enabled"], everything["eventTypes"]) == (False, [])
    assert everything["url"] == receiver.url


def test_a_repeated_key_creates_one_endpoint(admin: Api, receiver: Receiver) -> None:
    made = [
        admin.post(ENDPOINTS, {"url": receiver.url}, idempotency_key="one-endpoint").json()
        for _ in range(2)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1/",
        "https://169.254.169.254/latest",
        "ftp://example.com/",
        "https://[fd00::1]/",
    ],
)
def test_an_address_that_is_not_public_is_refused(admin: Api, url: str) -> None:
    refused = admin.post(ENDPOINTS, {"url": url})
    assert (refused.status_code, violated_fields(refused)) == (400, {"url"})


def test_an_unknown_event_type_is_refused(admin: Api, receiver: Receiver) -> None:
    refused = admin.post(ENDPOINTS, {"url": receiver.url, "eventTypes": ["booking.eaten"]})
    assert (refused.status_code, violated_fields(refused)) == (400, {"eventTypes[0]"})


def test_endpoints_are_for_admins(customer: Api, receiver: Receiver) -> None:
    refused = customer.post(ENDPOINTS, {"url": receiver.url})
    assert (refused.status_code, reason(refused)) == (403, "ADMIN_REQUIRED")


def test_events_of_the_catalogue_are_delivered(
    mesh: RunningMesh, admin: Api, customer: Api, receiver: Receiver
) -> None:
    types = ["event.created", "event.changed", "event.sold_out", "event.cancelled"]
    endpoint = create(admin, receiver, eventTypes=[*types, "booking.event_moved"])
    price = {"currencyCode": "INR", "amountMinor": "150000"}
    event = admin.create_event(offers=[{"name": "Floor", "price": price, "capacity": 2}])
    event_path = f"/api/v1/events/{event['eventId']}"
    booking = customer.book(items(event, 2)).json()

    def received() -> dict[str, dict[str, Any]]:
        """The data of the messages about the event, by type."""
        contents = [json.loads(body) for _, body in receiver.messages]
        return {
            content["type"]: content["data"]
            for content in contents
            if event["eventId"] in json.dumps(content)
        }

    until(lambda: "event.sold_out" in received(), "the event is not announced as sold out")
    assert admin.send("PATCH", event_path, {"description": "New text"}).status_code == 200
    moved = admin.send("PATCH", event_path, {"venueName": "Town Hall"})
    assert moved.status_code == 200, moved.text
    until(lambda: "booking.event_moved" in received(), "the customer is not told")
    assert admin.send("PUT", f"{event_path}/status", {"status": "CANCELLED"}).status_code == 200
    until(lambda: "event.cancelled" in received(), "the cancellation is not announced")
    data = received()
    assert data["event.created"]["event"]["name"] == event["name"]
    assert data["event.changed"]["changed"]["changedFields"] == ["venueName"]
    assert data["booking.event_moved"]["booking"]["bookingId"] == booking["bookingId"]
    assert data["booking.event_moved"]["eventMoved"]["after"]["venueName"] == "Town Hall"
    address = customer.session["user"]["email"]
    mail = wait_for_mail(mesh.home / "mails", to=address, subject=f"{event['name']} has moved")
    text = mail.get_body(("plain",))
    assert text is not None
    assert "- now: Town Hall" in text.get_content()
    admin.delete(f"{ENDPOINTS}/{endpoint['webhookEndpointId']}")
