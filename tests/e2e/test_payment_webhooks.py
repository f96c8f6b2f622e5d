"""Webhooks through the gateway: other senders', forged ones, and who is listened to."""

import hashlib
import hmac

from testing.running_mesh import INBOUND_SECRET, SANDBOX_SECRET, Api, items, reason
from tests.payment_svc.forger import BODY, SECRET, Forger, timed

FORGERIES = 300
INBOUND = "/webhooks/inbound/crm"


def test_a_handshake_is_sent_back(api: Api) -> None:
    answer = api.client.post(INBOUND, headers={"Validation-Token": "0f3c-a-token"})
    assert (answer.status_code, answer.headers["validation-token"]) == (200, "0f3c-a-token")
    stranger = api.client.post("/webhooks/inbound/nobody", headers={"Validation-Token": "t"})
    assert (stranger.status_code, reason(stranger)) == (404, "PROVIDER_NOT_FOUND")
    assert "validation-token" not in stranger.headers


def test_another_senders_webhook_counts_by_its_signature(api: Api) -> None:
    body = b'{ "lead":\r\n 1.10 }'
    signature = hmac.new(INBOUND_SECRET.encode(), body, hashlib.sha256).hexdigest()
    for _ in range(2):
        taken = api.client.post(INBOUND, content=body, headers={"X-Webhook-Signature": signature})
        assert taken.status_code == 200, taken.text
    for content, headers in (
        (body, {}),
        (body + b" ", {"X-Webhook-Signature": signature}),
        (body, {"Verification-Token": "another"}),
    ):
        refused = api.client.post(INBOUND, content=content, headers=headers)
        assert (refused.status_code, reason(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")


def test_health_says_whose_webhooks_are_taken(api: Api) -> None:
    answer = api.client.get("/webhooks/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "providers": ["sandbox"]})


def test_no_forged_webhook_pays_a_booking(admin: Api, customer: Api) -> None:
    order = {**items(admin.create_event()), "checkout": {"provider": "sandbox"}}
    payment_id = customer.book(order).json()["payment"]["paymentId"]
    forger = Forger("x-sandbox-signature", timed, seed=17)
    assert SECRET == SANDBOX_SECRET
    good = {forger.header: forger.good}
    # What they are made of counts: a type that nobody knows, taken.
    assert customer.client.post("/webhooks/sandbox", content=BODY, headers=good).is_success
    for _ in range(FORGERIES):
        body, headers = forger.next()
        if body == BODY and headers.get(forger.header) == forger.good:
            continue
        # What cannot be in a header at all does not get as far as the gateway.
        sendable = {name: text for name, text in headers.items() if is_sendable(text)}
        refused = customer.client.post("/webhooks/sandbox", content=body, headers=sendable)
        assert (refused.status_code, reason(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")
    payment = customer.get(f"/api/v1/payments/{payment_id}").json()
    assert payment["status"] == "CREATED"


def is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()
