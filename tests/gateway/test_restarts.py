"""Services that start late, stop and restart; the access log."""

import json
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer, token

AUDIT = "/api/v1/events/e1/stock/audit"
BOOKINGS = "/api/v1/bookings"


def test_a_service_is_served_as_soon_as_it_is_up_and_again_after_a_restart(
    gateway: Gateway,
) -> None:
    gateway_harness.wait_for(gateway, AUDIT, 503)
    for _ in range(2):
        with gateway_harness.server("stock_svc", gateway.settings, gateway.upstream):
            gateway_harness.wait_for(gateway, AUDIT, 200)
        gateway_harness.wait_for(gateway, AUDIT, 503)


def test_tokens_are_verified_as_soon_as_auth_svc_runs(tmp_path: Path) -> None:
    secret = token()
    late = frozenset({"auth_svc"})
    with gateway_harness.running_gateway(tmp_path, without=late, wait=False) as gateway:
        refusal = gateway_harness.wait_for(gateway, BOOKINGS, 503)
        # A valid token must not be reported as invalid.
        assert refusal.json()["details"][0]["reason"] == "DEPENDENCY_UNAVAILABLE"
        assert "www-authenticate" not in refusal.headers
        with gateway_harness.server("auth_svc", gateway.settings, gateway.upstream):
            gateway_harness.wait_for(gateway, BOOKINGS, 200)
        # The gateway keeps the keys when auth_svc stops.
        gateway_harness.wait_for(gateway, BOOKINGS, 200)
        query = f"{BOOKINGS}?page_token=hidden"
        gateway.rest.get(query, headers=bearer(secret) | {"x-request-id": "logged"})
    _check_log((tmp_path / "envoy.log").read_text(), secret)


def test_keys_are_prefetched(tmp_path: Path) -> None:
    """Envoy keeps prefetched keys until it gets newer ones; other keys expire."""
    name = "http.gateway.jwt_authn.jwks_fetch_success"
    with gateway_harness.running_gateway(tmp_path, wait=False) as gateway:
        stats = f"http://127.0.0.1:{gateway.settings.envoy_admin_port}/stats"
        deadline = time.monotonic() + gateway_harness.START_SECONDS
        fetched = ""
        while not fetched.startswith(name) or fetched.endswith(": 0"):
            assert time.monotonic() < deadline, fetched
            time.sleep(0.05)
            with suppress(httpx.TransportError):
                fetched = httpx.get(stats, params={"filter": name}).text.strip()


def _check_log(log: str, secret: str) -> None:
    assert secret not in log
    assert "hidden" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    logged = next(line for line in lines if line.get("request_id") == "logged")
    assert (logged["method"], logged["path"], logged["status"]) == ("GET", BOOKINGS, 200)
    assert logged["rpc"] == "boxoffice.bookings.v1.BookingService/ListBookings"
    assert logged["upstream"] == "booking_svc"


@pytest.mark.parametrize("service", ["auth_svc", "payment_svc"])
def test_a_certificate_of_another_service_is_not_accepted(tmp_path: Path, service: str) -> None:
    late = frozenset({"stock_svc"})
    with gateway_harness.running_gateway(tmp_path, without=late) as gateway:
        stock = gateway.settings.certificates
        for suffix in ("pem", "key"):
            (stock / f"{service}.{suffix}").replace(stock / f"stock_svc.{suffix}")
        with gateway_harness.server("stock_svc", gateway.settings, gateway.upstream):
            with pytest.raises(TimeoutError):
                gateway_harness.wait_for(gateway, AUDIT, 200, seconds=1)
            assert gateway.upstream.calls == []
