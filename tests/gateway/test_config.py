"""The generated configuration; the tests at the end validate it with Envoy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from boxoffice.options.v1 import policy_pb2
from gateway import config, limits, tokens, transcoding
from gateway.clusters import HEALTH_CLUSTER, SERVED_BY
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
    typed_config: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return typed_config


def routes(generated: Mapping[str, Any]) -> list[dict[str, Any]]:
    [host] = manager(generated)["route_config"]["virtual_hosts"]
    return [route for route in host["routes"] if route["name"] != "documentation"]


def rpc_routes(generated: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [route for route in routes(generated) if route["name"] != "not_found"]


def http_filter(generated: Mapping[str, Any], name: str) -> dict[str, Any]:
    [entry] = [entry for entry in manager(generated)["http_filters"] if entry["name"] == name]
    typed_config: dict[str, Any] = entry["typed_config"]
    return typed_config


def buckets(generated: Mapping[str, Any], path: str) -> dict[str, tuple[int, float]]:
    """Size and tokens per second of each bucket of an RPC, by name."""
    by_name = {
        descriptor["entries"][0]["value"]: descriptor["token_bucket"]
        for descriptor in http_filter(generated, "boxoffice.limits")["descriptors"]
    }
    route = next(route for route in routes(generated) if route["match"].get("path") == path)
    names = route["metadata"]["filter_metadata"][limits.METADATA].values()
    return {name: (by_name[name]["max_tokens"], _rate(by_name[name])) for name in names}


def _rate(bucket: Mapping[str, Any]) -> float:
    interval = float(bucket["fill_interval"].removesuffix("s"))
    assert interval >= 0.05, "below Envoy's minimum"
    return round(int(bucket["tokens_per_fill"]) / interval, 4)


def test_services_are_reached_at_the_peer_host(contract: descriptor_pb2.FileDescriptorSet) -> None:
    hosts = {"host": "127.0.0.1", "peer_host": "127.0.0.9", "gateways": 2, "replicas": 2}
    clusters = generate(contract, **hosts)["static_resources"]["clusters"]
    addresses = {
        endpoint["endpoint"]["address"]["socket_address"]["address"]
        for cluster in clusters
        for endpoint in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        if "socket_address" in endpoint["endpoint"]["address"]
    }
    assert addresses == {"127.0.0.9"}
    assert settings(**hosts).target("stock_svc") == "ipv4:127.0.0.9:50053,127.0.0.9:50063"


def test_every_public_rpc_has_one_route(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    *rest, for_grpc, last = routes(generate(contract))
    assert [route["match"]["path"] for route in rest] == [
        path for path, rpc in policies.items() if rpc.is_routed
    ]
    assert for_grpc["match"]["prefix"] == last["match"]["prefix"] == "/"
    assert last["route"]["cluster_not_found_response_code"] == "NOT_FOUND"


def test_routes_lead_to_the_service_of_the_package(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    generated = generate(contract)
    clusters = {cluster["name"] for cluster in generated["static_resources"]["clusters"]}
    # Services with streams, health checks or the key set.
    streaming = {"auth_svc_streaming", "booking_svc_streaming", "stock_svc_streaming"}
    assert clusters == {*SERVICES, "jwks", "health", *streaming}
    for route in rpc_routes(generated):
        if route["route"]["cluster"] == HEALTH_CLUSTER:
            continue
        area = ".".join(route["match"]["path"].removeprefix("/").split(".")[:2])
        assert route["route"]["cluster"].removesuffix("_streaming") == SERVED_BY[area]


def test_reads_calls_with_effects_and_streams_have_separate_limits(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in rpc_routes(generate(contract)):
        path = route["match"]["path"]
        cluster, priority = route["route"]["cluster"], route["route"].get("priority", "DEFAULT")
        if cluster == HEALTH_CLUSTER:
            assert path.startswith("/boxoffice.health")
        elif policies[path].server_streaming or "/boxoffice.health" in path or "Jwks" in path:
            assert (cluster.endswith("_streaming"), priority) == (True, "DEFAULT"), path
        else:
            is_read = not policies[path].has_effects
            assert cluster in SERVICES, path
            assert priority == ("DEFAULT" if is_read else "HIGH"), path


@pytest.mark.parametrize(
    ("replicas", "domain", "reads"),
    [(1, None, 64), (3, None, 192), (1, "shop.svc", 128), (8, "shop.svc", 512)],
)
def test_concurrency_limits_grow_with_the_replicas(
    contract: descriptor_pb2.FileDescriptorSet, replicas: int, domain: str | None, reads: int
) -> None:
    generated = generate(contract, replicas=replicas, service_domain=domain)
    clusters = {cluster["name"]: cluster for cluster in generated["static_resources"]["clusters"]}

    def max_calls(name: str) -> dict[str, int]:
        thresholds = clusters[name]["circuit_breakers"]["thresholds"]
        return {threshold["priority"]: threshold["max_requests"] for threshold in thresholds}

    assert max_calls("stock_svc") == {"DEFAULT": reads, "HIGH": 2 * reads}
    assert max_calls("booking_svc_streaming") == {"DEFAULT": 20_000}


def test_a_routes_timeout_is_slightly_longer_than_the_services_deadline(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in rpc_routes(generate(contract)):
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
    route = next(
        route for route in routes(generate(contract)) if route["match"].get("path") == path
    )
    assert (route["route"]["timeout"], route["route"]["idle_timeout"]) == ("0s", "0s")
    assert "max_stream_duration" not in route["route"]


def test_only_retryable_calls_are_retried_after_a_response(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in rpc_routes(generate(contract)):
        retried_on = set(route["route"]["retry_policy"]["retry_on"].split(","))
        always = {"connect-failure", "refused-stream", "reset-before-request"}
        path = route["match"]["path"]
        # A retry of a health check would wait for the unavailable service once more.
        retryable = policies[path].retryable and not path.startswith("/boxoffice.health.")
        assert retried_on == (always | {"unavailable"} if retryable else always)


def test_token_rules_follow_the_policies_and_end_in_denial(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    *rules, last = http_filter(generate(contract), tokens.FILTER)["rules"]
    assert {rule["match"]["path"]: "requires" in rule for rule in rules} == {
        path: rpc.needs_token or rpc.reads_token for path, rpc in policies.items() if rpc.is_routed
    }
    assert last == {"match": {"prefix": "/"}, "requires": {"provider_name": "boxoffice"}}


def test_an_unverified_token_is_not_forwarded(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    for route in rpc_routes(generate(contract)):
        removed = route.get("request_headers_to_remove", [])
        assert ("authorization" in removed) != policies[route["match"]["path"]].needs_token


def test_production_has_no_routes_to_development_rpcs(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    generated = generate(contract, environment="production", gateway_tls=True)
    paths = {route["match"].get("path") for route in routes(generated)}
    assert SHOW_CHECKOUT in {route["match"].get("path") for route in routes(generate(contract))}
    assert not paths & {path for path, rpc in policies.items() if rpc.development_only}
    transcoder = http_filter(generated, "envoy.filters.http.grpc_json_transcoder")
    assert "boxoffice.payments.v1.SandboxService" not in transcoder["services"]
    rules = http_filter(generated, tokens.FILTER)["rules"]
    assert SHOW_CHECKOUT not in {rule["match"].get("path") for rule in rules}


def test_a_methods_limits_apply_in_addition_to_the_common_one(
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
def test_any_scale_gives_buckets_that_envoy_accepts(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy], scale: float
) -> None:
    generated = generate(contract, rate_limit_scale=scale)
    for path, rpc in policies.items():
        if rpc.is_routed:
            for size, rate in buckets(generated, path).values():
                assert 1 <= size < 2**32
                assert rate > 0


def test_only_exempt_methods_have_no_common_limit(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    generated = generate(contract)
    uncounted = {path for path, rpc in policies.items() if rpc.is_routed} - {
        route["match"]["path"]
        for route in rpc_routes(generated)
        if route["metadata"]["filter_metadata"][limits.METADATA]
    }
    assert uncounted == {
        "/boxoffice.auth.v1.AuthService/GetJwks",
        "/boxoffice.health.v1.HealthService/GetHealth",
        "/boxoffice.health.v1.HealthService/GetDatabaseHealth",
        "/boxoffice.health.v1.HealthService/GetCacheHealth",
    }


def test_the_per_ip_ceiling_is_above_all_limits_per_ip(
    contract: descriptor_pb2.FileDescriptorSet, policies: dict[str, MethodPolicy]
) -> None:
    ceiling = http_filter(generate(contract), "boxoffice.per_ip_ceiling")
    bucket = ceiling["descriptors"][0]["token_bucket"]
    for policy_of_rpc in policies.values():
        for limit in policy_of_rpc.limits:
            if limit.key is LimitKey.IP:
                assert bucket["max_tokens"] > limit.requests


def test_limits_are_enforced(contract: descriptor_pb2.FileDescriptorSet) -> None:
    for name in ("boxoffice.per_ip_ceiling", "boxoffice.limits"):
        configured = http_filter(generate(contract), name)
        for switch in ("filter_enabled", "filter_enforced"):
            percentage = configured[switch]["default_value"]
            assert percentage == {"numerator": 100, "denominator": "HUNDRED"}


def test_an_rpc_without_policy_fails_the_generation(
    contract: descriptor_pb2.FileDescriptorSet,
) -> None:
    gateway_harness.options_in(contract, PLACE).ClearExtension(policy_pb2.policy)
    with pytest.raises(PolicyError, match=f"{PLACE} has no"):
        generate(contract)


def test_every_package_has_a_service(policies: dict[str, MethodPolicy]) -> None:
    packages = {rpc.service.rpartition(".")[0].rpartition(".")[0] for rpc in policies.values()}
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
    stock = next(cluster for cluster in clusters if cluster["name"] == "stock_svc")
    endpoints = stock["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ports = [
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] for endpoint in endpoints
    ]
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


def test_the_error_contains_envoys_message(
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
