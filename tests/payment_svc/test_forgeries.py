"""No forged webhook is accepted. With --long there are 10,000 of each provider."""

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
    if request.param == "stripe":
        return StripeProvider(
            secret_key="sk",
            webhook_secrets=[SECRET],
            api_base=None,
            return_url="",
            clock=system_clock,
        )
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
    # The original is genuine.
    provider.read_webhook(BODY, {header: forger.good}, now=now)
    for _ in range(LONG_NUMBER if is_long else NUMBER):
        body, headers = forger.next()
        if headers.get(header) == forger.good and body == BODY:
            continue
        with pytest.raises(DomainError) as refusal:
            provider.read_webhook(body, headers, now=now)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
