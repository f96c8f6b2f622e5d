"""The metrics page, the probes, and the metrics that mesh itself exports."""

import gc
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from boxoffice.auth.v1 import auth_service_pb2
from mesh import tasks
from mesh.db.database import Database, on_commit
from mesh.errors import DomainError, Reason
from mesh.observability import metrics
from mesh.observability.probes import Heartbeat, Readiness
from mesh.rpc import interceptor
from mesh.rpc.errors import to_grpc
from testing.network import Network, a_service, call, refusal, service_descriptor, standing_in

AUTH = "boxoffice.auth.v1.AuthService"
JWKS = f"/{AUTH}/GetJwks"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"boxoffice_{name}", labels) or 0.0


def fetch(listener: metrics.Listener, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{listener.port}{path}") as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_has_declared_metrics() -> None:
    metrics.counter("test_things", "Things.", "kind").labels("good").inc(3)
    with metrics.Listener("127.0.0.1", 0) as listener:
        status, page = fetch(listener, "/metrics")
        assert status == 200
        assert 'boxoffice_test_things_total{kind="good"} 3.0' in page
        assert "process_cpu_seconds_total" in page
        assert fetch(listener, "/else")[0] == 404


def test_probes_return_the_results_of_their_functions() -> None:
    answers = {"live": True, "ready": False}
    with metrics.Listener(
        "127.0.0.1", 0, is_live=lambda: answers["live"], is_ready=lambda: answers["ready"]
    ) as listener:
        assert (fetch(listener, "/live")[0], fetch(listener, "/ready")[0]) == (200, 503)
        answers |= {"live": False, "ready": True}
        assert (fetch(listener, "/live")[0], fetch(listener, "/ready")[0]) == (503, 200)


def test_a_measured_gauge_ignores_deleted_objects() -> None:
    class Shelf:
        books = 4.0

    def books(shelf: Shelf) -> list[tuple[str, float]]:
        return [("book", shelf.books)]

    add = metrics.measured("test_shelf", "Books.", books, label="kind")
    first, second = Shelf(), Shelf()
    add(first)
    add(second)
    assert value("test_shelf", kind="book") == 8
    del second
    gc.collect()
    assert value("test_shelf", kind="book") == 4


def test_one_failed_ping_of_the_database_does_not_change_readiness() -> None:
    readiness = Readiness(misses=3, hits=2)
    assert [readiness.record(good=good) for good in (False, True, False, False, True)] == [
        False, True, True, True, True,
    ]  # fmt: skip
    assert [readiness.record(good=False) for _ in range(3)] == [True, True, False]
    assert [readiness.record(good=good) for good in (True, False, True, True)] == [
        False, False, False, True,
    ]  # fmt: skip
    readiness.stop()
    assert readiness.record(good=True) is False


def test_a_blocked_event_loop_is_not_live() -> None:
    now = 100.0
    heartbeat = Heartbeat(clock=lambda: now)
    assert heartbeat.is_beating()
    now += 14.9
    assert heartbeat.is_beating()
    now += 0.2
    assert not heartbeat.is_beating()


async def test_calls_are_counted_at_both_ends(network: Network) -> None:
    async def no_keys(_request: object, _context: object) -> object:
        raise DomainError(Reason.OVERLOADED, "too much")

    served = {"rpc": "AuthService/GetJwks", "caller": "stock_svc", "code": "OK"}
    refused = {**served, "code": "RESOURCE_EXHAUSTED"}
    reason = {"rpc": "AuthService/GetJwks", "reason": "OVERLOADED"}
    called = {"rpc": "AuthService/GetJwks", "code": "OK"}
    before = [
        value("rpc_server_seconds_count", **served),
        value("rpc_server_seconds_count", **refused),
        value("rpc_server_refusals_total", **reason),
        value("rpc_client_seconds_count", **called),
    ]
    request = auth_service_pb2.GetJwksRequest()
    for handlers in ({}, {"GetJwks": no_keys}):
        async with (
            network.serve("auth_svc", a_service(standing_in(AUTH, **handlers))) as port,
            network.mesh_channel(
                "stock_svc", "auth_svc", port, service_descriptor(AUTH)
            ) as channel,
        ):
            if handlers:
                await refusal(call(channel, JWKS, request))
            else:
                await call(channel, JWKS, request)
    assert [
        value("rpc_server_seconds_count", **served),
        value("rpc_server_seconds_count", **refused),
        value("rpc_server_refusals_total", **reason),
        value("rpc_client_seconds_count", **called),
    ] == [count + 1 for count in before]
    assert value("rpc_server_running", rpc="AuthService/GetJwks") == 0


async def test_a_refusal_is_counted_before_it_is_sent(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that metrics and log are complete when a client reports an error."""
    labels = {"rpc": "AuthService/GetJwks", "reason": "OVERLOADED"}
    before, counted = value("rpc_server_refusals_total", **labels), []

    def answer(error: DomainError) -> grpc.Status:
        counted.append(value("rpc_server_refusals_total", **labels) - before)
        return to_grpc(error)

    async def refuse(_request: object, _context: object) -> object:
        raise DomainError(Reason.OVERLOADED, "too much")

    monkeypatch.setattr(interceptor, "to_grpc", answer)
    async with (
        network.serve("auth_svc", a_service(standing_in(AUTH, GetJwks=refuse))) as port,
        network.plain_channel("stock_svc", "auth_svc", port) as channel,
    ):
        await refusal(call(channel, JWKS, auth_service_pb2.GetJwksRequest()))
    assert counted == [1]


async def test_statements_and_connections_are_measured(database: Database) -> None:
    before = value("database_statement_seconds_count", kind="select")
    free = value("database_connections", state="free")
    async with database.reading() as connection:
        await connection.execute(sa.text("SELECT 1"))
        assert value("database_connections", state="free") == free - 1
    assert value("database_statement_seconds_count", kind="select") == before + 1
    assert value("database_connections", state="free") == free


async def test_a_failed_statement_is_counted_by_the_class_of_its_sqlstate(
    database: Database,
) -> None:
    before = value("database_errors_total", **{"class": "22"})
    async with database.reading() as connection:
        with pytest.raises(sa.exc.DBAPIError):
            await connection.execute(sa.text("SELECT 1 / 0"))
    assert value("database_errors_total", **{"class": "22"}) == before + 1


async def test_on_commit_is_not_called_after_a_rollback(database: Database) -> None:
    counted: list[str] = []

    def count(what: str) -> Callable[[], None]:
        return lambda: counted.append(what)

    async def undo() -> None:
        async with database.transaction() as connection:
            on_commit(connection, count("undone"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await undo()
    async with database.transaction() as connection:
        on_commit(connection, count("done"))
        assert counted == []
    assert counted == ["done"]


async def test_turns_of_a_loop_are_counted() -> None:
    turns = iter([None, ValueError(), None])

    async def turn() -> None:
        error = next(turns, GeneratorExit())
        if error is not None:
            raise error

    with pytest.raises(GeneratorExit):
        await tasks.forever("counted loop", turn, retry_seconds=0)
    assert value("loop_turns_total", loop="counted loop") == 2
    assert value("loop_failures_total", loop="counted loop") == 1
    assert value("loop_last_turn_timestamp_seconds", loop="counted loop") > 1_600_000_000
