"""payment_svc as it runs: through its own server, with mutual TLS and the contract's rules."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from boxoffice.payments.v1 import (
    payment_event_service_pb2,
    payment_pb2,
    payment_service_pb2,
    sandbox_service_pb2,
)
from boxoffice.payments.v1.payment_event_service_pb2_grpc import PaymentEventServiceStub
from boxoffice.payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from boxoffice.payments.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from boxoffice.types.v1.money_pb2 import Money
from mesh.ids import new_id
from payment_svc.__main__ import main, open_service
from payment_svc.settings import Settings
from testing.network import Network, details_of, reason_of, refusal
from testing.payment_server import SECRET, Running, a_request, signed_in


async def test_from_opening_to_the_refund(running: Running) -> None:
    payments = PaymentServiceStub(running.booking)
    customer = str(new_id())
    payment = await running.create(customer_id=customer)
    assert payment.status == payment_pb2.Payment.CREATED
    assert payment.payment_url.endswith(f"/sandbox/pay/{payment.payment_id}")
    assert not payment.HasField("method")

    page = await SandboxServiceStub(running.gateway).ShowCheckout(
        sandbox_service_pb2.ShowCheckoutRequest(payment_id=payment.payment_id)
    )
    assert page.content_type.startswith("text/html")
    assert "₹ 1,500.00" in page.data.decode()

    assert (
        await running.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.FAILED
        )
        == "https://shop.test/back"
    )
    assert (
        await running.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
        )
        == "https://shop.test/thanks"
    )
    await running.pay(payment)
    found = await PaymentServiceStub(running.gateway).GetPayment(
        payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id),
        metadata=signed_in(customer),
    )
    assert (found.status, found.method) == (payment_pb2.Payment.CAPTURED, "card")

    refund = await payments.RefundPayment(
        payment_service_pb2.RefundPaymentRequest(payment_id=payment.payment_id),
        metadata=[("idempotency-key", "cancel-1")],
    )
    assert refund.status == payment_pb2.Refund.PENDING
    assert refund.amount.amount_minor == 150_000
    assert refund == await PaymentServiceStub(running.gateway).GetRefund(
        payment_service_pb2.GetRefundRequest(refund_id=refund.refund_id),
        metadata=signed_in(customer),
    )
    stream = PaymentEventServiceStub(running.booking).StreamEvents(
        payment_event_service_pb2.StreamEventsRequest()
    )
    async with asyncio.timeout(60):
        batch = await anext(aiter(stream))
    assert [event.WhichOneof("event") for event in batch.events] == ["captured"]
    assert batch.events[0].position
    stream.cancel()


async def test_only_the_owner_and_staff_see_a_payment(running: Running) -> None:
    customer = str(new_id())
    payment = await running.create(customer_id=customer)
    request = payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id)
    payments = PaymentServiceStub(running.gateway)
    assert await payments.GetPayment(request, metadata=signed_in(customer)) == payment
    assert await payments.GetPayment(request, metadata=signed_in(new_id(), "STAFF")) == payment
    error = await refusal(payments.GetPayment(request, metadata=signed_in(new_id())))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "PAYMENT_NOT_FOUND")
    error = await refusal(payments.GetPayment(request))
    assert reason_of(error) == "TOKEN_INVALID"


async def test_a_refund_by_staff_needs_a_key_and_happens_once(running: Running) -> None:
    payment = await running.create()
    await running.pay(payment)
    payments = PaymentServiceStub(running.gateway)
    request = payment_service_pb2.RefundPaymentRequest(
        payment_id=payment.payment_id,
        amount=Money(currency_code="INR", amount_minor=100_000),
        reason="rain",
    )
    staff = signed_in(new_id(), "STAFF")
    error = await refusal(payments.RefundPayment(request, metadata=staff))
    assert reason_of(error) == "VALIDATION_FAILED"
    keyed = [*staff, ("idempotency-key", "k-1")]
    first = await payments.RefundPayment(request, metadata=keyed)
    assert await payments.RefundPayment(request, metadata=keyed) == first
    assert first.reason == "rain"

    error = await refusal(
        payments.RefundPayment(request, metadata=[*staff, ("idempotency-key", "k-2")])
    )
    assert error.code() == grpc.StatusCode.ABORTED
    info = details_of(error, error_details_pb2.ErrorInfo)
    assert info.reason == "PAYMENT_STATE_INVALID"
    assert dict(info.metadata) == {
        "status": "CAPTURED",
        "captured": "150000",
        "refunded": "100000",
        "requested": "100000",
    }
    request.reason = "snow"
    error = await refusal(payments.RefundPayment(request, metadata=keyed))
    assert reason_of(error) == "IDEMPOTENCY_KEY_REUSED"
    error = await refusal(payments.RefundPayment(request, metadata=signed_in(new_id())))
    assert reason_of(error) == "STAFF_REQUIRED"


async def test_a_webhook_counts_by_its_signature_alone(running: Running) -> None:
    body = json.dumps({"id": "evt_1", "type": "balance.updated"}).encode()
    await running.webhook(body)
    await running.webhook(body)
    error = await refusal(running.webhook(body, secret="wrong"))
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "WEBHOOK_SIGNATURE_INVALID",
    )
    error = await refusal(running.webhook(body, provider="stripe"))
    assert reason_of(error) == "PROVIDER_NOT_FOUND"
    error = await refusal(running.webhook(b" " * (512 * 1024 + 1)))
    assert reason_of(error) == "REQUEST_TOO_LARGE"
    await running.webhook(b" " * 512 * 1024)
    await running.webhook(b"")


async def test_bad_requests_name_their_fields(running: Running) -> None:
    error = await refusal(running.create(amount=Money(currency_code="INR", amount_minor=10**13)))
    assert reason_of(error) == "VALIDATION_FAILED"
    request = a_request()
    request.amount.amount_minor = 0
    error = await refusal(PaymentServiceStub(running.booking).CreatePayment(request))
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == ["amount.amount_minor"]
    error = await refusal(running.complete(str(new_id()), 0))
    assert reason_of(error) == "VALIDATION_FAILED"
    error = await refusal(
        running.complete(str(new_id()), sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED)
    )
    assert reason_of(error) == "PAYMENT_NOT_FOUND"


async def test_customers_do_not_open_payments(running: Running) -> None:
    error = await refusal(
        PaymentServiceStub(running.gateway).CreatePayment(
            a_request(), metadata=signed_in(new_id(), "ADMIN")
        )
    )
    assert reason_of(error) == "CALLER_NOT_ALLOWED"


async def test_the_ledger_is_listed_page_by_page(running: Running) -> None:
    sandbox = SandboxServiceStub(running.gateway)
    staff = signed_in(new_id(), "STAFF")
    paid = [await running.create() for _ in range(3)]
    for payment in paid:
        await running.pay(payment)
    listed: list[sandbox_service_pb2.LedgerEntry] = []
    token = ""
    while True:
        page = await sandbox.ListLedgerEntries(
            sandbox_service_pb2.ListLedgerEntriesRequest(page_size=2, page_token=token),
            metadata=staff,
        )
        listed += page.entries
        token = page.next_page_token
        if not token:
            break
    assert [entry.payment_id for entry in listed] == [payment.payment_id for payment in paid]
    assert {entry.kind for entry in listed} == {sandbox_service_pb2.LedgerEntry.CAPTURE}
    error = await refusal(
        sandbox.ListLedgerEntries(
            sandbox_service_pb2.ListLedgerEntriesRequest(page_token="WyJ4Il0"), metadata=staff
        )
    )
    assert reason_of(error) == "VALIDATION_FAILED"


async def test_production_has_no_sandbox(
    tmp_path: Path, new_database: Callable[[str], str]
) -> None:
    settings = Settings(
        home=tmp_path,
        environment="production",
        payment_database_url=new_database("payment_svc"),
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as service,
        network.serve("payment_svc", service) as port,
        network.plain_channel("booking_svc", "payment_svc", port) as booking,
    ):
        error = await refusal(PaymentServiceStub(booking).CreatePayment(a_request()))
        assert reason_of(error) == "PROVIDER_NOT_FOUND"
    offered = [each for each in service.servicers if not each.development_only]
    assert [each.descriptor.name for each in offered] == [
        "PaymentService",
        "WebhookService",
        "BookService",
        "ReconciliationService",
        "PaymentEventService",
    ]


@pytest.mark.parametrize(
    "missing", ["BOXOFFICE_PAYMENT_DATABASE_URL", "BOXOFFICE_SANDBOX_WEBHOOK_SECRET"]
)
def test_it_does_not_start_without_what_it_needs(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOXOFFICE_PAYMENT_DATABASE_URL", "postgresql+psycopg://nowhere/x")
    monkeypatch.setenv("BOXOFFICE_SANDBOX_WEBHOOK_SECRET", SECRET)
    monkeypatch.delenv(missing)
    with pytest.raises(SystemExit, match=missing):
        main()
