"""Return addresses of a checkout: any https or app URL without credentials, kept as given."""

import pytest

from booking_svc.bookings import return_addresses
from boxoffice.bookings.v1 import booking_service_pb2
from mesh.errors import DomainError
from mesh.rpc.validation import validate

BOOKING_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


def refused_field(url: str, *, is_http_allowed: bool = True) -> str | None:
    """The field that the contract's rules or the domain's refuse."""
    request = booking_service_pb2.CheckoutBookingRequest(
        booking_id=BOOKING_ID, provider="sandbox", success_url=url
    )
    try:
        validate(request)
        checked = return_addresses.checked(
            url, field="success_url", is_http_allowed=is_http_allowed
        )
    except DomainError as refusal:
        return refusal.violations[0].field
    assert checked == url
    return None


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/ok?s={CHECKOUT_SESSION_ID}",
        "HTTPS://shop.example/ok",
        "https://shop.example?a[]=1&b=%20",
        "https://shop.example/été/東京#danke",
        "https://zürich.example:8443/x@y",
        "myapp://paid",
        "com.example.shop:///paid/b1",
        "",
    ],
)
def test_https_and_app_addresses_are_kept_as_given(url: str) -> None:
    assert refused_field(url) is None
    assert refused_field(url, is_http_allowed=False) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://u:p@shop.example/",
        "https://u@shop.example",
        "https://shop.example\\@evil.example",
        "https://",
        "https:///paid",
        "https://:443/paid",
        "https://[::1/paid",
        "https:/shop.example",
        "//shop.example",
        "/paid",
        "paid",
        "https://shop.example/a b",
        "https://shop.example/\n",
        "javascript:alert(1)",
        "JavaScript://shop.example/%0aalert(1)",
        "data://text/html,x",
        "file:///etc/passwd",
        "ftp://shop.example/",
        "https://shop.example/" + "a" * 2000,
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    assert refused_field(url) == "success_url"


def test_http_is_for_development_only() -> None:
    assert refused_field("http://localhost:3000/paid") is None
    assert refused_field("HTTP://localhost:3000/paid", is_http_allowed=False) == "success_url"
