"""Money that was returned or taken is never promised again, through the gateway."""

import json
from datetime import UTC, datetime
from typing import Any

from mesh.ids import new_id
from payment_svc.providers.sandbox import signature
from testing.running_mesh import SANDBOX_SECRET, Api, items, reason, until


def report(api: Api, payment: dict[str, Any], kind: str, **data: object) -> None:
    """A webhook that the sandbox signed, e.g. about a refund in its dashboard."""
    now = datetime.now(UTC)
    body = json.dumps(
        {
            "id": f"evt_{new_id().hex}",
            "type": kind,
            "create_time": now.isoformat(),
            "data": {
                "session_id": payment["providerReference"],
                "payment_id": payment["paymentId"],
                "currency_code": payment["amount"]["currencyCode"],
                **data,
            },
        }
    ).encode()
    headers = {signature.HEADER: signature.sign(body, secret=SANDBOX_SECRET, now=now)}
    answer = api.client.post("/webhooks/sandbox", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


def bought(customer: Api, admin: Api, quantity: int = 1) -> tuple[str, dict[str, Any]]:
    """A confirmed booking's id, and its payment as staff see it."""
    order = {**items(admin.create_event(), quantity), "checkout": {"provider": "sandbox"}}
    booking = customer.book(order).json()
    payment_id = booking["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert paid.status_code == 200, paid.text
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    return booking["bookingId"], admin.get(f"/api/v1/payments/{payment_id}").json()


def refunds_of(api: Api, booking_id: str) -> list[tuple[str, int]]:
    booking = api.get(f"/api/v1/bookings/{booking_id}").json()
    return [
        (refund["status"], int(refund["amount"]["amountMinor"])) for refund in booking["refunds"]
    ]


def test_a_refund_in_the_dashboard_is_not_promised_again(admin: Api, customer: Api) -> None:
    booking_id, payment = bought(customer, admin)
    total = int(payment["amount"]["amountMinor"])
    report(admin, payment, "refund.created", refund_reference="re_1", amount_minor=total)
    until(lambda: refunds_of(customer, booking_id), "the refund is not in the booking")
    assert refunds_of(customer, booking_id) == [("PROCESSED", total)]
    shown = customer.get(f"/api/v1/bookings/{booking_id}/cancellation").json()
    assert (shown["refundable"], shown["amount"]["amountMinor"]) == (False, "0")
    after = admin.get(f"/api/v1/payments/{payment['paymentId']}").json()
    assert (after["status"], after["refundable"]["amountMinor"]) == ("REFUNDED", "0")
    ended = customer.post(f"/api/v1/bookings/{booking_id}/cancel", {}).json()
    assert (ended["status"], len(ended["refunds"])) == ("CANCELLED", 1)
    # The bank sends it back: staff settle it.
    report(
        admin,
        payment,
        "refund.failed",
        refund_reference="re_1",
        amount_minor=total,
        failure_code="account_closed",
    )
    until(
        lambda: refunds_of(customer, booking_id) == [("FAILED", total)],
        "the failed refund is not in the booking",
    )
    failed = admin.get("/api/v1/failed-refunds").json()["refunds"]
    (refund,) = [row for row in failed if row["paymentId"] == payment["paymentId"]]
    assert refund["failureCode"] == "account_closed"
    path = f"/api/v1/refunds/{refund['refundId']}"
    assert customer.post(f"{path}/settle", {"note": "x"}).status_code == 403
    settled = admin.post(f"{path}/settle", {"note": "bank transfer"})
    assert (settled.status_code, settled.json()["status"]) == (200, "SETTLED_ELSEWHERE")
    again = admin.post(f"{path}/retry", {})
    assert (again.status_code, reason(again)) == (409, "PAYMENT_STATE_INVALID")
    until(
        lambda: refunds_of(customer, booking_id) == [("SETTLED_ELSEWHERE", total)],
        "the settled refund is not in the booking",
    )


def test_staff_cancel_with_a_refund_of_their_choice(admin: Api, customer: Api) -> None:
    booking_id, payment = bought(customer, admin)
    total = int(payment["amount"]["amountMinor"])
    path = f"/api/v1/bookings/{booking_id}/cancel"
    refused = customer.post(path, {"refundPercent": 100})
    assert (refused.status_code, reason(refused)) == (403, "STAFF_REQUIRED")
    too_much = {"refundAmount": {"currencyCode": "INR", "amountMinor": str(total + 1)}}
    answer = admin.post(path, too_much)
    assert answer.status_code == 400
    assert "refundAmount.amountMinor" in answer.text
    ended = admin.post(path, {"refundPercent": 100, "reason": "illness"}).json()
    assert (ended["status"], ended["refund"]["amount"]["amountMinor"]) == ("CANCELLED", str(total))
    assert ended["timeline"][-1]["reason"] == "illness"


def test_names_of_attendees_are_at_most_as_many_as_places(admin: Api, customer: Api) -> None:
    booking_id, _ = bought(customer, admin, 2)
    path = f"/api/v1/bookings/{booking_id}"
    for names in (["A", "B", "C"], ["A", "  "]):
        refused = customer.send("PATCH", path, {"attendees": names})
        assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    named = customer.send("PATCH", path, {"attendees": [" Asha Rao ", "B"]}).json()
    assert named["attendees"] == ["Asha Rao", "B"]
    cleared = customer.send("PATCH", path, {"clearAttendees": True}).json()
    assert not cleared.get("attendees")
