"""No request makes the mesh fail with a 5xx, UNKNOWN or INTERNAL.

schemathesis generates valid and invalid REST requests from the served /openapi.json; gRPC messages
are generated from the contract's descriptors. Each method is called by a customer, by staff, by an
admin and without a token. `--long` sends 20,000 requests.
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

from mesh.rpc.field_names import json_name
from mesh.rpc.policy import MethodPolicy
from testing.network import contract_services
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, items
from tests.architecture.contract import policies
from tests.e2e.messages import broken, messages

ROLES = ["CUSTOMER", "STAFF", "ADMIN", None]
LONG = 10_000
# Makes the sandbox fail.
FAULT_INJECTION_PATH = "/sandbox/faults"
METHODS = [
    method
    for method in policies().values()
    if method.is_routed and all(binding.path != FAULT_INJECTION_PATH for binding in method.bindings)
]
BUSY = {503, 504, "UNAVAILABLE", "DEADLINE_EXCEEDED"}
"""Statuses that count as failures only when repeated at once."""
FAILURES = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
GOOD = {200, 201, 204, "OK"}
_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """An HTTP status or gRPC code, the reason, and the fault of the answer, if any."""

    status: int | str
    reason: str = ""
    fault: str = ""


Send = Callable[[str | None], Outcome]
"""Sends a request, with or without a token."""


@dataclass
class People:
    """One account per role; a new one after a request ended its session."""

    api: Api
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, role: str | None) -> str | None:
        if role is None:
            return None
        if role not in self.tokens:
            self.tokens[role] = self._new(role)
        return self.tokens[role]

    def forget(self, role: str | None) -> None:
        """Drops the role's account, after its session ended or its token expired."""
        self.tokens.pop(role or "", None)

    def _new(self, role: str) -> str:
        admin = self.api.sign_up(admin_secret=ADMIN_SECRET)
        if role == "ADMIN":
            return str(admin.token)
        account = self.api.sign_up()
        if role == "STAFF":
            admin.send("PATCH", f"/api/v1/users/{account.user_id}", {"role": role})
            account = account.sign_in(account.session["user"]["email"])
        return str(account.token)


@pytest.fixture(scope="module")
def people(mesh: RunningMesh) -> Iterator[People]:
    with httpx.Client(base_url=mesh.url, timeout=_SECONDS) as client:
        yield People(Api(client))


@pytest.fixture
def known(people: People) -> dict[str, str]:
    """Ids of one resource of each kind, by field name."""
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
def test_rest(mesh: RunningMesh, people: People, known: dict[str, str], is_long: bool) -> None:
    schema = openapi.from_url(f"{mesh.url}/openapi.json")
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]  # or it raises
    with requests.Session() as session:
        cases = {
            operation.label: _rest_cases(operation, known, mesh.url, session)
            for operation in operations
            if operation.path != FAULT_INJECTION_PATH
        }
        fuzz(people, cases, is_long)


@pytest.mark.timeout(7200)
def test_grpc(mesh: RunningMesh, people: People, known: dict[str, str], is_long: bool) -> None:
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        fuzz(
            people,
            {method.path: _grpc_cases(method, known, channel) for method in METHODS},
            is_long,
        )


def fuzz(people: People, methods: dict[str, st.SearchStrategy[Send]], is_long: bool) -> None:
    """Sends requests to each method; fails with all faults.

    The requests are the same in every run, so that failures are reproducible; random with --long.
    """
    count = 20 if is_long else 4
    rounds = LONG // (len(methods) * count) + 1 if is_long else 1
    faults: list[str] = []
    statuses: Counter[int | str] = Counter()
    for start in [random.randrange(2**32) for _ in range(rounds)] if is_long else [0]:
        for name, cases in methods.items():
            for role, outcome in _outcomes(people, cases, count, start):
                statuses[outcome.status] += 1
                if outcome.fault:
                    faults.append(f"{name} as {role}, {start}: {outcome.status} {outcome.fault}")
        print(f"{statuses.total()} cases, {len(faults)} faults, {dict(statuses)}", flush=True)
        if faults:
            # Printed at once: a long run may be interrupted.
            print(*faults, sep="\n", flush=True)
    assert faults == []
    # Control: many requests succeed.
    assert sum(number for status, number in statuses.items() if status in GOOD) > len(methods) / 4


def _outcomes(
    people: People, cases: st.SearchStrategy[Send], count: int, start: int
) -> list[tuple[str | None, Outcome]]:
    collected: list[tuple[str | None, Outcome]] = []

    @seed(start)
    @settings(
        max_examples=count,
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
        collected.append((role, outcome))

    run()
    return collected


def _rest_cases(
    operation: Any, known: dict[str, str], url: str, session: requests.Session
) -> st.SearchStrategy[Send]:
    ids = {
        json_name(name): value
        for name, value in known.items()
        if f"{{{json_name(name)}}}" in operation.path
    }
    valid, invalid = GenerationMode.POSITIVE, GenerationMode.NEGATIVE

    def sending(case: Any) -> Send:
        def send(token: str | None) -> Outcome:
            headers = {"authorization": f"Bearer {token}"} if token is not None else {}
            request = case.as_transport_kwargs(url, headers=headers)
            # Streams do not end: only the headers of their answers are read.
            answer = session.request(**request, stream=True, timeout=_SECONDS)
            with answer:
                if answer.status_code < 400:
                    return Outcome(answer.status_code)
                reason = _reason_in(answer)
                if answer.status_code < 500 and reason:
                    return Outcome(answer.status_code, reason)
                return Outcome(
                    answer.status_code, reason, f"{answer.text[:300]}\n{case.as_curl_command()}"
                )

        return send

    ways = [operation.as_strategy(valid), operation.as_strategy(invalid)]
    if ids:
        ways.append(operation.as_strategy(valid, path_parameters=ids))
    return st.one_of(ways).map(sending)


def _reason_in(answer: requests.Response) -> str:
    """The reason of an error in the common shape; empty for any other shape."""
    try:
        error = answer.json()
        assert set(error) == {"code", "message", "details"}
        [info] = [detail for detail in error["details"] if detail["@type"].endswith("ErrorInfo")]
        assert info["domain"] == "boxoffice"
    except (ValueError, AssertionError, KeyError, TypeError):
        return ""
    return str(info["reason"])


def _grpc_cases(
    method: MethodPolicy, known: dict[str, str], channel: grpc.Channel
) -> st.SearchStrategy[Send]:
    service, name = method.path.removeprefix("/").split("/")
    whole = messages(contract_services()[service].methods_by_name[name].input_type, known)
    # Mostly complete messages: broken ones only reach the parser.
    requests_ = st.one_of(
        *[whole.map(lambda message: message.SerializeToString())] * 4, whole.flatmap(broken)
    )

    def sending(request: bytes, key: str | None) -> Send:
        def send(token: str | None) -> Outcome:
            metadata = [("idempotency-key", key)] if key is not None else []
            if token is not None:
                metadata.append(("authorization", f"Bearer {token}"))
            code, reason = _call(channel, method, request, metadata)
            if code in FAILURES or (code != "OK" and not reason):
                return Outcome(code, reason, f"{reason} {request.hex()[:2000]} {key!r}")
            return Outcome(code, reason)

        return send

    keys = st.uuids().map(str) | st.sampled_from([None, "k", "", "x" * 129, " ", "a,b"])
    return st.builds(sending, requests_, keys)


def _call(
    channel: grpc.Channel, method: MethodPolicy, request: bytes, metadata: list[tuple[str, str]]
) -> tuple[str, str]:
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
    streaming: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method.path)
    try:
        if method.server_streaming:
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
