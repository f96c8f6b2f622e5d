"""An outside system is told what happens to bookings: set up by an admin, over the gateway."""

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

from testing.running_mesh import Api, items, reason, violated_fields

ENDPOINTS = "/api/v1/webhook-endpoints"


@dataclass
class Outside:
    """A system that listens on this machine, and what it was told."""

    url: str = ""
    told: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 204

    def wait_for(self, count: int, seconds: float = 20) -> tuple[dict[str, str], bytes]:
        """The `count`-th message."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if len(self.told) >= count:
                return self.told[count - 1]
            time.sleep(0.05)
        raise AssertionError(f"only {len(self.told)} of {count} messages came")


@pytest.fixture
def outside() -> Iterator[Outside]:
    here = Outside()

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            here.told.append(({name.lower(): text for name, text in self.headers.items()}, body))
            self.send_response(here.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Door) as server:
        here.url = f"http://127.0.0.1:{server.server_port}/hooks"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield here
        server.shutdown()
        thread.join()


def create(admin: Api, outside: Outside, **changes: Any) -> dict[str, Any]:
    made = admin.post(ENDPOINTS, {"url": outside.url, **changes})
    assert made.status_code == 201, made.text
    endpoint: dict[str, Any] = made.json()
    return endpoint


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return expected in headers["webhook-signature"].split(" ")


def test_a_booking_is_told_and_told_again(admin: Api, customer: Api, outside: Outside) -> None:
    endpoint = create(admin, outside, eventTypes=["booking.held"], description="CRM")
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    booking = customer.book(items(admin.create_event(), 2)).json()
    headers, body = outside.wait_for(1)
    assert is_signed(headers, body, endpoint["secret"])
    content = json.loads(body)
    assert content["type"] == "booking.held"
    shown = {**booking, "timeline": None}
    assert {**content["data"]["booking"], "timeline": None} == shown

    deliveries = admin.get(f"{path}/deliveries").json()["deliveries"]
    assert [each["webhookId"] for each in deliveries] == [headers["webhook-id"]]
    again = admin.post(f"{path}/deliveries/{deliveries[0]['deliveryId']}/resend", {})
    assert again.status_code == 200, again.text
    repeated, same = outside.wait_for(2)
    assert (repeated["webhook-id"], same) == (headers["webhook-id"], body)

    assert admin.delete(path).status_code == 204
    assert reason(admin.get(path)) == "WEBHOOK_ENDPOINT_NOT_FOUND"


def test_the_secret_is_told_once_and_rotates(admin: Api, outside: Outside) -> None:
    endpoint = create(admin, outside)
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    assert endpoint["secret"].startswith("whsec_")
    assert admin.get(path).json()["secret"] == ""
    rotated = admin.post(f"{path}/rotate-secret", {"overlapSeconds": 60}).json()
    assert rotated["secret"] not in ("", endpoint["secret"])
    assert len(rotated["secrets"]) == 2
    listed = admin.get(ENDPOINTS).json()["webhookEndpoints"]
    assert {each["secret"] for each in listed} == {""}


def test_what_is_left_out_stays(admin: Api, outside: Outside) -> None:
    endpoint = create(admin, outside, eventTypes=["booking.confirmed"])
    path = f"{ENDPOINTS}/{endpoint['webhookEndpointId']}"
    changed = admin.send("PATCH", path, {"enabled": False}).json()
    assert (changed["enabled"], changed["eventTypes"]) == (False, ["booking.confirmed"])
    everything = admin.send("PATCH", path, {"eventTypes": ["*"], "description": "all"}).json()
    assert (everything["enabled"], everything["eventTypes"]) == (False, [])
    assert everything["url"] == outside.url


def test_the_same_key_makes_one_endpoint(admin: Api, outside: Outside) -> None:
    made = [
        admin.post(ENDPOINTS, {"url": outside.url}, idempotency_key="one-endpoint").json()
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


def test_an_unknown_event_type_is_refused(admin: Api, outside: Outside) -> None:
    refused = admin.post(ENDPOINTS, {"url": outside.url, "eventTypes": ["booking.eaten"]})
    assert (refused.status_code, violated_fields(refused)) == (400, {"eventTypes[0]"})


def test_endpoints_are_the_admins(customer: Api, outside: Outside) -> None:
    refused = customer.post(ENDPOINTS, {"url": outside.url})
    assert (refused.status_code, reason(refused)) == (403, "ADMIN_REQUIRED")
