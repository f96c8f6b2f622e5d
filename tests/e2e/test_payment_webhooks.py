"""Webhooks through the gateway: of other senders, forged ones, and the configured providers."""

import hashlib
import hmac

from testing.running_mesh import INBOUND_SECRET, SANDBOX_SECRET, Api, items, reason
from tests.payment_svc.forger import BODY, SECRET, Forger, timed

FORGERIES = 300
INBOUND = "/webhooks/inbound/crm"


def test_a_validation_token_is_returned(api: Api) -> None:
    answer = api.client.post(INBOUND, headers={"Validation-Token": "0f3c-a-token"})
    assert (answer.status_code, answer.headers["validation-token"]) == (200, "0f3c-a-token")
    unknown = api.client.post("/webhooks/inbound/nobody", headers={"Validation-Token": "t"})
    assert (unknown.status_code, reason(unknown)) == (404, "PROVIDER_NOT_FOUND")
    assert "validation-token" not in unknown.headers


def test_a_webhook_of_another_sender_needs_a_valid_signature(api: Api) -> None:
    body = b'{ "lead":\r\n 1.10 }'
    signature = hmac.new(INBOUND_SECRET.encode(), body, hashlib.sha256).hexdigest()
    for _ in range(2):
        accepted = api.client.post(
            INBOUND, content=body, headers={"X-Webhook-Signature": signature}
        )
        assert accepted.status_code == 200, accepted.text
    for content, headers in (
        (body, {}),
        (body + b" ", {"X-Webhook-Signature": signature}),
        (body, {"Verification-Token": "another"}),
    ):
        refused = api.client.post(INBOUND, content=content, headers=headers)
        assert (refused.status_code, reason(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")


def test_health_lists_the_providers(api: Api) -> None:
    answer = api.client.get("/webhooks/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "providers": ["sandbox"]})


def test_forged_webhooks_are_refused_and_pay_nothing(admin: Api, customer: Api) -> None:
    order = {**items(admin.create_event()), "checkout": {"provider": "sandbox"}}
    payment_id = customer.book(order).json()["payment"]["paymentId"]
    forger = Forger("x-sandbox-signature", timed, seed=17)
    assert SECRET == SANDBOX_SECRET
    good = {forger.header: forger.good}
    # Control: the unforged webhook is accepted; its type is unknown and ignored.
    assert customer.client.post("/webhooks/sandbox", content=BODY, headers=good).is_success
    for _ in range(FORGERIES):
        body, headers = forger.next()
        if body == BODY and headers.get(forger.header) == forger.good:
            continue
        # HTTP clients refuse some characters in headers.
        sendable = {name: text for name, text in headers.items() if is_sendable(text)}
        refused = customer.client.post("/webhooks/sandbox", content=body, headers=sendable)
        assert (refused.status_code, reason(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")
    payment = customer.get(f"/api/v1/payments/{payment_id}").json()
    assert payment["status"] == "CREATED"


def is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()
