"""Every RPC says who may call it, and a policy that cannot be enforced does not load."""

from collections.abc import Callable

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from boxoffice.errors.v1 import reason_pb2
from boxoffice.options.v1 import policy_pb2
from mesh.rpc import policy
from mesh.rpc.policy import PolicyError
from mesh.settings import SERVICES
from tests.architecture.contract import contract, methods, policies

PATHS = [path for path, _ in methods(contract())]
POLICY = policy_pb2.policy


def test_every_rpc_has_a_policy() -> None:
    assert list(policies()) == PATHS
    assert len(PATHS) > 20


def test_without_its_policy_an_rpc_does_not_load(subtests: pytest.Subtests) -> None:
    for path in PATHS:
        changed = contract()
        dict(methods(changed))[path].options.ClearExtension(POLICY)
        with subtests.test(path), pytest.raises(PolicyError, match=f"{path} has no "):
            policy.of_contract(changed)


Change = Callable[[policy_pb2.Policy], None]

BROKEN: dict[str, Change] = {
    "no access": lambda raw: raw.ClearField("access"),
    "an access of tomorrow": lambda raw: setattr(raw, "access", 99),
    "internal and nobody named": lambda raw: raw.ClearField("callers"),
    "no deadline": lambda raw: raw.ClearField("deadline"),
    "a deadline of nothing": lambda raw: raw.deadline.FromSeconds(0),
    "a deadline of an hour": lambda raw: raw.deadline.FromSeconds(3600),
    "no reason to fail": lambda raw: raw.ClearField("errors"),
    "an odd status": lambda raw: setattr(raw, "success_status", 302),
    "a limit by nothing": lambda raw: raw.limits.add(requests=1).window.FromSeconds(1),
    "a limit of nothing": lambda raw: raw.limits.add(
        key=policy_pb2.LIMIT_KEY_IP
    ).window.FromSeconds(1),
    "a limit by user without one": lambda raw: raw.limits.add(
        requests=1, key=policy_pb2.LIMIT_KEY_USER
    ).window.FromSeconds(1),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_policy_that_cannot_be_enforced_does_not_load(change: Change) -> None:
    path = "/boxoffice.stock.v1.StockService/Reserve"
    changed = contract()
    raw = dict(methods(changed))[path].options.Extensions[POLICY]
    assert raw.access == policy_pb2.ACCESS_INTERNAL
    policy.of_contract(changed)
    change(raw)
    with pytest.raises(PolicyError, match=path):
        policy.of_contract(changed)


def test_an_internal_rpc_has_no_rest_path() -> None:
    changed = contract()
    definitions = dict(methods(changed))
    path = "/boxoffice.stock.v1.StockService/Reserve"
    rest = definitions["/boxoffice.stock.v1.StockService/Audit"].options
    raw = descriptor_pb2.MethodOptions()
    raw.CopyFrom(rest)
    raw.ClearExtension(POLICY)
    definitions[path].options.MergeFrom(raw)
    with pytest.raises(PolicyError, match=path):
        policy.of_contract(changed)


def test_the_rest_paths_of_an_rpc_have_the_same_body() -> None:
    """Errors name fields by their paths in the body."""
    changed = contract()
    path = "/boxoffice.catalogue.v1.EventService/UpdateEvent"
    rest = dict(methods(changed))[path].options.Extensions[annotations_pb2.http]
    assert rest.body == "event"
    rest.additional_bindings[0].body = "*"
    with pytest.raises(PolicyError, match=path):
        policy.of_contract(changed)


def test_callers_are_processes_of_the_mesh() -> None:
    processes = {*SERVICES, "gateway"}
    assert {path: policies()[path].callers - processes for path in PATHS} == dict.fromkeys(
        PATHS, frozenset()
    )


def test_api_keys_manage_neither_keys_nor_accounts_of_people() -> None:
    open_to_keys = {path for path, policy in policies().items() if not policy.needs_session}
    assert [
        path for path in open_to_keys if "AccountService/" in path or "ApiKeyService/" in path
    ] == []
    assert "/boxoffice.auth.v1.AuthService/ChangeEmail" not in open_to_keys


def test_no_policy_names_a_reason_that_is_never_sent() -> None:
    unspecified = policy.reason_name(reason_pb2.REASON_UNSPECIFIED)
    assert [path for path in PATHS if unspecified in policies()[path].reasons] == []


def test_an_answer_of_204_is_empty() -> None:
    definitions = dict(methods(contract()))
    filled = [
        path
        for path, policy in policies().items()
        if policy.success_status == 204
        and not definitions[path].output_type.endswith(
            (".Empty", f".{definitions[path].name}Response")
        )
    ]
    assert filled == []
