"""Staff's view through the server: the ledger, unmatched items, day totals, disputes."""

import csv
import io
import json

import grpc
import pytest

from boxoffice.payments.v1 import (
    book_service_pb2,
    payment_pb2,
    payment_service_pb2,
    reconciliation_service_pb2,
    sandbox_service_pb2,
)
from boxoffice.payments.v1.book_service_pb2_grpc import BookServiceStub
from boxoffice.payments.v1.payment_service_pb2_grpc import PaymentServiceStub
from boxoffice.payments.v1.reconciliation_service_pb2_grpc import ReconciliationServiceStub
from boxoffice.payments.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from boxoffice.types.v1.money_pb2 import Money
from mesh.ids import new_id
from testing.network import reason_of, refusal
from testing.payment_server import PaymentServer, signed_in

STAFF = signed_in(new_id(), "STAFF")
FIRST, SECOND = sorted(str(new_id()) for _ in range(2))
Kind = sandbox_service_pb2.ScriptedFault


async def script(server: PaymentServer, payment: payment_pb2.Payment, *kinds: int) -> None:
    await SandboxServiceStub(server.gateway).ScriptFaults(
        sandbox_service_pb2.ScriptFaultsRequest(
            payment_id=payment.payment_id,
            faults=[Kind(kind=kind) for kind in kinds],  # type: ignore[arg-type]
        ),
        metadata=STAFF,
    )


async def pay(server: PaymentServer, payment: payment_pb2.Payment) -> None:
    """Pays on the page and delivers every webhook."""
    await server.complete(payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED)
    await server.deliver_webhooks()


async def find(server: PaymentServer, payment: payment_pb2.Payment) -> payment_pb2.Payment:
    return await PaymentServiceStub(server.gateway).GetPayment(
        payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id), metadata=STAFF
    )


async def test_the_ledger_is_listed_in_pages_and_exported_as_csv(server: PaymentServer) -> None:
    for event_id, amount in (
        (FIRST, Money(currency_code="INR", amount_minor=150_000)),
        (FIRST, Money(currency_code="INR", amount_minor=50_000)),
        (FIRST, Money(currency_code="KWD", amount_minor=1_500)),
        (SECOND, Money(currency_code="JPY", amount_minor=1_500)),
    ):
        await pay(server, await server.create(event_id=event_id, amount=amount))
    book = BookServiceStub(server.gateway)
    rows: list[book_service_pb2.BookRow] = []
    token = ""
    while not rows or token:
        page = await book.ListBookRows(
            book_service_pb2.ListBookRowsRequest(page_size=1, page_token=token), metadata=STAFF
        )
        assert len(page.rows) == 1
        rows += page.rows
        token = page.next_page_token
    listed = [(row.event_id, row.currency_code, row.captured_minor, row.net_minor) for row in rows]
    assert listed == [
        (FIRST, "INR", 200_000, 200_000),
        (FIRST, "KWD", 1_500, 1_500),
        (SECOND, "JPY", 1_500, 1_500),
    ]
    export = await book.ExportBook(book_service_pb2.ExportBookRequest(), metadata=STAFF)
    assert export.content_type == "text/csv; charset=utf-8"
    exported = list(csv.DictReader(io.StringIO(export.data.decode())))
    names = [field.name for field in book_service_pb2.BookRow.DESCRIPTOR.fields]
    assert exported == [{name: str(getattr(row, name)) for name in names} for row in rows]
    second = await book.ExportBook(
        book_service_pb2.ExportBookRequest(event_id=SECOND), metadata=STAFF
    )
    assert second.data.decode().splitlines()[1:] == [
        f"{rows[2].day},{SECOND},JPY,1500,0,0,0,0,1500,0"
    ]
    nothing = await book.ExportBook(
        book_service_pb2.ExportBookRequest(since_day="2999-01-01"), metadata=STAFF
    )
    assert nothing.data.decode().splitlines() == [",".join(names)]


async def test_invalid_requests_for_the_ledger_are_refused(server: PaymentServer) -> None:
    book = BookServiceStub(server.gateway)
    for request in (
        book_service_pb2.ListBookRowsRequest(since_day="2026-02-30"),
        book_service_pb2.ListBookRowsRequest(until_day="yesterday"),
        book_service_pb2.ListBookRowsRequest(page_size=1001),
        book_service_pb2.ListBookRowsRequest(page_token="WyJ4Il0"),
        book_service_pb2.ListBookRowsRequest(event_id="e1"),
    ):
        error = await refusal(book.ListBookRows(request, metadata=STAFF))
        assert reason_of(error) == "VALIDATION_FAILED", request
    error = await refusal(
        book.ExportBook(book_service_pb2.ExportBookRequest(), metadata=signed_in(new_id()))
    )
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "STAFF_REQUIRED",
    )


async def test_an_unmatched_item_is_listed_until_staff_close_it(server: PaymentServer) -> None:
    payment = await server.create()
    await server.complete(payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED)
    (body,) = await server.sandbox_webhooks()
    # With a valid signature, of an unknown payment.
    text = body.decode().replace(payment.payment_id, str(new_id()))
    event = json.loads(text)
    for number in range(2):
        event["id"] = f"evt_stranger_{number}"
        event["data"] = {
            name: "cs_stranger" if name == "session_id" else value
            for name, value in event["data"].items()
        }
        await server.webhook(json.dumps(event).encode())
    reconciliation = ReconciliationServiceStub(server.gateway)
    first = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(page_size=1), metadata=STAFF
    )
    second = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(page_token=first.next_page_token),
        metadata=STAFF,
    )
    items = [*first.unexplained, *second.unexplained]
    assert [item.reference for item in items] == ["evt_stranger_0", "evt_stranger_1"]
    assert {item.kind for item in items} == {reconciliation_service_pb2.Unexplained.WEBHOOK}
    assert {item.amount.amount_minor for item in items} == {150_000}

    notes = []
    for note in ("the other shop's", "something else"):
        closed = await reconciliation.CloseUnexplained(
            reconciliation_service_pb2.CloseUnexplainedRequest(
                unexplained_id=items[0].unexplained_id, note=note
            ),
            metadata=STAFF,
        )
        notes.append(closed.note)
    assert notes == ["the other shop's"] * 2
    open_items = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(), metadata=STAFF
    )
    assert [item.reference for item in open_items.unexplained] == ["evt_stranger_1"]
    error = await refusal(
        reconciliation.CloseUnexplained(
            reconciliation_service_pb2.CloseUnexplainedRequest(
                unexplained_id=str(new_id()), note="?"
            ),
            metadata=STAFF,
        )
    )
    assert reason_of(error) == "PAYMENT_NOT_FOUND"


async def test_day_totals_have_both_sides(server: PaymentServer) -> None:
    await server.compare_a_day()
    listed = await ReconciliationServiceStub(server.gateway).ListDayTotals(
        reconciliation_service_pb2.ListDayTotalsRequest(
            since_day="2026-03-01", until_day="2026-03-01"
        ),
        metadata=STAFF,
    )
    assert [
        (total.provider, total.day, total.kind, total.provider_total.amount_minor, total.our_total)
        for total in listed.totals
    ] == [("sandbox", "2026-03-01", "CAPTURE", 700, Money(currency_code="INR", amount_minor=0))]


async def test_a_scripted_second_capture_is_in_suspense(server: PaymentServer) -> None:
    payment = await server.create()
    await script(server, payment, Kind.PAY_TWICE)
    await pay(server, payment)
    ledger = await SandboxServiceStub(server.gateway).ListLedgerEntries(
        sandbox_service_pb2.ListLedgerEntriesRequest(), metadata=STAFF
    )
    assert [entry.kind for entry in ledger.entries] == [
        sandbox_service_pb2.LedgerEntry.CAPTURE,
        sandbox_service_pb2.LedgerEntry.CAPTURE,
    ]
    assert (await find(server, payment)).status == payment_pb2.Payment.CAPTURED
    (row,) = (
        await BookServiceStub(server.gateway).ListBookRows(
            book_service_pb2.ListBookRowsRequest(), metadata=STAFF
        )
    ).rows
    # The first capture is the event's, the second is in suspense until it is refunded.
    assert (row.captured_minor, row.suspense_minor) == (150_000, 150_000)


async def test_a_dispute_is_shown_with_its_payment(server: PaymentServer) -> None:
    payment = await server.create()
    await script(server, payment, Kind.DISPUTE)
    await pay(server, payment)
    (dispute,) = (await find(server, payment)).disputes
    assert dispute.status == payment_pb2.Dispute.OPEN
    assert dispute.amount == payment.amount
    assert dispute.reason


@pytest.mark.parametrize("times", [-1, 101])
async def test_faults_are_bounded_and_for_staff(server: PaymentServer, times: int) -> None:
    request = sandbox_service_pb2.ScriptFaultsRequest(
        payment_id=str(new_id()), faults=[Kind(kind=Kind.DROP, times=times)]
    )
    sandbox = SandboxServiceStub(server.gateway)
    assert reason_of(await refusal(sandbox.ScriptFaults(request, metadata=STAFF))) == (
        "VALIDATION_FAILED"
    )
    request.faults[0].times = 1
    customer = signed_in(new_id())
    assert reason_of(await refusal(sandbox.ScriptFaults(request, metadata=customer))) == (
        "STAFF_REQUIRED"
    )
