"""Forged webhooks: none is accepted, whatever was done to it. 10,000 of them with --long."""

from collections.abc import Callable

import pytest

from mesh.clock import system_clock
from mesh.errors import DomainError, Reason
from payment_svc.providers.base import Provider
from payment_svc.providers.razorpay.provider import RazorpayProvider
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.providers.stripe.provider import StripeProvider
from tests.payment_svc.forger import BODY, SECRET, Forger, plain, timed

NUMBER, LONG_NUMBER = 1_500, 10_000


@pytest.fixture
async def provider(request: pytest.FixtureRequest) -> Provider:
    nothing: dict[str, object] = {"secret_key": "sk", "api_base": None, "return_url": ""}
    if request.param == "stripe":
        return StripeProvider(webhook_secrets=[SECRET], clock=system_clock, **nothing)  # type: ignore[arg-type]
    if request.param == "razorpay":
        return RazorpayProvider(
            key_id="k",
            key_secret="s",
            webhook_secrets=[SECRET],
            api_base=None,
            clock=system_clock,
        )
    return SandboxProvider(
        None,  # type: ignore[arg-type] # reading a webhook needs no database
        system_clock,
        gateway_url="",
        secrets=[SECRET],
        webhook_queued=None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("provider", "header", "sign"),
    [
        ("stripe", "stripe-signature", timed),
        ("razorpay", "x-razorpay-signature", plain),
        ("sandbox", "x-sandbox-signature", timed),
    ],
    indirect=["provider"],
)
async def test_no_forged_webhook_is_accepted(
    provider: Provider,
    header: str,
    sign: Callable[[bytes, str, int], str],
    is_long: bool,
) -> None:
    now = system_clock()
    forger = Forger(header, sign, seed=5)
    # What they are made of counts.
    provider.read_webhook(BODY, {header: forger.good}, now=now)
    for _ in range(LONG_NUMBER if is_long else NUMBER):
        body, headers = forger.next()
        if headers.get(header) == forger.good and body == BODY:
            continue
        with pytest.raises(DomainError) as refusal:
            provider.read_webhook(body, headers, now=now)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
