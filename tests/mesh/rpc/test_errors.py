"""Errors from a domain function through services to the client."""

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2

from boxoffice.catalogue.v1 import event_service_pb2
from boxoffice.errors.v1 import reason_pb2
from boxoffice.stock.v1 import stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.rpc.errors import CODES, COMMON_REASONS
from mesh.rpc.policy import MAX_DEADLINE_SECONDS
from testing.network import (
    Context,
    Handler,
    Network,
    a_service,
    call,
    details_of,
    reason_of,
    refusal,
    service_descriptor,
    standing_in,
)

EVENTS = "boxoffice.catalogue.v1.EventService"
STOCK = "boxoffice.stock.v1.StockService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"
SECRET = "hunter2 in /etc/secret"


def test_the_reasons_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("REASON_") for name, _ in reason_pb2.Reason.items()}
    assert {reason.value for reason in Reason} == contract - {"UNSPECIFIED"}
    assert all(reason.name == reason.value for reason in Reason)


def test_every_reason_has_its_code() -> None:
    assert CODES.keys() == set(Reason)
    assert set(CODES) >= COMMON_REASONS
    assert grpc.StatusCode.OK not in CODES.values()
    assert grpc.StatusCode.UNKNOWN not in CODES.values()


async def answer_of(network: Network, get_event: Handler) -> grpc.aio.AioRpcError:
    """The error that a client gets from a public method."""
    service = a_service(standing_in(EVENTS, GetEvent=get_event))
    async with (
        network.serve("booking_svc", service) as port,
        network.plain_channel("gateway", "booking_svc", port) as channel,
    ):
        request = event_service_pb2.GetEventRequest(event_id=EVENT_ID)
        return await refusal(call(channel, f"/{EVENTS}/GetEvent", request))


async def answer_of_stock(network: Network, get_stock: Handler) -> grpc.aio.AioRpcError:
    """The error that a client of booking_svc gets for an error in stock_svc."""
    async with (
        network.serve("stock_svc", a_service(standing_in(STOCK, GetStock=get_stock))) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, service_descriptor(STOCK)) as stock,
    ):

        async def get_event(request: Any, context: Context) -> Any:
            await StockServiceStub(stock).GetStock(
                stock_service_pb2.GetStockRequest(event_id=request.event_id)
            )

        return await answer_of(network, get_event)


def sold_out() -> DomainError:
    return DomainError(
        Reason.SOLD_OUT,
        "only 2 of 4 places are available",
        violations=(FieldViolation("items[0].quantity", "at most 2"),),
        retry_after_seconds=2.5,
        offer_id="0192",
        available=2,
    )


async def test_an_error_of_a_called_service_is_passed_on_unchanged(network: Network) -> None:
    seen: list[DomainError] = []
    async with (
        network.serve(
            "stock_svc", a_service(standing_in(STOCK, GetStock=raising(sold_out())))
        ) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, service_descriptor(STOCK)) as stock,
    ):

        async def get_event(request: Any, context: Context) -> Any:
            try:
                await StockServiceStub(stock).GetStock(
                    stock_service_pb2.GetStockRequest(event_id=request.event_id)
                )
            except DomainError as error:
                seen.append(error)
                raise

        answer = await answer_of(network, get_event)
    [between] = seen
    assert vars(between) == vars(sold_out())
    assert answer.code() is grpc.StatusCode.ABORTED
    assert answer.details() == "only 2 of 4 places are available"
    info = details_of(answer, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("SOLD_OUT", "boxoffice")
    assert dict(info.metadata) == {"offerId": "0192", "available": "2"}
    [violation] = details_of(answer, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("items[0].quantity", "at most 2")
    delay = details_of(answer, error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() == 2500


def raising(error: Exception) -> Handler:
    async def fail(request: Any, context: Context) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("text", ["must have at most 50 characters", "must not be \U0001f39f"])
async def test_very_many_violations_fit_into_the_headers(network: Network, text: str) -> None:
    violations = [FieldViolation(f"rows[{number}].label", text) for number in range(400)]
    answer = await answer_of(network, raising(invalid(*violations)))
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    described = details_of(answer, error_details_pb2.BadRequest).field_violations
    assert 5 < len(described) < 400
    message = answer.details() or ""
    assert message.endswith(f"; and {400 - len(described)} more")
    # 8 KiB less what the gateway adds.
    assert sum(len(quote(value)) for _, value in answer.trailing_metadata()) < 4_500
    assert len(quote(message)) < 1_900


@pytest.mark.parametrize("where", [answer_of, answer_of_stock])
async def test_a_bug_reveals_nothing_to_the_client(
    network: Network, caplog: pytest.LogCaptureFixture, where: Any
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await where(network, raising(RuntimeError(SECRET)))
    assert answer.code() is grpc.StatusCode.INTERNAL
    assert reason_of(answer) == "INTERNAL"
    assert SECRET not in str(answer) + str(answer.trailing_metadata())
    assert "RuntimeError" not in str(answer) + str(answer.trailing_metadata())
    [logged] = [record for record in caplog.records if record.exc_info and SECRET in caplog.text][
        :1
    ]
    assert logged.name == "mesh.rpc"


async def test_an_unavailable_service_is_an_unavailable_dependency(network: Network) -> None:
    async with network.serve("stock_svc", a_service(standing_in(STOCK))) as port:
        pass
    async with network.mesh_channel(
        "booking_svc", "stock_svc", port, service_descriptor(STOCK)
    ) as stock:

        async def get_event(request: Any, context: Context) -> Any:
            await StockServiceStub(stock).GetStock(
                stock_service_pb2.GetStockRequest(event_id=request.event_id)
            )

        answer = await answer_of(network, get_event)
    assert answer.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(answer) == "DEPENDENCY_UNAVAILABLE"
    assert details_of(answer, error_details_pb2.RetryInfo).retry_delay.seconds == 1


async def test_a_slow_service_is_an_unavailable_dependency(network: Network) -> None:
    async def never(request: Any, context: Context) -> Any:
        await asyncio.sleep(MAX_DEADLINE_SECONDS)

    answer = await answer_of_stock(network, never)
    assert reason_of(answer) in {"DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize(
    ("statement", "reason", "cause"),
    [
        ("SET LOCAL statement_timeout = 10; SELECT pg_sleep(10)", "OVERLOADED", "57014: cancel"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "DEPENDENCY_UNAVAILABLE", "57P01: term"),
        (
            "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$",
            "DEPENDENCY_UNAVAILABLE",
            "40P01: x",
        ),
        ("SELECT 'hunter2 in /etc/secret' FROM nowhere", "INTERNAL", None),
        ("DO $$ BEGIN RAISE EXCEPTION 'hunter2 in /etc/secret'; END $$", "INTERNAL", None),
    ],
)
async def test_a_database_error_is_translated_without_its_text(
    network: Network,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    reason: str,
    cause: str | None,
) -> None:
    async def query(request: Any, context: Context) -> Any:
        async with database.transaction() as connection:
            for part in statement.split("; ") if statement.startswith("SET") else [statement]:
                await connection.execute(sa.text(part))

    with caplog.at_level(logging.INFO, "mesh.rpc"):
        answer = await answer_of(network, query)
    assert reason_of(answer) == reason
    [line] = [vars(record) for record in caplog.records if record.message == "rpc"]
    # For operators. The message of other errors would quote values of the statement.
    assert ("cause" in line) == (cause is not None)
    assert line.get("cause", "").startswith(cause or "")
    shown = str(answer) + str(answer.trailing_metadata())
    assert not any(word in shown for word in (SECRET, "SELECT", "psycopg", "nowhere"))


async def test_an_exhausted_pool_is_overload(network: Network, database: Database) -> None:
    async with Database.open(database.url, pool_size=1) as small, small.transaction():

        async def query(request: Any, context: Context) -> Any:
            async with small.transaction():
                raise AssertionError("there was a connection")

        # On a busy machine the method's deadline may come before the pool's timeout.
        answer = await answer_of(network, query)
    assert reason_of(answer) in {"OVERLOADED", "DEADLINE_EXCEEDED"}


async def test_a_reason_that_the_policy_does_not_list_is_logged(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mesh.rpc"):
        answer = await answer_of(network, raising(DomainError(Reason.PAYMENT_FAILED, "odd")))
    assert reason_of(answer) == "PAYMENT_FAILED"
    assert any("does not list" in record.message for record in caplog.records)


async def test_a_call_is_one_log_line_without_its_content(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mesh.rpc"):
        await answer_of(network, raising(sold_out()))
    [line] = [vars(record) for record in caplog.records if record.message == "rpc"]
    assert line["method"] == f"/{EVENTS}/GetEvent"
    assert (line["code"], line["reason"], line["caller"]) == ("ABORTED", "SOLD_OUT", "gateway")
    assert line["duration_ms"] >= 0
    assert EVENT_ID not in str(line)
