"""payment_svc through its own server, with mutual TLS and the contract's rules."""

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
from mesh.clock import system_clock
from mesh.ids import new_id
from payment_svc import tables
from payment_svc.__main__ import main
from payment_svc.settings import Settings
from testing.databases import open_patiently
from testing.network import details_of, reason_of, refusal
from testing.payment_harness import SECRET, SandboxHarness
from testing.payment_server import PaymentServer, a_request, serving, signed_in


async def test_a_payment_is_opened_paid_and_refunded(server: PaymentServer) -> None:
    payments = PaymentServiceStub(server.booking)
    customer = str(new_id())
    payment = await server.create(customer_id=customer)
    assert payment.status == payment_pb2.Payment.CREATED
    assert payment.payment_url.endswith(f"/sandbox/pay/{payment.payment_id}")
    assert not payment.HasField("method")

    page = await SandboxServiceStub(server.gateway).ShowCheckout(
        sandbox_service_pb2.ShowCheckoutRequest(payment_id=payment.payment_id)
    )
    assert page.content_type.startswith("text/html")
    assert "₹ 1,500.00" in page.data.decode()

    assert (
        await server.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.FAILED
        )
        == "https://shop.test/back"
    )
    assert (
        await server.complete(
            payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
        )
        == "https://shop.test/thanks"
    )
    await server.pay(payment)
    paid = await PaymentServiceStub(server.gateway).GetPayment(
        payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id),
        metadata=signed_in(customer),
    )
    assert (paid.status, paid.method) == (payment_pb2.Payment.CAPTURED, "card")

    refund = await payments.RefundPayment(
        payment_service_pb2.RefundPaymentRequest(payment_id=payment.payment_id),
        metadata=[("idempotency-key", "cancel-1")],
    )
    assert refund.status == payment_pb2.Refund.PENDING
    assert refund.amount.amount_minor == 150_000
    assert refund == await PaymentServiceStub(server.gateway).GetRefund(
        payment_service_pb2.GetRefundRequest(refund_id=refund.refund_id),
        metadata=signed_in(customer),
    )
    stream = PaymentEventServiceStub(server.booking).StreamEvents(
        payment_event_service_pb2.StreamEventsRequest()
    )
    async with asyncio.timeout(60):
        batch = await anext(aiter(stream))
    events = [event.WhichOneof("event") for event in batch.events]
    assert events == ["captured", "refund_updated"]
    assert batch.events[0].position
    stream.cancel()


async def test_only_the_owner_and_staff_see_a_payment(server: PaymentServer) -> None:
    customer = str(new_id())
    payment = await server.create(customer_id=customer)
    request = payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id)
    payments = PaymentServiceStub(server.gateway)
    assert await payments.GetPayment(request, metadata=signed_in(customer)) == payment
    assert await payments.GetPayment(request, metadata=signed_in(new_id(), "STAFF")) == payment
    error = await refusal(payments.GetPayment(request, metadata=signed_in(new_id())))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "PAYMENT_NOT_FOUND")
    error = await refusal(payments.GetPayment(request))
    assert reason_of(error) == "TOKEN_INVALID"


async def test_a_refund_by_staff_needs_a_key_and_is_made_once(server: PaymentServer) -> None:
    payment = await server.create()
    await server.pay(payment)
    payments = PaymentServiceStub(server.gateway)
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
        "disputed": "0",
        "refundable": "50000",
        "requested": "100000",
    }
    request.reason = "snow"
    error = await refusal(payments.RefundPayment(request, metadata=keyed))
    assert reason_of(error) == "IDEMPOTENCY_KEY_REUSED"
    error = await refusal(payments.RefundPayment(request, metadata=signed_in(new_id())))
    assert reason_of(error) == "STAFF_REQUIRED"


async def paid_through(server: PaymentServer) -> payment_pb2.Payment:
    payment = await server.create()
    await server.pay(payment)
    return payment


def a_refund_request(
    payment: payment_pb2.Payment, amount_minor: int = 100
) -> payment_service_pb2.RefundPaymentRequest:
    return payment_service_pb2.RefundPaymentRequest(
        payment_id=payment.payment_id,
        amount=Money(currency_code="INR", amount_minor=amount_minor),
    )


async def count_refunds(server: PaymentServer) -> int:
    async with open_patiently(server.database_url) as database:
        return await SandboxHarness(database).count(tables.refunds)


async def test_a_repeated_refund_request_returns_the_stored_answer(server: PaymentServer) -> None:
    payments = PaymentServiceStub(server.gateway)
    request = a_refund_request(await paid_through(server))
    keyed = [*signed_in(new_id(), "STAFF"), ("idempotency-key", "k")]
    first = await payments.RefundPayment(request, metadata=keyed)
    assert await payments.RefundPayment(request, metadata=keyed) == first
    async with open_patiently(server.database_url) as database:
        harness = SandboxHarness(database)
        harness.clock.now = system_clock()
        assert await harness.calls.refund_due() == 1
    assert await payments.RefundPayment(request, metadata=keyed) == first
    current = await payments.GetRefund(
        payment_service_pb2.GetRefundRequest(refund_id=first.refund_id), metadata=keyed
    )
    assert current.status == payment_pb2.Refund.PROCESSED
    assert await count_refunds(server) == 1


async def test_another_request_under_the_same_key_is_refused(server: PaymentServer) -> None:
    payments = PaymentServiceStub(server.gateway)
    payment = await paid_through(server)
    keyed = [*signed_in(new_id(), "STAFF"), ("idempotency-key", "k")]
    await payments.RefundPayment(a_refund_request(payment), metadata=keyed)
    error = await refusal(payments.RefundPayment(a_refund_request(payment, 200), metadata=keyed))
    assert reason_of(error) == "IDEMPOTENCY_KEY_REUSED"
    assert await count_refunds(server) == 1


async def test_the_same_key_of_another_caller_is_another_key(server: PaymentServer) -> None:
    request = a_refund_request(await paid_through(server))
    gateway, booking = PaymentServiceStub(server.gateway), PaymentServiceStub(server.booking)
    key = ("idempotency-key", "k")
    refunds = [
        await gateway.RefundPayment(request, metadata=[*signed_in(new_id(), "STAFF"), key]),
        await gateway.RefundPayment(request, metadata=[*signed_in(new_id(), "STAFF"), key]),
        await booking.RefundPayment(request, metadata=[key]),
    ]
    assert len({refund.refund_id for refund in refunds}) == 3


async def test_a_refused_refund_request_leaves_its_key_free(server: PaymentServer) -> None:
    payment = await server.create()
    request = payment_service_pb2.RefundPaymentRequest(payment_id=payment.payment_id)
    payments = PaymentServiceStub(server.booking)
    keyed = [("idempotency-key", "k")]
    error = await refusal(payments.RefundPayment(request, metadata=keyed))
    assert reason_of(error) == "PAYMENT_STATE_INVALID"
    await server.pay(payment)
    refund = await payments.RefundPayment(request, metadata=keyed)
    assert refund.amount == payment.amount


@pytest.mark.parametrize("has_id", [False, True])
async def test_concurrent_requests_with_one_key_make_one_refund(
    server: PaymentServer, other_server: PaymentServer, has_id: bool
) -> None:
    """At two processes of payment_svc, also with an id that the caller has chosen."""
    request = a_refund_request(await paid_through(server))
    if has_id:
        request.refund_id = str(new_id())
    stubs = [PaymentServiceStub(process.booking) for process in (server, other_server)]
    keyed = [("idempotency-key", "k")]

    async def request_once(number: int) -> payment_pb2.Refund | grpc.aio.AioRpcError:
        try:
            return await stubs[number % 2].RefundPayment(request, metadata=keyed)
        except grpc.aio.AioRpcError as error:
            return error

    answers = await asyncio.gather(*map(request_once, range(8)))
    refunds = [answer for answer in answers if isinstance(answer, payment_pb2.Refund)]
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {reason_of(error) for error in refused} <= {"IDEMPOTENCY_IN_PROGRESS"}
    assert refunds
    repeated = [await stub.RefundPayment(request, metadata=keyed) for stub in stubs]
    assert len({refund.refund_id for refund in (*refunds, *repeated)}) == 1
    assert await count_refunds(server) == 1


async def test_only_a_webhook_with_a_valid_signature_is_received(server: PaymentServer) -> None:
    body = json.dumps({"id": "evt_1", "type": "balance.updated"}).encode()
    await server.webhook(body)
    await server.webhook(body)
    error = await refusal(server.webhook(body, secret="wrong"))
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "WEBHOOK_SIGNATURE_INVALID",
    )
    error = await refusal(server.webhook(body, provider="stripe"))
    assert reason_of(error) == "PROVIDER_NOT_FOUND"
    error = await refusal(server.webhook(b" " * (512 * 1024 + 1)))
    assert reason_of(error) == "REQUEST_TOO_LARGE"
    await server.webhook(b" " * 512 * 1024)
    await server.webhook(b"")


async def test_bad_requests_name_their_fields(server: PaymentServer) -> None:
    error = await refusal(server.create(amount=Money(currency_code="INR", amount_minor=10**13)))
    assert reason_of(error) == "VALIDATION_FAILED"
    request = a_request()
    request.amount.amount_minor = 0
    error = await refusal(PaymentServiceStub(server.booking).CreatePayment(request))
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == ["amount.amount_minor"]
    error = await refusal(server.complete(str(new_id()), 0))
    assert reason_of(error) == "VALIDATION_FAILED"
    error = await refusal(
        server.complete(str(new_id()), sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED)
    )
    assert reason_of(error) == "PAYMENT_NOT_FOUND"


async def test_clients_cannot_create_payments(server: PaymentServer) -> None:
    error = await refusal(
        PaymentServiceStub(server.gateway).CreatePayment(
            a_request(), metadata=signed_in(new_id(), "ADMIN")
        )
    )
    assert reason_of(error) == "CALLER_NOT_ALLOWED"


async def test_the_ledger_is_listed_page_by_page(server: PaymentServer) -> None:
    sandbox = SandboxServiceStub(server.gateway)
    staff = signed_in(new_id(), "STAFF")
    paid = [await server.create() for _ in range(3)]
    for payment in paid:
        await server.pay(payment)
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
    async with serving(settings) as server:
        error = await refusal(server.create())
        assert reason_of(error) == "PROVIDER_NOT_FOUND"
        servicers = server.service.servicers
    assert [
        servicer.descriptor.name for servicer in servicers if not servicer.development_only
    ] == [
        "PaymentService",
        "WebhookService",
        "BookService",
        "ReconciliationService",
        "PaymentEventService",
        "InboundWebhookService",
    ]


@pytest.mark.parametrize(
    "missing", ["BOXOFFICE_PAYMENT_DATABASE_URL", "BOXOFFICE_SANDBOX_WEBHOOK_SECRET"]
)
def test_payment_svc_does_not_start_without_a_required_setting(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOXOFFICE_PAYMENT_DATABASE_URL", "postgresql+psycopg://nowhere/x")
    monkeypatch.setenv("BOXOFFICE_SANDBOX_WEBHOOK_SECRET", SECRET)
    monkeypatch.delenv(missing)
    with pytest.raises(SystemExit, match=missing):
        main()
