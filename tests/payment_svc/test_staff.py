"""What staff see of the money, through the server: the book, what nobody can explain, disputes."""

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
from testing.payment_server import Running, signed_in

STAFF = signed_in(new_id(), "STAFF")
FIRST, SECOND = sorted(str(new_id()) for _ in range(2))
Kind = sandbox_service_pb2.ScriptedFault


async def script(running: Running, payment: payment_pb2.Payment, *kinds: int) -> None:
    await SandboxServiceStub(running.gateway).ScriptFaults(
        sandbox_service_pb2.ScriptFaultsRequest(
            payment_id=payment.payment_id,
            faults=[Kind(kind=kind) for kind in kinds],  # type: ignore[arg-type]
        ),
        metadata=STAFF,
    )


async def pay(running: Running, payment: payment_pb2.Payment) -> None:
    """On the page, with every webhook brought."""
    await running.complete(
        payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
    )
    await running.bring_webhooks()


async def find(running: Running, payment: payment_pb2.Payment) -> payment_pb2.Payment:
    return await PaymentServiceStub(running.gateway).GetPayment(
        payment_service_pb2.GetPaymentRequest(payment_id=payment.payment_id), metadata=STAFF
    )


async def test_the_book_is_read_by_pages_and_as_csv(running: Running) -> None:
    for event_id, amount in (
        (FIRST, Money(currency_code="INR", amount_minor=150_000)),
        (FIRST, Money(currency_code="INR", amount_minor=50_000)),
        (FIRST, Money(currency_code="KWD", amount_minor=1_500)),
        (SECOND, Money(currency_code="JPY", amount_minor=1_500)),
    ):
        await pay(running, await running.create(event_id=event_id, amount=amount))
    book = BookServiceStub(running.gateway)
    rows: list[book_service_pb2.BookRow] = []
    token = ""
    while not rows or token:
        page = await book.ListBookRows(
            book_service_pb2.ListBookRowsRequest(page_size=1, page_token=token), metadata=STAFF
        )
        assert len(page.rows) == 1
        rows += page.rows
        token = page.next_page_token
    seen = [(row.event_id, row.currency_code, row.captured_minor, row.net_minor) for row in rows]
    assert seen == [
        (FIRST, "INR", 200_000, 200_000),
        (FIRST, "KWD", 1_500, 1_500),
        (SECOND, "JPY", 1_500, 1_500),
    ]
    export = await book.ExportBook(book_service_pb2.ExportBookRequest(), metadata=STAFF)
    assert export.content_type == "text/csv; charset=utf-8"
    exported = list(csv.DictReader(io.StringIO(export.data.decode())))
    names = [field.name for field in book_service_pb2.BookRow.DESCRIPTOR.fields]
    assert exported == [{name: str(getattr(row, name)) for name in names} for row in rows]
    one = await book.ExportBook(book_service_pb2.ExportBookRequest(event_id=SECOND), metadata=STAFF)
    assert one.data.decode().splitlines()[1:] == [f"{rows[2].day},{SECOND},JPY,1500,0,0,0,0,1500"]
    nothing = await book.ExportBook(
        book_service_pb2.ExportBookRequest(since_day="2999-01-01"), metadata=STAFF
    )
    assert nothing.data.decode().splitlines() == [",".join(names)]


async def test_the_book_refuses_what_it_cannot_read(running: Running) -> None:
    book = BookServiceStub(running.gateway)
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


async def test_what_nobody_can_explain_is_listed_until_staff_close_it(running: Running) -> None:
    payment = await running.create()
    await running.complete(
        payment.payment_id, sandbox_service_pb2.CompleteCheckoutRequest.SUCCEEDED
    )
    (body,) = await running.sandbox_webhooks()
    # Rightly signed, and about a payment of somebody else.
    text = body.decode().replace(payment.payment_id, str(new_id()))
    event = json.loads(text)
    for number in range(2):
        event["id"] = f"evt_stranger_{number}"
        event["data"] = {
            name: "cs_stranger" if name == "session_id" else value
            for name, value in event["data"].items()
        }
        await running.webhook(json.dumps(event).encode())
    reconciliation = ReconciliationServiceStub(running.gateway)
    first = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(page_size=1), metadata=STAFF
    )
    second = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(page_token=first.next_page_token),
        metadata=STAFF,
    )
    found = [*first.unexplained, *second.unexplained]
    assert [one.reference for one in found] == ["evt_stranger_0", "evt_stranger_1"]
    assert {one.kind for one in found} == {reconciliation_service_pb2.Unexplained.WEBHOOK}
    assert {one.amount.amount_minor for one in found} == {150_000}

    notes = []
    for note in ("the other shop's", "something else"):
        closed = await reconciliation.CloseUnexplained(
            reconciliation_service_pb2.CloseUnexplainedRequest(
                unexplained_id=found[0].unexplained_id, note=note
            ),
            metadata=STAFF,
        )
        notes.append(closed.note)
    assert notes == ["the other shop's"] * 2
    left = await reconciliation.ListUnexplained(
        reconciliation_service_pb2.ListUnexplainedRequest(), metadata=STAFF
    )
    assert [one.reference for one in left.unexplained] == ["evt_stranger_1"]
    error = await refusal(
        reconciliation.CloseUnexplained(
            reconciliation_service_pb2.CloseUnexplainedRequest(
                unexplained_id=str(new_id()), note="?"
            ),
            metadata=STAFF,
        )
    )
    assert reason_of(error) == "PAYMENT_NOT_FOUND"


async def test_days_have_both_sides_totals(running: Running) -> None:
    await running.compare_a_day()
    listed = await ReconciliationServiceStub(running.gateway).ListDayTotals(
        reconciliation_service_pb2.ListDayTotalsRequest(
            since_day="2026-03-01", until_day="2026-03-01"
        ),
        metadata=STAFF,
    )
    assert [
        (one.provider, one.day, one.kind, one.provider_total.amount_minor, one.our_total)
        for one in listed.totals
    ] == [("sandbox", "2026-03-01", "CAPTURE", 700, Money(currency_code="INR"))]


async def test_a_scripted_fault_takes_money_twice_and_one_goes_back(running: Running) -> None:
    payment = await running.create()
    await script(running, payment, Kind.PAY_TWICE)
    await pay(running, payment)
    ledger = await SandboxServiceStub(running.gateway).ListLedgerEntries(
        sandbox_service_pb2.ListLedgerEntriesRequest(), metadata=STAFF
    )
    assert [entry.kind for entry in ledger.entries] == [
        sandbox_service_pb2.LedgerEntry.CAPTURE,
        sandbox_service_pb2.LedgerEntry.CAPTURE,
    ]
    assert (await find(running, payment)).status == payment_pb2.Payment.CAPTURED
    (row,) = (
        await BookServiceStub(running.gateway).ListBookRows(
            book_service_pb2.ListBookRowsRequest(), metadata=STAFF
        )
    ).rows
    # One is the event's, the other waits to be given back.
    assert (row.captured_minor, row.suspense_minor) == (150_000, 150_000)


async def test_a_dispute_is_shown_with_its_payment(running: Running) -> None:
    payment = await running.create()
    await script(running, payment, Kind.DISPUTE)
    await pay(running, payment)
    found = await find(running, payment)
    (dispute,) = found.disputes
    assert dispute.status == payment_pb2.Dispute.OPEN
    assert dispute.amount == payment.amount
    assert dispute.reason


@pytest.mark.parametrize("times", [-1, 101])
async def test_faults_are_bounded_and_for_staff(running: Running, times: int) -> None:
    request = sandbox_service_pb2.ScriptFaultsRequest(
        payment_id=str(new_id()), faults=[Kind(kind=Kind.DROP, times=times)]
    )
    sandbox = SandboxServiceStub(running.gateway)
    assert reason_of(await refusal(sandbox.ScriptFaults(request, metadata=STAFF))) == (
        "VALIDATION_FAILED"
    )
    request.faults[0].times = 1
    customer = signed_in(new_id())
    assert reason_of(await refusal(sandbox.ScriptFaults(request, metadata=customer))) == (
        "STAFF_REQUIRED"
    )
