"""CORS: preflights and response headers for allowed origins only."""

import pytest

from testing.gateway_harness import Gateway

ORIGIN = "http://localhost:3000"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,idempotency-key",
}
PATHS = ["/api/v1/bookings", "/boxoffice.bookings.v1.BookingService/PlaceBooking"]


@pytest.mark.parametrize("path", PATHS)
def test_a_preflight_is_answered(gateway: Gateway, path: str) -> None:
    answer = gateway.rest.options(path, headers=PREFLIGHT | {"origin": ORIGIN})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-credentials"] == "true"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "idempotency-key", "x-request-id"} <= set(allowed)
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert gateway.upstream.calls == []


@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_origin_is_not_allowed(gateway: Gateway, path: str) -> None:
    headers = PREFLIGHT | {"origin": "https://elsewhere.example"}
    answer = gateway.rest.options(path, headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    assert gateway.upstream.calls == []


@pytest.mark.parametrize("path", ["/api/v1/events/e1", "/api/v1/bookings"])
def test_responses_and_errors_are_readable_by_the_page(gateway: Gateway, path: str) -> None:
    answer = gateway.rest.get(path, headers={"origin": ORIGIN})
    assert answer.status_code in {200, 401}
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-request-id", "x-ratelimit-remaining"} <= set(exposed)


def test_every_answer_has_the_security_headers(gateway: Gateway) -> None:
    for path in ("/api/v1/events/e1", "/api/v1/bookings", "/nothing"):
        headers = gateway.rest.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["server"] == "boxoffice"
