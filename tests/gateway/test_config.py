"""What the generator makes of the contract, without Envoy; at the end, what Envoy says to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from boxoffice.options.v1 import policy_pb2
from gateway import config, limits, tokens, transcoding
from gateway.clusters import SERVED_BY
from mesh.rpc import policy
from mesh.rpc.policy import LimitKey, MethodPolicy, PolicyError
from mesh.settings import SERVICES, MeshSettings
from testing import gateway_harness

REGISTER = "/boxoffice.auth.v1.AuthService/Register"
PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
WEBHOOK = "/boxoffice.payments.v1.WebhookService/ReceiveWebhook"
SHOW_CHECKOUT = "/boxoffice.payments.v1.SandboxService/ShowCheckout"


@pytest.fixture
def contract() -> descriptor_pb2.FileDescriptorSet:
    return gateway_harness.contract()


@pytest.fixture
def policies(contract: descriptor_pb2.FileDescriptorSet) -> dict[str, MethodPolicy]:
    return policy.of_contract(contract)


def settings(**overrides: object) -> MeshSettings:
    return MeshSettings.model_validate(overrides)


def generate(contract: descriptor_pb2.FileDescriptorSet, **overrides: object) -> dict[str, Any]:
    return config.generate(contract, settings(**overrides))


def manager(generated: Mapping[str, Any]) -> dict[str, Any]:
    listener = generated["static_resources"]["listeners"][0]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def routes(generated: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manager(generated)["route_config"]["virtual_hosts"][0]["routes"]
    return [route for route in found if route["name"] != "documentation"]


def http_filter(generated: Mapping[str, Any], name: str) -> dict[str, Any]:
    for each in manager(generated)["http_filters"]:
        if each["name"] == name:
            found: dict[str, Any] = each["typed_config"]
            return found
    raise LookupError(name)


def buckets(generated: Mapping[str, Any], path: str) -> dict[str, tuple[int, float]]:
    """Size and tokens per second, by name, of each bucket that calls of an RPC consume from."""
    by_name = {
        each["entries"][0]["value"]: each["token_bucket"]
        for each in http_filter(generated, "boxoffice.limits")["descriptors"]
    }
    route = next(each for each in routes(generated) if each["match"].get("path") == path)
    names = route["metadata"]["filter_metadata"][limits.METADATA].values()
    return {name: (by_name[name]["max_tokens"], _rate(by_name[name])) for name in names}


def _rate(bucket: Mapping[str, Any]) -> float:
    interval = float(bucket["fill_interval"].removesuffix("s"))
    assert interval >= 0.05, "Envoy takes no less"
    return round(int(bucket["tokens_per_fill"]) / interval, 4)


def test_every_rpc_for_the_outside_has_one_route(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    *found, last = routes(generate(contract))
    assert [route["match"]["path"] for route in found] == [
        path for path, each in policies.items() if each.is_routed
    ]
    assert last["match"] == {"prefix": "/"}
    assert last["route"]["cluster_not_found_response_code"] == "NOT_FOUND"


def test_routes_lead_to_the_service_that_owns_the_package(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    generated = generate(contract)
    clusters = {each["name"] for each in generated["static_resources"]["clusters"]}
    # Of those that have streams, or answer for health or keys.
    apart = {"auth_svc_apart", "booking_svc_apart", "stock_svc_apart"}
    assert clusters == {*SERVICES, "jwks", *apart}
    for route in routes(generated)[:-1]:
        area = ".".join(route["match"]["path"].removeprefix("/").split(".")[:2])
        assert route["route"]["cluster"].removesuffix("_apart") == SERVED_BY[area]


def test_calls_are_counted_by_what_they_do(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in routes(generate(contract))[:-1]:
        path = route["match"]["path"]
        cluster, priority = route["route"]["cluster"], route["route"].get("priority", "DEFAULT")
        if policies[path].server_streaming or "/boxoffice.health" in path or "Jwks" in path:
            assert (cluster.endswith("_apart"), priority) == (True, "DEFAULT"), path
        else:
            is_read = not policies[path].has_effects
            assert cluster in SERVICES, path
            assert priority == ("DEFAULT" if is_read else "HIGH"), path


@pytest.mark.parametrize(
    ("replicas", "domain", "reads"),
    [(1, None, 64), (3, None, 192), (1, "shop.svc", 128), (8, "shop.svc", 512)],
)
def test_each_replica_brings_room(
    contract: descriptor_pb2.FileDescriptorSet, replicas: int, domain: str | None, reads: int
) -> None:
    generated = generate(contract, replicas=replicas, service_domain=domain)
    found = {each["name"]: each for each in generated["static_resources"]["clusters"]}

    def most(name: str) -> dict[str, int]:
        thresholds = found[name]["circuit_breakers"]["thresholds"]
        return {each["priority"]: each["max_requests"] for each in thresholds}

    assert most("stock_svc") == {"DEFAULT": reads, "HIGH": 2 * reads}
    assert most("booking_svc_apart") == {"DEFAULT": 20_000}


def test_a_route_waits_a_little_longer_than_the_service(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in routes(generate(contract))[:-1]:
        deadline = policies[route["match"]["path"]].deadline_seconds
        if deadline is None:
            continue
        timeout = float(route["route"]["timeout"].removesuffix("s"))
        assert deadline < timeout < deadline + 1
        longest = route["route"]["max_stream_duration"]["grpc_timeout_header_max"]
        assert longest == route["route"]["timeout"]


def test_a_stream_without_deadline_has_no_timeout(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    path = "/boxoffice.catalogue.v1.EventService/WatchAvailability"
    route = next(each for each in routes(generate(contract)) if each["match"].get("path") == path)
    assert (route["route"]["timeout"], route["route"]["idle_timeout"]) == ("0s", "0s")
    assert "max_stream_duration" not in route["route"]


def test_only_repeatable_calls_are_repeated_after_an_answer(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in routes(generate(contract))[:-1]:
        retried_on = set(route["route"]["retry_policy"]["retry_on"].split(","))
        always = {"connect-failure", "refused-stream", "reset-before-request"}
        retryable = policies[route["match"]["path"]].retryable
        assert retried_on == (always | {"unavailable"} if retryable else always)


def test_token_rules_follow_the_policies_and_end_in_denial(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    *rules, last = http_filter(generate(contract), tokens.FILTER)["rules"]
    assert {rule["match"]["path"]: "requires" in rule for rule in rules} == {
        path: each.needs_token for path, each in policies.items() if each.is_routed
    }
    assert last == {"match": {"prefix": "/"}, "requires": {"provider_name": "boxoffice"}}


def test_an_unverified_token_stays_at_the_gateway(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in routes(generate(contract))[:-1]:
        removed = route.get("request_headers_to_remove", [])
        assert ("authorization" in removed) != policies[route["match"]["path"]].needs_token


def test_development_rpcs_are_gone_in_production(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    generated = generate(contract, environment="production", gateway_tls=True)
    paths = {route["match"].get("path") for route in routes(generated)}
    assert SHOW_CHECKOUT in {route["match"].get("path") for route in routes(generate(contract))}
    assert not paths & {path for path, each in policies.items() if each.development_only}
    transcoder = http_filter(generated, "envoy.filters.http.grpc_json_transcoder")
    assert "boxoffice.payments.v1.SandboxService" not in transcoder["services"]
    rules = http_filter(generated, tokens.FILTER)["rules"]
    assert SHOW_CHECKOUT not in {rule["match"].get("path") for rule in rules}


def test_own_limits_stand_beside_the_common_one(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    generated = generate(contract)
    assert buckets(generated, PLACE) == {
        "common per user": (100, 1.6667),
        f"{PLACE} per user in 60 s": (10, 0.1667),
    }
    assert buckets(generated, REGISTER) == {
        "common per ip": (100, 1.6667),
        f"{REGISTER} per ip in 60 s": (5, 0.0833),
    }


def test_a_larger_limit_replaces_the_common_one(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    assert buckets(generate(contract), WEBHOOK) == {f"{WEBHOOK} per ip in 60 s": (6000, 100)}


def test_limits_scale(contract: descriptor_pb2.FileDescriptorSet) -> None:
    assert buckets(generate(contract, rate_limit_scale=0.2), PLACE) == {
        "common per user": (20, 0.3333),
        f"{PLACE} per user in 60 s": (2, 0.0333),
    }


@pytest.mark.parametrize("scale", [0.01, 0.3, 7, 333, 1000, 1_000_000])
def test_any_scale_gives_buckets_that_envoy_takes(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy], scale: float
) -> None:
    generated = generate(contract, rate_limit_scale=scale)
    for path, each in policies.items():
        if each.is_routed:
            for size, rate in buckets(generated, path).values():
                assert 1 <= size < 2**32
                assert rate > 0


def test_only_the_exempt_escape_the_common_limit(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    generated = generate(contract)
    uncounted = {path for path, each in policies.items() if each.is_routed} - {
        route["match"]["path"]
        for route in routes(generated)[:-1]
        if route["metadata"]["filter_metadata"][limits.METADATA]
    }
    assert uncounted == {
        "/boxoffice.auth.v1.AuthService/GetJwks",
        "/boxoffice.health.v1.HealthService/GetHealth",
        "/boxoffice.health.v1.HealthService/GetDatabaseHealth",
        "/boxoffice.health.v1.HealthService/GetCacheHealth",
    }


def test_the_shield_cuts_no_limit_of_the_contract(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    shield = http_filter(generate(contract), "boxoffice.shield")["descriptors"][0]["token_bucket"]
    for each in policies.values():
        for limit in each.limits:
            if limit.key is LimitKey.IP:
                assert shield["max_tokens"] > limit.requests


def test_limits_are_enforced(contract: descriptor_pb2.FileDescriptorSet) -> None:
    for name in ("boxoffice.shield", "boxoffice.limits"):
        found = http_filter(generate(contract), name)
        for switch in ("filter_enabled", "filter_enforced"):
            assert found[switch]["default_value"] == {"numerator": 100, "denominator": "HUNDRED"}


def test_an_rpc_without_policy_fails_the_generation(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    gateway_harness.options_in(contract, PLACE).ClearExtension(policy_pb2.policy)
    with pytest.raises(PolicyError, match=f"{PLACE} has no"):
        generate(contract)


def test_every_package_has_a_service(policies: dict[str, MethodPolicy]) -> None:
    packages = {each.service.rpartition(".")[0].rpartition(".")[0] for each in policies.values()}
    assert packages == SERVED_BY.keys()
    assert set(SERVED_BY.values()) == set(SERVICES)


def test_error_details_are_among_the_descriptors(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    files = [file.name for file in transcoding.descriptors(contract).file]
    assert "google/rpc/error_details.proto" in files
    assert len(files) == len(set(files))


def test_every_replica_is_an_endpoint(contract: descriptor_pb2.FileDescriptorSet) -> None:
    clusters = generate(contract, replicas=2)["static_resources"]["clusters"]
    stock = next(each for each in clusters if each["name"] == "stock_svc")
    endpoints = stock["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ports = [each["endpoint"]["address"]["socket_address"]["port_value"] for each in endpoints]
    assert ports == [50053, 50063]


@pytest.mark.parametrize("environment", ["development", "production"])
def test_envoy_accepts_the_configuration(
    tmp_path: Path, contract: descriptor_pb2.FileDescriptorSet, environment: str
) -> None:
    secure = environment == "production"
    overrides = {
        "environment": environment,
        "gateway_tls": secure,
        "rate_limit_scale": 1,
        "replicas": 2,
    }
    config.validate(config.write_for(contract, gateway_harness.settings_in(tmp_path, **overrides)))


def test_envoys_own_message_is_shown(
    tmp_path: Path, contract: descriptor_pb2.FileDescriptorSet
) -> None:
    settings = gateway_harness.settings_in(tmp_path)
    path = config.write_for(contract, settings)
    (settings.certificates / "gateway.key").write_text("not a key")
    with pytest.raises(config.ConfigError, match=r"gateway\.key"):
        config.validate(path)


def test_write_puts_configuration_and_descriptors_into_the_state_folder(tmp_path: Path) -> None:
    path = config.write(gateway_harness.settings_in(tmp_path))
    assert path == tmp_path / "envoy" / "envoy.json"
    config.validate(path)
