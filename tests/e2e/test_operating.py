"""Trace, log lines and metrics of a booking, found by its request id."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client.parser import text_string_to_metric_families

from deploy import dashboards
from mesh.paths import ROOT
from mesh.settings import SERVICES, MeshSettings
from testing.running_mesh import PASSWORD, Api, RunningMesh, items, until
from testing.trace_collector import TraceCollector
from tests.deploy.queries import metrics_of
from tests.e2e.conftest import ADMIN_SECRET_CANARY, ObservedMesh


@pytest.fixture
def watched(observed: ObservedMesh) -> RunningMesh:
    return observed.mesh


@pytest.fixture
def collector(observed: ObservedMesh) -> TraceCollector:
    return observed.traces


@pytest.fixture
def api(watched: RunningMesh) -> Iterator[Api]:
    with httpx.Client(base_url=watched.url, timeout=60) as client:
        yield Api(client)


def log_lines(home: Path) -> list[dict[str, Any]]:
    lines = []
    for log in (home / "logs").glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                lines.append({"process": log.stem, **json.loads(line)})
    return lines


def samples(mesh: RunningMesh, service: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    settings = MeshSettings(port_base=mesh.port_base)
    page = httpx.get(f"http://127.0.0.1:{settings.metrics_port(service)}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def total(
    page: dict[tuple[str, frozenset[tuple[str, str]]], float],
    name: str,
    labels: set[tuple[str, str]],
) -> float:
    """The sum of a metric's samples that have the labels."""
    return sum(
        value
        for (sample, own_labels), value in page.items()
        if sample == name and labels <= own_labels
    )


def test_a_paid_booking_is_one_trace_across_all_processes(
    api: Api, collector: TraceCollector, watched: RunningMesh
) -> None:
    admin = api.sign_up(admin_secret=ADMIN_SECRET_CANARY)
    customer = api.sign_up()
    placed = customer.book({**items(admin.create_event()), "checkout": {"provider": "sandbox"}})
    assert placed.status_code == 201, placed.text
    request_id = placed.headers["x-request-id"]

    def complete() -> list[tuple[str, trace_pb2.Span]]:
        spans = collector.trace_of(request_id)
        return (
            spans
            if {"gateway", "booking_svc", "stock_svc", "payment_svc"}
            <= {service for service, _ in spans}
            # The span of a call ends, and is sent, after those of its own calls.
            and "BookingService/PlaceBooking" in {span.name for _, span in spans}
            else []
        )

    spans = until(complete, "no trace of the booking in all processes")
    by_id = {span.span_id: span for _, span in spans}
    names = {(service, span.name) for service, span in spans}
    assert ("booking_svc", "BookingService/PlaceBooking") in names
    assert {
        ("stock_svc", "PIPELINE"),
        ("booking_svc", "batch place"),
        ("booking_svc", "PIPELINE"),
        ("payment_svc", "INSERT"),
    } <= names
    # One tree: only the gateway's first span has no parent in the trace.
    roots = [(service, span.name) for service, span in spans if span.parent_span_id not in by_id]
    assert [service for service, _ in roots] == ["gateway"], roots

    # The payment has traces of its own, which the event stream continues.
    payment_id = placed.json()["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert paid.status_code == 200, paid.text
    customer.wait_for_status(placed.json()["bookingId"], "CONFIRMED")
    booking_id = placed.json()["bookingId"]

    def consumer_spans() -> list[tuple[str, trace_pb2.Span]]:
        return [
            (service, span)
            for service, span in collector.trace_of(booking_id)
            if span.name in ("apply Captured", "step CONFIRM", "StockService/BatchCommit")
        ]

    hops = until(
        lambda: spans if len(spans := consumer_spans()) >= 3 else None,
        "the consumption of the event is not traced",
    )
    applied = next(span for _, span in hops if span.name == "apply Captured")
    assert applied.links
    assert applied.links[0].trace_id == applied.trace_id

    def causes() -> set[str]:
        return {
            service
            for service, span in collector.trace_of(booking_id)
            if span.span_id == applied.parent_span_id
        }

    assert until(causes, "the cause of the event is not traced") == {"payment_svc"}
    sold = ("boxoffice_booking_money_minor_total", {("kind", "sold"), ("currency", "INR")})
    captured = ("boxoffice_payment_money_minor_total", {("kind", "captured"), ("currency", "INR")})
    assert total(samples(watched, "booking_svc"), *sold) == 150_000
    assert total(samples(watched, "payment_svc"), *captured) == 150_000


def test_log_lines_metrics_and_trace_have_the_request_id(
    api: Api, collector: TraceCollector, watched: RunningMesh
) -> None:
    admin = api.sign_up(admin_secret=ADMIN_SECRET_CANARY)
    customer = api.sign_up()
    event = admin.create_event()

    def placed_total() -> float:
        return total(
            samples(watched, "booking_svc"),
            "boxoffice_rpc_server_seconds_count",
            {("rpc", "BookingService/PlaceBooking"), ("code", "OK")},
        )

    before = placed_total()
    request_id = customer.book(items(event)).headers["x-request-id"]
    assert placed_total() == before + 1

    def lines() -> list[dict[str, Any]]:
        of_request = [
            line for line in log_lines(watched.home) if line.get("request_id") == request_id
        ]
        return (
            of_request
            if {"gateway", "booking_svc", "stock_svc"} <= {line["process"] for line in of_request}
            else []
        )

    of_request = until(lines, "no log lines of the request in all processes")
    served = [line for line in of_request if line.get("message") == "rpc"]
    assert {line["service"] for line in served} == {"booking_svc", "stock_svc"}
    assert len({line["trace_id"] for line in served}) == 1
    assert all(line["code"] == "OK" and line["duration_ms"] > 0 for line in served)
    spans = until(lambda: collector.trace_of(request_id), "no trace of the request")
    assert {span.trace_id.hex() for _, span in spans} == {line["trace_id"] for line in served}


def test_logs_contain_no_password_address_or_token(api: Api, watched: RunningMesh) -> None:
    """At DEBUG, which logs requests."""
    customer = api.sign_up()
    refused = api.post(
        "/api/v1/auth/login", {"email": "canary-7@example.com", "password": "canary-password-7"}
    )
    assert refused.status_code == 401
    text = "".join(log.read_text(errors="replace") for log in (watched.home / "logs").glob("*.log"))
    assert '"email":"…"' in text
    for secret in (PASSWORD, "canary-7@example.com", "canary-password-7", str(customer.token)):
        assert secret not in text


def test_every_process_has_its_metrics_and_probes(watched: RunningMesh) -> None:
    settings = MeshSettings(port_base=watched.port_base)
    for service in SERVICES:
        url = f"http://127.0.0.1:{settings.metrics_port(service)}"
        assert httpx.get(f"{url}/live").status_code == 200
        assert httpx.get(f"{url}/ready").status_code == 200
        assert samples(watched, service)[("boxoffice_ready", frozenset())] == 1


def test_every_metric_of_panels_and_alerts_exists(watched: RunningMesh) -> None:
    queries = [query for dashboard in dashboards.DASHBOARDS for query in dashboard.queries]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    # Prometheus creates `up` itself.
    used = {metric for query in queries for metric in metrics_of(query)} - {"up"}
    settings = MeshSettings(port_base=watched.port_base)
    pages = [
        httpx.get(f"http://127.0.0.1:{settings.metrics_port(service)}/metrics").text
        for service in SERVICES
    ]
    admin = watched.variables["BOXOFFICE_ENVOY_ADMIN_PORT"]
    pages.append(httpx.get(f"http://127.0.0.1:{admin}/stats/prometheus").text)
    exported: set[str] = set()
    for page in pages:
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
            suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
            exported.update(name + suffix for suffix in suffixes)
    assert sorted(used - exported) == []


def test_the_databases_of_a_running_mesh_are_migrated(watched: RunningMesh) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "launcher", "migrate"],
        cwd=ROOT,
        env={**os.environ, **watched.variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout == "The databases are migrated to this version's schema.\n"
    assert httpx.get(f"{watched.url}/health").status_code == 200
