"""Nothing that a client sends makes the mesh fail: no 5xx, no UNKNOWN, no INTERNAL.

REST requests are made by schemathesis from the served /openapi.json, as it describes them and
against it; gRPC messages are made from the contract's descriptors. Each method is called by a
customer, by staff, by an admin and by nobody. `--long` sends 20,000 in all.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
import requests
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import openapi
from schemathesis.generation import GenerationMode

from mesh.rpc.policy import MethodPolicy
from testing.network import contract_services
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, items, running_mesh
from tests.architecture.contract import policies
from tests.e2e.messages import broken, messages

ROLES = ["CUSTOMER", "STAFF", "ADMIN", None]
LONG = 10_000
# Asks the sandbox to fail, which it then does.
ASKS_FOR_FAILURES = "/sandbox/faults"
METHODS = [
    one
    for one in policies().values()
    if one.is_routed and all(binding.path != ASKS_FOR_FAILURES for binding in one.bindings)
]
BUSY = {503, 504, "UNAVAILABLE", "DEADLINE_EXCEEDED"}
"""No fault of the request, unless it happens twice in a row."""
FAILURES = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
GOOD = {200, 201, 204, "OK"}
_SECONDS = 30


@dataclass(frozen=True)
class Outcome:
    """An HTTP status or gRPC code, the reason, and what is wrong with the answer, if anything."""

    status: int | str
    reason: str = ""
    fault: str = ""


Send = Callable[[str | None], Outcome]
"""Sends one case, with a token or without."""


@dataclass
class People:
    """One account of each role; a new one when a case has ended its session."""

    api: Api
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, role: str | None) -> str | None:
        if role is None:
            return None
        if role not in self.tokens:
            self.tokens[role] = self._new(role)
        return self.tokens[role]

    def forget(self, role: str | None) -> None:
        """The role's session has ended, or its token."""
        self.tokens.pop(role or "", None)

    def _new(self, role: str) -> str:
        admin = self.api.sign_up(admin_secret=ADMIN_SECRET)
        if role == "ADMIN":
            return str(admin.token)
        one = self.api.sign_up()
        if role == "STAFF":
            admin.send("PATCH", f"/api/v1/users/{one.user_id}", {"role": role})
            one = one.sign_in(one.session["user"]["email"])
        return str(one.token)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningMesh]:
    """A mesh of its own: nobody else wants to see what is left behind."""
    with running_mesh() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def people(running: RunningMesh) -> Iterator[People]:
    with httpx.Client(base_url=running.url, timeout=_SECONDS) as client:
        yield People(Api(client))


@pytest.fixture
def known(people: People) -> dict[str, str]:
    """One thing of each kind, by the name of its id."""
    admin = Api(people.api.client, people.token("ADMIN"))
    customer = Api(people.api.client, people.token("CUSTOMER"))
    event = admin.create_event(offers=[{**_OFFER, "capacity": 1_000_000}])
    placed = customer.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    endpoint = admin.post(
        "/api/v1/webhook-endpoints",
        {"url": "http://127.0.0.1:1/hook", "eventTypes": ["booking.confirmed"]},
    ).json()
    return {
        "booking_id": placed["bookingId"],
        "payment_id": placed["payment"]["paymentId"],
        "event_id": event["eventId"],
        "offer_id": event["offers"][0]["offerId"],
        "provider": "sandbox",
        "sender": "crm",
        "user_id": customer.get("/api/v1/auth/me").json()["userId"],
        "webhook_endpoint_id": endpoint["webhookEndpointId"],
    }


_OFFER = {"name": "Floor", "price": {"currencyCode": "INR", "amountMinor": "150000"}}


@pytest.mark.timeout(7200)
def test_rest(running: RunningMesh, people: People, known: dict[str, str], is_long: bool) -> None:
    schema = openapi.from_url(f"{running.url}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]  # or it raises
    with requests.Session() as session:
        cases = {
            one.label: _rest_cases(one, known, running.url, session)
            for one in operations
            if one.path != ASKS_FOR_FAILURES
        }
        fuzz(people, cases, is_long)


@pytest.mark.timeout(7200)
def test_grpc(running: RunningMesh, people: People, known: dict[str, str], is_long: bool) -> None:
    with grpc.insecure_channel(running.url.removeprefix("http://")) as channel:
        fuzz(people, {one.path: _grpc_cases(one, known, channel) for one in METHODS}, is_long)


def fuzz(people: People, methods: dict[str, st.SearchStrategy[Send]], is_long: bool) -> None:
    """Sends cases of each method; fails with all that were answered wrongly.

    The same cases each time, so that nothing fails which did not before; others when long.
    """
    each = 20 if is_long else 4
    rounds = LONG // (len(methods) * each) + 1 if is_long else 1
    faults: list[str] = []
    statuses: Counter[int | str] = Counter()
    for start in [random.randrange(2**32) for _ in range(rounds)] if is_long else [0]:
        for name, cases in methods.items():
            for role, outcome in _outcomes(people, cases, each, start):
                statuses[outcome.status] += 1
                if outcome.fault:
                    faults.append(f"{name} as {role}, {start}: {outcome.status} {outcome.fault}")
        print(f"{statuses.total()} cases, {len(faults)} faults, {dict(statuses)}", flush=True)
        if faults:
            # Said at once: a long run may be ended before it ends.
            print(*faults, sep="\n", flush=True)
    assert faults == []
    # Not blind: much gets in.
    assert sum(count for status, count in statuses.items() if status in GOOD) > len(methods) / 4


def _outcomes(
    people: People, cases: st.SearchStrategy[Send], each: int, start: int
) -> list[tuple[str | None, Outcome]]:
    found: list[tuple[str | None, Outcome]] = []

    @seed(start)
    @settings(
        max_examples=each,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(send=cases, role=st.sampled_from(ROLES))
    def run(send: Send, role: str | None) -> None:
        outcome = send(people.token(role))
        if outcome.status in BUSY:
            outcome = send(people.token(role))
        if outcome.reason.startswith("TOKEN_"):
            people.forget(role)
        found.append((role, outcome))

    run()
    return found


def _rest_cases(
    operation: Any, known: dict[str, str], url: str, session: requests.Session
) -> st.SearchStrategy[Send]:
    ids = {name: value for name, value in known.items() if f"{{{name}}}" in operation.path}
    right, wrong = GenerationMode.POSITIVE, GenerationMode.NEGATIVE

    def sending(case: Any) -> Send:
        def send(token: str | None) -> Outcome:
            headers = {"authorization": f"Bearer {token}"} if token is not None else {}
            request = case.as_transport_kwargs(url, headers=headers)
            # Streams have no end: what their answers say is in their heads.
            answer = session.request(**request, stream=True, timeout=_SECONDS)
            with answer:
                if answer.status_code < 400:
                    return Outcome(answer.status_code)
                found = _reason_in(answer)
                if answer.status_code < 500 and found:
                    return Outcome(answer.status_code, found)
                return Outcome(
                    answer.status_code, found, f"{answer.text[:300]}\n{case.as_curl_command()}"
                )

        return send

    ways = [operation.as_strategy(right), operation.as_strategy(wrong)]
    if ids:
        ways.append(operation.as_strategy(right, path_parameters=ids))
    return st.one_of(ways).map(sending)


def _reason_in(answer: requests.Response) -> str:
    """The reason of an error in the common shape; empty for any other shape."""
    try:
        error = answer.json()
        assert set(error) == {"code", "message", "details"}
        [info] = [one for one in error["details"] if one["@type"].endswith("ErrorInfo")]
        assert info["domain"] == "boxoffice"
    except (ValueError, AssertionError, KeyError, TypeError):
        return ""
    return str(info["reason"])


def _grpc_cases(
    one: MethodPolicy, known: dict[str, str], channel: grpc.Channel
) -> st.SearchStrategy[Send]:
    service, name = one.path.removeprefix("/").split("/")
    whole = messages(contract_services()[service].methods_by_name[name].input_type, known)
    # Mostly whole: what is broken is looked at by nobody else.
    requests_ = st.one_of(
        *[whole.map(lambda message: message.SerializeToString())] * 4, whole.flatmap(broken)
    )

    def sending(request: bytes, key: str | None) -> Send:
        def send(token: str | None) -> Outcome:
            metadata = [("idempotency-key", key)] if key is not None else []
            if token is not None:
                metadata.append(("authorization", f"Bearer {token}"))
            code, reason = _call(channel, one, request, metadata)
            if code in FAILURES or (code != "OK" and not reason):
                return Outcome(code, reason, f"{reason} {request.hex()[:2000]} {key!r}")
            return Outcome(code, reason)

        return send

    keys = st.uuids().map(str) | st.sampled_from([None, "k", "", "x" * 129, " ", "a,b"])
    return st.builds(sending, requests_, keys)


def _call(
    channel: grpc.Channel, one: MethodPolicy, request: bytes, metadata: list[tuple[str, str]]
) -> tuple[str, str]:
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(one.path)
    streaming: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(one.path)
    try:
        if one.server_streaming:
            stream = streaming(request, metadata=tuple(metadata), timeout=_SECONDS)
            next(stream, None)
            stream.cancel()
        else:
            unary(request, metadata=tuple(metadata), timeout=_SECONDS)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is a call too
        info = error_details_pb2.ErrorInfo()
        for detail in status.details if status is not None else ():
            detail.Unpack(info)
        return error.code().name, info.reason
    return "OK", ""
